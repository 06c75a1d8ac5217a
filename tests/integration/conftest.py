"""Fixtures of the tests that run dispatchers against the server."""

from typing import Any

import pytest

import mongoz
from dispatcher.operate import dead_letters, pauses
from tests.integration.relaying import make_document, relay_name


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatchers read requests of operators more often than once a second."""
    for module in (pauses, dead_letters):
        monkeypatch.setattr(module, "_LOOK", 0.02)


@pytest.fixture
def name() -> str:
    """A relay name that no other test uses."""
    return relay_name()


@pytest.fixture
def order(dispatched: mongoz.Registry, database: str) -> Any:
    """A document class whose collection a relay publishes."""
    return make_document(dispatched, database, "orders")
