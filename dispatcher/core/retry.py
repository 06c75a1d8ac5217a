"""Sends a command to the server again until it succeeds, with pauses that double.

A permanent error ends the repetition with a `DispatcherError`.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic
from typing import Final, TypeVar

from pymongo.errors import PyMongoError

from dispatcher.core.driver_errors import drop_traceback, in_short, raise_if_fatal
from mongoz.signals.options import Retry

T = TypeVar("T")

Pause = Callable[[float], Awaitable[None]]
"""Waits some seconds. Deliveries use `Capacity.pause`, which lets another delivery run meanwhile."""

_PAUSES: Final = Retry(base=0.1, cap=10.0)

# The cap is reached long before this number. More doublings would overflow a float.
_MOST_DOUBLINGS: Final = 60


def pause_after(attempt: int, pauses: Retry = _PAUSES) -> float:
    """Seconds to wait after a failed attempt. The pauses double.

    They have jitter, because other processes may retry at the same time.

    Args:
        attempt: the number of the failed attempt, from 1 on; after 0 there is no pause.
        pauses: the base and the cap of the pauses.
    """
    if attempt == 0:
        return 0.0
    return min(pauses.cap, pauses.base * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS)) * random.uniform(0.5, 1.0)


async def retry(
    command: Callable[[], Awaitable[T]],
    report: Callable[..., object],
    *,
    address: str | None = None,
    on: type[Exception] | tuple[type[Exception], ...] = PyMongoError,
    pauses: Retry = _PAUSES,
    pause: Pause = asyncio.sleep,
    within: float = inf,
) -> T:
    """Run a command until it succeeds. The number of attempts has no limit; `within` can limit the time.

    Args:
        command: may be executed twice: after some errors it is unknown whether the server has executed the
            command.
        report: logs a failed attempt that will be repeated. It is called with `error` and `attempt`.
        address: the address of the server. With it, a permanent error is raised as a `DispatcherError`; without
            it, permanent errors are retried too.
        on: errors that are retried; other errors are raised unchanged.
        pauses: base and cap of the pauses; `pauses.attempts` is ignored.
        pause: waits between two attempts. If it raises an exception, no further attempt follows.
        within: if an attempt fails more than this many seconds after the start, it is not repeated, and its error
            is raised unchanged. `inf` means no limit.

    Raises:
        DispatcherError: an error is permanent.
    """
    began, attempt = monotonic(), 0
    while True:
        try:
            return await command()
        except on as error:
            if address is not None:
                raise_if_fatal(error, address)
            if monotonic() - began > within:
                raise
            attempt += 1
            report(error=in_short(error), attempt=attempt)
            drop_traceback(error)
        await pause(pause_after(attempt, pauses))
