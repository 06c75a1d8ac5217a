"""Limits the number of queued jobs, and of jobs in flight. A job in a pause gives its place to another job."""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from dispatcher.core.tasks import Interrupted
from dispatcher.settings import Settings


class Bounds(NamedTuple):
    """The limits that the operator sets.

    Attributes:
        concurrency: maximum number of jobs in flight; jobs in a pause do not count.
        max_queued: maximum number of jobs that are accepted and not finished.
        max_bytes: maximum number of bytes of the events of these jobs. A larger event is accepted if no other
            event is queued.
    """

    concurrency: int
    max_queued: int
    max_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> "Bounds":
        """Read the bounds of a process from its settings."""
        return cls(settings.concurrency, settings.max_queued, settings.max_queued_mb * 1_000_000)

    def share(self, part: int, parts: int) -> "Bounds":
        """The share of one of several partitions."""
        return Bounds(*(share(total, part, parts) for total in self))


class Capacity:
    """The places for jobs, and the number of places in use.

    Only the lanes, the waiting claims and the batches change the counts of the queue.

    Attributes:
        places: maximum number of jobs in flight now; 0 between `hold` and `release`.
        away: number of jobs in a pause.
        queued: number of jobs in the lanes, and of deliveries in batches, that are not finished.
        queued_bytes: bytes of the events of these jobs and deliveries, and of deliveries that wait for a claim.
        errands: number of errands in the lanes that are not finished. They take no room in the queue. A batch, for
            example, is an errand, and its deliveries take room already.
        waiting: number of deliveries that wait for a claim. An application that writes much causes many of them,
            but nearly all soon end without work. So only their bytes are limited.
        returning: jobs whose pause is over. They wait for a place.
        watched: a future that is resolved when a job or a waiting delivery is finished; None if no task waits for
            it.
        stopping: True if no further job begins.
        cutting: True after the grace period at the end of the process: receivers that still run are cancelled.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.places = bounds.concurrency
        self.in_flight = self.away = self.queued = self.queued_bytes = self.errands = self.waiting = 0
        self.returning: deque[asyncio.Future[None]] = deque()
        self.stopping = self.cutting = False
        self._paused: set[asyncio.Future[None]] = set()
        self.watched: asyncio.Future[None] | None = None
        self._on_free: Callable[[], None] = _nothing

    def on_free(self, listener: Callable[[], None]) -> None:
        """Call a function whenever a new job may begin."""
        self._on_free = listener

    # -- the queue -------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Returns whether the queue has no room for another job."""
        bounds = self._bounds
        return self.queued >= bounds.max_queued or (self.queued_bytes >= bounds.max_bytes and self.has_unfinished)

    def has_room_for(self, count: int, size: int) -> bool:
        """Returns whether the queue has room for some jobs.

        Args:
            count: the number of the jobs.
            size: the bytes of their events.
        """
        bounds = self._bounds
        return self.queued + count <= bounds.max_queued and self.queued_bytes + size <= bounds.max_bytes

    @property
    def has_unfinished(self) -> bool:
        """Returns whether a job or an errand is queued, or a delivery waits for a claim."""
        return self.is_busy or self.waiting > 0

    @property
    def is_busy(self) -> bool:
        """Returns whether a job or an errand is queued or in flight."""
        return self.queued > 0 or self.errands > 0

    @property
    def crowded(self) -> bool:
        """Returns whether more than half of the queue is taken."""
        return self.queued * 2 > self._bounds.max_queued or self.queued_bytes * 2 > self._bounds.max_bytes

    @property
    def batch_bytes(self) -> int:
        """The maximum number of bytes of the events of one batch. A single larger event is a batch of its own."""
        return self._bounds.max_bytes // 8

    def is_crowded_by(self, count: int, size: int) -> bool:
        """Returns whether some deliveries take more than half of the queue.

        Args:
            count: the number of the deliveries.
            size: the bytes of their events.
        """
        return count * 2 > self._bounds.max_queued or size * 2 > self._bounds.max_bytes

    async def room(self) -> None:
        """Wait until another job may be queued."""
        while self.full:
            await self.progress()

    async def idle(self) -> None:
        """Wait until no job and no errand is queued or in flight."""
        while self.is_busy:
            await self.progress()

    async def progress(self) -> None:
        """Wait until a job or a waiting delivery is finished."""
        self.watched = asyncio.get_running_loop().create_future()
        await self.watched

    def report_progress(self) -> None:
        """Wake the task that waits for a finished job."""
        if self.watched is not None:
            _resolve(self.watched)
            self.watched = None

    # -- places ----------------------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Returns whether `hold` was called, and `release` was not called yet."""
        return self.places == 0

    def may_begin(self) -> bool:
        """Returns whether a delivery that does not come from the stream may begin, such as a parked one."""
        return not (self.stopping or self.held)

    def hold(self) -> None:
        """Begin no job until `release`. Jobs in flight continue. Jobs in a pause stay in it."""
        self.places = 0

    def release(self) -> None:
        """Begin jobs again."""
        self.places = self._bounds.concurrency
        while self.returning and self.in_flight < self.places:
            self._return_one()
        self._on_free()

    def resize(self, bounds: Bounds) -> None:
        """Change the bounds. If they are smaller now, the jobs beyond them stay queued or in flight."""
        self._bounds = bounds
        if not self.held:
            self.release()
        self.report_progress()

    def stop(self) -> None:
        """Begin no further job, and interrupt all pauses."""
        self.stopping = True
        for future in list(self._paused):
            if not future.done():
                future.set_exception(Interrupted())

    def free_place(self) -> None:
        """Give a free place to a job whose pause is over, or else to a new job."""
        if self.in_flight < self.places and not self._return_one():
            self._on_free()

    def _return_one(self) -> bool:
        while self.returning:
            future = self.returning.popleft()
            if not future.done():
                self.in_flight += 1
                future.set_result(None)
                return True
        return False

    async def pause(self, seconds: float | None, until: "asyncio.Future[None] | None" = None) -> None:
        """Wait in the middle of a job. Another job may take its place. Later jobs of the same lane wait, too.

        Args:
            seconds: the wait ends after this time; None to wait without a time limit.
            until: the wait also ends when this future is done.

        Raises:
            Interrupted: the lanes stop.
        """
        self.away += 1
        self.in_flight -= 1
        self.free_place()
        has_place = False
        try:
            await self._sleep(seconds, until)
            if self.in_flight >= self.places:  # other jobs took all places; wait for the next free one
                future = asyncio.get_running_loop().create_future()
                self.returning.append(future)
                try:
                    await self._wait(future)
                finally:
                    has_place = future.done() and not future.cancelled() and future.exception() is None
        finally:
            self.away -= 1
            if not has_place:
                self.in_flight += 1

    async def until(self, future: "asyncio.Future[None]") -> None:
        """Wait for a future in the middle of a job. The job keeps its place.

        Raises:
            Interrupted: the lanes stop.
        """
        await self._wait(future)

    async def _sleep(self, seconds: float | None, until: "asyncio.Future[None] | None") -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        due = monotonic() + (seconds or 0.0)
        timer: asyncio.TimerHandle | None = None

        def ring() -> None:
            nonlocal timer
            left = due - monotonic()
            if left > 0:  # the timers of uvloop have whole milliseconds
                timer = loop.call_later(left, ring)
            else:
                _resolve(future)

        if seconds is not None:
            timer = loop.call_later(seconds, ring)
        if until is not None:
            until.add_done_callback(lambda _: _resolve(future))
        try:
            await self._wait(future)
        finally:
            if timer is not None:
                timer.cancel()

    async def _wait(self, future: "asyncio.Future[None]") -> None:
        """Wait for a future. `stop` interrupts the wait."""
        if self.stopping:
            raise Interrupted
        self._paused.add(future)
        try:
            await future
        finally:
            self._paused.discard(future)


def share(total: int, part: int, parts: int) -> int:
    """Compute one part of a number, at least 1. If the division has a remainder, the first parts are 1 larger.

    Args:
        part: the number of the part, from 0.
        parts: the number of parts.
    """
    return max(1, total // parts + (part < total % parts))


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _nothing() -> None:
    pass
