"""The wait of writes for a beat, if the book of their process is not valid."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import Final

from mongoz.uptime import now

__all__ = ["BeatWait"]

# Maximum seconds for which writes wait in one outage.
_MOST: Final = 2.0


class BeatWait:
    """Lets writes wait until a beat makes the book valid, for a short time in each outage.

    An outage begins when a write finds no valid book, and ends with an acknowledged beat. Two seconds after its
    begin, or when claims are refused, no write waits any more in this outage.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._ends_at = float("inf")
        self._wakers: list[Callable[[], None]] = []

    @property
    def is_over(self) -> bool:
        """Whether no write waits any more in this outage."""
        return now() >= self._ends_at

    async def until(self, is_valid: Callable[[], bool]) -> None:
        """Wait until the book is valid, or until the wait is over.

        Args:
            is_valid: whether the book is valid now.
        """
        loop = asyncio.get_running_loop()
        while True:
            beat = asyncio.Event()
            left = self._begin(is_valid, partial(_wake, loop, beat))
            if left <= 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await beat.wait()

    def _begin(self, is_valid: Callable[[], bool], wake: Callable[[], None]) -> float:
        """Begin to wait; returns the seconds that are left, 0 or less if there is nothing to wait for."""
        with self._lock:  # a beat that is acknowledged meanwhile ends the outage afterwards
            if is_valid():
                return 0.0
            self._ends_at = min(self._ends_at, now() + _MOST)
            self._wakers.append(wake)
            return self._ends_at - now()

    def end_outage(self) -> None:
        """Record that a beat was acknowledged. The book is valid already. Any thread may call this."""
        self._wake_all(float("inf"))

    def give_up(self) -> None:
        """Let no write wait any more in this outage. Any thread may call this."""
        self._wake_all(float("-inf"))

    def _wake_all(self, ends_at: float) -> None:
        with self._lock:
            self._ends_at = ends_at
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()


def _wake(loop: asyncio.AbstractEventLoop, beat: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(beat.set)
