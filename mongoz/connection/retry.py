"""Asking until there is an answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pymongo.errors import InvalidOperation, PyMongoError

__all__ = ["find_out"]

T = TypeVar("T")

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0


async def find_out(look: Callable[[], Awaitable[T]]) -> T:
    """Look again and again, with growing pauses, until the server answers.

    Raises:
        InvalidOperation: the client was closed.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return await look()
        except InvalidOperation:
            raise
        except PyMongoError:
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)
