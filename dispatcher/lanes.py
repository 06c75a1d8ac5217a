"""Lanes: one change of a document at a time, in commit order; many documents at once, within bounds.

There is no task per change. A bounded number of workers takes whatever lane has something to do; a receiver
that never waits for anything costs no trip through the event loop.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Final

from dispatcher.events import Job

__all__ = ["Lanes"]

# Jobs done in one turn of the event loop, before timers, sockets and signals get theirs.
_TURN: Final = 100


class Lanes:
    """Runs jobs; those of one key one after another.

    Args:
        work: what to do with a job; must not raise.
        concurrency: jobs in flight at most.
        max_queued: jobs accepted but not finished, at most.
        max_bytes: bytes of their events, at most. A single larger one is accepted alone.
        on_crash: told when `work` raises after all, which is a bug: nothing may go on as if it had not.
    """

    def __init__(
        self,
        work: Callable[[Job], Awaitable[None]],
        *,
        concurrency: int,
        max_queued: int,
        max_bytes: int,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self._work = work
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
        self._room: asyncio.Future[None] | None = None
        self._turn = _TURN
        self._stopping = False
        self.queued = 0
        self.queued_bytes = 0
        self.in_flight = 0

    def add(self, key: Hashable, job: Job, size: int) -> None:
        """Accept a job. Ask `room()` before; this never refuses."""
        self.queued += 1
        self.queued_bytes += size
        if key not in self._lanes:
            self._lanes[key] = None
            self._ready.append((key, job))
            self._wake_one()
            return
        followers = self._lanes[key]
        if followers is None:
            followers = self._lanes[key] = deque()
        followers.append(job)

    async def room(self) -> None:
        """Wait until another job may be added."""
        while self.queued >= self._max_queued or (self.queued and self.queued_bytes >= self._max_bytes):
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def idle(self) -> None:
        """Wait until nothing is left to do."""
        while self.queued:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

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
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        return cut

    def _wake_one(self) -> None:
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                future.set_result(None)
                return
        if len(self._workers) < self._concurrency and not self._stopping:
            worker = asyncio.create_task(self._run(), name=f"lane-worker-{len(self._workers)}")
            self._workers.add(worker)
            worker.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        if not worker.cancelled() and (error := worker.exception()) is not None:
            self._on_crash(error)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        ready = self._ready
        while not self._stopping:
            if not ready:
                future = loop.create_future()
                self._idle.append(future)
                await future
                continue
            if self._turn <= 0:
                await asyncio.sleep(0)
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
            self._finished(key, size)

    def _new_turn(self) -> None:
        self._turn = _TURN

    def _finished(self, key: Hashable, size: int) -> None:
        followers = self._lanes[key]
        if followers:
            self._ready.append((key, followers.popleft()))
        else:
            del self._lanes[key]
        self.queued -= 1
        self.queued_bytes -= size
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
