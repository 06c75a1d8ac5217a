"""A pool of sessions for single writes.

The response of a write may get lost. mongoz can look up the outcome only if the write has an explicit session.
Starting and ending a session for each write would make each write a tenth slower.
"""

from time import monotonic
from typing import Any, Final

from mongoz.connection.drivers import DriverAdapter

__all__ = ["SessionPool"]

# Well within the 30 minutes for which a server remembers a session.
_IDLE_SECONDS: Final = 300.0

_MAX_IDLE: Final = 100


class SessionPool:
    """The idle sessions of one client.

    Args:
        adapter: the adapter of the client's driver.
        client: the driver's client.
    """

    __slots__ = ("_adapter", "_client", "_idle")

    def __init__(self, adapter: DriverAdapter, client: Any) -> None:
        self._adapter = adapter
        self._client = client
        self._idle: list[tuple[Any, float]] = []  # the latest one at the end

    async def take(self) -> Any:
        """Take a session. The caller gives it back, or ends it if its state is unknown. No I/O."""
        idle = self._idle
        if idle:
            session, since = idle.pop()
            if monotonic() - since < _IDLE_SECONDS:
                return session
            idle.append((session, since))
            await self.end()  # the other sessions are even older
        return await self._adapter.start_session(self._client)

    async def give_back(self, session: Any) -> None:
        """Return a session without pending operations to the pool. No I/O."""
        if len(self._idle) < _MAX_IDLE:
            self._idle.append((session, monotonic()))
        else:
            await session.end_session()

    async def end(self) -> None:
        """End the idle sessions. No I/O."""
        while self._idle:
            session, _ = self._idle.pop()
            await session.end_session()
