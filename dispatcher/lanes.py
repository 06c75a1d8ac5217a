"""Lanes: one change of a document at a time, in commit order; many documents at once, within bounds.

There is no task per change. A bounded number of workers takes whatever lane has something to do; a receiver
that never waits for anything costs no trip through the event loop.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Final

from dispatcher.cancelling import end
from dispatcher.events import Job
from dispatcher.observe import get_logger

__all__ = ["Lanes"]

# Jobs done in one turn of the event loop, before timers, sockets and signals get theirs.
_TURN: Final = 100

# Seconds that a receiver may take to clean up when it is cancelled at the end.
_PATIENCE: Final = 5.0

log = get_logger()


class Lanes:
    """Runs jobs; those of one key one after another.

    Args:
        work: what to do with a job; must not raise.
        on_finished: told when `work` has returned.
        on_crash: told when `work` raises after all, which is a bug: nothing may go on as if it had not.
        concurrency: jobs in flight at most.
        max_queued: jobs accepted but not finished, at most.
        max_bytes: bytes of their events, at most. A single larger one is accepted alone.
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
    ) -> None:
        self._work = work
        self._on_finished = on_finished
        self._on_crash = on_crash
        self._concurrency = concurrency
        self._max_queued = max_queued
        self._max_bytes = max_bytes
        # A key is present while one of its jobs is ready or in flight; followers wait in its deque, which
        # is only made when there is one.
        self._lanes: dict[Hashable, deque[Job] | None] = {}
        self._ready: deque[tuple[Hashable, Job]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._rousing = False
        self._turn = _TURN
        self._changed: asyncio.Future[None] | None = None
        self._stopping = False
        self.cutting = False
        self.queued = 0
        self.queued_bytes = 0
        self.in_flight = 0

    @property
    def full(self) -> bool:
        """Whether no further job should be added now."""
        return self.queued >= self._max_queued or (self.queued > 0 and self.queued_bytes >= self._max_bytes)

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
        if not self._ready or self._turn <= 0 or self._stopping:
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
        if len(self._workers) >= self._concurrency:
            return False
        worker = asyncio.create_task(self._run(), name=f"lane-worker-{len(self._workers)}")
        self._workers.add(worker)
        worker.add_done_callback(self._ended)
        return True

    def _ended(self, worker: asyncio.Task[None]) -> None:
        if worker.cancelled():
            if not self._stopping:
                self._on_crash(RuntimeError(f"{worker.get_name()} was cancelled by somebody else"))
        elif (error := worker.exception()) is not None:
            self._on_crash(error)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        ready = self._ready
        while not self._stopping:
            if not ready or self._turn <= 0:
                future = loop.create_future()
                self._idle.append(future)
                await future
                continue
            self._turn -= 1
            if self._turn == 0:
                loop.call_soon(self._new_turn)
            key, job = ready.popleft()
            size = job.change.size if job.change is not None else 0
            self.in_flight += 1
            try:
                await self._work(job)
            finally:
                self.in_flight -= 1
            self._on_finished(job)
            self._advance(key, size)

    def _new_turn(self) -> None:
        self._turn = _TURN
        if not self._rousing:
            self._rouse(1)

    def _advance(self, key: Hashable, size: int) -> None:
        followers = self._lanes[key]
        if followers:
            self._ready.append((key, followers.popleft()))
        else:
            del self._lanes[key]
        self.queued -= 1
        self.queued_bytes -= size
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def stop(self, grace: float) -> int:
        """Start nothing more; give what is in flight `grace` seconds, then cancel it.

        Returns:
            How many jobs had to be cancelled.
        """
        self._stopping = True
        for future in self._idle:
            if not future.done():
                future.set_result(None)
        self._idle.clear()
        if not self._workers:
            return 0
        await asyncio.wait(self._workers, timeout=grace)
        cut = self.in_flight
        self.cutting = True
        refused = await end(self._workers, within=_PATIENCE)
        if refused:
            log.error(
                "receivers refuse to be cancelled; a second signal ends the process",
                action="dispatcher.stuck",
                deliveries=refused,
            )
        return cut
