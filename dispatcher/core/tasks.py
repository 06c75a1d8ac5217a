"""Ends tasks reliably, and prevents receivers from cancelling tasks of the dispatcher."""

import asyncio
import sys
from collections.abc import Callable, Collection, Coroutine
from contextvars import ContextVar
from typing import Any, Final, TypeVar

_AGAIN_AFTER: Final = 0.1

T = TypeVar("T")


receiver_task: Final[ContextVar[asyncio.Task[Any] | None]] = ContextVar("dispatcher_receiving", default=None)
"""The task that runs the receiver. Set in the receiver and in every task that the receiver starts; else None."""


class _Guarded(asyncio.Task[Any]):
    """A task that no receiver can cancel, except for the receiver that runs in this task."""

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the task.

        Raises:
            RuntimeError: a receiver calls this method for a task that is not its own. A call by the driver is
                allowed: it happens when a receiver closes a client.
        """
        if receiver_task.get() in (None, self):
            return super().cancel(msg)
        if str(sys._getframe(1).f_globals.get("__name__")).startswith("pymongo."):
            return super().cancel(msg)
        raise RuntimeError(
            f"The task {self.get_name()!r} is the dispatcher's: a receiver may only cancel tasks that it created."
        )


def guarded(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **keywords: Any
) -> asyncio.Task[Any]:
    """The task factory of the loop: creates a task. Receivers may cancel tasks that they create themselves."""
    kind = _Guarded if receiver_task.get() is None else asyncio.Task
    return kind(coroutine, loop=loop, **keywords)


class Interrupted(Exception):
    """No further delivery may start. The next owner of the partition makes the deliveries that are unfinished."""


class Abandoned(BaseException):
    """This task was stuck and has been replaced; its result is discarded."""


async def unless_set(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Run a coroutine. Cancel it if an event is set before it ends.

    Returns:
        The result of the coroutine; None if it was cancelled.
    """
    working = asyncio.create_task(work, name="work")
    stopped = asyncio.create_task(stop.wait(), name="wait-for-stop")
    try:
        await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end([stopped] if working.done() else [stopped, working])
    return None if working.cancelled() else working.result()


async def end(
    tasks: Collection[asyncio.Task[Any]],
    *,
    within: float | None = None,
    only: Callable[[asyncio.Task[Any]], bool] = lambda _task: True,
) -> int:
    """Cancel tasks until they are done.

    One cancellation is not enough: on Python 3.11, `asyncio.wait_for` in the driver or in a receiver swallows a
    cancellation that arrives together with the result for which `wait_for` waits.

    If the caller itself is cancelled, `end` still waits for the tasks, and raises CancelledError afterwards.
    A caller may close an object that a task uses, so it must not continue while the task runs.

    Args:
        tasks: the tasks, which keep their results and errors.
        within: seconds after which tasks that are not done are given up; None to wait for ever.
        only: returns whether to cancel a task now. `end` waits for the other tasks without cancelling them.

    Returns:
        The number of tasks that were given up.
    """
    loop = asyncio.get_running_loop()
    deadline = None if within is None else loop.time() + within
    pending = {task for task in tasks if not task.done()}
    cancelled = None
    while pending and (deadline is None or loop.time() < deadline):
        for task in filter(only, pending):
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=_AGAIN_AFTER)
        except asyncio.CancelledError as error:
            cancelled = error
        pending = {task for task in pending if not task.done()}
    if cancelled is not None:
        raise cancelled
    return len(pending)
