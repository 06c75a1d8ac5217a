"""Limits the concurrent transactions of one receiver. Conflicts lower the limit, and commits raise it.

The server aborts a transaction that conflicts with another one, and its work is lost. A hundred transactions on
twenty documents abort each other nearly always. The best limit depends on the documents, so the algorithm is like
the congestion control of TCP. The limit begins small and doubles until the first conflict. From then on, each
conflict reduces it by a fraction, and each commit raises it a little.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

# The first limit. Doubling brings it to a hundred in the time of four transactions.
_FIRST: Final = 8.0

# A conflict multiplies the limit by the first number. A commit adds the second number, divided by the limit.
_BACK_OFF: Final = 0.7
_GROWTH: Final = 1.0


class Contention:
    """The transactions of one receiver in this process.

    Attributes:
        limit: maximum number of concurrent transactions. The number has a fractional part, so that the small
            raises of several commits add up.

    Example:
        async with contention.place() as place:
            error = await run()
            if is_conflict(error):
                contention.conflicted(place)
    """

    def __init__(self) -> None:
        self.limit = _FIRST
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._round = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[int]:
        """Wait for a place, in the order of arrival, and keep it until the block ends.

        Yields a value for `conflicted`.
        """
        if self._waiting or self._running >= int(self.limit):
            await self._wait()
        else:
            self._running += 1
        try:
            yield self._round
        finally:
            self._running -= 1
            self._admit()

    async def _wait(self) -> None:
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled():  # the place was given, but is no longer needed
                self._running -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting and self._running < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self._running += 1
                place.set_result(None)

    def conflicted(self, began: int) -> None:
        """Reduce the limit after a conflict.

        Concurrent transactions conflict at the same time. They count as one conflict: a transaction that began
        before the reduction says nothing about the reduced limit.

        Args:
            began: the value that `place` yielded.
        """
        if began == self._round:
            self._round += 1
            self.limit = max(1.0, self.limit * _BACK_OFF)

    def committed(self) -> None:
        """Raise the limit after a commit."""
        if self._running >= self.limit - 1:  # otherwise the limit was not reached
            self.limit += _GROWTH / self.limit if self._round else 1.0
