"""Lets writes wait for a beat if the book of their process is not valid.

A beat records the book in the state database. After a beat, the book is valid for some time: see `book.py`.
"""

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

# Maximum seconds of one step of a wait.
_STEP: Final = 0.25

# Maximum seconds that count for one step. A step takes longer if the process is stopped, or if its machine sleeps.
_STEP_COUNTS: Final = 0.5


class BeatWait:
    """Lets writes wait until a beat makes the book valid. In each outage they wait for a short time only.

    An outage begins when a write finds no valid book, and ends with an acknowledged beat. The time in which at
    least one write waits is counted. After two seconds of this time, no write of the outage waits any more. The
    time in which the process is stopped does not count, because no beat can come while it is stopped. Writes
    also stop waiting after an error that makes waiting useless.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._waited = 0.0
        self._counted_at = float("inf")
        self._wakers: set[Callable[[], None]] = set()

    @property
    def is_over(self) -> bool:
        """Whether writes wait no longer in this outage."""
        return self._waited >= _MOST

    async def until(self, is_valid: Callable[[], bool]) -> None:
        """Wait until the book is valid, or until no write waits any more in this outage.

        Args:
            is_valid: returns whether the book is valid now.
        """
        beat = asyncio.Event()
        wake = partial(_wake, asyncio.get_running_loop(), beat)
        try:
            while (seconds := self._begin_step(is_valid, wake)) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await beat.wait()
                beat.clear()
        finally:
            with self._lock:
                self._wakers.discard(wake)

    def _begin_step(self, is_valid: Callable[[], bool], wake: Callable[[], None]) -> float:
        """Count the last step, and begin the next one.

        Returns:
            Maximum seconds of the next step; 0 or less if there is nothing to wait for.
        """
        with self._lock:  # `end_outage` can run only before or after this block
            if is_valid():
                return 0.0
            at = now()
            self._waited += max(0.0, min(at - self._counted_at, _STEP_COUNTS))
            self._counted_at = at
            self._wakers.add(wake)
            return min(_MOST - self._waited, _STEP)

    def end_outage(self) -> None:
        """Record that a beat was acknowledged, and has made the book valid. Any thread may call this."""
        self._wake_all(0.0)

    def give_up(self) -> None:
        """Let no write wait any more in this outage. Any thread may call this."""
        self._wake_all(float("inf"))

    def _wake_all(self, waited: float) -> None:
        with self._lock:
            self._waited, self._counted_at = waited, float("inf")
            wakers, self._wakers = self._wakers, set()
        for wake in wakers:
            wake()


def _wake(loop: asyncio.AbstractEventLoop, beat: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(beat.set)
