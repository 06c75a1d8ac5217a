"""Ticks: moments at which periodic tasks of a process run together, so that their commands can form one command.

The ticks of an interval are its multiples on the clock of the event loop. So all tasks with this interval wake in
the same turn of the loop, even if they began at different times. (uvloop rounds each timer to milliseconds. So a
busy process may need two turns, and then it sends a second command.) Each process has a random shift, so that the
processes of a group do not send their commands all at the same moment.
"""

import asyncio
import random
from contextlib import suppress
from math import floor
from typing import Final

_SHIFT: Final = random.random()

# A timer may fire a little before its tick, and the next wait must not end at the same tick. So a wait skips the
# next tick if less than this fraction of an interval is left until then.
_EARLY: Final = 0.1


def next_tick(seconds: float, now: float, shift: float = _SHIFT) -> float:
    """The time of the next tick.

    Args:
        seconds: the interval.
        now: the time by the clock of the event loop.
        shift: the time from each multiple of the interval to its tick, as a fraction of the interval.
    """
    return (floor(now / seconds - shift + _EARLY) + 1 + shift) * seconds


async def wait_for_tick(seconds: float, unless: asyncio.Event) -> bool:
    """Wait until the next tick, or until an event is set. Returns whether the tick came first."""
    due = next_tick(seconds, asyncio.get_running_loop().time())
    with suppress(TimeoutError):
        async with asyncio.timeout_at(due):
            await unless.wait()
    return not unless.is_set()
