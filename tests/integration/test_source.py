"""The dispatcher needs only the protocol of a source: here the source reads a list."""

import asyncio
import time
from typing import Any

import bson
import pytest
from bson import Int64, ObjectId
from bson.timestamp import Timestamp

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.resume_tokens import token_at, token_time
from dispatcher.exceptions import AccessDenied
from dispatcher.runtime import assembly
from mongoz.core.signals import post_delete, post_save
from mongoz.stamps import FIELD, Call, Stamp, key_hash
from tests.integration.deliveries import State
from tests.list_source import ListSource, event, token_of
from tests.support import dispatching, eventually

TRANSACTION = {"lsid": {"id": bson.Binary(b"1" * 16, 4), "uid": b"2"}, "txnNumber": Int64(1)}


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> ListSource:
    """Replaces the change stream."""
    listed = ListSource()
    monkeypatch.setattr(assembly, "ChangeStreamSource", lambda *_, **__: listed)
    return listed


def id_of(number: int) -> ObjectId:
    return ObjectId(f"{number:024x}")


class Writer:
    """Adds events to a source. Their times are later than all events of the server."""

    def __init__(self, source: ListSource, place: str) -> None:
        self._source = source
        self._place = place
        self._second = int(time.time()) + 60
        self._number = 0

    def write(self, operation: str, number: int, **more: Any) -> str:
        """Add an event; returns its token."""
        self._number += 1
        id_ = id_of(number)
        made = RawEvent(event(self._number, operation, id_, second=self._second, place=self._place, **more))
        self._source.events.append(made)
        return token_of(made)

    def insert(self, number: int) -> str:
        return self.write("insert", number, fullDocument={"_id": id_of(number), "name": "listed"})

    def mark(self, number: int, group: str) -> str:
        """Add the delete marker of a muted delete."""
        token = ObjectId(self._second.to_bytes(4, "big") + ObjectId().binary[4:])
        stamp = Stamp(group, Call.DELETED, token, key_hash(self._place, id_of(number)), muted=True)
        changed = {"updatedFields": {FIELD: stamp.pack()}, "removedFields": []}
        document = {"_id": id_of(number), "name": "gone"}
        return self.write("update", number, updateDescription=changed, fullDocument=document, **TRANSACTION)


@pytest.fixture
def writer(source: ListSource, database: str) -> Writer:
    return Writer(source, f"{database}.accounts")


def numbers_of(account: Any, connect: Any) -> list[int]:
    """Connects a receiver, and returns the numbers of the documents that it gets."""
    numbers: list[int] = []

    @connect(account, name="listed")
    async def listed(sender, instance, **kwargs):
        numbers.append(int(str(instance.id), 16))

    return numbers


async def test_events_from_a_list_are_delivered_and_the_position_follows(
    account, dispatched, foreign, source, writer
):
    got = numbers_of(account, post_save)
    async with dispatching(dispatched):
        for number in range(1, 8):
            writer.insert(number)
        await eventually(lambda: len(got) == 7, what="all changes are delivered")
        last = writer.insert(8)
        await eventually(lambda: State(foreign).token >= last, what="the position is saved")
    assert sorted(got) == list(range(1, 9))
    got.clear()
    writer.insert(9)
    async with dispatching(dispatched):
        await eventually(lambda: got, what="the dispatcher goes on after the position")
    assert got == [9]


async def test_a_delete_from_a_list_has_the_stamp_of_its_marker(account, dispatched, foreign, source, writer):
    """A muted delete is not delivered, and a foreign delete is delivered."""
    got = numbers_of(account, post_delete)
    async with dispatching(dispatched) as running:
        writer.mark(1, dispatched.dispatched)
        writer.write("delete", 1, **TRANSACTION)
        last = writer.write("delete", 2, **TRANSACTION)
        await eventually(lambda: running.service.position >= last, what="all changes are finished")
    assert got == [2]


async def test_an_event_that_can_not_be_decoded_becomes_a_dead_letter(
    account, dispatched, foreign, source, writer
):
    got = numbers_of(account, post_save)
    async with dispatching(dispatched):
        token = writer.write("insert", 1)  # without its document
        writer.insert(2)
        letter = await State(foreign).letter()
        await eventually(lambda: got == [2], what="the next change is delivered")
    assert letter["receiver"] is None
    assert letter["token"] == token


async def test_history_that_a_list_does_not_hold_is_a_gap_and_the_dispatcher_goes_on(
    account, dispatched, foreign, source, writer
):
    got = numbers_of(account, post_save)
    source._forgets = True
    first = writer.insert(1)
    async with dispatching(dispatched, on_history_lost="resume"):
        gap = await eventually(State(foreign).database["gaps"].find_one, what="the gap is recorded")
        writer.insert(2)
        await eventually(lambda: got, what="the dispatcher goes on after the gap")
    assert gap["kind"] == "history_lost"
    assert gap["to_time"] == token_time(first)
    assert got == [2]


@pytest.mark.parametrize(("count", "requested"), [(300, 2), (50, 1)], ids=["full", "small"])
async def test_after_a_full_batch_the_next_batch_is_requested_immediately(
    account, dispatched, foreign, source, writer, count, requested
):
    """A small batch is delivered before the next one is requested."""
    got: list[int] = []
    gate = asyncio.Event()

    @post_save(account, name="listed")
    async def listed(sender, instance, **kwargs):
        await gate.wait()
        got.append(int(str(instance.id), 16))

    for number in range(1, count + 1):
        writer.insert(number)
    async with dispatching(dispatched, batch_size=100, concurrency=1, max_queued=1) as running:
        await eventually(lambda: running.service.gauges()[0].in_flight, what="the first delivery has begun")
        await eventually(lambda: source.requested >= requested, what="the next batch is requested")
        for _ in range(100):  # nothing more happens although all tasks run
            await asyncio.sleep(0)
        assert source.requested == requested
        gate.set()
        await eventually(lambda: len(got) == count, what="all changes are delivered")
    assert sorted(got) == list(range(1, count + 1))


async def test_an_error_of_the_source_ends_the_dispatcher_while_a_batch_waits(
    account, dispatched, foreign, source, writer
):
    @post_save(account, name="listed")
    async def listed(sender, instance, **kwargs):
        """Does nothing."""

    source.fails_after = 1
    for number in range(1, 301):
        writer.insert(number)
    with pytest.raises(AccessDenied, match="the list is closed"):
        async with dispatching(dispatched, batch_size=100) as running:
            await running.task


def test_the_token_of_a_time_sorts_before_its_changes():
    time_ = Timestamp(1_700_000_000, 1)
    assert token_at(time_) < token_of(RawEvent(event(1, "insert", 1, second=1_700_000_000)))
    assert token_time(token_at(time_)) == time_
