"""Fixtures of the tests that run dispatchers against the server."""

import pytest

from dispatcher.operate import dead_letters, pauses


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatchers read requests of operators more often than once a second."""
    for module in (pauses, dead_letters):
        monkeypatch.setattr(module, "_LOOK", 0.02)
