"""Files of events that do not fit into a record of a topic."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from bson import Binary
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener

from dispatcher.core.resume_tokens import directly_after
from dispatcher.core.state import State
from dispatcher.kafka.large_events import LargeEvents

TOPIC = "mongoz.changes"
TOKEN = "82" + "65A1B2C3" + "00000001"
EVENT = bytes(range(256)) * 40_000
HOUR = 3_600.0
EXPIRED = timedelta(days=1, hours=1)


@pytest.fixture
def state(client: Any, database: str) -> State:
    return State(client, f"{database}_state")


@pytest.fixture
def files(state: State) -> LargeEvents:
    return LargeEvents(state, TOPIC)


class Writes(CommandListener):
    """The write concerns of all writes to files of large events."""

    def __init__(self) -> None:
        self.concerns: list[Any] = []

    def started(self, event: Any) -> None:
        if event.command_name in {"insert", "update", "delete"}:
            assert event.command[event.command_name].startswith("relayed.")
            self.concerns.append(event.command.get("writeConcern"))

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


async def now(client: Any) -> datetime:
    return (await client.admin.command("hello"))["localTime"]


async def dated(state: State, at: datetime) -> None:
    """Let all files have this date."""
    await state.database["relayed.files"].update_many({}, {"$set": {"uploadDate": at}})


async def test_a_file_is_written_once(files: LargeEvents, state: State) -> None:
    large = await files.add(TOKEN, EVENT)
    assert await files.add(TOKEN, EVENT) == large
    assert await files.read(large) == EVENT
    assert await state.database["relayed.files"].count_documents({}) == 1
    other = await files.add(directly_after(TOKEN), EVENT[:100])
    assert (await files.read(large), await files.read(other)) == (EVENT, EVENT[:100])


async def test_a_file_is_on_a_majority_before_its_record_is_published(mongo: Any, database: str) -> None:
    """Otherwise an election could remove the file of a record that the brokers keep."""
    writes = Writes()
    async with AsyncMongoClient(mongo.url, event_listeners=[writes]) as client:
        await LargeEvents(State(client, f"{database}_state"), TOPIC).add(TOKEN, EVENT)
    assert len(writes.concerns) >= 3  # the chunks, the file, and its date
    assert {concern["w"] for concern in writes.concerns} == {"majority"}


async def test_a_file_that_a_killed_process_has_begun_is_written_anew(files: LargeEvents, state: State) -> None:
    large = await files.add(TOKEN, EVENT)
    await state.database["relayed.files"].delete_many({})  # the driver writes this document last
    assert await files.read(large) is None
    assert await files.add(TOKEN, EVENT) == large
    assert await files.read(large) == EVENT
    chunk = {"files_id": Binary(large.id), "n": 0}
    await state.database["relayed.chunks"].update_one(chunk, {"$set": {"data": Binary(b"x")}})
    assert await files.read(large) is None
    await files.add(TOKEN, EVENT)
    assert await files.read(large) == EVENT


async def test_files_are_deleted_a_day_after_the_retention_of_the_topic(
    files: LargeEvents, state: State, client: Any
) -> None:
    large, other = await files.add(TOKEN, EVENT), await LargeEvents(state, "mongoz.other").add(TOKEN, EVENT)
    at = await now(client)
    await dated(state, at - EXPIRED + timedelta(minutes=1))
    assert await files.delete_old(HOUR, at) == 0
    await dated(state, at - EXPIRED - timedelta(minutes=1))
    assert await files.delete_old(float("inf"), at) == 0
    assert await files.read(large) == EVENT
    assert await files.delete_old(HOUR, at) == 1
    assert await files.read(large) is None
    assert await files.read(other) == EVENT
    assert await state.database["relayed.chunks"].count_documents({"files_id": Binary(large.id)}) == 0


async def test_an_old_file_that_a_new_record_names_is_kept(files: LargeEvents, state: State, client: Any) -> None:
    """The brokers were away for a long time, so the record is published long after its file was written."""
    large, at = await files.add(TOKEN, EVENT), await now(client)
    await dated(state, at - timedelta(days=9))
    await files.add(TOKEN, EVENT)
    assert await files.delete_old(HOUR, at) == 0
    assert await files.read(large) == EVENT
