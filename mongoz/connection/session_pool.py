"""Sessions that are lent to single writes, one after another.

A write whose outcome must be found out, should its answer get lost, needs a session that we know. To start one and
to end it for every write would cost a tenth of the write.
"""

from time import monotonic
from typing import Any, Final

from mongoz.connection.drivers import Driver

__all__ = ["Sessions"]

# Well within the 30 minutes for which a server remembers a session.
_IDLE_SECONDS: Final = 300.0

_MOST: Final = 100


class Sessions:
    """The idle sessions of one client.

    Args:
        driver: that the client is of.
        client: the driver's.
    """

    __slots__ = ("_client", "_driver", "_idle")

    def __init__(self, driver: Driver, client: Any) -> None:
        self._driver = driver
        self._client = client
        self._idle: list[tuple[Any, float]] = []  # the latest one at the end

    async def take(self) -> Any:
        """A session for the caller alone, who gives it back, or ends it where its state is in doubt. No I/O."""
        idle = self._idle
        if idle:
            session, since = idle.pop()
            if monotonic() - since < _IDLE_SECONDS:
                return session
            idle.append((session, since))
            await self.end()  # the others have waited for even longer
        return await self._driver.start_session(self._client)

    async def give_back(self, session: Any) -> None:
        """Let others have a session that is as good as new. No I/O."""
        if len(self._idle) < _MOST:
            self._idle.append((session, monotonic()))
        else:
            await session.end_session()

    async def end(self) -> None:
        """End those that are idle; no I/O."""
        while self._idle:
            session, _ = self._idle.pop()
            await session.end_session()
