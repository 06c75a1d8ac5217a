"""Counting the state has a time limit."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import datetime

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import ExecutionTimeout
from typer.testing import CliRunner

from dispatcher.cli import app
from dispatcher.core.state import Group, State
from dispatcher.core.stats import Gauges, Stats
from dispatcher.embedded.server import embedded_mongo
from dispatcher.operate import status
from dispatcher.operate.observer import Observer
from dispatcher.operate.status import read_status
from dispatcher.settings import Settings
from tests.support import eventually

WELL = Gauges(True, 0, 0, 0, 0.0, 0.0, 1_000.0, 0.0)
OF_GROUP = {"group": "g", "receiver": "r", "signal": "post_save"}
LETTER = {**OF_GROUP, "state": "dead", "reason": "failed"}
PARKED = {**OF_GROUP, "state": "retrying", "lane": "l", "due_at": datetime(2026, 1, 1)}


@pytest.fixture(scope="module")
def never_in_time() -> Iterator[str]:
    """Every command with a time limit exceeds the limit. The state has 5 documents of each kind."""
    with embedded_mongo(extra_args=("--setParameter", "enableTestCommands=1")) as server:
        with MongoClient(server.url) as client:
            for name, document in (("held", LETTER), ("held", PARKED), ("gaps", {**OF_GROUP, "kind": "k"})):
                client["mongoz_dispatcher"][name].insert_many([dict(document) for _ in range(5)])
            client["mongoz_dispatcher"]["positions"].insert_one({"_id": "g", "group": "g", "partitions": 1})
            client.admin.command("configureFailPoint", "maxTimeAlwaysTimeOut", mode="alwaysOn")
            with pytest.raises(ExecutionTimeout):
                client["any"]["any"].count_documents({}, maxTimeMS=60_000)
        yield server.url


@pytest.fixture
async def client(never_in_time: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncMongoClient]:
    monkeypatch.setattr(status, "_COUNTED", 3)
    monkeypatch.setattr(status, "_MOST_GAPS", 2)
    async with AsyncMongoClient(never_in_time) as client:
        yield client


async def test_a_count_that_takes_too_long_is_a_lower_bound(client):
    seen = await read_status(Group(State(client, "mongoz_dispatcher"), "g"))
    assert (seen.dead_letter_count, seen.parked[0].documents, seen.parked_deliveries, seen.gap_count) == (
        3,
        3,
        3,
        3,
    )
    assert seen.as_dict()["at_least"] == ["dead_letters", "gap_count", "parked", "parked_deliveries"]


@pytest.mark.parametrize("gaps", [19, 20, 21])
async def test_a_count_in_time_is_exact(mongo, database, gaps):
    async with AsyncMongoClient(mongo.url) as client:
        await client[database]["held"].insert_many([dict(LETTER) for _ in range(5)])
        await client[database]["gaps"].insert_many([{"group": "g", "kind": "k"} for _ in range(gaps)])
        seen = await read_status(Group(State(client, database), "g"))
    assert (seen.dead_letter_count, seen.at_least) == (5, [])
    assert (seen.gap_count, len(seen.gaps)) == (gaps, min(gaps, 20))


def test_status_shows_a_partial_count_as_at_least(never_in_time, monkeypatch):
    monkeypatch.setattr(status, "_COUNTED", 3)
    monkeypatch.setattr(status, "_MOST_GAPS", 2)
    ended = CliRunner().invoke(app, ["status", "--url", never_in_time, "--group", "g"])
    assert ended.exit_code == 0, ended.output
    said = " ".join(ended.output.split())
    assert "dead letters at least 3" in said
    assert "parked at least 3 deliveries" in said
    assert "gaps at least 3" in said


@pytest.mark.parametrize("error", [TimeoutError, ExecutionTimeout, ValueError])
async def test_a_status_that_can_not_be_read_does_not_affect_readiness(error, mongo, monkeypatch):
    tried = asyncio.Event()

    async def fail(*_: object) -> None:
        tried.set()
        raise error("it takes too long")

    monkeypatch.setattr(status, "read_status", fail)
    observer = Observer(Stats(), group="g", settings=Settings(), gauges=lambda: {0: WELL})
    observer.begin(asyncio.Event())
    async with AsyncMongoClient(mongo.url) as client:
        tasks = observer.watch(Group(State(client, observer.name), "g"))
        try:
            await eventually(tried.is_set, within=30)
            await eventually(lambda: observer.snapshot().oplog_begins is not None, within=30)
            assert observer.not_ready() == []
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
