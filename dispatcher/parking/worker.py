"""Makes parked deliveries when they are due, in parallel to the deliveries of new changes.

An errand makes the deliveries of one lane. The lanes that have waited longest come first. An errand is queued
among the jobs of its document, so that no other delivery of this document is made or parked meanwhile. An errand
ends after a slice of time. Then the changes that were read meanwhile are delivered. At most half of the workers
are places for errands. The errands of one receiver take at most the receiver's share of these places.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final

from bson.raw_bson import RawBSONDocument
from pymongo.errors import PyMongoError

from dispatcher.core.driver_errors import in_short, raise_if_fatal
from dispatcher.core.events import Errand
from dispatcher.core.output.logs import log
from dispatcher.core.retry import pause_after
from dispatcher.core.tasks import Abandoned, Interrupted
from dispatcher.delivery.attempt import HeldDelivery
from dispatcher.delivery.outcome import Decision, Waiting
from dispatcher.exceptions import DispatcherError
from dispatcher.parking.bulk import ParkedBatches
from dispatcher.parking.gate import Parking
from dispatcher.parking.lane import Lane
from dispatcher.parking.limited_lanes import LimitedLanes
from dispatcher.parking.reading import RecordReader, recorded_attempts
from dispatcher.parking.store import UNDELIVERABLE, HeldStore

Deliver = Callable[[HeldDelivery], Awaitable[Decision]]
"""Makes an attempt at a delivery."""

# Seconds after which an errand ends. Then the changes that were read meanwhile are delivered.
_SLICE: Final = 0.2

# Seconds between two queries for the parked deliveries of a receiver. Usually the process knows when the next
# delivery is due, and waits until then.
_RARELY: Final = 30.0  # the maximum
_AGAIN: Final = 1.0  # after a query that found a due delivery that can't be made yet
_OFTEN: Final = 0.005  # the minimum

# Maximum bytes of the first deliveries of taken lanes, by their recorded sizes.
_BYTES: Final = 8_000_000

# Seconds until the next search for deliveries that former owners of the partition parked. The first search is made
# when the former owners' last commands have ended.
_SOON: Final = 60.0  # from the start of an ownership to the first search, and after a failed search
_SELDOM: Final = 3_600.0  # from one search to the next


class _Slice:
    """The first deliveries of a lane, which one errand makes together.

    Args:
        rows: the first deliveries of the lane.
        after: `_id` of the delivery after them, if it is known.

    Attributes:
        finished: the number of finished rows that are not deleted yet.
    """

    __slots__ = ("after", "finished", "lane", "rows")

    def __init__(self, lane: Lane, rows: Sequence[RawBSONDocument], after: str | None = None) -> None:
        self.lane = lane
        self.rows = rows
        self.after = after
        self.finished = 0

    @property
    def is_finished(self) -> bool:
        """Returns whether all rows are finished."""
        return self.finished == len(self.rows)

    @property
    def next(self) -> str | None:
        """`_id` of the first delivery that is not finished, if it is known."""
        return self.after if self.is_finished else self.rows[self.finished]["_id"]


class ParkingWorker:
    """Makes the parked deliveries of one stream.

    Args:
        may_begin: returns whether another delivery may begin.
        bulk: makes the parked deliveries of batch receivers.
        places: maximum number of errands at the same time.
        limited: the lanes of receivers with limits.
    """

    def __init__(  # noqa: PLR0913 - it stands between the database, the lanes and the deliverer
        self,
        held: HeldStore,
        parking: Parking,
        reader: RecordReader,
        bulk: ParkedBatches,
        *,
        deliver: Deliver,
        add: Callable[[Hashable, Errand], None],
        may_begin: Callable[[], bool],
        places: int,
        limited: LimitedLanes,
    ) -> None:
        self._held = held
        self._parking = parking
        parking.on_parked(self.wake)
        self._reader = reader
        self._bulk = bulk
        bulk.on_settled(self.wake)
        self._deliver = deliver
        self._add = add
        self._may_begin = may_begin
        self._places = max(1, places)
        self._limited = limited
        # Taken lanes, each with its receiver and the size of its first delivery.
        self._taken: dict[str, tuple[str, int]] = {}
        # The taken lanes that wait for a place.
        self._ready: deque[tuple[str, Lane, RawBSONDocument, Hashable]] = deque()
        # The number of running errands of each receiver.
        self._running: Counter[str] = Counter()
        self._woken = asyncio.Event()
        self._next = 0.0
        self._unsettled: dict[str, _Slice] = {}
        self._next_search = monotonic() + _SOON
        # Whether the first search is over. Before that, a former owner may still delete the head of a lane, and a
        # query does not find a lane without a head. So until then, a receiver for which a query finds no lane may
        # still have parked deliveries, and its name is not forgotten.
        self._is_alone = False

    def resize(self, places: int) -> None:
        """Set the maximum number of errands at the same time."""
        before, self._places = self._places, max(1, places)
        if self._places > before:
            self.wake()

    def wake(self, seconds: float = 0.0) -> None:
        """Record that a delivery is due in this number of seconds."""
        at = monotonic() + seconds
        if at < self._next:
            self._next = at
            self._woken.set()

    async def run(self) -> None:
        """Make the deliveries that are due, until the task is cancelled."""
        try:
            await self._run()
        finally:
            self._limited.close()

    async def _run(self) -> None:
        failures = 0
        while True:
            self._next = monotonic() + _RARELY
            try:
                if monotonic() >= self._next_search:
                    self._next_search = monotonic() + _SOON  # applies if this search fails
                    await self._parking.load()
                    self._next_search = monotonic() + _SELDOM
                    self._is_alone = True
                self.wake(await self._take_all() if self._may_begin() else _AGAIN)
                self.wake(self._next_search - monotonic())
                failures = 0
            except PyMongoError as error:
                raise_if_fatal(error, self._held.address)
                failures += 1
                log.warning(
                    "parked deliveries can't be read now, trying again",
                    action="parked.unavailable",
                    error=in_short(error),
                )
                self._next = monotonic() + pause_after(failures)
            await asyncio.sleep(_OFTEN)
            await self._until_next()

    async def _until_next(self) -> None:
        while (seconds := self._next - monotonic()) > 0:
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()

    async def _take_all(self) -> float:
        """Read as many due deliveries as get places soon. Returns the seconds until another delivery is due."""
        await self._hasten()
        names = self._parking.busy
        soonest = _RARELY
        for name in names:
            taken = [lane for lane, (of, _) in self._taken.items() if of == name]
            if name in self._bulk.names:
                again, others = await self._bulk.take(
                    name, [*self._taken, *self._parking.stuck], may_forget=self._is_alone
                )
                soonest = min(soonest, again, await self._take(name, others))
                continue
            room = min(self._places, self._share + self._places // 2 - len(taken))
            room = self._limited.room(name, room)
            if delay := self._limited.delay(name):
                soonest = min(soonest, delay)
                continue
            if room <= 0 or len(self._ready) > self._places // 2 or self._bytes(name) >= _BYTES:
                continue  # the end of an errand starts another query
            times = self._parking.times_parked(name)
            stuck = list(self._parking.stuck)
            due, seconds = await self._held.due(name, room, [*taken, *stuck])
            if self._is_alone and not due and not taken and not stuck and seconds is None:
                self._parking.forget(name, times)
            soonest = min(soonest, await self._take(name, due))
            if seconds is not None and len(due) < room:
                soonest = min(soonest, seconds)
        return soonest

    async def _hasten(self) -> None:
        """Set the due time of deliveries to now if it is decided which process runs their claimed receivers.

        Taken lanes wait for a later call, because their errands may still write another due time.
        """
        hastened = self._parking.hastened
        found = {lane: id_ for lane, id_ in hastened.items() if lane not in self._taken}
        if found:
            await self._held.make_due(list(found.values()))
            for lane in found:
                del hastened[lane]

    @property
    def _share(self) -> int:
        """The maximum number of errands of one receiver. So a receiver that hangs leaves places for others."""
        return max(1, self._places // max(1, len(self._parking.busy)))

    def _bytes(self, name: str) -> int:
        """The bytes of the taken lanes.

        If the receiver has limits, only the lanes of receivers with limits count. If it has no limits, only the
        lanes of receivers without limits count.
        """
        limited = name in self._limited
        return sum(size for of, size in self._taken.values() if (of in self._limited) == limited)

    async def _take(self, name: str, lanes: list[Lane]) -> float:
        """Take lanes, and queue their errands. Returns the seconds until other lanes may be taken."""
        room = _BYTES - self._bytes(name)
        taken: list[Lane] = []
        if not lanes:
            return _RARELY
        for lane in lanes:
            if room <= 0:
                break
            taken.append(lane)
            room -= lane.size
        firsts = await self._held.read([lane.first for lane in taken])
        soonest = _AGAIN if len(taken) < len(lanes) else _RARELY
        for lane in taken:
            first = firsts.get(lane.first)
            if first is None or not self._parking.is_ours(first):
                soonest = min(soonest, _AGAIN)
                continue
            try:
                key = self._reader.key(first)
            except Exception as error:  # the document was edited by hand
                await self._held.skip(lane.first, error)
                soonest = 0.0  # the query had a limit: further lanes may be due
                continue
            self._taken[lane.id] = (name, lane.size)
            if name in self._limited:
                self._limited.wait(name, lane.id, partial(self._admit, (name, lane, first, key)))
            else:
                self._ready.append((name, lane, first, key))
        self._begin()
        return soonest

    def _admit(self, ready: tuple[str, Lane, RawBSONDocument, Hashable]) -> None:
        """Begin the errand of a lane that has a place, and read further lanes."""
        self._ready.appendleft(ready)
        self._begin()
        self.wake()

    def _begin(self) -> None:
        """Begin errands for taken lanes, as long as places are free."""
        for _ in range(len(self._ready)):
            if self._running.total() >= self._places:
                return
            name, lane, first, key = self._ready.popleft()
            if self._running[name] >= self._share and self._limited.place(lane.id) is None:
                self._ready.append((name, lane, first, key))
                continue
            self._running[name] += 1
            self._add(key, Errand(partial(self._deliver_lane, name, _Slice(lane, [first]))))

    def _end(self, name: str, lane: Lane) -> None:
        self._limited.end(lane.id)
        del self._taken[lane.id]
        self._running[name] -= 1
        self._begin()
        self.wake()

    # -- one lane --------------------------------------------------------------------------------------------

    async def _deliver_lane(self, name: str, slice_: _Slice) -> None:
        """Make the deliveries of a lane, one after another, until the slice of time is over."""
        try:
            await self._deliver_slices(name, slice_)
        except Abandoned:  # `_leave` has ended the errand
            raise
        except BaseException:
            self._end(name, slice_.lane)
            raise
        self._end(name, slice_.lane)

    async def _deliver_slices(self, name: str, slice_: _Slice) -> None:
        until, lane = monotonic() + _SLICE, slice_.lane
        if lane.id in self._parking.retried:  # the slice was read before the dead letter joined the lane
            self._parking.retried.discard(lane.id)
            slice_ = await self._following(lane)
        while self._may_begin() and slice_.rows:
            waiting = await self._deliver_in_order(name, slice_)
            more = await self._settle(slice_, waiting)
            if waiting is not None:
                self.wake(waiting.seconds)
            if waiting is not None or not more or not slice_.is_finished or monotonic() > until:
                break
            slice_ = await self._following(lane)

    async def _following(self, lane: Lane) -> _Slice:
        return _Slice(lane, *await self._parking.retry_command(lambda: self._held.following(lane.id)))

    async def settle_rest(self) -> None:
        """Record finished deliveries of errands that were interrupted before they could record them.

        Raises:
            Interrupted: the process ends, and the write has not succeeded. The deliveries will be repeated.
        """
        for slice_ in list(self._unsettled.values()):
            await self._settle(slice_, None)
        await self._bulk.settle_rest()

    async def _settle(self, slice_: _Slice, waiting: Waiting | None) -> bool:
        finished = slice_.rows[: slice_.finished]
        more = await self._parking.retry_command(
            lambda: self._held.settle(slice_.lane, finished, slice_.next, waiting)
        )
        self._unsettled.pop(slice_.lane.id, None)
        return more

    async def _deliver_in_order(self, name: str, slice_: _Slice) -> Waiting | None:
        """Make deliveries until one must wait. Returns the wait of this delivery; None if none must wait."""
        self._unsettled[slice_.lane.id] = slice_
        for row in slice_.rows:
            if not self._may_begin() or self._parking.is_paused(name) or not self._parking.is_ours(row):
                break
            next_ = await self._deliver_one(row, name, slice_)
            if isinstance(next_, Waiting):
                return next_
            slice_.finished += 1
        return None

    async def _leave(self, name: str, slice_: _Slice, task: "asyncio.Task[Any]", next_: Decision) -> None:
        """End an errand whose task is stuck in a receiver."""
        if isinstance(next_, Waiting):
            self._parking.wait_for(task, slice_.lane.id)
            await self._settle(slice_, next_)
        else:
            slice_.finished += 1
            await self._settle(slice_, None)
        self._end(name, slice_.lane)

    async def _deliver_one(self, row: RawBSONDocument, name: str, slice_: _Slice) -> Decision:
        waiting, leave = recorded_attempts(row), partial(self._leave, name, slice_)
        try:
            parts = await self._parking.retry_command(lambda: self._held.parts(row))
            change, calls, retried = self._reader.read(row, parts)
        except (PyMongoError, DispatcherError, Interrupted):
            raise
        except Exception as error:  # the document was edited by hand
            self._reader.log_malformed(row, error)
            return waiting._replace(reason="malformed", seconds=UNDELIVERABLE, error=error)
        if calls is not None:
            place = self._limited.place(slice_.lane.id)
            id_ = row["_id"]
            return await self._deliver(
                HeldDelivery(change, calls, waiting, retried, leave, place, slice_.lane.id, id_)
            )
        self._reader.log_orphaned(row)
        return waiting._replace(reason="orphaned", seconds=UNDELIVERABLE)
