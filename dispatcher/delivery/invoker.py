"""Calling a receiver once: it ends in time, and whatever it does to its task is nothing to the worker.

Each call has a context of its own, so that no context variable passes from one delivery into the next.

A receiver that is late is cancelled, again and again. One that refuses to end for long is left alone: its task is
abandoned, somebody else goes on in its place, and what it returns in the end is of no interest any more.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from contextvars import Context, copy_context
from time import monotonic
from types import CoroutineType, coroutine
from typing import Any, Final

from dispatcher.core.output.logs import get_logger
from dispatcher.core.output.throttle import Throttle
from dispatcher.core.tasks import Abandoned, Interrupted, receiving
from dispatcher.delivery.fork_guard import leave_if_forked
from dispatcher.delivery.log import described
from mongoz.signals import Delivery

__all__ = ["Caller"]

log = get_logger()

# Seconds after which a receiver that hangs on is cancelled once more, and how often before it is left alone.
_CANCEL_AGAIN: Final = 1.0
_CANCELLATIONS: Final = 10

# Abandoned tasks at most: each holds its instance. From here on the receivers that hang keep their places.
_MOST_ABANDONED: Final = 200

# Seconds between two looks at who is late: at most, and at least.
_RARELY: Final = 1.0
_OFTEN: Final = 0.01

_Call = tuple[float, float, Delivery, Any]
"""When it began, what it may take, what it was given, and what who calls needs to go on without it."""


@coroutine
def _in_context(context: Context, call: Any) -> Generator[Any, Any, None]:
    """Await a call in a context of its own: nobody else sees what it sets there. That takes no task."""
    if type(call) is not CoroutineType:
        call = _awaited(call)
    step, value = call.send, None
    while True:
        try:
            waits_for = context.run(step, value)
        except StopIteration:
            return
        finally:
            step = value = None  # an error would hold this frame, and this frame the error
        try:
            value = yield waits_for
            step = call.send
        except BaseException as error:
            step, value = call.throw, error


async def _awaited(awaitable: Awaitable[Any]) -> None:
    await awaitable


class Caller:
    """Calls receivers, and cancels those that take too long.

    Args:
        cutting: whether deliveries in flight are being cancelled because the process ends.
        timeout: seconds that most receivers may take.
        slow_after: seconds after which a receiver is slow, and named in the log.
        on_abandoned: told of a task that is left alone, with what `call` was given to go on without it. Where
            there is nobody to tell, none is.
    """

    def __init__(
        self,
        cutting: Callable[[], bool],
        timeout: float,
        *,
        slow_after: float = float("inf"),
        on_abandoned: Callable[[asyncio.Task[Any], Any], None] | None = None,
    ) -> None:
        self._cutting = cutting
        self._slow_after = slow_after
        self._on_abandoned = on_abandoned
        self._shortest = min(timeout, slow_after)
        # Who is in a receiver. A timer per delivery would cost more than a delivery.
        self._calls: dict[asyncio.Task[Any], _Call] = {}
        self._overdue: Counter[asyncio.Task[Any]] = Counter()
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._sooner = asyncio.Event()
        self._slow: dict[asyncio.Task[Any], _Call] = {}
        self._throttle = Throttle()

    def is_calling(self, task: asyncio.Task[Any]) -> bool:
        """Whether a task is in a receiver."""
        return task in self._calls

    def expect(self, timeout: float) -> None:
        """Be prepared for a receiver that may only take so many seconds."""
        if timeout < self._shortest:
            self._shortest = timeout
            self._sooner.set()

    async def watch(self) -> None:
        """Cancel the receivers that hang, and name those that are slow. Runs for ever, beside the workers."""
        while True:
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_RARELY, max(_OFTEN, self._shortest / 10))):
                    await self._sooner.wait()
            now = monotonic()
            self._slow = {task: call for task, call in self._slow.items() if self._calls.get(task) is call}
            for task, call in list(self._calls.items()):
                began, timeout, delivery, _ = call
                if now - began > timeout + self._overdue[task] * _CANCEL_AGAIN:
                    self._end(task, call)
                elif now - began >= self._slow_after and task not in self._slow:
                    self._slow[task] = call
                    self._name(delivery, now - began, timeout)

    def _end(self, task: asyncio.Task[Any], call: _Call) -> None:
        """Cancel a receiver; some cancellations get lost, see `cancelling`, and some are ignored."""
        _, timeout, delivery, context = call
        self._overdue[task] += 1
        if self._overdue[task] <= _CANCELLATIONS or self._on_abandoned is None or self._cutting():
            task.cancel()
            return
        enough = len(self._abandoned) >= _MOST_ABANDONED
        if not enough or self._overdue[task] == _CANCELLATIONS + 1:
            log.error(
                "a receiver refuses to be cancelled; "
                + ("too many do, so it keeps its place" if enough else "it is left alone, and loses its place"),
                action="delivery.stuck",
                **described(delivery),
                timeout=timeout,
                abandoned=len(self._abandoned),
            )
        if not enough:
            del self._calls[task], self._overdue[task]
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
            self._on_abandoned(task, context)

    def _name(self, delivery: Delivery, seconds: float, timeout: float) -> None:
        """Say which receiver is slow: once in a while, however often it is."""
        further = self._throttle.due(delivery.receiver)
        if further is None:
            return
        log.warning(
            "a receiver is slow",
            action="delivery.slow",
            **described(delivery),
            seconds=round(seconds, 3),
            timeout=timeout,
            further=further,
        )

    async def call(
        self,
        function: Callable[..., Awaitable[Any]],
        sender: Any,
        delivery: Delivery,
        keywords: dict[str, Any],
        timeout: float,  # noqa: ASYNC109 - a timer per call would cost more than the call
        context: Any = None,
    ) -> BaseException | None:
        """Call a receiver once; what it raised, if it did.

        Raises:
            CancelledError: the process ends, and the grace period is over. Whatever else a receiver raises, or
                does to the task it runs in, it has merely failed.
            Interrupted: the same, before it was called.
            Abandoned: somebody else goes on in this task's place.
        """
        if self._cutting():
            raise Interrupted
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = (monotonic(), timeout, delivery, context)
        try:
            apart = copy_context()
            apart.run(receiving.set, task)
            await _in_context(apart, apart.run(function, sender=sender, delivery=delivery, **keywords))
        except BaseException as error:
            leave_if_forked(error)
            if self._calls.pop(task, None) is None:
                raise Abandoned from error
            if self._cutting() and isinstance(error, asyncio.CancelledError):
                raise
            late = await self._settle(task)
            if late and isinstance(error, asyncio.CancelledError):
                return TimeoutError(f"it took longer than {timeout:g} s")
            return error
        leave_if_forked()
        if self._calls.pop(task, None) is None:
            raise Abandoned
        if task.cancelling():
            await self._settle(task)
        return None

    async def _settle(self, task: asyncio.Task[Any]) -> bool:
        """Clear the worker of cancellations that were meant for the receiver; whether it was late."""
        late = self._overdue.pop(task, 0) > 0
        if task.cancelling() and not self._cutting():
            while task.cancelling():
                task.uncancel()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # takes one that was asked for and is still to come
        return late
