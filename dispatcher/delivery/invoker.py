"""Runs a receiver in its own context, and enforces its time limit.

A receiver runs in the task of a worker, but in its own context: other deliveries do not see the context variables
that the receiver sets. A receiver that exceeds its time limit is cancelled once a second. After ten ignored
cancellations, another task replaces the worker, and the result of the receiver is discarded.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import replace
from time import monotonic
from types import CoroutineType, coroutine
from typing import Any, Final

from dispatcher.core.lease import Lease, now
from dispatcher.core.output.logs import log
from dispatcher.core.output.throttle import Throttle
from dispatcher.core.tasks import Abandoned, Interrupted, receiver_task
from dispatcher.delivery.attempt import Attempt, Run, Target
from dispatcher.delivery.capacity import Capacity
from dispatcher.delivery.fork_guard import leave_if_forked, this_process
from dispatcher.delivery.log import described
from dispatcher.delivery.terms import Policy
from mongoz.signals import Delivery
from mongoz.signals.hops import current_hops

# Seconds between two cancellations of one receiver, and the number of cancellations that it may ignore.
_CANCEL_AGAIN: Final = 1.0
_CANCELLATIONS: Final = 10

# Maximum number of replaced tasks that still run. There is a maximum because each of them keeps its instance in
# memory. Beyond this number, receivers that ignore cancellation keep their workers.
_MOST_ABANDONED: Final = 200

# Seconds between two checks of time limits: maximum and minimum.
_RARELY: Final = 1.0
_OFTEN: Final = 0.01

# Hops that no context has, for a worker whose context is not known yet.
_UNKNOWN: Final = (-1, Context())

_Running = tuple[float, Attempt]
"""The time at which a receiver began, by the monotonic clock, and its attempt."""


@coroutine
def _continued(context: Context, running: Any, waits_for: Any) -> Generator[Any, Any, None]:
    """Await the rest of a coroutine in the given context, without a new task.

    Args:
        running: the coroutine, after its first step.
        waits_for: what the first step has yielded.
    """
    while True:
        try:
            value = yield waits_for
            step = running.send
        except BaseException as error:
            step, value = running.throw, error
        try:
            waits_for = context.run(step, value)
        except StopIteration:
            return
        finally:
            step = value = None  # break the reference cycle between an error and this frame


def run_receiver(attempt: Attempt) -> Awaitable[Any]:
    """Call the receiver. The steps of `Target.run` are around this function."""
    keywords = attempt.keywords
    keywords["sender"], keywords["delivery"] = attempt.calls.document, attempt.delivery
    return attempt.target.receiver.function(**keywords)


def _begun(run: Run, attempt: Attempt) -> tuple[Any, Any] | None:
    """Run a receiver up to its first wait.

    Returns:
        The arguments of `_continued` after the context; None if the receiver has returned.
    """
    running: Any = run(attempt)
    if type(running) is not CoroutineType:
        running = _awaited(running)
    try:
        return running, running.send(None)
    except StopIteration:
        return None


async def _awaited(awaitable: Awaitable[Any]) -> None:
    await awaitable


class Invoker:
    """Runs each receiver within its time limit: a step around an attempt.

    Args:
        lease: the lease of the partition. No attempt begins while the lease is not valid.
    """

    def __init__(self, policy: Policy, capacity: Capacity, lease: Lease) -> None:
        self._capacity = capacity
        self._lease = lease
        self._slow_after = policy.slow_after
        self._shortest = min(policy.timeout, policy.slow_after)
        self._loop: asyncio.AbstractEventLoop | None = None
        # The result of every call whose receiver returns without waiting. `_begin` makes it.
        self._succeeded: asyncio.Future[None]
        # For each worker: the context that its calls copy, and the hops for which this context was made.
        self._contexts: dict[asyncio.Task[Any], tuple[int, Context]] = {}
        # One check covers all deliveries: a timer per delivery would cost more than the delivery.
        self._running: dict[asyncio.Task[Any], _Running] = {}
        self._cancelled: Counter[asyncio.Task[Any]] = Counter()
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._slow: dict[asyncio.Task[Any], _Running] = {}
        self._sooner = asyncio.Event()
        self._throttle = Throttle()

    def around(self, target: Target) -> Target:
        """Put the time limit around the `run` of a receiver."""
        if target.terms.timeout < self._shortest:
            self._shortest = target.terms.timeout
            self._sooner.set()
        return replace(target, call=self.call)

    def can_be_cut(self, task: asyncio.Task[Any]) -> bool:
        """Returns whether a worker can be cancelled without harm: it runs a receiver, or the lease is lost."""
        return task in self._running or self._lease.lost.is_set()

    def delivery_in(self, task: asyncio.Task[Any]) -> Delivery | None:
        """The delivery whose receiver runs in a task. Thread-safe."""
        running = self._running.get(task)
        return None if running is None else running[1].delivery

    # -- one attempt -----------------------------------------------------------------------------------------

    def call(self, attempt: Attempt) -> Awaitable[BaseException | None]:
        """Run a receiver once. Before this method returns, the receiver has run up to its first wait.

        Returns:
            An awaitable. Its result is the receiver's error, or a TimeoutError; None if the receiver returned.

        Raises:
            CancelledError: the process ends, and the grace period is over. Every other cancellation of the
                receiver is returned, like its errors.
            Interrupted: the grace period was over before the call, or the lease is lost.
            Abandoned: another task replaced this one; discard the result.
        """
        if now() >= self._lease.until or self._capacity.cutting:
            return self._call_under_lease(attempt)
        # Without the loop as argument, Python 3.11 asks the system for the id of the process each time.
        task = asyncio.current_task(self._loop or self._begin())
        assert task is not None
        target = attempt.target
        self._running[task] = (monotonic(), attempt)
        try:
            context = self._context_of(task)
            waiting = context.run(_begun, target.run, attempt)
            if waiting is not None:  # most receivers never wait
                return self._wait(task, target, _continued(context, *waiting))
        except BaseException as error:
            return self._failed(task, target, error)
        self._end_attempt(task)
        return self._clear(task) if task.cancelling() or self._cancelled else self._succeeded

    async def _call_under_lease(self, attempt: Attempt) -> BaseException | None:
        """Like `call`, after waiting for the lease."""
        await self._lease.held()
        if self._capacity.cutting:
            raise Interrupted
        return await self.call(attempt)

    def _begin(self) -> asyncio.AbstractEventLoop:
        """Note the running loop, at the first call."""
        self._loop = asyncio.get_running_loop()
        self._succeeded = self._loop.create_future()
        self._succeeded.set_result(None)
        return self._loop

    def _context_of(self, task: asyncio.Task[Any]) -> Context:
        """A context for one call of a receiver: a copy of the context of its worker.

        Between calls, only the hops in the context of a worker change. Copying a known context takes a tenth of
        the time of making a new one.
        """
        hops, known = self._contexts.get(task, _UNKNOWN)
        if hops == current_hops():
            return known.copy()
        if task not in self._contexts:
            task.add_done_callback(self._contexts.pop)
        context = copy_context()
        context.run(receiver_task.set, task)
        self._contexts[task] = (current_hops(), context)
        return context.copy()

    async def _wait(self, task: asyncio.Task[Any], target: Target, rest: Awaitable[None]) -> BaseException | None:
        """Wait for the rest of a receiver. Returns its error, see `call`."""
        try:
            await rest
        except BaseException as error:
            return await self._failed(task, target, error)
        self._end_attempt(task)
        if task.cancelling() or self._cancelled:  # a receiver may have called `uncancel`
            await self._clear_cancellations(task)
        return None

    def _end_attempt(self, task: asyncio.Task[Any]) -> None:
        """Record that a receiver has returned.

        Raises:
            Abandoned: another task has replaced this one.
        """
        if this_process.forked:
            leave_if_forked()
        if self._running.pop(task, None) is None:
            raise Abandoned

    async def _clear(self, task: asyncio.Task[Any]) -> None:
        """Clear the cancellations of a receiver that has returned."""
        await self._clear_cancellations(task)

    async def _failed(self, task: asyncio.Task[Any], target: Target, error: BaseException) -> BaseException:
        """Return the error of an attempt, see `call`."""
        leave_if_forked(error)
        if self._running.pop(task, None) is None:
            raise Abandoned from error
        if self._capacity.cutting and isinstance(error, asyncio.CancelledError):
            raise error
        late = await self._clear_cancellations(task)
        if late and isinstance(error, asyncio.CancelledError):
            return TimeoutError(f"it took longer than {target.terms.timeout:g} s")
        return error

    async def _clear_cancellations(self, task: asyncio.Task[Any]) -> bool:
        """Clear the cancellations of a receiver from its worker. Returns whether the time limit caused one."""
        late = self._cancelled.pop(task, 0) > 0
        if task.cancelling() and not self._capacity.cutting:
            while task.cancelling():
                task.uncancel()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # receives a cancellation that was requested and not yet raised
        return late

    # -- time limits -----------------------------------------------------------------------------------------

    async def watch(self, abandon: Callable[[asyncio.Task[Any], Attempt], None] | None = None) -> None:
        """Cancel receivers that exceed their time limit, and log slow ones. Runs for ever, in its own task.

        Args:
            abandon: replaces the task of a receiver that ignores cancellation. Without it, the receiver keeps its
                worker.
        """
        while True:
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_RARELY, max(_OFTEN, self._shortest / 10))):
                    await self._sooner.wait()
            clock = monotonic()
            self._slow = {task: one for task, one in self._slow.items() if self._running.get(task) is one}
            for task, running in list(self._running.items()):
                began, attempt = running
                if clock - began > attempt.target.terms.timeout + self._cancelled[task] * _CANCEL_AGAIN:
                    self._end(task, attempt, abandon)
                elif clock - began >= self._slow_after and task not in self._slow:
                    self._slow[task] = running
                    self._log_slow(attempt, clock - began)

    def _end(
        self,
        task: asyncio.Task[Any],
        attempt: Attempt,
        abandon: Callable[[asyncio.Task[Any], Attempt], None] | None,
    ) -> None:
        """Cancel a receiver, or replace its task. A single cancellation may get lost, see `core/tasks.py`."""
        self._cancelled[task] += 1
        if self._cancelled[task] <= _CANCELLATIONS or abandon is None or self._capacity.cutting:
            task.cancel()
            return
        too_many = len(self._abandoned) >= _MOST_ABANDONED
        if not too_many or self._cancelled[task] == _CANCELLATIONS + 1:
            log.error(
                "a receiver ignores cancellation; "
                + ("too many do that, so this one keeps its worker" if too_many else "another worker replaces it"),
                action="delivery.stuck",
                **described(attempt.delivery),
                timeout=attempt.target.terms.timeout,
                abandoned=len(self._abandoned),
            )
        if not too_many:
            del self._running[task], self._cancelled[task]
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
            abandon(task, attempt)

    def _log_slow(self, attempt: Attempt, seconds: float) -> None:
        """Log a slow receiver. The log lines are throttled."""
        further = self._throttle.due(attempt.delivery.receiver)
        if further is not None:
            log.warning(
                "a receiver is slow",
                action="delivery.slow",
                **described(attempt.delivery),
                seconds=round(seconds, 3),
                timeout=attempt.target.terms.timeout,
                further=further,
            )
