"""How far the server's clock is from this machine's.

A stamp's time is compared with that of the server's event; a machine an hour off must not have its own writes
taken for copies.
"""

from datetime import UTC, datetime
from time import monotonic, time
from typing import Any, Final

from pymongo.errors import PyMongoError

__all__ = ["ServerClock"]

_FRESH: Final = 300.0  # seconds that a measurement is trusted
_STEP: Final = 1.0  # seconds that this machine's clock may be set by before it must be compared again


class ServerClock:
    """The server's time, as far as it is known. No thread or task: read again when it is needed and old."""

    __slots__ = ("_compared", "_offset", "_origin")

    def __init__(self) -> None:
        self._offset = 0.0
        self._compared = float("-inf")
        self._origin = 0.0

    @property
    def is_fresh(self) -> bool:
        """Whether `now` can be relied upon."""
        running = monotonic()
        return running - self._compared < _FRESH and abs(time() - running - self._origin) < _STEP

    def now(self) -> float:
        """Seconds since 1970, by the server's clock."""
        return time() + self._offset

    async def compare(self, client: Any) -> None:
        """Ask the server what time it is. Where it does not answer, what was known stays.

        Args:
            client: the driver's.
        """
        asked = time()
        try:
            answer: dict[str, Any] = await client.admin.command("hello")
        except PyMongoError:  # the write that needs the time will say so better
            return
        answered, running = time(), monotonic()
        server: datetime = answer["localTime"]
        if server.tzinfo is None:
            server = server.replace(tzinfo=UTC)
        self._offset = server.timestamp() - (asked + answered) / 2
        self._compared, self._origin = running, answered - running
