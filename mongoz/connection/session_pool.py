"""A pool of sessions for single writes.

The response of a write may get lost. mongoz can look up the outcome only if the write has an explicit session.
Starting and ending a session for each write would make each write a tenth slower.
"""

from time import monotonic
from typing import Any, Final

from mongoz.connection.drivers import DriverAdapter

__all__ = ["SessionPool"]

# A session that was idle for longer than this is not used again. A server remembers a session for 30 minutes.
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

    def take_idle(self) -> Any:
        """Take an idle session; None if there is none. The caller gives it back, or ends it after an error."""
        idle = self._idle
        if not idle:
            return None
        session, since = idle.pop()
        if monotonic() - since < _IDLE_SECONDS:
            return session
        idle.append((session, since))  # `start` ends it, and the other sessions, which are even older
        return None

    async def start(self) -> Any:
        """Start a session, if `take_idle` has found none. No I/O."""
        await self.end()
        return await self._adapter.start_session(self._client)

    def keep(self, session: Any) -> bool:
        """Take back a session without pending operations.

        Returns:
            False if the pool is full. Then the caller ends the session.
        """
        if len(self._idle) >= _MAX_IDLE:
            return False
        self._idle.append((session, monotonic()))
        return True

    async def end(self) -> None:
        """End the idle sessions. No I/O."""
        while self._idle:
            session, _ = self._idle.pop()
            await session.end_session()
