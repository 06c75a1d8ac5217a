"""Reads the change events of one partition from a topic, instead of from a change stream.

Each record goes through three checks, in this order: `accept` decides whether the record counts; an event up to
the latest accepted token is dropped, because it was read before; a stamp counts when it is seen for the first
time, see `stream/origins.py`. When an event from before the start of reading is dropped, its stamp is remembered.

The relay copies the stamp of a delete marker to its delete, and does not publish the marker. So readers never wait
for the end of a transaction.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from bson.timestamp import Timestamp

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import EventBatch, LogPlace, Start
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import token_of, token_time
from dispatcher.core.stats import TopicFigures, TopicGauges
from dispatcher.exceptions import HistoryLost
from dispatcher.kafka.acceptance import BEGINNING, Decision, LogPosition, RecordPlace, accept, resume
from dispatcher.kafka.envelope import (
    Envelope,
    LargeEvent,
    RecordKind,
    gap_in,
    large_event_in,
)
from dispatcher.kafka.foreign import foreign_term, opened
from dispatcher.kafka.log import OutOfRange, TopicRecord
from dispatcher.kafka.looks import Look
from dispatcher.kafka.record_log import RecordLog
from dispatcher.kafka.records import event_of, recall_stamp, remember_stamp, take_plain
from dispatcher.kafka.search import CLOCKS, SEARCHED, find_position, first_token
from dispatcher.stream.origins import HORIZON
from dispatcher.stream.source import RememberStamp
from mongoz.stamps import Stamp

# If this number of successive reads finds no record, the log is shorter than expected, and the reading ends.
_MOST_EMPTY: Final = 10


_FILE_MISSING: Final = (
    "a change is larger than a record of the topic, and its file in the state database is missing"
)


_REMEDY: Final = (
    "--on-history-lost decides: resume continues after the lost changes and records a gap, backfill also delivers "
    "the current documents."
)


ReadLarge = Callable[[LargeEvent], Awaitable[bytes | None]]
"""Reads a large event from the state database; None if the event is missing there."""


async def _no_large_event(_large: LargeEvent) -> bytes | None:
    return None


def _no_place() -> LogPlace | None:
    return None


class _Halt(NamedTuple):
    """A record that `_take` leaves to its caller.

    Attributes:
        decision: the result of `accept`: `JUMP`, or `DELIVER` for a gap or a large event. None if `accept` was not
            called yet, because it is unknown whether a relay has taken the term of the record.
        after: the position after the record.
    """

    decision: Decision | None
    record: TopicRecord
    envelope: Envelope
    after: LogPosition


class KafkaSource:
    """Reads one partition of a topic.

    Args:
        partition: the partition of the topic.
        start: the place where the dispatcher continues.
        batch_size: maximum number of events per batch.
        read_large: reads a large event. By default, all large events count as missing.
        saved: returns the saved place; None if there is none. The offset of this place is committed to Kafka, so
            that tools of Kafka show the lag.
        figures: counts the records.
    """

    pairs_deletes = True

    def __init__(
        self,
        partition: RecordLog,
        start: Start,
        *,
        batch_size: int,
        read_large: ReadLarge = _no_large_event,
        saved: Callable[[], LogPlace | None] = _no_place,
        figures: TopicFigures | None = None,
    ) -> None:
        self._log = partition
        self._start = start
        self.batch_size = batch_size
        self._read_large = read_large
        self._saved = saved
        self._figures = TopicFigures() if figures is None else figures
        self._remember: RememberStamp = _ignore
        self._began = ""  # the token after which `batches` delivers
        self._topic_id = ""
        self._offset: int | None = None  # of the next record
        self._found: tuple[Start, LogPosition] | None = None
        self._next: Start | None = None
        self._known_term = 0

    @property
    def connected(self) -> bool:
        """Returns whether the brokers and the server answer."""
        return self._log.connected

    @property
    def name(self) -> str:
        """The name of the source, for messages."""
        return self._log.name

    def topic_gauges(self) -> TopicGauges:
        """The current gauges."""
        return self._log.gauges(self._topic_id, self._offset)

    async def now(self) -> Start:
        """The end of lost history; if no history is lost, the relay's position."""
        if self._next is None:
            look = await self._log.look()
            self._next = _start_of(resume(BEGINNING, look.relay, look.beginning), look.topic_id)
        return self._next

    def time_of(self, position: str) -> Timestamp:
        """The cluster time of a token."""
        return token_time(position)

    # -- reading -------------------------------------------------------------------------------------------

    async def batches(self, start: Start) -> AsyncGenerator[EventBatch]:
        """Read the partition from `start` on, without an end."""
        position = await self._begin(start)
        self._next = None
        self._began = position.token
        try:
            await self._log.seek(position.offset)
            while True:
                jump, found = -1, []
                try:
                    found = await self._log.read(self.batch_size)
                except OutOfRange:
                    jump = position.offset
                records: Iterator[TopicRecord] = iter(found)
                self._figures.records += len(found)
                while True:
                    events, position, halt = self._take(records, position)
                    if events:
                        yield self._batch(events, position)
                    if halt is None:
                        break
                    if halt.decision is None:
                        await self._require_known(halt.envelope.term)
                        records = chain([halt.record], records)
                        continue
                    if halt.decision is Decision.JUMP:
                        jump = halt.record[0]
                        break
                    batch = await self._special(halt.envelope, position, halt.after)
                    yield batch
                    position = halt.after._replace(token=batch.token)
                resumed = await self._resumed(position, jump)
                if jump >= 0 or resumed.offset != position.offset:
                    await self._log.seek(resumed.offset)
                position = resumed
                self._offset = position.offset
                place = self._saved()
                if place is not None and place.topic_id == self._topic_id:
                    self._log.commit(place.offset)
                if not events:
                    yield self._batch([], position)
        finally:
            await self._log.leave()

    def _take(
        self, records: Iterator[TopicRecord], position: LogPosition
    ) -> tuple[list[RawEvent], LogPosition, "_Halt | None"]:
        """Decide about records, up to the first one that is left to the caller, see `_Halt`.

        Returns:
            The accepted new events, the position after them, and the record that is left; None if all records
            were taken.
        """
        events: list[RawEvent] = []
        while True:
            position, record = take_plain(records, position, events)
            if record is None:
                return events, position, None
            envelope, token = opened(self._log.name, record)
            if envelope.term > self._known_term:
                return events, position, _Halt(None, record, envelope, position)
            decision, after = accept(position, RecordPlace(record[0], envelope.term, envelope.number, token))
            if decision is Decision.DELIVER and envelope.kind is RecordKind.EVENT:
                events.append(event_of(envelope))
            elif decision is Decision.DELIVER or decision is Decision.JUMP:
                return events, position, _Halt(decision, record, envelope, after)
            else:
                self._figures.dropped[decision] += 1
                # Only the stamps of events before the start are remembered here. `Reader` itself remembers the
                # stamps of later events. If such a stamp were remembered here too, `Reader` would treat the
                # original write as a copy.
                if decision is Decision.DUPLICATE and token <= self._began:
                    remember_stamp(envelope, self._remember)
            position = after

    def _batch(self, events: Sequence[RawEvent], position: LogPosition) -> EventBatch:
        offset, term, number, token = position
        return EventBatch(events, token, place=LogPlace(self._topic_id, offset, term, number))

    async def _special(self, envelope: Envelope, before: LogPosition, after: LogPosition) -> EventBatch:
        """The batch of a record that contains no event: a gap, or a reference to a large event.

        Raises:
            HistoryLost: the relay has lost history.
        """
        if envelope.kind is RecordKind.GAP:
            gap = gap_in(envelope)
            if gap.kind == "history_lost":
                raise self._lost("The relay has lost changes", before, after)
            return self._batch([], after)._replace(lost_after=gap.after)
        event = await self._read_large(large_event_in(envelope))
        if event is None:
            return self._batch([], after)._replace(lost_after=before.token, lost_why=_FILE_MISSING)
        whole = event_of(envelope._replace(event=event))
        # The record may have a shortened token; the event has the whole one.
        return self._batch([whole], after._replace(token=token_of(whole["_id"])))

    # -- the log and the relay's position ------------------------------------------------------------------

    async def _resumed(self, position: LogPosition, jump: int) -> LogPosition:
        """Compare the position with the newest look at the topic. Returns the position at which to continue.

        Args:
            jump: the offset of the next record, if records before it are missing; the offset of the position, if
                this offset is out of range; otherwise -1.

        Raises:
            HistoryLost: the log does not hold all changes after the position.
            TopicError: another program writes to the topic.
        """
        look = self._log.newest() if jump < 0 else await self._log.look()
        if look.topic_id != self._topic_id:
            raise self._recreated(position, look)
        if position.term > self._known_term:
            await self._require_known(position.term)
        relay, place = look.relay, position[1:3]
        if jump < 0 and look.beginning <= position.offset:
            if relay[1:3] <= place:  # all records up to the relay's position are accepted
                return position._replace(token=max(position.token, relay.token))
            if relay.offset > position.offset:  # the reader has not reached the relay's position yet
                return position
        resumed = resume(position, relay, max(look.beginning, jump))
        if resumed[1:3] != place:
            raise self._lost("The topic lacks records that the relay counts as delivered", position, resumed)
        if jump == position.offset == resumed.offset:  # out of range, although the log begins before this offset
            end = await self._log.end()
            relay_here = resume(BEGINNING._replace(token=position.token), relay, 0)._replace(offset=end)
            raise self._lost("The log ends before the position", position, relay_here)
        return resumed

    async def _require_known(self, term: int) -> None:
        """Require that a relay has taken a term. A relay takes its term before it publishes.

        Raises:
            TopicError: another program writes to the topic.
        """
        look = self._log.newest()
        if term > look.term:
            look = await self._log.look()
        self._known_term = look.term
        if term > look.term:
            raise foreign_term(self._log.name, term, look.term)

    def _recreated(self, position: LogPosition, look: Look) -> HistoryLost:
        self._topic_id = look.topic_id
        relay = resume(BEGINNING._replace(token=position.token), look.relay, look.beginning)
        return self._lost("The topic was deleted, and created again", position, relay)

    def _lost(self, reason: str, position: LogPosition, continues: LogPosition) -> HistoryLost:
        """The error about lost history. After this call, `now` returns the end of the lost history."""
        self._next = _start_of(continues, self._topic_id)
        begin, end = (token_time(one.token).as_datetime().isoformat() for one in (position, continues))
        return HistoryLost(
            f"{reason}: {self._log.name}, offset {position.offset}. The changes between {begin} and {end} can't "
            "be read from there any more.",
            remedy=_REMEDY,
        )

    # -- the position of a token ---------------------------------------------------------------------------

    async def _begin(self, start: Start) -> LogPosition:
        """The position in the log for a `Start`.

        Raises:
            HistoryLost: the log does not hold the changes after the start.
        """
        if self._found is not None and self._found[0] == start:
            return self._found[1]
        if start.place is None:
            position = await self._find(start.after)
        else:
            assert start.token is not None  # a place belongs to a token
            look = self._log.newest()
            position = LogPosition(*start.place[1:], token=start.token)
            if start.place.topic_id != look.topic_id:
                raise self._recreated(position, look)
            self._topic_id = look.topic_id
        self._found = (start, position)
        return position

    async def _find(self, token: str) -> LogPosition:
        """The position of a token whose place is unknown.

        Raises:
            HistoryLost: the log begins after the token. Then `now` returns the end of the lost history.
        """
        look = await self._log.look()
        self._topic_id = look.topic_id
        try:
            position = await find_position(self._log, look, token)
            if position is not None:
                return position
            relay = resume(BEGINNING, look.relay, look.beginning)
            self._next = _start_of(relay._replace(token=max(token, relay.token)), self._topic_id)
            first = await first_token(self._log, look)
        finally:
            await self._log.leave()
        wanted, found = (token_time(one).as_datetime().isoformat() for one in (token, first))
        raise HistoryLost(
            f"{self._log.name} does not hold all changes since {wanted}: its first record is of {found}.",
            remedy=_REMEDY,
        )

    async def place_of(self, token: str) -> LogPlace:
        """The place of a token: the records after this place are the changes after the token.

        Raises:
            HistoryLost: the log begins after the token.
        """
        offset, term, number, _ = await self._find(token)
        return LogPlace(self._topic_id, offset, term, number)

    # -- stamps --------------------------------------------------------------------------------------------

    async def recall(self, before: str, remember: RememberStamp) -> float:
        """Read the stamps of the last writes before a position, and pass them to `remember`.

        The stamps between the saved place and `before` are passed later, when `batches` drops their events.

        Raises:
            HistoryLost: the log does not hold the changes after the position.
        """
        self._remember = remember
        time = token_time(before).time
        end = (await self._begin(self._start)).offset
        since = float(time - HORIZON)
        look = self._log.newest()
        found = await self._log.offset_at(since - CLOCKS)
        begin = max(found, look.beginning)
        if found < 0 or begin >= end:
            return since
        if begin == look.beginning > 0:  # the log may not reach back to `since`
            since = float(time)
        empty = 0
        try:
            await self._log.seek(begin)
            while begin < end and empty < _MOST_EMPTY:
                records = await self._log.read(SEARCHED)
                empty = 0 if records else empty + 1
                for offset, value in records:
                    if offset < end:
                        since = min(since, recall_stamp(value, before, remember, since))
                begin = records[-1][0] + 1 if records else begin
        except OutOfRange:
            log.warning(
                "the stamps of earlier writes could not be read; if a client has copied a document with its "
                "stamp, receivers may miss the copy",
                action="stamps.not_read",
                error=f"{self._log.name} does not hold offset {begin} any more",
            )
            return float(time)
        finally:
            await self._log.leave()
        return since


def _ignore(_stamp: Stamp | None, _wall_time: Any) -> None:
    """Do nothing."""


def _start_of(position: LogPosition, topic_id: str) -> Start:
    offset, term, number, token = position
    return Start(token=token, place=LogPlace(topic_id, offset, term, number))
