"""What must not be torn apart: a write, or a commit, and the receivers that are told of it."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["unbroken"]

T = TypeVar("T")


async def unbroken(unit: Coroutine[Any, Any, T]) -> T:
    """Await something to its end, even if the caller is cancelled meanwhile; then the cancellation goes on.

    Only the end of the event loop, which cancels every task, breaks it off.

    Args:
        unit: what to await; it runs in a task of its own.

    Raises:
        CancelledError: the caller was cancelled. What the unit raised is its cause.
    """
    task = asyncio.create_task(unit)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        while not task.done():
            with suppress(asyncio.CancelledError):  # once is enough
                await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise cancelled from error
        raise
