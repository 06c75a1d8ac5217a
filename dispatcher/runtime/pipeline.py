"""The way of a change, from the source to the saved position.

    reader -> routes -> lanes -> deliverer -> checkpoint

One task follows the source: it reads a batch, finds the receivers of each change, and puts the change into its
lane as soon as the queue has room. The workers of the lanes deliver. Another task saves the position.
"""

import asyncio
from collections.abc import Hashable
from contextlib import aclosing
from functools import partial
from time import monotonic, time
from typing import Any, Final, NamedTuple

from dispatcher.batches.batches import Batches
from dispatcher.claims.waiting import WaitingClaims
from dispatcher.core.error_text import words_of
from dispatcher.core.events import Change, EventBatch
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.core.stats import Gauges, Lag, Stats, seconds_of
from dispatcher.core.tasks import end
from dispatcher.delivery.capacity import Bounds, Capacity, share
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.failure import Failures
from dispatcher.delivery.invoker import Invoker
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import HistoryLost
from dispatcher.operate.pauses import Pauses
from dispatcher.parking.gate import Parking
from dispatcher.parking.redelivery import Redelivery
from dispatcher.parking.worker import ParkingWorker
from dispatcher.position.checkpoint import Checkpoint
from dispatcher.position.gaps import Gap, Gaps, gaps_of
from dispatcher.runs.live_backfill import LiveBackfill
from dispatcher.runtime.drain import SAVE_PATIENCE, drain
from dispatcher.runtime.history_lost import LostHistory
from dispatcher.runtime.intake import Intake
from dispatcher.settings import Settings
from dispatcher.stream.read_ahead import batches_ahead
from dispatcher.stream.reader import LostEvent, Reader, UnreadableEvent
from dispatcher.stream.source import Source
from mongoz.signals import Delivery

# Operations on a whole collection or database. Their events contain no change of a single document.
_OF_COLLECTIONS: Final = frozenset({"drop", "dropDatabase", "rename"})


class Reading(NamedTuple):
    """The stages from the source to the receivers of a change.

    Attributes:
        reader: converts events to changes.
        history: decides where the stream continues after lost history.
        gaps: records changes that can't be delivered.
    """

    source: Source
    reader: Reader
    routes: Routes
    history: LostHistory
    gaps: Gaps


class Delivering(NamedTuple):
    """The stages from the lane to the end of a delivery.

    Attributes:
        failures: keeps events that can't be decoded.
        parking: deliveries that wait in the database.
        claims: deliveries that wait for the process that wrote.
        batches: deliveries that wait for a batch.
    """

    capacity: Capacity
    lanes: Lanes
    deliverer: Deliverer
    invoker: Invoker
    failures: Failures
    parking: Parking
    claims: WaitingClaims
    batches: Batches


class OtherSources(NamedTuple):
    """The sources of deliveries besides the stream.

    Attributes:
        worker: delivers parked deliveries that are due.
        redelivery: retries dead letters on request.
        backfill: delivers the current documents, on request or after lost history.
    """

    worker: ParkingWorker
    redelivery: Redelivery
    backfill: LiveBackfill


class Pipeline:
    """Delivers the changes of one partition.

    Args:
        reading: the stages before a delivery.
        delivering: the stages of a delivery.
        others: the sources of deliveries besides the stream.
        checkpoint: saves the position, under the lease of the partition.
    """

    def __init__(
        self,
        reading: Reading,
        delivering: Delivering,
        others: OtherSources,
        checkpoint: Checkpoint,
        *,
        controls: Pauses,
        settings: Settings,
        stats: Stats,
    ) -> None:
        self._source, self._reader, self._routes, self._history, self._gaps = reading
        (
            self._capacity,
            self._lanes,
            self._deliverer,
            self._invoker,
            self._failures,
            self._parking,
            self._claims,
            self._batches,
        ) = delivering
        self._worker, self._redelivery, self._backfill = others
        self._checkpoint = checkpoint
        self._tracker = checkpoint.tracker
        self._controls = controls
        self._settings = settings
        self._stats = stats
        self._intake = Intake(checkpoint, self._routes, self._lanes, self._claims, stats)
        self._lag = Lag()
        self._unpaused = asyncio.Event()
        self._capacity.hold()  # until the state is loaded

    # -- the way of a change ---------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Read the source for ever, and deliver. If the source has lost changes, continue after them."""
        await self._load_state()
        start, after = self._checkpoint.start, self._checkpoint.began
        await self._reader.recall(after)
        while True:
            try:
                async with aclosing(batches_ahead(self._source, start, self._lag)) as batches:
                    async for batch in batches:
                        await self._unpaused.wait()
                        await self._take(batch)
                        after = batch.token
            except HistoryLost as lost:
                start = await self._history.bridge(after, lost)
                assert start.token is not None  # the end of a gap has a token
                after = start.token
                self._reader.skip_to(float(self._source.time_of(after).time))
                self._backfill.wake()
                await self._take(EventBatch([], after, place=start.place))

    async def _take(self, batch: EventBatch) -> None:
        """Put the changes of a batch into their lanes."""
        self._stats.read += len(batch.events)
        if self._checkpoint.inherits:
            for event in batch.events:
                self._checkpoint.look_back(event)
        async for part in self._reader.read(batch):
            if isinstance(part, list):
                await self._enter(part)
            elif isinstance(part, UnreadableEvent):
                await self._keep_unreadable(part)
            else:
                await self._report_lost(part)
            await asyncio.sleep(0)  # let the workers begin
        self._checkpoint.mark(batch)

    async def _enter(self, changes: list[Change]) -> None:
        """Find the receivers of some changes, and put each change into its lane as soon as the queue has room."""
        routed = await self._routes.resolve(changes)
        await self._claims.load(changes)
        if self._parking.watched:
            wanted = [change for change, calls in routed if calls or change.origin is not None]
            await self._parking.look_up(wanted, self._routes.names_listening_to, self._is_queued)
        has_room = self._has_room_for(changes)
        for number, (change, calls) in enumerate(routed):
            if not has_room and self._must_wait():
                while self._must_wait():
                    await self._capacity.progress()
                has_room = self._has_room_for(changes[number:])
            if not calls and change.operation in _OF_COLLECTIONS:
                await self._report(change)
                has_room = False  # other deliveries may have taken the room meanwhile
            self._intake.enter(change, calls)

    def _has_room_for(self, changes: list[Change]) -> bool:
        """Returns whether all of these changes may enter without a wait.

        Usually all may enter. Then this one check is enough, and the single changes are not checked.
        """
        count, size = len(changes), sum([change.size for change in changes])
        return self._capacity.has_room_for(count, size) and self._checkpoint.has_room_for(count, size)

    def _must_wait(self) -> bool:
        """Returns whether the next change must wait until other changes are finished.

        If only delete markers and deferred changes (see `DeleteMarkers`) are unfinished, the next change does not
        wait: only a later event of the stream can finish them, so the wait would never end.
        """
        capacity = self._capacity
        return capacity.full or (self._checkpoint.is_far_ahead and capacity.has_unfinished)

    def _is_queued(self, key: Hashable) -> bool:
        """Returns whether deliveries of a document are queued, or wait for a claim."""
        return self._lanes.has(key) or self._claims.has(key)

    # -- changes that can't be delivered ---------------------------------------------------------------------
    # Each such change is recorded before later changes enter their lanes. So the position can't pass a change that
    # is not recorded.

    async def _keep_unreadable(self, unreadable: UnreadableEvent) -> None:
        event, error = unreadable
        self._stats.invalid += 1
        log.error(
            "a change event can't be decoded; it becomes a dead letter",
            action="change.undecodable",
            token=error.token,
            id=repr(error.key),
            error=words_of(error),
        )
        await self._failures.keep_unreadable(event, error.token, error)

    async def _report(self, change: Change) -> None:
        """Record that all documents of a collection appeared or disappeared. No change events exist for them."""
        for gap in gaps_of(change, self._routes.listening_to):
            await self._gaps.record(gap)

    async def _report_lost(self, lost: LostEvent) -> None:
        """Record an event that can't be read."""
        text = f"{lost.why}, so no receiver gets this change"
        since, until = self._source.time_of(lost.after), self._source.time_of(lost.before)
        await self._gaps.record(Gap("oversize", lost.after, text, None, since, until))

    # -- beginning and end -----------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set or the lease is lost. Then stop reading, and drain."""
        self._claims.begin()
        tasks = [
            asyncio.create_task(self._follow(), name="follow"),
            asyncio.create_task(self._deliverer.watch(self._lanes.replace), name="watch-timeouts"),
            asyncio.create_task(self._worker.run(), name="work-off-parked"),
            asyncio.create_task(self._redelivery.run(), name="retry-dead-letters"),
            asyncio.create_task(self._backfill.run(), name="work-on-backfills"),
        ]
        ending = asyncio.Event()
        saving = asyncio.create_task(self._checkpoint.save_regularly(ending, self._settings), name="save-position")
        ends = [
            asyncio.create_task(stop.wait(), name="wait-for-stop"),
            asyncio.create_task(self._checkpoint.lease.lost.wait(), name="wait-for-loss"),
            asyncio.create_task(self._lanes.crashed.wait(), name="wait-for-crash"),
        ]
        try:
            await asyncio.wait([*tasks, saving, *ends], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end([*tasks, *ends])
            await self._claims.end()
            self._controls.listeners.discard(self._on_controls)
            self._controls.on_backfill.discard(self._backfill.wake)
            ending.set()
            await asyncio.wait([saving], timeout=SAVE_PATIENCE)
            await end([saving])
            await drain(
                self._capacity,
                self._lanes,
                self._parking,
                self._worker,
                self._claims,
                self._batches,
                self._checkpoint,
                grace=self._settings.grace,
            )
        self._raise_failures([*tasks, saving])

    def _raise_failures(self, tasks: list[asyncio.Task[None]]) -> None:
        """Raise the error of the task that failed."""
        for task in tasks:
            if not task.cancelled():
                task.result()
        if self._lanes.crash is not None:
            raise self._lanes.crash

    async def _load_state(self) -> None:
        """Load pauses and parked deliveries, and announce that this group takes claims over.

        Then start to deliver, unless everything is paused.
        """
        report = partial(log.warning, "the state can't be read now, trying again", action="state.not_read")
        await retry(self._controls.look, report, address=self._controls.address)
        await retry(self._parking.load, report, address=self._controls.address)
        await retry(self._claims.announce, report, address=self._controls.address)
        self._controls.listeners.add(self._on_controls)
        self._controls.on_backfill.add(self._backfill.wake)
        self._on_controls()

    def _on_controls(self) -> None:
        """Apply the pauses that the operator has set."""
        self._parking.watch()
        if self._controls.everything:
            self._unpaused.clear()
            self._batches.close()
            self._capacity.hold()
        elif self._capacity.held:
            self._unpaused.set()
            self._capacity.release()
        self._batches.close_if_paused()
        self._worker.wake()

    # -- figures and bounds ----------------------------------------------------------------------------------

    @property
    def position(self) -> str:
        """The resume token up to which all changes are finished. It may be later than the saved position."""
        return self._tracker.token

    def gauges(self) -> Gauges:
        """The current gauges."""
        now, server_now = monotonic(), time() + self._stats.clock_offset
        oldest, undelivered = self._tracker.undelivered()
        waiting_since = None
        if oldest is not None:
            wall_time = oldest.change.wall_time if oldest.change is not None else None
            waiting_since = seconds_of(wall_time) or float(self._source.time_of(oldest.token).time)
        return Gauges(
            connected=self._source.connected,
            in_flight=self._capacity.in_flight,
            queued=self._capacity.queued + self._capacity.waiting,
            queued_bytes=self._capacity.queued_bytes,
            lag_seconds=self._lag.seconds(now, server_now, waiting_since),
            lag_changes=self._lag.changes(now, server_now, undelivered),
            position_seconds=float(self._source.time_of(self._tracker.token).time),
            saved_seconds=self._checkpoint.saved_seconds,
            silent_seconds=self._lag.silent(now),
            waiting_seconds=0.0 if waiting_since is None else max(0.0, server_now - waiting_since),
            topic=self._source.topic_gauges(),
            claims=self._claims.gauges(server_now),
        )

    def delivery_in(self, task: "asyncio.Task[Any]") -> Delivery | None:
        """The delivery whose receiver runs in a task. Thread-safe."""
        return self._invoker.delivery_in(task)

    @property
    def connected(self) -> bool:
        """Whether the source is open, and answers."""
        return self._source.connected

    def resize(self, part: int, parts: int) -> None:
        """Use one part of the bounds of the process.

        Args:
            part: the number of the part, from 0. The first parts get the remainder of the division.
            parts: the number of pipelines that share the bounds.
        """
        bounds = Bounds.of(self._settings).share(part, parts)
        self._source.batch_size = share(self._settings.batch_size, part, parts)
        self._capacity.resize(bounds)
        self._worker.resize(bounds.concurrency // 2)
        self._batches.resize(bounds.concurrency // 2)

    def close_batches(self) -> None:
        """If all other deliveries are finished, begin the batches that wait for further deliveries."""
        self._batches.close_rest()
