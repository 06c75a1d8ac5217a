"""Fixtures of the tests that run dispatchers against the server."""

from collections.abc import Iterator

import pytest
import structlog

from dispatcher.operate import pauses, retries
from dispatcher.parking import redelivery


@pytest.fixture
def plain_logs() -> Iterator[None]:
    """Tracebacks with all local variables take a tenth of a second each."""
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, plain_logs: None) -> None:
    """Whoever looks for what somebody asked for does so more often than once a second, and less is logged."""
    for module in (pauses, redelivery, retries):
        monkeypatch.setattr(module, "_LOOK", 0.02)
