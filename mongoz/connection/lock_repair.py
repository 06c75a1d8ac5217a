"""Prevents a fault of PyMongo's asynchronous client on Python 3.11: a lock is released by the wrong task.

PyMongo waits for a server with a condition of asyncio. During the wait the lock of the condition is free, and
after the wait the waiting task has the lock again. `asyncio.wait_for` of Python 3.11 runs the wait in a new task.
If the caller is cancelled just when the wait times out, `wait_for` returns before this new task has the lock
again. Then the caller releases a lock that another task holds, and any command of the client can raise
`RuntimeError: Lock is not acquired`. `asyncio.timeout`, like `wait_for` from Python 3.12 on, waits in the caller's
task.
"""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import pymongo.lock

__all__ = ["repair"]

T = TypeVar("T")


async def _wait_for(work: Coroutine[Any, Any, T], timeout: float | None) -> T:  # noqa: ASYNC109 - as in asyncio
    async with asyncio.timeout(timeout):
        return await work


def repair() -> None:
    """Let PyMongo wait in the caller's task."""
    if sys.version_info < (3, 12):
        setattr(pymongo.lock, "wait_for", _wait_for)  # noqa: B010 - PyMongo does not export it
