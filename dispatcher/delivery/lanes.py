"""Lanes: one change of a document at a time, in commit order; many documents at once, within bounds.

There is no task per change. A bounded number of workers takes whatever lane has something to do; a receiver
that never waits for anything costs no trip through the event loop.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Final

from dispatcher.core.events import Job
from dispatcher.core.output.logs import get_logger
from dispatcher.core.tasks import Abandoned, Interrupted, end

__all__ = ["Interrupted", "Lanes"]

# Jobs done in one turn of the event loop, before timers, sockets and signals get theirs.
_TURN: Final = 100

# Seconds that a receiver may take to clean up when it is cancelled at the end.
_PATIENCE: Final = 5.0

# Seconds of these that jobs have to write down what came of deliveries.
_TO_WRITE: Final = 2.0

log = get_logger()


class _Place:
    """What a worker is at."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at: tuple[Hashable, Job] | None = None


class Lanes:
    """Runs jobs; those of one key one after another.

    Args:
        work: what to do with a job; must not raise, but for what `pause` does.
        on_finished: told when `work` has returned; it marks the job as done.
        on_crash: told when `work` raises after all, which is a bug: nothing may go on as if it had not.
        concurrency: jobs in flight at most; those that `pause` are not.
        max_queued: jobs accepted but not finished, at most.
        max_bytes: bytes of their events, at most. A single larger one is accepted alone.
        is_calling: whether a task is in a receiver, which can be cancelled without harm; what else a job does had
            better be finished.
    """

    def __init__(
        self,
        work: Callable[[Job], Awaitable[None]],
        *,
        on_finished: Callable[[Job], None],
        on_crash: Callable[[BaseException], None],
        concurrency: int,
        max_queued: int,
        max_bytes: int,
        is_calling: Callable[[asyncio.Task[Any]], bool] = lambda _task: True,
    ) -> None:
        self._work = work
        self._is_calling = is_calling
        self._on_finished = on_finished
        self._on_crash = on_crash
        self._concurrency = self._allowed = concurrency
        self._max_queued = max_queued
        self._max_bytes = max_bytes
        # A key is present while one of its jobs is ready or in flight; followers wait in its deque, which
        # is only made when there is one.
        self._lanes: dict[Hashable, deque[Job] | None] = {}
        self._ready: deque[tuple[Hashable, Job]] = deque()
        self._workers: dict[asyncio.Task[None], _Place] = {}
        self._idle: list[asyncio.Future[None]] = []
        self._rousing = False
        self._turn = _TURN
        self._changed: asyncio.Future[None] | None = None
        self._away = 0
        self._paused: set[asyncio.Future[None]] = set()
        self._returning: deque[asyncio.Future[None]] = deque()
        self.stopping = False
        self.cutting = False
        self.queued = 0
        self.queued_bytes = 0
        self.in_flight = 0

    @property
    def full(self) -> bool:
        """Whether no further job should be added now."""
        return self.queued >= self._max_queued or (self.queued > 0 and self.queued_bytes >= self._max_bytes)

    @property
    def crowded(self) -> bool:
        """Whether more than half of the room is taken."""
        return self.queued * 2 > self._max_queued or self.queued_bytes * 2 > self._max_bytes

    def hold(self) -> None:
        """Begin nothing, until it is released. What is in flight goes on, and no pause ends."""
        self._concurrency = 0

    def release(self) -> None:
        """Begin again."""
        self._concurrency = self._allowed
        while self._returning and self.in_flight < self._concurrency:
            self._let_in()
        if not self._rousing:
            self._rouse(1)

    @property
    def held(self) -> bool:
        """Whether nothing is begun."""
        return self._concurrency == 0

    def has(self, key: Hashable) -> bool:
        """Whether a job of this key is queued or in flight."""
        return key in self._lanes

    def resize(self, concurrency: int, max_queued: int, max_bytes: int) -> None:
        """Change the bounds. What is accepted or in flight beyond smaller ones stays so."""
        self._allowed, self._max_queued, self._max_bytes = concurrency, max_queued, max_bytes
        if not self.held:
            self.release()
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def room(self) -> None:
        """Wait until another job may be added."""
        while self.full:
            await self.progress()

    async def idle(self) -> None:
        """Wait until nothing is left to do."""
        while self.queued:
            await self.progress()

    async def progress(self) -> None:
        """Wait until a job is finished."""
        self._changed = asyncio.get_running_loop().create_future()
        await self._changed

    async def pause(self, seconds: float) -> None:
        """Wait, in the middle of a job, without keeping another one from its turn; later jobs of its key wait too.

        Raises:
            Interrupted: no more is to be started.
        """
        self._away += 1
        self.in_flight -= 1
        self._let_in()
        placed = False
        try:
            await self._sleep(seconds)
            if self.in_flight >= self._concurrency:  # others went ahead meanwhile; the first that ends makes room
                future = asyncio.get_running_loop().create_future()
                self._returning.append(future)
                try:
                    await self._wait(future)
                finally:
                    placed = future.done() and not future.cancelled() and future.exception() is None
        finally:
            self._away -= 1
            if not placed:
                self.in_flight += 1

    def _let_in(self) -> None:
        """A place is free: for a job that comes back from a pause, or for a new one."""
        if self.in_flight >= self._concurrency:  # nothing may begin now
            return
        while self._returning:
            future = self._returning.popleft()
            if not future.done():
                self.in_flight += 1  # now, or somebody else takes the place before
                future.set_result(None)
                return
        if not self._rousing:
            self._rouse(1)

    async def _sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = loop.call_later(seconds, _release, future)
        try:
            await self._wait(future)
        finally:
            timer.cancel()

    async def _wait(self, future: "asyncio.Future[None]") -> None:
        """Wait, unless the end comes before."""
        if self.stopping:
            raise Interrupted
        self._paused.add(future)
        try:
            await future
        finally:
            self._paused.discard(future)

    def add(self, key: Hashable, job: Job, size: int) -> None:
        """Accept a job. This never refuses: look whether it is `full` before."""
        self.queued += 1
        self.queued_bytes += size
        if key not in self._lanes:
            self._lanes[key] = None
            self._ready.append((key, job))
            if not self._rousing:
                self._rouse(1)
            return
        followers = self._lanes[key]
        if followers is None:
            followers = self._lanes[key] = deque()
        followers.append(job)

    def _rouse(self, workers: int) -> None:
        """Wake some workers, and in the next turn of the event loop twice as many if jobs are left by then.

        One is enough for receivers that never wait for anything; hundreds are needed for those that do. Which
        kind these are shows by what the first one leaves.
        """
        self._rousing = False
        if not self._ready or self._turn <= 0 or self.stopping or self.in_flight >= self._concurrency:
            return
        for _ in range(min(workers, len(self._ready))):
            if not self._wake_one():
                return  # all are at work, and take the next job when they are done
        self._rousing = True
        asyncio.get_running_loop().call_soon(self._rouse, workers * 2)

    def _wake_one(self) -> bool:
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                future.set_result(None)
                return True
        if len(self._workers) >= self._concurrency + self._away:
            return False
        place = _Place()
        self._employ(self._run(place), place)
        return True

    def _employ(self, work: Coroutine[Any, Any, None], place: _Place) -> None:
        worker = asyncio.create_task(work, name=f"lane-worker-{len(self._workers)}")
        self._workers[worker] = place
        worker.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        if worker.cancelled():
            if not self.stopping:
                self._on_crash(RuntimeError(f"{worker.get_name()} was cancelled by somebody else"))
        elif (error := worker.exception()) is not None:
            self._on_crash(error)

    def replace(self, worker: asyncio.Task[None], work: Callable[[], Awaitable[None]]) -> None:
        """Have a new worker take the place of one that is stuck in its job.

        Args:
            worker: the old one. If it ever comes back, it must raise `Abandoned`.
            work: what is left to do of the job.
        """
        before = self._workers.pop(worker)
        assert before.at is not None
        place = _Place()
        place.at = before.at
        self._employ(self._take_over(place, work), place)

    async def _take_over(self, place: _Place, work: Callable[[], Awaitable[None]]) -> None:
        assert place.at is not None
        key, job = place.at
        size = job.change.size if job.change is not None else 0
        try:
            await work()
        except Interrupted:
            return
        finally:
            self.in_flight -= 1
        self._finish(key, job, size)
        self._let_in()
        await self._run(place)

    async def _run(self, place: _Place) -> None:
        loop = asyncio.get_running_loop()
        ready = self._ready
        while not self.stopping:
            if not ready or self._turn <= 0 or self.in_flight >= self._concurrency:
                future = loop.create_future()
                self._idle.append(future)
                await future
                continue
            self._turn -= 1
            if self._turn == 0:
                loop.call_soon(self._new_turn)
            place.at = key, job = ready.popleft()
            size = job.change.size if job.change is not None else 0
            self.in_flight += 1
            try:
                await self._work(job)
            except BaseException as error:
                if isinstance(error, Abandoned):  # it counts for who took over
                    return
                self.in_flight -= 1
                if isinstance(error, Interrupted):
                    return
                raise
            self.in_flight -= 1
            self._finish(key, job, size)
            if self._returning:
                self._let_in()

    def _new_turn(self) -> None:
        self._turn = _TURN
        if not self._rousing:
            self._rouse(1)

    def _finish(self, key: Hashable, job: Job, size: int) -> None:
        self._on_finished(job)
        if job.afterwards is not None:
            job.afterwards()
        followers = self._lanes[key]
        if followers:
            self._ready.append((key, followers.popleft()))
        else:
            del self._lanes[key]
        self.queued -= 1
        self.queued_bytes -= size
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    @property
    def begun(self) -> list[Job]:
        """Changes that were begun and are not finished."""
        return [place.at[1] for place in self._workers.values() if place.at is not None and not place.at[1].done]

    async def stop(self, grace: float) -> int:
        """Start nothing more; give what is in flight `grace` seconds, then cancel it. What pauses ends at once.

        Returns:
            How many jobs had to be cancelled.
        """
        self.stopping = True
        for future in self._idle:
            if not future.done():
                future.set_result(None)
        self._idle.clear()
        for future in list(self._paused):
            if not future.done():
                future.set_exception(Interrupted())
        if not self._workers:
            return 0
        await asyncio.wait(self._workers.keys(), timeout=grace)
        cut = self.in_flight
        self.cutting = True
        await end(self._workers.keys(), within=_TO_WRITE, only=self._is_calling)
        refused = await end(self._workers.keys(), within=_PATIENCE - _TO_WRITE)
        if refused:
            log.error(
                "receivers refuse to be cancelled",
                action="dispatcher.stuck",
                deliveries=refused,
            )
        return cut


def _release(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
