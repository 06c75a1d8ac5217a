"""The limits of a receiver: attempts at once, and attempts in a period. All partitions of a process share them."""

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from time import monotonic
from typing import Final

from dispatcher.pace.token_bucket import TokenBucket
from mongoz.signals.options import Rate
from mongoz.signals.receivers import Receiver

AHEAD: Final = 1.0
"""Maximum seconds for which deliveries of a receiver with a rate may wait in memory."""


class Limit:
    """Admits attempts of one receiver, in the order of their requests.

    Args:
        concurrency: maximum number of attempts at once; None for no limit.
        rate: the rate of the whole group; None for no limit.

    Attributes:
        waiting: number of deliveries from the stream that wait in memory for a place.
    """

    def __init__(self, concurrency: int | None = None, rate: Rate | None = None) -> None:
        self._concurrency = concurrency
        self._rate = rate
        self._bucket = None if rate is None else TokenBucket()
        self._running = 0
        self.waiting = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def set_share(self, part: int, parts: int) -> None:
        """Set the share of this process in the rate of the group: the process holds `part` of `parts` partitions.

        A process that holds a partition may make at least one attempt in each period.
        """
        if self._bucket is not None and self._rate is not None:
            count = max(1.0, self._rate.count * part / parts) if part else 0.0
            self._bucket.set_rate(count / self._rate.seconds, monotonic())
            self._admit()

    # -- places ----------------------------------------------------------------------------------------------

    def take(self) -> bool:
        """Take a place for one attempt, if no other delivery waits for a place. Returns whether it was taken."""
        return not self._queue and self._take(monotonic())

    def ask(self) -> "asyncio.Future[None]":
        """Wait for a place. The future is resolved when this caller has the place."""
        future = asyncio.get_running_loop().create_future()
        self._queue.append(future)
        self._admit()
        return future

    def withdraw(self, future: "asyncio.Future[None]") -> bool:
        """Stop waiting. Returns whether the caller has got the place before."""
        if future.done():
            return not future.cancelled()
        future.cancel()
        self._queue.remove(future)
        return False

    def give_back(self) -> None:
        """Give back a place after the attempt."""
        self._running -= 1
        self._admit()

    def _take(self, at: float) -> bool:
        if self._concurrency is not None and self._running >= self._concurrency:
            return False
        if self._bucket is not None and not self._bucket.take(at):
            return False
        self._running += 1
        return True

    def _admit(self) -> None:
        """Give places to callers that wait."""
        while self._queue:
            # One reading of the clock decides both. With a second, later one, there could be no need for a timer.
            at = monotonic()
            if not self._take(at):
                self._admit_later(at)
                return
            self._queue.popleft().set_result(None)

    def _admit_later(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seconds = 0.0 if self._bucket is None else self._bucket.seconds(1, at)
        if 0 < seconds < math.inf:  # otherwise the end of an attempt, or a new share, admits the next caller
            self._timer = asyncio.get_running_loop().call_later(seconds, self._admit)

    # -- decisions -------------------------------------------------------------------------------------------

    @property
    def delay(self) -> float:
        """The seconds until the rate admits a new delivery. The deliveries that wait already come before it."""
        return 0.0 if self._bucket is None else self._bucket.seconds(len(self._queue) + 1, monotonic())

    @property
    def is_crowded(self) -> bool:
        """Returns whether the next delivery of the stream must be parked, because it would wait for too long."""
        if self._concurrency is not None and self.waiting >= self._concurrency:
            return True
        # Parked deliveries are read into the queue when the wait in the queue falls to AHEAD / 2, see
        # `LimitedLanes`. While the wait is longer, a new delivery is parked too. Otherwise the new delivery would
        # overtake the parked ones.
        return self.delay > AHEAD / 2

    @property
    def ahead(self) -> int:
        """The maximum number of parked deliveries that a partition reads before they get places."""
        of_rate = math.inf if self._rate is None else max(1, int(AHEAD * self._rate.per_second))
        return int(min(of_rate, math.inf if self._concurrency is None else self._concurrency))


class Place:
    """A place for one attempt at a parked delivery. The place is taken before the attempt begins."""

    __slots__ = ("_limit",)

    def __init__(self, limit: Limit) -> None:
        self._limit: Limit | None = limit

    def use(self) -> bool:
        """Pass the place to the attempt, which gives it back. Returns False if it was used or released before."""
        used, self._limit = self._limit is not None, None
        return used

    def release(self) -> None:
        """Give the place back if no attempt has used it."""
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.give_back()


class LimitsByName(Mapping[str, Limit]):
    """The limits of a process, by the present and former names of their receivers.

    Receivers with the same name, for example of several signals or documents, share one limit.

    Args:
        rates: whether rates apply. Otherwise only `concurrency` is a limit.

    Attributes:
        may_park: whether deliveries that would wait for long are parked. Otherwise they wait in memory.
    """

    def __init__(self, receivers: Iterable[Receiver] = (), *, may_park: bool = True, rates: bool = True) -> None:
        self.may_park = may_park
        self._by_name: dict[str, Limit] = {}
        for receiver in receivers:
            options, rate = receiver.options, receiver.options.rate if rates else None
            if (options.concurrency or rate) and receiver.name not in self._by_name:
                limit = Limit(options.concurrency, rate)
                self._by_name.update(dict.fromkeys((*options.formerly, receiver.name), limit))

    def __getitem__(self, name: str) -> Limit:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def share(self, part: int, parts: int) -> "LimitsByName":
        """Set the share of this process in the rates, see `Limit.set_share`. Returns these limits."""
        for limit in set(self._by_name.values()):
            limit.set_share(part, parts)
        return self
