"""Ending tasks for certain, and what ends them in order."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Final

__all__ = ["Abandoned", "Interrupted", "end"]

_AGAIN_AFTER: Final = 0.1


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
