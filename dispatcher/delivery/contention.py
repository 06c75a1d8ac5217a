"""How many transactions of one receiver run at once: fewer while they conflict, more again while they succeed.

A transaction that meets another one's write is aborted, and all that it did was for nothing. A hundred of them on
twenty documents abort each other nearly always. Which number makes the most progress depends on the documents, and
nobody knows it before. So it is found as TCP finds the rate of a network. It begins small and doubles; the first
conflict ends that. From then on each conflict makes it smaller by a part, and each commit larger by a little.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["Contention"]

# The first number. Doubling brings it to a hundred within four transactions' time.
_FIRST: Final = 8.0

# What is left of the number after a conflict, and what as many commits as it allows add to it afterwards.
_BACK_OFF: Final = 0.7
_GROWTH: Final = 1.0


class Contention:
    """The transactions of one receiver in this process.

    Attributes:
        limit: how many may run at once.

    Example:
        async with contention.place():
            if await run() is a conflict:
                contention.conflicted(began)
    """

    def __init__(self) -> None:
        self.limit = _FIRST
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._round = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[int]:
        """Wait for a place, in the order of arrival, and hold it. Yields what `conflicted` needs to know."""
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
            if place.done() and not place.cancelled():  # it was given, and is not wanted any more
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
        """A transaction met another one's write.

        Transactions that run at once meet at once. They count as one conflict: those that began before the
        number was made smaller say nothing about the smaller one.

        Args:
            began: what `place` gave it.
        """
        if began == self._round:
            self._round += 1
            self.limit = max(1.0, self.limit * _BACK_OFF)

    def committed(self) -> None:
        """A transaction succeeded."""
        if self._running >= self.limit - 1:  # else the number is not what bounds them, and says nothing
            self.limit += _GROWTH / self.limit if self._round else 1.0
