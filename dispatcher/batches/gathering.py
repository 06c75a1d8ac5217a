"""Deliveries that wait for a batch: those of one receiver and one document class. No I/O."""

import math
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher.core.events import Calls, Change, Image, Job
from dispatcher.delivery.outcome import RetriedLetter
from mongoz.signals.options import Batch
from mongoz.signals.receivers import Receiver


@dataclass(slots=True, eq=False)
class GatheredDelivery:
    """A delivery that waits for its batch, or is in a batch.

    Attributes:
        calls: the document class and a single receiver.
        key: the key of the document.
        since: the time from which `Batch.wait` counts, by the monotonic clock.
        job: the job of the change; None for a delivery that waited in the database.
        row: for a delivery from the database, its lane and its place in this lane. `HeldSource` needs both to
            record the result. None for other deliveries.
        attempts: the number of attempts. If a failed batch is split, the attempts with all its parts count as one
            attempt.
        began: the time of the first attempt; None before it.
        retried: the dead letter that the delivery repeats; None if it repeats none.
        made: the image and the keywords for the receiver; None if they must be made from the change.
        is_untouched: whether the documents of the change are unmodified: no instance was made from them.
    """

    change: Change
    calls: Calls
    key: Hashable
    since: float
    job: Job | None = None
    row: Any = None
    attempts: int = 0
    began: datetime | None = None
    retried: RetriedLetter | None = None
    made: tuple[Image, dict[str, Any]] | None = None
    is_untouched: bool = False

    @property
    def receiver(self) -> Receiver:
        """The receiver."""
        return self.calls.receivers[0]


class Gathering:
    """Gathers the deliveries of one receiver and one document class, for all signals.

    A document is in one batch at a time. Its later deliveries wait behind this batch.

    Attributes:
        running: the number of batches that have begun and are not finished.
    """

    def __init__(self, batch: Batch) -> None:
        self._size = batch.size
        self._wait = batch.wait
        self._free: deque[GatheredDelivery] = deque()
        self._free_bytes = 0
        self._since = math.inf  # the earliest `since` of the free deliveries
        self._busy: set[Hashable] = set()
        self._behind: dict[Hashable, list[GatheredDelivery]] = {}
        self.running = 0
        self._hurry = False

    def add(self, one: GatheredDelivery) -> None:
        """Add a delivery. The deliveries of a document must be added in the order of its changes."""
        if one.key in self._busy:
            self._behind.setdefault(one.key, []).append(one)
        else:
            self._free.append(one)
            self._free_bytes += one.change.size
            self._since = min(self._since, one.since)

    def close(self) -> None:
        """Make the next batch due now, even if it is not full."""
        self._hurry = bool(self._free)

    def is_due(self, at: float, most_bytes: int) -> bool:
        """Returns whether a batch may begin.

        Args:
            at: the present time, by the monotonic clock.
            most_bytes: the maximum number of bytes of the events of a batch.
        """
        return bool(self._free) and (
            self._hurry
            or len(self._free) >= self._size
            or self._free_bytes >= most_bytes
            or self._since + self._wait <= at
        )

    @property
    def due_at(self) -> float | None:
        """The time at which the next batch is due at the latest; None if no delivery is ready for it."""
        return self._since + self._wait if self._free else None

    def take(self, most_bytes: int) -> list[GatheredDelivery]:
        """Take the deliveries of the next batch. Their documents are busy until `release`."""
        free, size = self._free, 0
        taken: list[GatheredDelivery] = []
        while free and len(taken) < self._size and (not taken or size + free[0].change.size <= most_bytes):
            one = free.popleft()
            taken.append(one)
            size += one.change.size
        self._busy.update(one.key for one in taken)
        self._put_behind()
        self._hurry = self._hurry and bool(self._free)
        return taken

    def _put_behind(self) -> None:
        """Let the other deliveries of the taken documents wait behind the batch."""
        free, self._free, self._free_bytes, self._since = self._free, deque(), 0, math.inf
        for one in free:
            self.add(one)

    def release(self, keys: Iterable[Hashable]) -> None:
        """End the batch of these documents. Deliveries that waited behind it come first in the next batch."""
        freed: list[GatheredDelivery] = []
        for key in keys:
            self._busy.discard(key)
            freed += self._behind.pop(key, ())
        self._free.extendleft(reversed(freed))
        self._free_bytes += sum(one.change.size for one in freed)
        self._since = min((self._since, *(one.since for one in freed)))

    def withdraw(self, key: Hashable) -> list[GatheredDelivery]:
        """Remove and return the deliveries that wait behind the batch of a document."""
        return self._behind.pop(key, [])
