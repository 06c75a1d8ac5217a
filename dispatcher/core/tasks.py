"""Ending tasks for certain, what ends them in order, and who may not end them."""

import asyncio
import sys
from collections.abc import Callable, Collection, Coroutine
from contextvars import ContextVar
from typing import Any, Final

__all__ = ["Abandoned", "Interrupted", "end", "guarded", "receiving"]

_AGAIN_AFTER: Final = 0.1


receiving: Final[ContextVar[asyncio.Task[Any] | None]] = ContextVar("dispatcher_receiving", default=None)
"""In a receiver, and in whatever it begins: the task that it runs in. None outside of receivers."""


class _Guarded(asyncio.Task[Any]):
    """A task that receivers can't cancel, except for the one that runs in it."""

    def cancel(self, msg: Any = None) -> bool:
        """Cancel it.

        Raises:
            RuntimeError: a receiver does that. One that closes a client of the driver does it in the driver.
        """
        if receiving.get() in (None, self):
            return super().cancel(msg)
        if str(sys._getframe(1).f_globals.get("__name__")).startswith("pymongo."):
            return super().cancel(msg)
        raise RuntimeError(
            f"The task {self.get_name()!r} is the dispatcher's: a receiver may only cancel tasks of its own."
        )


def guarded(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **keywords: Any
) -> asyncio.Task[Any]:
    """Make a task; a factory of tasks for a loop. What receivers create is theirs."""
    kind = _Guarded if receiving.get() is None else asyncio.Task
    return kind(coroutine, loop=loop, **keywords)


class Interrupted(Exception):
    """Nothing more is to be started, and the job that waits is to be left as it is: it will be repeated."""


class Abandoned(BaseException):
    """Somebody else has gone on in the place of this task, which was stuck: it has nothing to say any more."""


async def end(
    tasks: Collection[asyncio.Task[Any]],
    *,
    within: float | None = None,
    only: Callable[[asyncio.Task[Any]], bool] = lambda _task: True,
) -> int:
    """Cancel tasks until they are done.

    Once is not enough: a cancellation that meets the result of `asyncio.wait_for`, in a driver or a receiver,
    is swallowed on Python 3.11.

    Args:
        tasks: to be ended; their results and errors are left in them.
        within: seconds after which those that refuse are left alone; None to insist.
        only: which are cancelled at the moment; the others are waited for.

    Returns:
        How many refused.
    """
    loop = asyncio.get_running_loop()
    deadline = None if within is None else loop.time() + within
    pending = {task for task in tasks if not task.done()}
    while pending and (deadline is None or loop.time() < deadline):
        for task in filter(only, pending):
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_AFTER)
    return len(pending)
