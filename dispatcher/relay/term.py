"""One term of a relay: one producer, which publishes the events after the saved position.

change stream -> records -> producer -> ledger -> position
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress
from functools import partial
from time import monotonic
from typing import Any, Final, Literal, NamedTuple

from dispatcher.core.events import EventBatch, Start
from dispatcher.core.lease import Lease, now
from dispatcher.core.oplog import oplog_window
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import after_shortened, directly_after, shortened, token_of, token_time
from dispatcher.core.retry import retry
from dispatcher.core.stats import Lag
from dispatcher.core.tasks import Interrupted, end
from dispatcher.exceptions import HistoryLost, KafkaError, TopicError
from dispatcher.kafka.envelope import GapNotice, LargeEvent
from dispatcher.kafka.large_events import LargeEvents
from dispatcher.kafka.relay_state import RelayState, RelayStore
from dispatcher.kafka.topics import TopicFacts, prepared_topic
from dispatcher.position.gaps import Gap, Gaps
from dispatcher.relay.ledger import RecordLedger
from dispatcher.relay.parts import RelayParts
from dispatcher.relay.producer import TermProducer
from dispatcher.relay.records import Packed, Packer, event_of
from dispatcher.relay.saver import PositionSaver
from dispatcher.stream.read_ahead import batches_ahead
from dispatcher.stream.source import Source

# Seconds between two looks at the answers of the brokers: while records are on their way, and otherwise.
_SOON: Final = 0.003
_LATER: Final = 0.5

# Seconds between two checks of the topic.
_BETWEEN_CHECKS: Final = 60.0

# Maximum seconds between two looks at a lease.
_LOOK: Final = 1.0

# Maximum bytes of a batch of records, if the broker does not tell its own maximum.
_LARGEST: Final = 1_000_000

# If no acknowledgement comes for this many seconds while records are on their way, the relay has a problem.
_SILENCE: Final = 10.0

# Bytes of a megabyte in settings.
_MB: Final = 1_000_000

# Seconds for the last save.
_SAVE_PATIENCE: Final = 5.0


class TermStart(NamedTuple):
    """What is known when a term begins.

    Attributes:
        source: the source of change events, each with the hash of its document's `_id`.
        facts: the properties of the topic, as the brokers report them.
        state: the state with the new term, and the position at which it begins.
        moved_to: the token to which an operator has moved the relay, if it is after the relay's position;
            otherwise None.
    """

    source: Source
    facts: TopicFacts
    state: RelayState
    moved_to: str | None


class Term:
    """Publishes with one producer.

    Args:
        lag: computes the lag of the relay.

    Attributes:
        number: the number of the term.
        ledger: the ledger of its records.
        failure: the error that has ended the term; empty if there is none.
        has_lost_topic: whether the term has ended because the topic was deleted.
    """

    def __init__(self, parts: RelayParts, lease: Lease, start: TermStart, lag: Lag) -> None:
        self._parts = parts
        self._lease = lease
        self._source, self._facts, state, self._moved_to = start
        self._lag = lag
        largest = self._facts.largest or _LARGEST
        self.number = state.term
        self._fingerprint = parts.scope.fingerprint
        self.ledger = RecordLedger(state.term, state.position, self._fingerprint, parts.figures)
        self._packer = Packer(state.term, self._facts.layout.partitions, largest)
        self._producer = TermProducer(parts.config, parts.topic, largest)
        self._large = LargeEvents(parts.group.state, parts.topic)
        self._gaps = Gaps(parts.group, parts.stats)
        self._began = self._after = self._skip_to = state.position.token
        self._room = asyncio.Event()
        self._busy = asyncio.Event()
        self._quiet = asyncio.Event()
        self.failure = ""
        self.has_lost_topic = False
        self._trouble = ""
        self._waits_for: str | None = None
        self._waits_since = 0.0
        self._is_silent = False

    @property
    def trouble(self) -> str:
        """The reason why the topic can't be used now; empty if it can be used."""
        if self._is_silent:
            return f"the brokers have acknowledged no record for {monotonic() - self._waits_since:.0f} s"
        return self._trouble

    @property
    def has_moved(self) -> bool:
        """Returns whether the position has moved in this term."""
        return self.ledger.token > self._began

    @property
    def connected(self) -> bool:
        """Returns whether the change stream is open."""
        return self._source.connected

    # -- the tasks of a term -------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event, saver: PositionSaver) -> None:
        """Publish until `stop` is set, the term fails, or the lease ends. Then save the position.

        Raises:
            DispatcherError: an error is permanent.
        """
        ending = asyncio.Event()
        reading = asyncio.create_task(self._follow(), name="follow")
        checking = asyncio.create_task(self._check_topic(), name="check-topic")
        polling = asyncio.create_task(self._poll(), name="poll-answers")
        saving = asyncio.create_task(saver.save_regularly(ending), name="save-position")
        ends = [
            asyncio.create_task(stop.wait(), name="wait-for-stop"),
            asyncio.create_task(self._wait_for_end_of_lease(), name="wait-for-end-of-lease"),
        ]
        working = [reading, checking, polling, saving]
        try:
            await asyncio.wait([*working, *ends], return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await end([reading, checking])
                await self._drain([polling, ends[1]])
        finally:
            self.failure = self.ledger.failure
            self._producer.close()  # immediately: a producer without a lease must not send
            await end([reading, checking, polling, *ends])
            ending.set()
            await asyncio.wait([saving], timeout=_SAVE_PATIENCE)
            await end([saving])
        for task in working:
            if not task.cancelled():
                task.result()
        await saver.save_at_the_end()

    async def _drain(self, unless: "Sequence[asyncio.Task[Any]]") -> None:
        """Wait for the answers to all records, at most for the grace period."""
        waiting = asyncio.create_task(self._quiet.wait(), name="wait-for-answers")
        if self.ledger.is_empty:
            self._quiet.set()
        grace = self._parts.settings.grace
        await asyncio.wait([waiting, *unless], timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        await end([waiting])

    async def _wait_for_end_of_lease(self) -> None:
        """Wait until the lease is lost, or ends because it was not renewed in time."""
        while True:
            left = self._lease.until - now()
            if left <= 0:
                return
            await asyncio.sleep(min(left, _LOOK))

    async def _poll(self) -> None:
        """Receive answers, until the term fails."""
        while not self.ledger.failure:
            self._busy.clear()
            self._producer.poll()
            self._room.set()
            self._note_silence()
            if not self.ledger.is_empty:
                await asyncio.sleep(_SOON)
                continue
            self._quiet.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LATER):
                    await self._busy.wait()

    def _note_silence(self) -> None:
        """Note when the oldest record began to wait for its answer. Log a long wait once, and its end."""
        seconds = monotonic() - self._waits_since
        if self.ledger.oldest != self._waits_for:
            if self._is_silent:
                log.info(
                    "the brokers acknowledge records again",
                    action="kafka.acknowledged",
                    topic=self._parts.topic,
                    seconds=round(seconds, 1),
                )
            self._waits_for, self._waits_since, self._is_silent = self.ledger.oldest, monotonic(), False
        elif self._waits_for is not None and not self._is_silent and seconds > _SILENCE:
            self._is_silent = True
            log.warning(
                "the brokers acknowledge no records; the relay waits, and changes wait in the oplog",
                action="kafka.not_acknowledged",
                topic=self._parts.topic,
                seconds=round(seconds, 1),
                remedy="Look at the brokers. With fewer replicas in sync than min.insync.replicas, they accept no "
                "records.",
            )

    async def _check_topic(self) -> None:
        """Check regularly that the topic is still the same, and delete old large events. Runs for ever.

        Raises:
            TopicError: the topic can't be used any more.
            HistoryLost: the topic was deleted.
        """
        parts = self._parts
        report = partial(log.warning, "old large events can't be deleted now", action="event.not_deleted")
        while True:
            if self._facts.retention is not None:
                time = token_time(self.ledger.token).as_datetime()
                await retry(partial(self._large.delete_old, self._facts.retention, time), report)
            await asyncio.sleep(_BETWEEN_CHECKS)
            try:
                await self._note(
                    await prepared_topic(parts.config, parts.topic, None, self._facts.layout, continues=False)
                )
                self._trouble = ""
                parts.weaknesses.note(self._facts, await oplog_window(parts.group.state.client))
            except HistoryLost as lost:
                if parts.settings.on_history_lost == "fail":
                    raise
                self.has_lost_topic = True
                self.ledger.fail(lost.message)  # the next term begins with the new topic
            except TopicError:
                raise
            except KafkaError as error:
                self._trouble = error.message
                log.warning(error.message, action="kafka.not_reached", remedy=error.remedy)

    async def _note(self, facts: TopicFacts) -> None:
        """Keep the properties of the topic. If the retention has changed, record it in the state."""
        before, self._facts = self._facts, facts
        if facts.retention_limit != before.retention_limit:
            report = partial(
                log.warning,
                "the state of the relay can't be written now, trying again",
                action="relay.state_not_read",
            )
            relays = RelayStore(self._parts.group.state, self._parts.topic)
            await retry(partial(relays.note_retention, self.number, facts.retention_limit), report)

    # -- reading -------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Follow the change stream until the lease is lost. Continue after lost history."""
        with suppress(Interrupted):
            if self._moved_to is not None:
                await self._publish_gap("position_set", self._moved_to)
            start = self._start()
            while True:
                try:
                    async with aclosing(batches_ahead(self._source, start, self._lag)) as batches:
                        async for batch in batches:
                            await self._publish(batch)
                            self._after = batch.token
                except HistoryLost as lost:
                    start = Start(token=await self._bridge(lost))

    def _start(self) -> Start:
        """The place where the stream begins. If the token is of another stream, only its time is used."""
        if self._after == self._began and self.ledger.position.fingerprint == self._fingerprint:
            return Start(token=self._began)
        return Start(cluster_time=token_time(self._after))

    # -- publishing ----------------------------------------------------------------------------------------------

    async def _publish(self, batch: EventBatch) -> None:
        """Publish the events of a batch."""
        if batch.lost_after is not None:
            await self._publish_lost_event(batch.lost_after, batch.token)
        events: Sequence[Any] = batch.events
        if self._after <= self._skip_to:  # a stream that begins at a time repeats events before the position
            events = [event for event in events if token_of(event["_id"]) > self._skip_to]
        if not batch.events:
            self._packer.stamps.give_up()
        large: dict[str, LargeEvent] = {}
        for event in self._packer.large_among(events):
            token = token_of(event["_id"])
            large[token] = await self._keep(token, event_of(event))
        self._parts.stats.read += len(events)
        await self._send(self._packer.pack(events, large), batch.token)

    async def _keep(self, token: str, event: bytes) -> LargeEvent:
        """Write a large event to the state, before its record is published."""
        report = partial(log.warning, "a large event can't be written now, trying again", action="event.not_kept")
        self._parts.figures.large_events += 1
        return await retry(partial(self._large.add, token, event), report, address=self._parts.group.state.address)

    async def _send(self, packed: Packed, token: str) -> None:
        """Send records when the lease is valid, and wait until there is room for the next ones.

        After a failure this call waits for ever, because no record may follow the failed one.
        """
        await self._lease.held()
        reports = self.ledger.add(token, packed.parts, packed.size, is_end=not self._packer.stamps.open)
        if packed.parts:
            error = self._producer.send(packed, reports)
            if error:
                self.ledger.fail(error)
            self._quiet.clear()
            self._busy.set()
        while self.ledger.failure or self.ledger.size > self._parts.settings.max_queued_mb * _MB:
            self._room.clear()
            await self._room.wait()

    # -- missing changes -----------------------------------------------------------------------------------------

    async def _bridge(self, lost: HistoryLost) -> str:
        """Publish lost history as a gap. Returns the token after which the stream continues.

        Raises:
            HistoryLost: the operator did not choose to continue.
        """
        if self._parts.settings.on_history_lost == "fail":
            raise lost
        report = partial(log.warning, "the stream can't be opened now", action="history.not_bridged")
        token = (await retry(self._source.now, report, address=self._parts.group.state.address)).token
        assert token is not None  # the present position has a token
        await self._publish_gap("history_lost", token)
        return token

    async def _publish_gap(self, kind: Literal["history_lost", "position_set"], until: str) -> None:
        """Tell the readers of every partition that all changes up to a token are missing, and record the gap."""
        after = self._after
        since, to = token_time(after), token_time(until)
        why = (
            "the oplog does not hold them any more" if kind == "history_lost" else "an operator moved the position"
        )
        text = (
            f"the relay does not publish the changes between {since.as_datetime().isoformat()} and "
            f"{to.as_datetime().isoformat()}: {why}"
        )
        await self._gaps.record(Gap(kind, after, text, None, since, to, "resume"))
        self._packer.stamps.give_up()
        notice = GapNotice(until, "history_lost", shortened(after), until, "resume")
        self._after = self._skip_to = until
        await self._send(self._packer.pack_gap(notice, range(self._facts.layout.partitions)), until)

    async def _publish_lost_event(self, after: str, before: str) -> None:
        """Tell the readers that the server can't send an event, and record the gap.

        The partition of the event is unknown, so the record is in the first partition.
        """
        text = "the server can't send a change whose _id has several megabytes, so it is not published"
        await self._gaps.record(Gap("oversize", after, text, None, token_time(after), token_time(before)))
        notice = GapNotice(after_shortened(after), "oversize", shortened(after), shortened(before))
        await self._send(self._packer.pack_gap(notice, [0]), directly_after(after))
