"""Repeats a command until it succeeds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pymongo.errors import InvalidOperation, PyMongoError

__all__ = ["ask_until_answered"]

T = TypeVar("T")

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0


async def ask_until_answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Repeat a command after each error of the driver, with growing pauses, until the command succeeds.

    Raises:
        InvalidOperation: the client was closed.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return await ask()
        except InvalidOperation:
            raise
        except PyMongoError:
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)
