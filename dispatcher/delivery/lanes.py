"""Runs the jobs of one document one after another, in commit order, and jobs of different documents in parallel.

There is no task per change. A bounded number of workers takes jobs from the lanes. A receiver that never waits
costs no turn of the event loop.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from types import MappingProxyType
from typing import Any, Final

from dispatcher.core.events import Errand, Job
from dispatcher.core.output.logs import log
from dispatcher.core.tasks import Abandoned, Interrupted, end
from dispatcher.delivery.capacity import Capacity

# Maximum number of jobs in one turn of the event loop. Then timers, sockets and signals have their turn.
_TURN: Final = 100

# Time limit in seconds for the end of cancelled jobs.
_PATIENCE: Final = 5.0

# The first seconds of `_PATIENCE`, in which tasks that record results are not cancelled.
_TO_WRITE: Final = 2.0


class _Worker:
    """A worker. `at` is the key and the job that the worker began last; None before the first job."""

    __slots__ = ("at",)

    def __init__(self, at: tuple[Hashable, Job | Errand] | None = None) -> None:
        self.at = at


class Lanes:
    """Runs jobs. Jobs with the same key run one after another. A job delivers a change, or is an `Errand`.

    Args:
        work: does a job. It raises only `Interrupted`, `Abandoned`, and a cancellation when the process ends.
        on_finished: called when a job that delivers a change is finished; it marks the job as done.
        can_be_cut: whether a task can be cancelled without harm now. Writes of a job should finish first.

    Attributes:
        crashed: set after an unexpected error of `work`, which is a bug.
        crash: the unexpected error; None if there was none.
    """

    def __init__(
        self,
        capacity: Capacity,
        work: Callable[[Job | Errand], Awaitable[None]],
        *,
        on_finished: Callable[[Job], None],
        can_be_cut: Callable[[asyncio.Task[Any]], bool] = lambda _task: True,
    ) -> None:
        self._capacity = capacity
        self._work = work
        self._on_finished = on_finished
        self._can_be_cut = can_be_cut
        self.crashed = asyncio.Event()
        self.crash: BaseException | None = None
        # A key is present while one of its jobs is ready or in flight. Later jobs of the key wait in its deque,
        # which the first of them creates.
        self._lanes: dict[Hashable, deque[Job | Errand] | None] = {}
        self._ready: deque[tuple[Hashable, Job | Errand]] = deque()
        self._workers: dict[asyncio.Task[None], _Worker] = {}
        self._idle: list[asyncio.Future[None]] = []
        self._waking = False
        self._turn = _TURN
        capacity.on_free(self._wake_first)

    def has(self, key: Hashable) -> bool:
        """Returns whether a job with this key is queued or in flight."""
        return key in self._lanes

    def add(self, key: Hashable, job: Job | Errand) -> None:
        """Queue a job, even if the queue is full. Callers check `capacity.full` first."""
        capacity = self._capacity
        if isinstance(job, Job):
            capacity.queued += 1
            capacity.queued_bytes += job.size
        else:
            capacity.errands += 1
        lanes, before = self._lanes, len(self._lanes)
        followers = lanes.setdefault(key, None)  # a single look-up, because the hash of a key takes long
        if len(lanes) > before:
            self._ready.append((key, job))
            if not self._waking and self._turn > 0:
                self._wake(1)
            return
        if followers is None:
            followers = lanes[key] = deque()
        followers.append(job)

    # -- short exclusive access --------------------------------------------------------------------------------

    def reserve(self, key: Hashable) -> bool:
        """Let later jobs with this key wait until `release`.

        Returns:
            False if a job with this key is queued or in flight. Then nothing is reserved.
        """
        if key in self._lanes:
            return False
        self._lanes[key] = None
        return True

    def release(self, key: Hashable) -> None:
        """End a reservation."""
        followers = self._lanes[key]
        if followers:
            self._ready.append((key, followers.popleft()))
            self._wake_first()
        else:
            del self._lanes[key]

    # -- workers ---------------------------------------------------------------------------------------------

    def _wake_first(self) -> None:
        if not self._waking:
            self._wake(1)

    def _wake(self, workers: int) -> None:
        """Wake some workers. If jobs are left in the next turn of the event loop, wake twice as many.

        One worker is enough for receivers that never wait. Receivers that wait need hundreds. Jobs that the first
        worker leaves in the queue show that the receivers wait.
        """
        self._waking = False
        capacity = self._capacity
        if not self._ready or self._turn <= 0 or capacity.stopping or capacity.in_flight >= capacity.places:
            return
        for _ in range(min(workers, len(self._ready))):
            if not self._wake_one():
                return  # all workers are busy, and take the next job afterwards
        self._begin_turn_soon(workers * 2)

    def _begin_turn_soon(self, workers: int) -> None:
        self._waking = True
        asyncio.get_running_loop().call_soon(self._begin_turn, workers)

    def _begin_turn(self, workers: int) -> None:
        self._turn = _TURN
        self._wake(workers)

    def _wake_one(self) -> bool:
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                future.set_result(None)
                return True
        if len(self._workers) >= self._capacity.places + self._capacity.away:
            return False
        worker = _Worker()
        self._start_task(self._run(worker), worker)
        return True

    def _start_task(self, work: Coroutine[Any, Any, None], worker: _Worker) -> None:
        task = asyncio.create_task(work, name=f"lane-worker-{len(self._workers)}")
        self._workers[task] = worker
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error: BaseException | None
        if task.cancelled():
            if self._capacity.stopping:
                return
            error = RuntimeError(f"{task.get_name()} was cancelled by other code")
        else:
            error = task.exception()
        if error is not None and self.crash is None:
            self.crash = error
            self.crashed.set()

    async def _run(self, worker: _Worker) -> None:
        loop = asyncio.get_running_loop()
        ready, capacity = self._ready, self._capacity
        while not capacity.stopping:
            if not ready or self._turn <= 0 or capacity.in_flight >= capacity.places:
                future = loop.create_future()
                self._idle.append(future)
                await future
                continue
            self._turn -= 1
            if self._turn == 0 and not self._waking:
                self._begin_turn_soon(1)
            worker.at = key, job = ready.popleft()
            capacity.in_flight += 1
            try:
                await self._work(job)
            except BaseException as error:
                if isinstance(error, Abandoned):  # the job in flight belongs to the worker that replaced this one
                    return
                capacity.in_flight -= 1
                if isinstance(error, Interrupted):
                    return
                raise
            capacity.in_flight -= 1
            self._finish(key, job)
            if capacity.returning:
                capacity.free_place()

    def _finish(self, key: Hashable, job: Job | Errand) -> None:
        capacity = self._capacity
        if isinstance(job, Job):
            self._on_finished(job)
            capacity.queued -= 1
            capacity.queued_bytes -= job.size
        else:
            if job.on_finished is not None:
                job.on_finished()
            capacity.errands -= 1
        followers = self._lanes.pop(key)
        if followers:
            self._lanes[key] = followers
            self._ready.append((key, followers.popleft()))
        if capacity.watched is not None:
            capacity.report_progress()

    # -- receivers that ignore cancellation ------------------------------------------------------------------

    def replace(self, task: asyncio.Task[Any], rest: Callable[[], Awaitable[None]]) -> None:
        """Replace a worker whose job does not end.

        Args:
            task: the task of the worker. It must raise `Abandoned` if its receiver ends later.
            rest: does the rest of the job.
        """
        before = self._workers.pop(task)
        assert before.at is not None
        worker = _Worker(before.at)
        self._start_task(self._take_over(worker, *before.at, rest), worker)

    async def _take_over(
        self, worker: _Worker, key: Hashable, job: Job | Errand, rest: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            await rest()
        except Abandoned:  # the job in flight belongs to the worker that replaced this one
            return
        except BaseException as error:
            self._capacity.in_flight -= 1
            if isinstance(error, Interrupted):
                return
            raise
        self._capacity.in_flight -= 1
        self._finish(key, job)
        self._capacity.free_place()
        await self._run(worker)

    # -- the end ---------------------------------------------------------------------------------------------

    @property
    def begun(self) -> list[Job]:
        """The jobs that have begun and are not finished, without errands."""
        jobs = (worker.at[1] for worker in self._workers.values() if worker.at is not None)
        return [job for job in jobs if isinstance(job, Job) and not job.done]

    def _begin_last(self, key: Hashable, errand: Errand) -> None:
        self._lanes[key] = None
        self._capacity.errands += 1
        self._capacity.in_flight += 1
        worker = _Worker((key, errand))
        self._start_task(self._take_over(worker, key, errand, errand.run), worker)

    async def stop(self, grace: float, last: Mapping[Hashable, Errand] = MappingProxyType({})) -> int:
        """Begin no more jobs, give jobs in flight `grace` seconds, then cancel them.

        A job that waits in `Capacity.pause` ends immediately.

        Args:
            grace: seconds that jobs in flight get before they are cancelled.
            last: errands that still begin, each with a key that no job has.

        Returns:
            The number of cancelled jobs.
        """
        self._capacity.stop()
        for future in self._idle:
            if not future.done():
                future.set_result(None)
        self._idle.clear()
        for key, errand in last.items():
            self._begin_last(key, errand)
        if not self._workers:
            return 0
        await asyncio.wait(self._workers.keys(), timeout=grace)
        cut = self._capacity.in_flight
        self._capacity.cutting = True
        await end(self._workers.keys(), within=_TO_WRITE, only=self._can_be_cut)
        refused = await end(self._workers.keys(), within=_PATIENCE - _TO_WRITE)
        if refused:
            log.error("receivers ignore cancellation and still run", action="dispatcher.stuck", deliveries=refused)
        return cut
