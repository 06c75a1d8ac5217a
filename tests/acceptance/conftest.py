"""Fixtures of the tests that run commands."""

import pytest

from tests.acceptance.commands import Dispatcher, run_command


@pytest.fixture
def dispatcher(mongo, database, monkeypatch) -> Dispatcher:
    """Runs a command about the test's own state."""
    monkeypatch.setenv("DISPATCHER_URL", mongo.url)
    monkeypatch.setenv("DISPATCHER_STATE_DATABASE", f"{database}_state")
    return run_command
