"""The server's clock, as this process measures it.

Dispatchers compare the time in a stamp with the time of the server's event. If a machine with a wrong clock put
its own time into its stamps, dispatchers would take them for old stamps that a client has copied with a document.
"""

import asyncio
from datetime import UTC, datetime
from time import monotonic, time
from typing import Any, Final
from weakref import WeakKeyDictionary

from pymongo.errors import PyMongoError

__all__ = ["ServerClock"]

_FRESH_SECONDS: Final = 300.0  # a measurement is valid for this time
_PROMPT_SECONDS: Final = 1.0  # a slower measurement is repeated: it may have opened a connection first
_ATTEMPTS: Final = 3
_STEP_SECONDS: Final = 1.0  # a larger step of this machine's clock invalidates the measurement


class ServerClock:
    """The server's time.

    Nothing measures it in the background: a write that needs the time measures it if the last measurement is old.
    """

    __slots__ = ("_compared_at", "_measurements", "_offset", "_origin")

    def __init__(self) -> None:
        self._offset = 0.0
        self._compared_at = float("-inf")
        self._origin = 0.0
        self._measurements: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = WeakKeyDictionary()

    @property
    def is_fresh(self) -> bool:
        """Whether `now` is reliable."""
        running = monotonic()
        return (
            running - self._compared_at < _FRESH_SECONDS and abs(time() - running - self._origin) < _STEP_SECONDS
        )

    def now(self) -> float:
        """Seconds since 1970, by the server's clock."""
        return time() + self._offset

    async def compare(self, client: Any) -> None:
        """Measure the server's time. Callers in one event loop that wait at the same time share the measurement.

        If the server does not answer, the last measurement stays.

        Args:
            client: the driver's client.
        """
        loop = asyncio.get_running_loop()
        measurement = self._measurements.get(loop)
        if measurement is None:
            measurement = loop.create_task(self._compare(client), name="mongoz-server-clock")
            self._measurements[loop] = measurement
            measurement.add_done_callback(lambda _: self._measurements.pop(loop, None))
        await asyncio.shield(measurement)

    async def _compare(self, client: Any) -> None:
        for _ in range(_ATTEMPTS):
            if await self._measure(client) < _PROMPT_SECONDS:
                return

    async def _measure(self, client: Any) -> float:
        """Measure once; returns the seconds until the answer, or 0 if there is none."""
        asked, began = time(), monotonic()
        try:
            answer: dict[str, Any] = await client.admin.command("hello")
        except PyMongoError:  # the write that needs the time fails with a better error
            return 0.0
        answered, running = time(), monotonic()
        server: datetime = answer["localTime"]
        if server.tzinfo is None:
            server = server.replace(tzinfo=UTC)
        self._offset = server.timestamp() - (asked + answered) / 2
        self._compared_at, self._origin = running, answered - running
        return running - began
