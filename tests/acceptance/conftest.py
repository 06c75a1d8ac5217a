"""Fixtures of the tests that run commands."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.commands import Dispatcher, run_command
from tests.conftest import need
from tests.support import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def dispatcher(mongo, database, monkeypatch) -> Dispatcher:
    """A function that runs a command on the test's own state."""
    monkeypatch.setenv("DISPATCHER_URL", mongo.url)
    monkeypatch.setenv("DISPATCHER_STATE_DATABASE", f"{database}_state")
    return run_command


# With these flags, Chromium works as root, and sends no requests of its own.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import expect, sync_playwright

    chromium = need("chromium")
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=FLAGS)
