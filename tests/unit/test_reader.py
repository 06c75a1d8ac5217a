"""The reader turns batches of a source into changes. The source reads a list."""

import datetime
from typing import Any
from unittest.mock import MagicMock

import bson
import pytest
from bson import Int64, ObjectId

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import Change, EventBatch, Start
from dispatcher.core.resume_tokens import token_at
from dispatcher.stream.lookup import DocumentLookup
from dispatcher.stream.reader import LostEvent, Reader, UnreadableEvent
from dispatcher.stream.source import Source
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.stamps import FIELD, Call, Stamp, key_hash
from tests.list_source import ListSource, event, token_of

NOW = 1_700_000_000
TRANSACTION = {"lsid": {"id": bson.Binary(b"1" * 16, 4), "uid": b"2"}, "txnNumber": Int64(1)}


def stamp(call: Call, id_: Any) -> Stamp:
    made = ObjectId(NOW.to_bytes(4, "big") + ObjectId().binary[4:])
    return Stamp("tests", call, made, key_hash("shop.things", id_))


def inserted(number: int, id_: Any, by: Stamp | None = None, **more: Any) -> bytes:
    document = {"_id": id_, **({} if by is None else {FIELD: by.pack()})}
    return event(number, "insert", id_, second=NOW, fullDocument=document, **more)


def marked(number: int, id_: Any) -> bytes:
    """The marker of a delete."""
    updated = {"updatedFields": {FIELD: stamp(Call.DELETED, id_).pack()}, "removedFields": []}
    more: dict[str, Any] = {"updateDescription": updated, "fullDocument": {"_id": id_}, **TRANSACTION}
    return event(number, "update", id_, second=NOW, **more)


def updated(number: int, id_: Any) -> bytes:
    changed = {"updatedFields": {"a": number}, "removedFields": []}
    more: dict[str, Any] = {"updateDescription": changed, "fullDocument": {"_id": id_, "a": number}, **TRANSACTION}
    return event(number, "update", id_, second=NOW, **more)


def deleted(number: int, id_: Any) -> bytes:
    return event(number, "delete", id_, second=NOW, **TRANSACTION)


UNREADABLE = event(2, "insert", 2, second=NOW)  # without a document


def reader_of(source: Source, **options: Any) -> Reader:
    images = DocumentLookup(MagicMock(), CODEC_OPTIONS, "")
    return Reader(source, images, group="tests", codec_options=CODEC_OPTIONS, **options)


async def everything(source: ListSource, **options: Any) -> list[Any]:
    """All changes that a reader returns for a source."""
    reader, read = reader_of(source, **options), []
    await reader.recall(token_at(bson.Timestamp(NOW, 0)))
    async for batch in source.batches(Start(cluster_time=bson.Timestamp(NOW, 0))):
        async for part in reader.read(batch):
            read += part if isinstance(part, list) else [part]
        if not batch.events:
            return read
    raise AssertionError("a source never ends")


def described(read: list[Any]) -> list[tuple[str, Any]]:
    return [(one.operation, one.id) for one in read]


async def test_changes_come_in_the_order_of_the_source():
    read = await everything(ListSource([inserted(number, number) for number in range(1, 8)]))
    assert described(read) == [("insert", number) for number in range(1, 8)]


async def test_a_stamp_counts_once():
    own = stamp(Call.CREATED, 1)
    first, copy = await everything(ListSource([inserted(1, 1, own), inserted(2, 1, own)]))
    assert first.origin == own
    assert copy.origin is None


async def test_a_stamp_from_before_the_position_does_not_count():
    own = stamp(Call.CREATED, 1)
    seen = [(own, datetime.datetime.fromtimestamp(NOW, datetime.UTC))]
    (copy,) = await everything(ListSource([inserted(1, 1, own)], seen))
    assert copy.origin is None


async def test_a_deferred_change_delays_no_other_change_and_comes_before_the_delete():
    """Each batch has three events."""
    read = await everything(ListSource([marked(1, 1), updated(2, 1), updated(3, 2), updated(4, 3), deleted(5, 1)]))
    assert described(read) == [
        ("marker", 1),
        ("deferred", 1),
        ("update", 2),
        ("update", 3),
        ("update", 1),
        ("delete", 1),
    ]
    marker, *_, delete = read
    assert delete.marker == marker.token
    assert delete.origin == marker.origin


@pytest.mark.parametrize(("finished", "markers"), [([1, 2], [""]), ([1, 2, 3], [""]), ([1], [""]), ([1, 4], [])])
async def test_a_delete_has_the_stamp_of_a_finished_marker(finished, markers):
    """A process that read a topic may have ended between a marker and its delete.

    Then the marker is finished, and the next process does not defer the changes between the two.
    """
    events = [marked(1, 1), updated(2, 1), inserted(3, 3, **TRANSACTION), deleted(4, 1)]
    tokens = {token_of(RawEvent(events[number - 1])) for number in finished}
    read = await everything(ListSource(events), is_finished=tokens.__contains__)
    operations = ["finished" if number in finished else name for number, name in enumerate(OPERATIONS, 1)]
    assert [one.operation for one in read] == operations
    assert [one.marker for one in read if one.operation == "delete"] == markers
    assert {one.origin is not None for one in read if one.operation == "delete"} <= {True}


OPERATIONS = ["marker", "update", "insert", "delete"]


async def test_a_finished_marker_without_a_delete_is_not_repeated():
    events = [marked(1, 1), updated(2, 1)]
    tokens = {token_of(RawEvent(events[0]))}
    read = await everything(ListSource(events), is_finished=tokens.__contains__)
    assert described(read) == [("finished", 1), ("update", 1)]


async def test_a_marker_without_a_delete_is_untouched_at_the_end_of_the_source():
    read = await everything(ListSource([marked(1, 1), updated(2, 1)]))
    assert described(read) == [("marker", 1), ("deferred", 1), ("untouched", 1), ("update", 1)]


async def test_the_rest_of_a_range_is_returned_on_request():
    reader = reader_of(ListSource())
    batch = EventBatch([RawEvent(marked(1, 1)), RawEvent(updated(2, 1))], "")
    assert [described(part) async for part in reader.read(batch)] == [[("marker", 1), ("deferred", 1)]]  # type: ignore[arg-type]
    assert described(reader.rest()) == [("untouched", 1), ("update", 1)]


async def test_an_undecodable_event_keeps_its_place():
    first, unreadable, last = await everything(ListSource([inserted(1, 1), UNREADABLE, inserted(3, 3)]))
    assert (first.id, last.id) == (1, 3)
    assert isinstance(unreadable, UnreadableEvent)
    assert unreadable.event == UNREADABLE
    assert unreadable.error.token == token_of(RawEvent(UNREADABLE))


async def test_a_lost_event_comes_before_its_batch():
    reader = reader_of(ListSource())
    batch = EventBatch([RawEvent(inserted(1, 1))], "b", lost_after="a", lost_why="no file")
    lost, changes = [part async for part in reader.read(batch)]
    assert lost == LostEvent("a", "b", "no file")
    assert described(changes) == [("insert", 1)]  # type: ignore[arg-type]


@pytest.mark.parametrize("finished", [[1, 2, 3], [2], []])
async def test_a_change_that_an_earlier_process_finished_is_not_delivered_and_keeps_its_place(finished):
    """A finished event that can't be decoded is left out: its dead letter exists already."""
    events = [inserted(1, 1), UNREADABLE, inserted(3, 3)]
    tokens = {token_of(RawEvent(events[number - 1])) for number in finished}
    read = await everything(ListSource(events), is_finished=tokens.__contains__)
    changes = [one for one in read if isinstance(one, Change)]
    assert [one.id for one in changes] == [1, 3]
    assert [one.id for one in changes if one.operation == "finished"] == [n for n in finished if n != 2]
    assert len(read) == (2 if 2 in finished else 3)


async def test_a_finished_delete_needs_no_marker():
    events = [marked(1, 1), deleted(2, 1)]
    tokens = {token_of(RawEvent(one)) for one in events}
    read = await everything(ListSource(events), is_finished=tokens.__contains__)
    assert described(read) == [("finished", 1), ("finished", 1)]


@pytest.mark.parametrize("may_be_finished", [True, False])
async def test_a_reader_asks_for_single_changes_only_if_some_may_be_finished(may_be_finished):
    events = [inserted(number, number) for number in (1, 2)]
    asked: list[str] = []

    def is_finished(token: str) -> bool:
        asked.append(token)
        return False

    source = ListSource(events)
    read = await everything(source, is_finished=is_finished, may_be_finished=lambda: may_be_finished)
    assert described(read) == [("insert", 1), ("insert", 2)]
    assert asked == ([token_of(RawEvent(one)) for one in events] if may_be_finished else [])
