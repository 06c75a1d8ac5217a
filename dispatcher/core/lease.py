"""A lease: the right to deliver one partition, for some seconds at a time.

Clocks of machines are never compared. The holder counts the seconds of its lease on its own clock, from before it
sent the last renewal that was acknowledged. Others count on theirs, from when they first saw that renewal, and a
bit longer. So the lease of a holder that can't renew it has always run out before somebody else takes over.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from dispatcher.core.output.logs import get_logger
from dispatcher.core.tasks import Interrupted

__all__ = ["HELD", "TAKEN", "Lease", "now"]

log = get_logger()

HELD: Final = 0.75
"""The part of a lease during which its holder acts, counted from before its last renewal."""

TAKEN: Final = 0.8
"""The part of a lease after which others take over, counted from when they saw its last renewal."""

now: Callable[[], float] = (
    # Unlike the monotonic clock it goes on while the machine sleeps.
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Seconds on this machine's own clock, which nobody sets."""


class Lease:
    """Of one partition, from its claim until it is released or lost.

    Args:
        partition: which.
        partitions: how many there are.
        term: grows with every change of ownership.
        seconds: how long it is valid after a renewal.
        sent: when the claim was sent, by `now`.

    Attributes:
        until: when it runs out, by `now`. Nothing is started from then on, unless it is renewed after all.
        lost: set when another process has it.
    """

    def __init__(self, partition: int, partitions: int, term: int, *, seconds: float, sent: float) -> None:
        self.partition = partition
        self.partitions = partitions
        self.term = term
        self.seconds = seconds
        self.until = sent + HELD * seconds
        self.lost = asyncio.Event()
        self._interrupted = False
        self._waiting: set[asyncio.Future[None]] = set()

    @classmethod
    def for_ever(cls) -> "Lease":
        """One that nobody else could take."""
        return cls(0, 1, 0, seconds=float("inf"), sent=0.0)

    def renewed(self, sent: float) -> None:
        """Note that a renewal was acknowledged that was sent then."""
        self.until = sent + HELD * self.seconds
        if now() < self.until:
            self._release()

    def lose(self) -> None:
        """Note that another process has taken over. Nothing is started from here on."""
        if self.lost.is_set():
            return
        log.warning(
            "another process has taken a partition over; what was not finished here is delivered there",
            action="lease.lost",
            partition=self.partition,
            term=self.term,
        )
        self.lost.set()
        self.give_up()

    def give_up(self) -> None:
        """Start nothing from here on."""
        self.until = float("-inf")
        self.interrupt()

    def interrupt(self) -> None:
        """Have nobody wait for a renewal any more."""
        self._interrupted = True
        self._release()

    async def held(self) -> None:
        """Wait until it is valid.

        Raises:
            Interrupted: it won't be any more, or is not waited for.
        """
        while now() >= self.until:
            if self._interrupted:
                raise Interrupted
            future = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)

    def _release(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
