"""A lease: the right to deliver one partition, for some seconds at a time.

Clocks of different machines are never compared. The holder counts the seconds by its own clock, from the moment
before it sent the last acknowledged renewal. Other processes count by their clocks, from the moment at which they
saw this renewal, and they wait a bit longer. So if a holder can't renew its lease, the lease ends before another
process takes over.
"""

import asyncio
from typing import Final

from dispatcher.core.output.logs import log
from dispatcher.core.tasks import Interrupted
from mongoz import uptime

HELD: Final = 0.75
"""The part of a lease during which its holder acts, counted from the moment before the last renewal was sent."""

TAKEN: Final = 0.8
"""The part of a lease after which others take over, counted from the moment at which they saw its last renewal."""


now: Final = uptime.now
"""Seconds by this machine's own clock, which can't be set."""


class Lease:
    """The lease of one partition, from the claim of the partition until the lease is released or lost.

    Args:
        term: a number that grows with every change of ownership.
        seconds: the time for which a renewal is valid.
        sent: the time at which the claim of the partition was sent, on the clock `now`.

    Attributes:
        until: the time at which the lease ends, on the clock `now`. No delivery starts later, unless a late
            renewal is acknowledged.
        lost: set when another process has taken the partition over.
        given_up: this process has ended the lease, or has lost it. It is not renewed any more.
    """

    def __init__(self, partition: int, partitions: int, term: int, *, seconds: float, sent: float) -> None:
        self.partition = partition
        self.partitions = partitions
        self.term = term
        self.seconds = seconds
        self.until = sent + HELD * seconds
        self.lost = asyncio.Event()
        self.given_up = False
        self._interrupted = False
        self._waiting: set[asyncio.Future[None]] = set()

    @classmethod
    def for_ever(cls) -> "Lease":
        """A lease that no other process can take."""
        return cls(0, 1, 0, seconds=float("inf"), sent=0.0)

    def renewed(self, sent: float) -> None:
        """Record an acknowledged renewal and the time at which it was sent."""
        self.until = sent + HELD * self.seconds
        if now() < self.until:
            self._release()

    def lose(self) -> None:
        """Record that another process has taken over. No further delivery starts."""
        if self.lost.is_set():
            return
        log.warning(
            "another process has taken over a partition and delivers its unfinished changes",
            action="lease.lost",
            partition=self.partition,
            term=self.term,
        )
        self.lost.set()
        self.give_up()

    def give_up(self) -> None:
        """End the lease: no further delivery starts."""
        self.given_up = True
        self.until = float("-inf")
        self.interrupt()

    def interrupt(self) -> None:
        """Stop waiting for renewals."""
        self._interrupted = True
        self._release()

    async def held(self) -> None:
        """Wait until the lease is valid.

        Raises:
            Interrupted: the lease is not valid, and this process no longer waits for a renewal, see `interrupt`.
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
