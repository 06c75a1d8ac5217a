"""Fixtures of the tests that run dispatchers against the server."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from pymongo import AsyncMongoClient

import mongoz
from dispatcher.embedded.broker import EmbeddedBroker
from dispatcher.operate import dead_letters, pauses
from tests.integration.claiming import Held
from tests.integration.deliveries import make_account
from tests.integration.relaying import make_document, relay_name

if TYPE_CHECKING:
    from tests.kafka.publisher import Publisher


def pytest_asyncio_loop_factories(
    config: pytest.Config,
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run these tests on uvloop, as the daemon does. Unit tests run on asyncio's own loop."""
    return {"uvloop": uvloop.new_event_loop}


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
def account(dispatched: mongoz.Registry, database: str) -> Any:
    """A document class of the registry, see `make_account`."""
    return make_account(dispatched, database)


@pytest.fixture
def order(dispatched: mongoz.Registry, database: str) -> Any:
    """A document class whose collection a relay publishes."""
    return make_document(dispatched, database, "orders")


@pytest.fixture
def state(foreign: Any, database: str) -> Any:
    """The state database of the group."""
    return foreign.client[f"{database}_state"]


@pytest.fixture
def announced(state: Any, database: str) -> None:
    """The state says that the group takes over claims, although no dispatcher runs."""
    state.positions.insert_one({"_id": database, "partitions": 1, "group": database, "claims": True})


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary directories of the test."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.fixture
async def publisher(broker: EmbeddedBroker, client: AsyncMongoClient[Any], database: str) -> "Publisher":
    """A small relay that publishes events of the collection `accounts`."""
    from tests.kafka.publisher import begun

    return await begun(broker.address, client, database)


@pytest.fixture
async def held(mongo: Any, database: str) -> AsyncIterator[Held]:
    """A writing process with a receiver that waits."""
    made = Held(mongo.url, database)
    yield made
    await made.finish()
    await made.registry.close()
