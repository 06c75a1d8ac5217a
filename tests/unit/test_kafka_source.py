"""The source that reads a topic, on a log in memory: accepted records, saved places, lost history, stamps."""

import asyncio
import contextlib
import datetime
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from unittest.mock import MagicMock

import bson
import pytest
from bson import Int64, ObjectId, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import TOO_LARGE, Change, EventBatch, Job, LogPlace, Start
from dispatcher.core.resume_tokens import shortened, token_at
from dispatcher.core.stats import TopicFigures
from dispatcher.exceptions import HistoryLost, TopicError
from dispatcher.kafka.acceptance import LogPosition
from dispatcher.kafka.complete import CompletedTopic
from dispatcher.kafka.envelope import (
    Envelope,
    GapNotice,
    LargeEvent,
    MalformedRecord,
    decode,
    encode,
    encode_gap,
    encode_large,
    token_in,
)
from dispatcher.kafka.log import OutOfRange, TopicRecord
from dispatcher.kafka.looks import Look
from dispatcher.kafka.merged import MergedTopic
from dispatcher.kafka.records import take_plain
from dispatcher.kafka.source import KafkaSource
from dispatcher.position.places import Places
from dispatcher.position.tracker import Tracker
from dispatcher.stream.reader import LostEvent
from mongoz.stamps import FIELD, Call, Stamp, key_hash
from tests.list_source import ListSource, event
from tests.support import PATIENCE
from tests.unit.test_reader import NOW, described, reader_of

TOPIC = "id-1"
START = token_at(Timestamp(NOW, 0))
TRANSACTION: dict[str, Any] = {"lsid": {"id": bson.Binary(b"1" * 16, 4), "uid": b"2"}, "txnNumber": Int64(1)}


def made(number: int) -> bytes:
    return event(number, "insert", number, second=NOW, fullDocument={"_id": number})


def token(number: int) -> str:
    return str(bson.decode(made(number))["_id"]["_data"])


class MemoryLog:
    """A partition in memory.

    Attributes:
        records: the records with their offsets.
        term: the highest term of the relay that the source knows.
        next_term: the highest term that the next `look` finds.
        is_open: whether a source reads the partition.
        searched_from: the offset at which the search for a token begins; None for the first record.
        is_paused: reads return nothing, even where they would raise `OutOfRange` otherwise.
    """

    name = "partition 0 of the topic 'test'"
    connected = True

    def __init__(self, *values: bytes) -> None:
        self.records = list[TopicRecord](enumerate(values))
        self.topic_id = TOPIC
        self.beginning = 0
        self.term = 9
        self.relay = LogPosition(0, 0, -1, START)
        self.committed = -1
        self.ends_early = False
        self._offset = 0
        self.next_term = 9
        self.is_open = False
        self.searched_from: int | None = None
        self.is_paused = False

    @property
    def is_read(self) -> bool:
        """Whether the reader has read all records."""
        return not self.records or self._offset > self.records[-1][0]

    def add(self, *values: bytes) -> None:
        """Append records."""
        first = self.records[-1][0] + 1 if self.records else 0
        self.records += [(first + i, value) for i, value in enumerate(values)]

    def retain(self, beginning: int) -> None:
        """Remove the first records."""
        self.beginning = beginning
        self.records = [one for one in self.records if one[0] >= beginning]

    async def seek(self, offset: int) -> None:
        self._offset = offset
        self.is_open = True

    async def leave(self) -> None:
        self.is_open = False

    async def read(self, most: int) -> list[TopicRecord]:
        await asyncio.sleep(0)
        if self.is_paused:
            return []
        if self._offset < self.beginning or self.ends_early:
            self.ends_early = False
            raise OutOfRange
        found = [one for one in self.records if one[0] >= self._offset][:most]
        if found:
            self._offset = found[-1][0] + 1
        return found

    def newest(self) -> Look:
        return Look(self.topic_id, self.beginning, self.term, self.relay)

    async def look(self) -> Look:
        self.term = self.next_term
        return self.newest()

    async def offset_at(self, seconds: float) -> int:
        """Every record was appended at the time of its event."""
        if self.searched_from is not None:
            return self.searched_from
        return self.records[0][0] if self.records and seconds <= NOW else -1

    async def end(self) -> int:
        return self.records[-1][0] + 1 if self.records else self.beginning

    def commit(self, offset: int) -> None:
        self.committed = offset


def place(offset: int, term: int, number: int) -> LogPlace:
    return LogPlace(TOPIC, offset, term, number)


FIRST = Start(token=START, place=place(0, 0, -1))


def source_of(
    log: MemoryLog,
    start: Start = FIRST,
    *,
    size: int = 100,
    large: bytes | None = None,
    saved: LogPlace | None = None,
) -> KafkaSource:
    async def read_large(_large: LargeEvent) -> bytes | None:
        return large

    return KafkaSource(
        log, start, batch_size=size, read_large=read_large, saved=lambda: saved, figures=TopicFigures()
    )


async def batches_of(log: MemoryLog, start: Start = FIRST, **options: Any) -> list[EventBatch]:
    """All batches up to the end of the log, and the empty batch after it."""
    source, found = source_of(log, start, **options), []
    async with aclosing(source.batches(start)) as batches:
        async for batch in batches:
            found.append(batch)
            if not batch.events and batch.lost_after is None and log.is_read:
                return found
    raise AssertionError("a source never ends")


def tokens(batches: list[EventBatch]) -> list[str]:
    return [one["_id"]["_data"] for batch in batches for one in batch.events]


async def test_records_come_in_order_with_the_place_after_each_batch() -> None:
    log = MemoryLog(*(encode(3, i, made(i + 1)) for i in range(5)))
    batches = await batches_of(log, size=2)
    assert tokens(batches) == [token(i + 1) for i in range(5)]
    assert [(one.token, one.place) for one in batches] == [
        (token(2), place(2, 3, 1)),
        (token(4), place(4, 3, 3)),
        (token(5), place(5, 3, 4)),
        (token(5), place(5, 3, 4)),
    ]


@pytest.mark.parametrize(("topic_id", "committed"), [(TOPIC, 3), ("id-0", -1)])
async def test_the_tools_of_kafka_see_the_saved_offset_of_this_topic(topic_id: str, committed: int) -> None:
    log = MemoryLog(*(encode(3, i, made(i + 1)) for i in range(5)))
    await batches_of(log, saved=LogPlace(topic_id, 3, 3, 2))
    assert log.committed == committed


async def test_events_that_a_second_term_repeats_come_once_and_a_zombie_is_refused() -> None:
    log = MemoryLog(
        encode(3, 0, made(1)),
        encode(3, 1, made(2)),
        encode(4, 0, made(2)),
        encode(4, 1, made(3)),
        encode(3, 2, made(3)),  # a record of the zombie
        encode(4, 2, made(4)),
    )
    batches = await batches_of(log)
    assert tokens(batches) == [token(1), token(2), token(3), token(4)]
    assert batches[-1].place == place(6, 4, 2)


async def test_records_of_a_relay_that_the_state_does_not_know_are_not_delivered() -> None:
    log = MemoryLog(encode(3, 0, made(1)), encode(10, 0, made(2)))
    async with aclosing(source_of(log).batches(FIRST)) as batches:
        batch = await anext(batches)
        assert (tokens([batch]), batch.place) == ([token(1)], place(1, 3, 0))
        with pytest.raises(TopicError, match=r"has records of the term 10, but the highest term .* is 9"):
            await anext(batches)


async def test_a_term_that_the_relay_has_just_taken_is_known_after_a_look() -> None:
    log = MemoryLog(encode(9, 0, made(1)), encode(10, 0, made(2)))
    log.next_term = 10
    assert tokens(await batches_of(log)) == [token(1), token(2)]


async def test_a_saved_term_of_another_relay_is_refused() -> None:
    with pytest.raises(TopicError, match="has records of the term 12"):
        await batches_of(MemoryLog(), Start(token=START, place=place(0, 12, 0)))


async def test_refused_records_move_the_offset() -> None:
    log = MemoryLog(encode(3, 0, made(1)), encode(3, 2, made(3)), encode(3, 3, made(4)))
    batches = await batches_of(log)
    assert tokens(batches) == [token(1)]
    assert batches[-1].place == place(3, 3, 0)
    log.add(encode(4, 0, made(2)), encode(4, 1, made(3)))
    batches = await batches_of(log, Start(token=batches[-1].token, place=batches[-1].place))
    assert tokens(batches) == [token(2), token(3)]


async def test_an_idle_partition_gets_the_token_of_the_relay() -> None:
    log = MemoryLog(encode(3, 0, made(1)))
    log.relay = LogPosition(1, 3, 0, token(7))
    batches = await batches_of(log)
    assert batches[-1].token == token(7)
    log.add(encode(3, 1, made(2)))
    log.relay = LogPosition(2, 3, 1, token(8))  # the record before this position is still to be read
    assert (await batches_of(log, Start(token=token(1), place=place(1, 3, 0))))[0].token == token(2)


async def test_the_relays_token_does_not_pass_records_that_are_still_to_be_read() -> None:
    log = MemoryLog()
    log.relay = LogPosition(5, 3, 4, token(7))
    assert (await batches_of(log))[-1].token == START


# -- lost history -------------------------------------------------------------------------------------------


async def lost(log: MemoryLog, start: Start = FIRST) -> tuple[HistoryLost, Start]:
    """The error about lost history, and the start after the lost changes."""
    source = source_of(log, start)
    async with asyncio.timeout(PATIENCE), aclosing(source.batches(start)) as batches:
        with pytest.raises(HistoryLost) as caught:
            async for _ in batches:
                pass
    return caught.value, await source.now()


async def test_records_that_retention_removed_are_lost_history() -> None:
    log = MemoryLog(*(encode(3, i, made(i + 1)) for i in range(6)))
    log.retain(4)
    log.relay = LogPosition(5, 3, 4, token(5))
    error, after = await lost(log)
    assert "partition 0 of the topic 'test', offset 0" in str(error)
    assert "--on-history-lost" in error.remedy
    assert after == Start(token=token(5), place=place(5, 3, 4))
    assert tokens(await batches_of(log, after)) == [token(6)]


async def test_a_log_that_begins_after_the_position_has_lost_history_even_if_nothing_is_read() -> None:
    log = MemoryLog(encode(3, 0, made(1)), encode(3, 1, made(2)))
    log.relay = LogPosition(2, 3, 1, token(2))
    log.retain(2)
    log.is_paused = True
    _, after = await lost(log, Start(token=token(1), place=place(1, 3, 0)))
    assert after == Start(token=token(2), place=place(2, 3, 1))


async def test_an_emptied_quiet_partition_is_no_lost_history() -> None:
    log = MemoryLog(encode(3, 0, made(1)))
    log.relay = LogPosition(1, 3, 0, token(1))
    log.records, log.beginning = [], 1
    batches = await batches_of(log, Start(token=token(1), place=place(1, 3, 0)))
    assert batches[-1].place == place(1, 3, 0)


async def test_refused_records_that_retention_removed_are_no_lost_history() -> None:
    log = MemoryLog(encode(3, 0, made(1)), *(encode(2, i, made(i + 1)) for i in range(4)), encode(3, 1, made(2)))
    log.relay = LogPosition(1, 3, 0, token(1))
    log.retain(4)
    batches = await batches_of(log, Start(token=token(1), place=place(1, 3, 0)))
    assert tokens(batches) == [token(2)]


async def test_a_topic_that_was_created_again_is_lost_history() -> None:
    log = MemoryLog(encode(9, 0, made(5)))
    log.topic_id = "id-2"
    log.relay = LogPosition(0, 0, -1, token(4))
    error, after = await lost(log, Start(token=token(2), place=place(2, 3, 1)))
    assert "deleted" in str(error)
    assert after == Start(token=token(4), place=LogPlace("id-2", 0, 0, -1))
    assert tokens(await batches_of(log, after)) == [token(5)]


async def test_a_topic_that_is_created_again_while_a_reader_runs_is_lost_history() -> None:
    log = MemoryLog(encode(3, 0, made(1)))
    source = source_of(log)
    async with aclosing(source.batches(FIRST)) as batches:
        assert tokens([await anext(batches)]) == [token(1)]
        log.topic_id = "id-2"
        with pytest.raises(HistoryLost, match="deleted, and created again"):
            await anext(batches)


async def test_a_record_that_the_relay_counts_but_the_broker_lost_is_lost_history() -> None:
    log = MemoryLog(encode(3, 0, made(1)), encode(3, 2, made(3)), encode(3, 3, made(4)))
    log.relay = LogPosition(2, 3, 2, token(3))
    error, after = await lost(log)
    assert "lacks records" in str(error)
    assert after == Start(token=token(3), place=place(2, 3, 2))


async def test_a_log_that_ends_before_the_position_is_lost_history() -> None:
    log = MemoryLog(encode(3, 0, made(1)))
    log.ends_early = True
    log.relay = LogPosition(3, 3, 2, token(3))
    error, after = await lost(log, Start(token=token(3), place=place(3, 3, 2)))
    assert "ends before" in str(error)
    assert after.place == place(1, 3, 2)


async def test_history_that_the_relay_lost_is_lost_for_readers_which_continue_after_it() -> None:
    gap = GapNotice(token(3), "history_lost", token(1), token(3), "resume")
    log = MemoryLog(encode(3, 0, made(1)), encode_gap(3, 1, gap), encode(3, 2, made(4)))
    _, after = await lost(log)
    assert after == Start(token=token(3), place=place(2, 3, 1))
    assert tokens(await batches_of(log, after)) == [token(4)]


async def test_a_gap_of_one_event_comes_in_the_order_of_the_events() -> None:
    gap = GapNotice(token(2), "oversize", token(1), token(2))
    log = MemoryLog(encode(3, 0, made(1)), encode_gap(3, 1, gap), encode(3, 2, made(3)))
    first, lost_one, last, _ = await batches_of(log)
    assert (tokens([first]), tokens([last])) == ([token(1)], [token(3)])
    assert (lost_one.lost_after, lost_one.token, lost_one.place) == (token(1), token(2), place(2, 3, 1))
    assert [part async for part in reader_of(source_of(log)).read(lost_one)] == [
        LostEvent(token(1), token(2), TOO_LARGE)
    ]


@pytest.mark.parametrize("there", [True, False])
async def test_a_large_event_is_read_from_the_state(there: bool) -> None:
    named = encode_large(3, 1, LargeEvent(token(2), b"id", 1))
    log = MemoryLog(encode(3, 0, made(1)), named, encode(3, 2, made(3)))
    batches = await batches_of(log, large=made(2) if there else None)
    assert tokens(batches) == [token(1), *([token(2)] if there else []), token(3)]
    assert [one.lost_after for one in batches] == [None, None if there else token(1), None, None]
    assert ("its file" in batches[1].lost_why) is not there


async def test_a_large_event_with_a_long_key_moves_the_position_to_its_whole_token() -> None:
    whole = bson.decode(made(2))
    whole["_id"]["_data"] += "AB" * 3_000
    event_ = bson.encode(whole)
    long = str(whole["_id"]["_data"])
    named = encode_large(3, 1, LargeEvent(shortened(long), b"id", 1))
    again = encode_large(4, 0, LargeEvent(shortened(long), b"id", 1))
    log = MemoryLog(encode(3, 0, made(1)), named, again, encode(4, 1, made(3)))
    batches = await batches_of(log, large=event_)
    assert tokens(batches) == [token(1), long, token(3)]
    assert [one.token for one in batches] == [token(1), long, token(3), token(3)]


# -- changes that the topic has lost, but the oplog still holds ---------------------------------------------------


def completed(
    log: MemoryLog, *events: bytes, start: Start = FIRST, size: int = 100, forgets: bool = False
) -> CompletedTopic:
    """The topic, completed by an oplog with these events."""
    topic = source_of(log, start, size=size)
    return CompletedTopic(topic, ListSource(events, forgets=forgets), asyncio.Semaphore(1))


async def events_of(source: CompletedTopic, start: Start, log: MemoryLog, most: int = 1_000) -> list[EventBatch]:
    """All batches up to the end of the log, and the empty batch after it, but at most `most` batches."""
    found: list[EventBatch] = []
    async with aclosing(source.batches(start)) as batches:
        async for batch in batches:
            found.append(batch)
            if len(found) == most or (not batch.events and batch.place is not None and log.is_read):
                return found
    raise AssertionError("a source never ends")


def retained(beginning: int = 4) -> MemoryLog:
    """A log with six records, of which retention has removed the first ones."""
    log = MemoryLog(*(encode(3, i, made(i + 1)) for i in range(6)))
    log.retain(beginning)
    log.relay = LogPosition(5, 3, 4, token(5))
    return log


async def test_changes_that_retention_removed_come_from_the_oplog() -> None:
    log = retained()
    batches = await events_of(completed(log, *(made(i) for i in range(1, 9))), FIRST, log)
    assert tokens(batches) == [token(i) for i in range(1, 7)]
    assert [one.place is None for one in batches if one.events] == [True, True, False]
    assert batches[-1].place == place(6, 3, 5)


async def test_changes_of_a_deleted_topic_come_from_the_oplog() -> None:
    log = MemoryLog(encode(9, 0, made(5)))
    log.topic_id = "id-2"
    log.relay = LogPosition(0, 0, -1, token(4))
    start = Start(token=token(2), place=place(2, 3, 1))
    batches = await events_of(completed(log, *(made(i) for i in range(1, 9)), start=start), start, log)
    assert tokens(batches) == [token(3), token(4), token(5)]


async def test_history_that_the_relay_skipped_comes_from_the_oplog() -> None:
    gap = GapNotice(token(3), "history_lost", token(1), token(3), "resume")
    log = MemoryLog(encode(3, 0, made(1)), encode_gap(3, 1, gap), encode(3, 2, made(4)))
    batches = await events_of(completed(log, *(made(i) for i in range(1, 9))), FIRST, log)
    assert tokens(batches) == [token(i) for i in range(1, 5)]


@pytest.mark.parametrize("count", range(1, 6))
async def test_a_process_that_ends_while_it_reads_the_oplog_continues_after_its_token(count: int) -> None:
    """The saved place is still the place before the oplog was read."""
    log, oplog = retained(), [made(i) for i in range(1, 9)]
    first = await events_of(completed(log, *oplog), FIRST, log, most=count)
    start = Start(token=first[-1].token, place=first[-1].place or FIRST.place)
    second = await events_of(completed(log, *oplog, start=start), start, log)
    assert tokens(first) + tokens(second) == [token(i) for i in range(1, 7)]


async def test_changes_that_neither_the_topic_nor_the_oplog_has_are_lost() -> None:
    log = retained()
    source = completed(log, *(made(i) for i in range(3, 9)), forgets=True)
    with pytest.raises(
        HistoryLost, match=r"that the relay counts .* The oplog does not hold them either"
    ) as caught:
        await events_of(source, FIRST, log)
    assert "--on-history-lost" in caught.value.remedy
    after = await source.now()
    assert after == Start(token=token(5), place=place(5, 3, 4))
    assert tokens(await events_of(source, after, log)) == [token(6)]


async def test_a_change_stream_waits_until_another_one_has_ended() -> None:
    log, streams = retained(), asyncio.Semaphore(0)
    topic = source_of(log)
    source = CompletedTopic(topic, ListSource([made(i) for i in range(1, 9)]), streams)
    async with aclosing(source.batches(FIRST)) as batches:
        assert await anext(batches) == EventBatch([], START)
        streams.release()
        assert tokens([await anext(batches)]) == [token(1), token(2), token(3)]
        assert streams.locked()


@pytest.mark.parametrize("known", [0, 1, 2])
async def test_a_delete_from_the_oplog_has_the_stamp_of_its_marker(known: int) -> None:
    """The position may lie between marker and delete. The marker itself is not delivered."""
    own = [stamp(Call.DELETED, 1), stamp(Call.DELETED, 1)]
    oplog = [marker(1, own[0]), deleted(2), made(3)]
    log = MemoryLog(encode(3, 0, deleted(2), own[0].pack()), encode(3, 1, made(3)), encode(3, 2, made(4)))
    log.retain(2)
    log.relay = LogPosition(2, 3, 1, token(3))
    start = Start(token=token(known), place=place(0, 0, -1)) if known else FIRST
    source = completed(log, *oplog, start=start)
    changes = [
        change
        async for batch in as_async(await events_of(source, start, log))
        async for part in reader_of(source).read(batch)
        for change in part
    ]
    assert [(one.operation, one.origin) for one in changes if one.operation == "delete"] == (
        [("delete", own[0])] if known < 2 else []
    )
    assert [one.id for one in changes if one.operation == "insert"] == [3, 4]


async def as_async(batches: list[EventBatch]) -> AsyncIterator[EventBatch]:
    for batch in batches:
        yield batch


async def test_the_stamps_before_a_lost_position_come_from_the_oplog() -> None:
    own, seen = stamp(Call.CREATED, 1), list[Any]()
    wall = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    log = MemoryLog(encode(9, 0, made(5)))
    log.topic_id = "id-2"
    start = Start(token=token(2), place=place(2, 3, 1))
    source = CompletedTopic(source_of(log, start), ListSource([], [(own, wall)]), asyncio.Semaphore(1))
    await source.recall(token(2), lambda *found: seen.append(found))
    assert seen == [(own, wall)]


async def test_a_partition_is_open_only_while_it_is_read() -> None:
    log = MemoryLog(encode(9, 0, made(5)), encode(9, 1, made(6)))
    log.relay = LogPosition(2, 9, 1, token(6))
    source = source_of(log, Start(token=token(5), place=place(1, 9, 0)))
    await source.recall(token(5), lambda *_: None)
    assert not log.is_open
    await source.place_of(token(5))
    assert not log.is_open
    async with aclosing(source.batches(Start(token=token(5)))) as batches:
        await anext(batches)
        assert log.is_open
    assert not log.is_open


async def test_a_partition_that_has_lost_the_start_is_not_open() -> None:
    log = MemoryLog(encode(9, 0, made(5)), encode(9, 1, made(6)))
    log.retain(1)
    log.relay = LogPosition(2, 9, 1, token(6))
    async with aclosing(source_of(log).batches(Start(token=token(2)))) as batches:
        with pytest.raises(HistoryLost):
            await anext(batches)
    assert not log.is_open


# -- all partitions as one source -------------------------------------------------------------------------------


@given(
    where=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    size=st.integers(1, 4),
    since=st.integers(0, 30),
)
def test_merged_partitions_come_in_the_order_of_their_tokens(where: list[int], size: int, since: int) -> None:
    """Some partitions may be empty. The token of a batch is never later than a change in a following batch."""
    logs, numbers = [MemoryLog() for _ in range(4)], [0] * 4
    for number, partition in enumerate(where, 1):
        logs[partition].add(encode(3, numbers[partition], made(number)))
        numbers[partition] += 1
    for log, count in zip(logs, numbers, strict=True):
        log.relay = (
            LogPosition(count, 3, count - 1, token(len(where))) if count else LogPosition(0, 0, -1, token(99))
        )
    start = Start(token=token(since) if since else START)
    source = MergedTopic([source_of(log, start, size=size) for log in logs], "the topic")

    async def run() -> list[EventBatch]:
        found: list[EventBatch] = []
        async with aclosing(source.batches(start)) as batches:
            async for batch in batches:
                found.append(batch)
                if batch.token >= token(len(where)):
                    return found
        raise AssertionError("a source never ends")

    found = asyncio.run(run())
    assert tokens(found) == [token(number) for number in range(since + 1, len(where) + 1)]
    for before, after in itertools.pairwise(found):
        assert before.token <= after.token
        assert all(one["_id"]["_data"] > before.token for one in after.events)


async def test_a_merged_topic_reports_lost_events_in_the_order_of_their_tokens() -> None:
    def missing(number: int, event_number: int) -> bytes:
        return encode_large(3, number, LargeEvent(token(event_number), b"id", 1))

    logs = [
        MemoryLog(encode(3, 0, made(1)), missing(1, 4), encode(3, 2, made(5))),
        MemoryLog(missing(0, 2), encode(3, 1, made(3)), encode(3, 2, made(6))),
    ]
    for log in logs:
        log.relay = LogPosition(3, 3, 2, token(6))
    found: list[str] = []
    async with aclosing(MergedTopic([source_of(log) for log in logs], "the topic").batches(FIRST)) as batches:
        async for batch in batches:
            found += [f"lost {batch.token}"] if batch.lost_after is not None else tokens([batch])
            if token(6) in found:
                break
    assert found == [token(1), f"lost {token(2)}", token(3), f"lost {token(4)}", token(5), token(6)]


async def test_history_lost_in_one_partition_is_lost_for_the_merged_topic() -> None:
    logs = [retained(), MemoryLog(encode(3, 0, made(2)))]
    source = MergedTopic([source_of(log) for log in logs], "the topic")
    with pytest.raises(HistoryLost, match="that the relay counts"):
        async with aclosing(source.batches(FIRST)) as batches:
            _ = [batch async for batch in batches]
    assert (await source.now()).token == token(5)


# -- other writers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"hello", None, made(1)])
async def test_a_record_of_another_program_is_an_error_with_its_place(value: Any) -> None:
    log = MemoryLog(encode(3, 0, made(1)), value)
    with pytest.raises(TopicError, match="partition 0 of the topic 'test', offset 1"):
        await batches_of(log)


async def test_a_term_that_no_relay_has_taken_is_an_error() -> None:
    log = MemoryLog(encode(10, 0, made(1)))
    with pytest.raises(TopicError, match=r"the term 10, .* is 9"):
        await batches_of(log)


# -- positions without a place ------------------------------------------------------------------------------


@pytest.mark.parametrize("known", range(6))
@pytest.mark.parametrize("beginning", [0, 1])
async def test_a_token_without_a_place_is_found_in_the_log(known: int, beginning: int) -> None:
    records = [encode(3, i, made(i + 1)) for i in range(3)] + [encode(4, i, made(i + 3)) for i in range(3)]
    log = MemoryLog(*records)
    log.retain(beginning)
    log.relay = LogPosition(5, 4, 1, token(4))
    start = Start(token=token(known) if known else START)
    if known <= beginning > 0:  # nothing proves that no change is missing before the first record
        error, after = await lost(log, start)
        assert "does not hold all changes since" in str(error)
        assert after == Start(token=token(4), place=place(5, 4, 1))
    else:
        assert tokens(await batches_of(log, start)) == [token(i) for i in range(known + 1, 6)]


@pytest.mark.parametrize("known", range(6))
async def test_a_token_is_found_although_a_zombie_wrote_the_record_before(known: int) -> None:
    """The record after those of the zombie is number 3 of term 4. It continues number 2 of term 4."""
    log = MemoryLog(
        encode(3, 0, made(1)),
        encode(4, 0, made(1)),
        encode(4, 1, made(2)),
        encode(4, 2, made(3)),
        encode(3, 1, made(2)),  # records of the zombie
        encode(3, 2, made(3)),
        encode(3, 3, made(4)),
        encode(4, 3, made(4)),
        encode(4, 4, made(5)),
    )
    log.relay = LogPosition(9, 4, 4, token(5))
    start = Start(token=token(known) if known else START)
    assert tokens(await batches_of(log, start)) == [token(i) for i in range(known + 1, 6)]


async def test_the_search_goes_on_until_it_finds_the_term_that_the_next_record_continues() -> None:
    log = MemoryLog(
        encode(3, 0, made(1)),
        encode(4, 0, made(1)),
        encode(4, 1, made(2)),
        encode(3, 1, made(2)),  # a record of the zombie
        encode(4, 2, made(3)),
    )
    log.relay = LogPosition(5, 4, 2, token(3))
    log.searched_from = 4  # the search by time begins at this offset
    assert tokens(await batches_of(log, Start(token=token(2)))) == [token(3)]


async def test_a_token_without_a_place_is_not_found_in_an_emptied_log() -> None:
    """Records after the token may have been removed."""
    log = MemoryLog(*(encode(3, i, made(i + 1)) for i in range(3)))
    log.relay = LogPosition(3, 3, 2, token(3))
    log.records, log.beginning = [], 3
    _, after = await lost(log, Start(token=token(2)))
    assert after == Start(token=token(3), place=place(3, 3, 2))


# -- stamps -------------------------------------------------------------------------------------------------


def stamp(call: Call, id_: Any) -> Stamp:
    oid = ObjectId(NOW.to_bytes(4, "big") + ObjectId().binary[4:])
    return Stamp("tests", call, oid, key_hash("shop.things", id_))


def inserted(number: int, by: Stamp) -> bytes:
    return event(number, "insert", 1, second=NOW, fullDocument={"_id": 1, FIELD: by.pack()})


def marker(number: int, by: Stamp) -> bytes:
    updated = {"updatedFields": {FIELD: by.pack()}, "removedFields": []}
    more: dict[str, Any] = {"updateDescription": updated, "fullDocument": {"_id": 1}, **TRANSACTION}
    return event(number, "update", 1, second=NOW, **more)


def deleted(number: int) -> bytes:
    return event(number, "delete", 1, second=NOW, **TRANSACTION)


async def changes_of(log: MemoryLog, start: Start = FIRST) -> list[Change]:
    """The changes that a reader makes of a log, after the position `start`."""
    source = source_of(log, start)
    reader, changes = reader_of(source), []
    assert start.token is not None
    await reader.recall(start.token)
    async with aclosing(source.batches(start)) as batches:
        async for batch in batches:
            async for part in reader.read(batch):
                assert isinstance(part, list)
                changes += part
            if not batch.events:
                return changes
    raise AssertionError("a source never ends")


async def test_a_delete_has_the_stamp_of_its_envelope_and_its_marker_does_not_wait() -> None:
    own = stamp(Call.DELETED, 1)
    log = MemoryLog(encode(3, 0, marker(1, own)), encode(3, 1, deleted(2), own.pack()))
    changes = await changes_of(log)
    assert described(changes) == [("untouched", 1), ("delete", 1)]
    assert changes[1].origin == own
    assert not changes[1].marker


async def test_a_position_between_a_marker_and_its_delete_keeps_the_stamp() -> None:
    own = stamp(Call.DELETED, 1)
    log = MemoryLog(encode(3, 0, marker(1, own)), encode(3, 1, deleted(2), own.pack()))
    (delete,) = await changes_of(log, Start(token=token(1), place=place(1, 3, 0)))
    assert delete.origin == own


async def test_a_repeated_event_does_not_affect_the_stamp_of_a_later_event() -> None:
    own = stamp(Call.CREATED, 1)
    log = MemoryLog(encode(3, 0, made(1)), encode(4, 0, made(1)), encode(4, 1, inserted(2, own)))
    changes = await changes_of(log)
    assert changes[-1].origin == own


async def test_a_repetition_that_is_read_together_with_its_event_does_not_use_up_the_stamp() -> None:
    own = stamp(Call.CREATED, 1)
    log = MemoryLog(encode(3, 0, inserted(1, own)), encode(4, 0, inserted(1, own)), encode(4, 1, inserted(2, own)))
    changes = await changes_of(log)
    # Event 2 has the stamp of event 1: another client has copied the document.
    assert [one.origin for one in changes] == [own, None]


@pytest.mark.parametrize(
    "start", [Start(token=token(1), place=place(1, 3, 0)), Start(token=token(1), place=place(0, 0, -1))]
)
async def test_the_stamps_before_a_position_are_read_again(start: Start) -> None:
    """The stamps between the saved place and the saved token are read, too."""
    own = stamp(Call.CREATED, 1)
    log = MemoryLog(encode(3, 0, inserted(1, own)), encode(3, 1, inserted(2, own)))
    (copy,) = await changes_of(log, start)
    assert copy.origin is None


async def test_a_zombies_later_events_do_not_count_as_seen() -> None:
    own = stamp(Call.CREATED, 1)
    log = MemoryLog(
        encode(4, 0, made(1)),
        encode(3, 5, inserted(2, own)),  # a record of the zombie
        encode(4, 1, inserted(2, own)),
    )
    changes = await changes_of(log, Start(token=token(1), place=place(2, 4, 0)))
    assert [one.origin for one in changes] == [own]


@given(
    value=st.one_of(
        st.binary(max_size=120),
        st.builds(
            encode, st.integers(1, 3), st.integers(0, 3), st.sampled_from([made(1), made(2), bson.encode({})])
        ),
        st.builds(encode, st.just(1), st.just(0), st.binary(max_size=80)),
        st.builds(encode, st.just(1), st.just(0), st.just(made(1)), st.just(b"stamp")),
    ),
    cut=st.integers(0, 3),
    changed=st.none() | st.tuples(st.integers(0, 99), st.integers(0, 255)),
)
def test_take_plain_agrees_with_the_decoder(value: bytes, cut: int, changed: tuple[int, int] | None) -> None:
    value = value[: len(value) - cut]
    if changed is not None and changed[0] < len(value):
        value = value[: changed[0]] + bytes([changed[1]]) + value[changed[0] + 1 :]
    events: list[RawEvent] = []
    position, stopped = take_plain(iter([(5, value)]), LogPosition(5, 1, -1, ""), events)
    if not events:
        assert (position, stopped) == (LogPosition(5, 1, -1, ""), (5, value))
        return
    envelope = decode(value)
    assert envelope == Envelope(1, 0, b"", events[0].raw)
    assert (position[:3], stopped) == ((6, 1, 0), None)
    with contextlib.suppress(MalformedRecord):
        assert token_in(envelope) == position.token


def test_take_plain_accepts_usual_records() -> None:
    records = [(4 + n, encode(3, 7 + n, made(1 + n))) for n in range(3)]
    events: list[RawEvent] = []
    position, stopped = take_plain(iter(records), LogPosition(4, 3, 6, token(0)), events)
    assert (position, stopped) == (LogPosition(7, 3, 9, token(3)), None)
    assert [event.raw for event in events] == [made(1), made(2), made(3)]


@pytest.mark.parametrize(
    "record",
    [
        (5, encode(3, 8, made(2))),  # the offset jumps
        (4, encode(4, 8, made(2))),  # another term
        (4, encode(3, 9, made(2))),  # a number is missing
        (4, encode(3, 8, made(1))),  # a token that was read before
        (4, None),
    ],
)
def test_take_plain_stops_at_each_record_that_is_not_plain(record: tuple[int, bytes | None]) -> None:
    events: list[RawEvent] = []
    records = iter([(3, encode(3, 7, made(1))), record, (5, encode(3, 9, made(3)))])
    position, stopped = take_plain(records, LogPosition(3, 3, 6, token(0)), events)
    assert (position, stopped) == (LogPosition(4, 3, 7, token(1)), record)
    assert next(records)[0] == 5


# -- the token and the place that are saved together ----------------------------------------------------------


@given(
    terms=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    size=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
    kill=st.integers(0, 30),
)
def test_a_saved_token_and_place_lose_and_repeat_nothing(
    terms: list[int], size: int, order: Any, kill: int
) -> None:
    """A term may repeat the last events of the term before. Some changes are finished before a kill."""
    values, event_number = [], 0
    for term, count in enumerate(terms, 1):
        event_number = max(0, event_number - order.randint(0, 2))
        for number in range(count):
            event_number += 1
            values.append(encode(term, number, made(event_number)))
    log = MemoryLog(*values)
    log.relay = LogPosition(0, 0, -1, START)

    async def first() -> tuple[list[str], str, LogPlace | None]:
        tracker, places, jobs, finished = Tracker(START), Places(FIRST.place), [], []
        async with aclosing(source_of(log, size=size).batches(FIRST)) as batches:
            async for batch in batches:
                for one in batch.events:
                    job = Job(one["_id"]["_data"], MagicMock(size=1))
                    tracker.add(job)
                    jobs.append(job)
                assert batch.place is not None
                places.note(batch.token, batch.place)
                tracker.mark(batch.token)
                if order.random() < 0.5:
                    places.at(tracker.token)  # a save
                if not batch.events or len(jobs) > kill:
                    break
                if order.random() < 0.7:
                    left = [job for job in jobs if job.change is not None]
                    for job in order.sample(left, order.randint(0, len(left))):
                        finished.append(job.token)
                        tracker.finished(job)
        return finished, tracker.token, places.at(tracker.token)

    async def run() -> None:
        finished, saved, saved_place = await first()
        published = sorted({token_in(decode(one)) for one in values})
        assert {one for one in published if one <= saved} <= {*finished}
        again = tokens(await batches_of(log, Start(token=saved, place=saved_place)))
        assert again == [one for one in published if one > saved]

    asyncio.run(run())
