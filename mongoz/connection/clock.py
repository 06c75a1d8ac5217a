"""How far the server's clock is from this machine's.

A stamp's time is compared with that of the server's event; a machine an hour off must not have its own writes
taken for copies.
"""

import asyncio
from datetime import UTC, datetime
from time import monotonic, time
from typing import Any, Final
from weakref import WeakKeyDictionary

from pymongo.errors import PyMongoError

__all__ = ["ServerClock"]

_FRESH: Final = 300.0  # seconds that a measurement is trusted
_PROMPT: Final = 1.0  # seconds; an answer that takes longer (a connection was opened first) says little
_ATTEMPTS: Final = 3
_STEP: Final = 1.0  # seconds that this machine's clock may be set by before it must be compared again


class ServerClock:
    """The server's time, as far as it is known. No thread or task: read again when it is needed and old."""

    __slots__ = ("_asking", "_compared", "_offset", "_origin")

    def __init__(self) -> None:
        self._offset = 0.0
        self._compared = float("-inf")
        self._origin = 0.0
        self._asking: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = WeakKeyDictionary()

    @property
    def is_fresh(self) -> bool:
        """Whether `now` can be relied upon."""
        running = monotonic()
        return running - self._compared < _FRESH and abs(time() - running - self._origin) < _STEP

    def now(self) -> float:
        """Seconds since 1970, by the server's clock."""
        return time() + self._offset

    async def compare(self, client: Any) -> None:
        """Ask the server what time it is; once, however many wait for it.

        Where it does not answer, what was known stays.

        Args:
            client: the driver's.
        """
        loop = asyncio.get_running_loop()
        asking = self._asking.get(loop)
        if asking is None:
            asking = self._asking[loop] = loop.create_task(self._compare(client), name="mongoz-server-clock")
            asking.add_done_callback(lambda _: self._asking.pop(loop, None))
        await asyncio.shield(asking)

    async def _compare(self, client: Any) -> None:
        for _ in range(_ATTEMPTS):
            if await self._ask(client) < _PROMPT:
                return

    async def _ask(self, client: Any) -> float:
        """Ask once; returns how long that took."""
        asked, began = time(), monotonic()
        try:
            answer: dict[str, Any] = await client.admin.command("hello")
        except PyMongoError:  # the write that needs the time will say so better
            return 0.0
        answered, running = time(), monotonic()
        server: datetime = answer["localTime"]
        if server.tzinfo is None:
            server = server.replace(tzinfo=UTC)
        self._offset = server.timestamp() - (asked + answered) / 2
        self._compared, self._origin = running, answered - running
        return running - began
