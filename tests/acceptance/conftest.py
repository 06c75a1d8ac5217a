"""Fixtures of the tests that run commands."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.commands import Dispatcher, run_command
from tests.conftest import need
from tests.support import PATIENCE, Daemon, daemon

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


@pytest.fixture
def mended(tmp_path: Path) -> Path:
    """When a test creates this file, the receiver `breaks` fails no longer."""
    return tmp_path / "mended"


@pytest.fixture
def shown(mongo, database, mended, tmp_path) -> Iterator[Daemon]:
    """The dispatcher whose dashboard a test opens."""
    from tests.acceptance.pages import APP, TOKEN

    environment = {"SHOWN_URL": mongo.url, "SHOWN_GROUP": database, "SHOWN_MENDED": str(mended)}
    settings = {
        "DISPATCHER_HTTP_TOKEN": TOKEN,
        "DISPATCHER_STATE_DATABASE": f"{database}_state",
        "DISPATCHER_HTTP": "127.0.0.1:0",
    }
    with daemon(APP, cwd=tmp_path, **environment, **settings) as running:
        yield running
