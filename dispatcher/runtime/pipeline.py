"""Where the stages meet.

    change stream -> decode -> images -> route -> lanes -> deliver -> position

One task reads, so that the server works on the next batch while this process works on the last one. One task
takes the batches apart and fills the lanes, as far as there is room. The lanes' workers deliver. One task
saves the position.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from time import monotonic, time
from typing import Any, Final

from bson.codec_options import CodecOptions
from bson.timestamp import Timestamp
from pymongo.errors import PyMongoError

from dispatcher.core.bson_codec import Undecoded
from dispatcher.core.driver_errors import fatal, in_short
from dispatcher.core.error_text import words_of
from dispatcher.core.events import Batch, Change, Start, token_time
from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import Stats, get_logger
from dispatcher.core.retry import pause_after, retry
from dispatcher.core.stats import Gauges, Lag, seconds_of
from dispatcher.core.tasks import end
from dispatcher.core.undecodable import Undecodable
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.routes import Routes
from dispatcher.delivery.tracing import tracing_of
from dispatcher.delivery.transactions import Transactions
from dispatcher.delivery.where import Conditions
from dispatcher.exceptions import HistoryLost
from dispatcher.operate.pauses import Controls
from dispatcher.parking.dead_letters import DeadLetters
from dispatcher.parking.gate import Parking
from dispatcher.parking.redelivery import Resending
from dispatcher.parking.store import Parked
from dispatcher.parking.worker import Unparking
from dispatcher.position.checkpoint import Progress
from dispatcher.position.documents import Position
from dispatcher.position.gaps import Gap, Gaps, gaps_of
from dispatcher.position.store import PositionStore
from dispatcher.runs.live_backfill import Refilling
from dispatcher.runtime.drain import SAVE_PATIENCE, drain
from dispatcher.runtime.history_lost import History
from dispatcher.runtime.intake import DELIVERABLE, Entrance
from dispatcher.settings import Settings
from dispatcher.stream.change_stream import ChangeStreamSource
from dispatcher.stream.decode import decode, decoded_together
from dispatcher.stream.delete_markers import slimmed
from dispatcher.stream.lookup import Images
from dispatcher.stream.origins import HORIZON, Origins
from mongoz.stamps import Stamp

__all__ = ["Pipeline"]

log = get_logger()

_OF_DOCUMENTS: Final = DELIVERABLE | {"marker", "untouched"}

# Events taken apart in one go: long enough to share a lookup, short enough not to keep the event loop.
_CHUNK: Final = 100

# A batch of fewer events means that we are up to date: it is delivered before the next is asked for. Asking takes
# a millisecond of this process, in which nothing would be delivered. And who read it enters it into the lanes: to
# hand it to another task, and to wait for that, takes two turns of the event loop.
_SMALL: Final = 100

# Seconds between two lines about stamps that came too late.
_LATE_EVERY: Final = 10.0

# Seconds before the position where the stamps of earlier writes are looked for; less, if the oplog is that short.
_HORIZONS: Final = (HORIZON, 15, 3)


class Pipeline:
    """Delivers what comes out of one change stream.

    Args:
        source: the change stream.
        images: completes updates that came without their document.
        routes: who gets what.
        store: where the position is kept.
        lease: of the partition.
        position: what was found when it was claimed, with a token.
        fingerprint: of the stream.
        codec_options: the registry's.
        settings: the operator's.
        stats: counters.
        address: of the server, for messages.
        dead_letters: where failed deliveries are kept.
        parked: where deliveries wait that must wait long.
        controls: what is paused.
        gaps: where it is noted that changes are missing.
        history: where to go on when the oplog does not reach back far enough.
        refilling: makes what takes care of backfills.
        transactions: calls transactional receivers.
        conditions: who wants which change; None if everybody wants all.
    """

    def __init__(  # noqa: PLR0913 - here all stages meet
        self,
        *,
        source: ChangeStreamSource,
        images: Images,
        routes: Routes,
        store: PositionStore,
        lease: Lease,
        position: Position,
        fingerprint: str,
        codec_options: CodecOptions[Any],
        settings: Settings,
        stats: Stats,
        address: str,
        dead_letters: DeadLetters,
        parked: Parked,
        controls: Controls,
        gaps: Gaps,
        history: History,
        refilling: Callable[..., Refilling],
        transactions: Transactions,
        conditions: Conditions | None,
    ) -> None:
        assert position.token is not None
        self._source = source
        self._images = images
        self._routes = routes
        self._lease = lease
        self._codec_options = codec_options
        self._settings = settings
        self._stats = stats
        self._address = address
        self._gaps = gaps
        self._history = history
        self._start: Start = position.start(fingerprint)
        self._progress = Progress(
            store,
            lease,
            position,
            fingerprint,
            stats=stats,
            address=address,
            always=lambda: controls.everything,
        )
        self._tracker = self._progress.tracker
        self._origins = Origins(routes.group)
        self._lag = Lag()
        self._late_said = float("-inf")
        self._crash: asyncio.Future[None] | None = None
        self._controls = controls
        self._looked_around = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._parking = Parking(
            parked,
            routes.receivers,
            term=lease.term,
            stats=stats,
            pause=self._pause,
            paused=lambda: controls.receivers,
            on_parked=lambda seconds: self._unparking.wake(seconds),  # noqa: PLW0108 - it is made later
        )
        self._deliverer = Deliverer(
            term=lease.term,
            attempts=settings.attempts,
            timeout=settings.timeout,
            stats=stats,
            codec_options=codec_options,
            dead_letters=dead_letters,
            transactions=transactions,
            parking=self._parking,
            park_after=settings.park_after,
            crowded=lambda: self._lanes.crowded,
            slow_after=settings.slow_after,
            replace=lambda task, work: self._lanes.replace(task, work),  # noqa: PLW0108 - they are made later
            pause=self._pause,
            lease=lease,
            log_each=settings.log_level == "debug",
            tracing=tracing_of(settings),
            cutting=lambda: self._lanes.cutting,
        )
        self._lanes = Lanes(
            self._deliverer.work,
            on_finished=self._tracker.finished,
            on_crash=self._crashed,
            concurrency=settings.concurrency,
            max_queued=settings.max_queued,
            max_bytes=settings.max_queued_mb * 1_000_000,
            # Who has lost the lease had better write nothing more.
            is_calling=lambda task: lease.lost.is_set() or self._deliverer.is_calling(task),
        )
        self._entrance = Entrance(
            self._progress,
            routes,
            self._lanes,
            self._parking,
            conditions=conditions,
            stats=stats,
        )
        self._resending = Resending(
            dead_letters,
            self._parking,
            routes,
            conditions,
            add=self._lanes.add,
            goes_on=self._goes_on,
            codec_options=codec_options,
            address=address,
        )
        self._unparking = Unparking(
            parked,
            self._parking,
            routes,
            deliver=self._deliverer.deliver_parked,
            forget=partial(dead_letters.forget, pause=self._pause),
            add=self._lanes.add,
            goes_on=self._goes_on,
            position=lambda: self._tracker.token,
            places=settings.concurrency // 2,
            codec_options=codec_options,
            address=address,
        )

        self._refilling = refilling(
            self._parking, self._deliverer, add=self._lanes.add, goes_on=self._goes_on, conditions=conditions
        )

    def _goes_on(self) -> bool:
        """Whether something that is not in the stream may be begun: not before it is known what is parked."""
        return self._looked_around.is_set() and not (self._lanes.stopping or self._lanes.held)

    @property
    def position(self) -> str:
        """The resume token up to which everything is finished, saved or not."""
        return self._tracker.token

    def gauges(self) -> Gauges:
        """How it goes, at this moment."""
        now, server_now = monotonic(), time() + self._stats.clock_offset
        oldest = self._tracker.oldest
        waiting_since = None
        if oldest is not None:
            wall_time = oldest.change.wall_time if oldest.change is not None else None
            waiting_since = seconds_of(wall_time) or float(token_time(oldest.token).time)
        return Gauges(
            connected=self._source.connected,
            in_flight=self._lanes.in_flight,
            queued=self._lanes.queued,
            queued_bytes=self._lanes.queued_bytes,
            lag_seconds=self._lag.seconds(now, server_now, waiting_since),
            lag_changes=self._lag.changes(now, server_now, self._tracker.span),
            position_seconds=float(token_time(self._tracker.token).time),
            saved_seconds=self._progress.saved_seconds,
            silent_seconds=self._lag.silent(now),
        )

    @property
    def connected(self) -> bool:
        """Whether the change stream is open at this moment."""
        return self._source.connected

    def resize(self, part: int, parts: int) -> None:
        """Take one part of what the operator allows to the process.

        Args:
            part: which, from 0 on; the first ones get what can't be divided.
            parts: how many pipelines share it.
        """

        def share(total: int) -> int:
            return max(1, total // parts + (part < total % parts))

        allowed = self._settings
        self._source.batch_size = share(allowed.batch_size)
        self._lanes.resize(
            share(allowed.concurrency), share(allowed.max_queued), share(allowed.max_queued_mb * 1_000_000)
        )
        self._unparking.resize(share(allowed.concurrency) // 2)

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set or the lease is lost; then read nothing more, and drain.

        Raises:
            DispatcherError: what no repetition can mend.
        """
        self._crash = asyncio.get_running_loop().create_future()
        batches: asyncio.Queue[Batch] = asyncio.Queue(maxsize=1)
        tasks = [
            asyncio.create_task(self._read(batches), name="read"),
            asyncio.create_task(self._fill_lanes(batches), name="fill-lanes"),
            asyncio.create_task(self._deliverer.watch(), name="watch-timeouts"),
            asyncio.create_task(self._unparking.run(), name="work-off-parked"),
            asyncio.create_task(self._resending.run(), name="retry-dead-letters"),
            asyncio.create_task(self._refilling.run(), name="work-on-backfills"),
        ]
        self._controls.listeners.add(self._on_controls)
        ending = asyncio.Event()
        saving = asyncio.create_task(self._progress.save_regularly(ending, self._settings), name="save-position")
        told = [
            asyncio.create_task(stop.wait(), name="wait-for-stop"),
            asyncio.create_task(self._lease.lost.wait(), name="wait-for-loss"),
        ]
        try:
            ends: list[asyncio.Future[Any]] = [*tasks, saving, *told, self._crash]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end([*tasks, *told])
            self._controls.listeners.discard(self._on_controls)
            ending.set()
            await asyncio.wait([saving], timeout=SAVE_PATIENCE)
            await end([saving])
            await drain(
                self._lease,
                self._lanes,
                self._parking,
                self._unparking,
                self._progress,
                grace=self._settings.grace,
            )
        self._raise_failures([*tasks, saving])

    def _raise_failures(self, tasks: list[asyncio.Task[None]]) -> None:
        """One task that fails stops the service, and says why."""
        for task in tasks:
            if not task.cancelled():
                task.result()
        if self._crash is not None and self._crash.done():
            self._crash.result()

    def _crashed(self, error: BaseException) -> None:
        if self._crash is not None and not self._crash.done():
            self._crash.set_exception(error)

    async def _pause(self, seconds: float) -> None:
        await self._lanes.pause(seconds)

    async def _read(self, batches: "asyncio.Queue[Batch]") -> None:
        await self._remember_stamps()
        start, behind = self._start, self._progress.began
        while True:
            try:
                async with aclosing(self._source.batches(start)) as read:
                    self._lag.asked(monotonic())
                    async for batch in read:
                        await self._hand_on(batch, batches)
                        behind = batch.token
            except HistoryLost as lost:
                behind = await self._history.bridge(behind, lost)
                self._origins.since = float(token_time(behind).time)
                self._refilling.wake()
                await batches.put(Batch([], behind))
                start = Start(token=behind)

    async def _hand_on(self, batch: Batch, batches: "asyncio.Queue[Batch]") -> None:
        small = len(batch.events) < _SMALL
        self._lag.heard(monotonic(), token_time(batch.token).time, len(batch.events), more=not small)
        await self._reading.wait()
        if small:
            await batches.join()
            await self._looked_around.wait()
            await self._fill(batch)
        else:
            await batches.put(batch)
        self._lag.asked(monotonic())

    async def _remember_stamps(self) -> None:
        """See the stamps that were written shortly before the position: what is read next may hold copies of them.

        Where the server does not let us look so far back, or at all, we do without.
        """
        position, failures = self._progress.began, 0
        self._origins.since = float(token_time(position).time)
        horizons = [*_HORIZONS]
        while horizons:
            since = Timestamp(max(1, token_time(position).time - horizons[0]), 1)
            try:
                async for event in self._source.stamped(since, position):
                    self._origins.saw(Stamp.unpack(event["stamp"]), event.get("wallTime"))
            except PyMongoError as error:
                failures += 1
                if fatal(error, self._address) is not None:
                    horizons.pop(0)
                log.warning(
                    "the stamps of earlier writes could not be read; copies of them may pass for the originals",
                    action="stamps.not_read",
                    error=in_short(error),
                    trying_again=bool(horizons),
                )
            else:
                self._origins.since = float(since.time)
                return
            await asyncio.sleep(pause_after(failures) if horizons else 0)

    async def _look_around(self) -> None:
        """Find out what is paused, and what an earlier process parked; before anything is delivered.

        Raises:
            DispatcherError: what no repetition can mend.
        """
        report = partial(log.warning, "the state can't be read now, trying again", action="state.not_read")
        await retry(self._controls.look, report, address=self._address)
        await retry(self._parking.load, report, address=self._address)
        self._on_controls()

    def _on_controls(self) -> None:
        """Something was paused or resumed."""
        self._parking.watch()
        if self._controls.everything:
            self._reading.clear()
            self._lanes.hold()
        elif self._lanes.held:
            self._reading.set()
            self._lanes.release()
        self._unparking.wake()

    async def _fill_lanes(self, batches: "asyncio.Queue[Batch]") -> None:
        await self._look_around()
        self._looked_around.set()
        while True:
            await self._fill(await batches.get())
            batches.task_done()

    async def _fill(self, batch: Batch) -> None:
        """Take a batch apart, and give its changes to the lanes, as far as there is room. One batch at a time."""
        if batch.lost_after is not None:
            await self._report_lost(batch.lost_after, batch.token)
        markers = self._entrance.markers
        for i in range(0, len(batch.events), _CHUNK):
            changes = await self._decode(batch.events[i : i + _CHUNK])
            async for part in self._images.complete(changes):
                refused = await self._entrance.prepare(part)
                for change in part:
                    if self._lanes.full:
                        await self._lanes.room()
                    # Where nothing is queued, the span are markers, and their deletes are still to be read.
                    while self._progress.is_far_ahead and self._lanes.queued:
                        await self._lanes.progress()
                    if markers:
                        self._entrance.give_up(markers.unclaimed_at(change))
                    if change.operation not in _OF_DOCUMENTS:
                        await self._report(change)
                    self._entrance.enter(change, refused)
            await asyncio.sleep(0)
        if markers and not batch.events:
            self._entrance.give_up(markers.unclaimed())
        self._tracker.mark(batch.token)

    async def _decode(self, events: Sequence[Undecoded]) -> list[Change]:
        self._stats.read += len(events)
        changes: list[Change] = []
        for event, found in zip(events, decoded_together(events, self._codec_options), strict=True):
            if self._progress.inherits:
                self._progress.look_back(event)
            try:
                change = decode(event, self._codec_options, found)
                changes.append(change if change.stamp is None else self._judged(change))
            except Undecodable as error:
                if self._progress.is_finished(error.token):
                    continue
                self._stats.invalid += 1
                log.error(
                    "a change event can not be decoded; it becomes a dead letter",
                    action="change.undecodable",
                    token=error.token,
                    id=repr(error.key),
                    error=words_of(error),
                )
                # Nothing behind it is entered before, so the position can't pass it.
                await self._deliverer.keep_unreadable(bytes(event.raw), error.token, error)
        return changes

    def _judged(self, change: Change) -> Change:
        judged = self._origins.judge(change)
        if judged.delivery_id:
            self._say_late(judged)
        return slimmed(judged) if judged.operation == "marker" else judged

    def _say_late(self, change: Change) -> None:
        """Count a stamp that came too late, and say so, not more than once in some seconds: a stall makes many."""
        self._stats.late_stamps += 1
        if monotonic() < self._late_said + _LATE_EVERY:
            return
        self._late_said = monotonic()
        log.warning(
            "a write took too long after it was stamped: receivers that ran in the writing process get it again, "
            "under the same delivery.id",
            action="stamps.late",
            delivery_id=change.delivery_id,
            namespace=".".join(change.namespace),
            id=repr(change.id),
            late_stamps=self._stats.late_stamps,
            remedy="Keep transactions short, and compare the clocks of the writing processes with the server's.",
        )

    async def _report(self, change: Change) -> None:
        """Whole collections that came or went: there are no changes of single documents to deliver.

        When this returns it is noted, so that the position may pass it.
        """
        if not self._progress.is_finished(change.token):
            for gap in gaps_of(change, self._routes.listening_to):
                await self._gaps.record(gap)

    async def _report_lost(self, after: str, before: str) -> None:
        """An event that the server could not send in any way."""
        text = "a change has an _id of several megabytes, so that its event can not be sent: nobody is told of it"
        await self._gaps.record(Gap("oversize", after, text, None, token_time(after), token_time(before)))
