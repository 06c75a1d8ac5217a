"""HTTP connections with a deadline and a limit.

A client has `PATIENCE` seconds to complete its request, and to read the answer. The time that the dispatcher needs
for the answer does not count. If there are too many connections, the one that has waited longest for its client is
closed.
"""

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dispatcher.core.output.logs import log
from dispatcher.core.output.throttle import Throttle

PATIENCE: Final = 10.0
"""Seconds within which a client must send its request, and within which it must read the answer."""

MOST_CONNECTIONS: Final = 100
"""Maximum number of connections. If there are more, the one that has waited longest for its client is closed."""

_throttle: Final = Throttle()

# States of a client whose request is not complete.
_SENDING: Final = (h11.IDLE, h11.SEND_BODY)


class HttpConnection(H11Protocol):
    """One HTTP connection."""

    _deadline: asyncio.TimerHandle | None = None
    _waiting_since: float | None = None

    def connection_made(self, transport: Any) -> None:
        """As in asyncio."""
        super().connection_made(transport)
        self._wait_for_client()
        if len(self.connections) > MOST_CONNECTIONS:
            self._close_one()

    def connection_lost(self, exc: Exception | None) -> None:
        """As in asyncio."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As in asyncio."""
        if self._deadline is None:
            self._wait_for_client()
        super().data_received(data)
        if self.conn.their_state not in _SENDING:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """As in uvicorn, which closes the connection if no further request comes within some seconds."""
        super().on_response_complete()
        if self._waiting_since is None:
            self._waiting_since = self.loop.time()

    def pause_writing(self) -> None:
        """As in asyncio: the client does not read its answer."""
        super().pause_writing()
        self._wait_for_client()

    def resume_writing(self) -> None:
        """As in asyncio."""
        super().resume_writing()
        self._stop_waiting()

    def _wait_for_client(self) -> None:
        self._stop_waiting()
        self._waiting_since = self.loop.time()
        self._deadline = self.loop.call_later(PATIENCE, self.transport.abort)

    def _stop_waiting(self) -> None:
        self._waiting_since = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_one(self) -> None:
        """Close a connection, so that idle clients never block probes."""
        waiting = [one for one in self.connections if isinstance(one, HttpConnection) and one.since is not None]
        oldest = min(waiting, key=lambda one: one.since or 0.0, default=None)
        if oldest is not None:
            oldest.transport.abort()
            _log_limit(len(self.connections))

    @property
    def since(self) -> float | None:
        """The time since which we have waited for the client; None if we do not wait for it."""
        return None if self.transport.is_closing() else self._waiting_since


def _log_limit(connections: int) -> None:
    if _throttle.due("http.crowded") is not None:
        log.warning(
            "too many HTTP connections; the connections that were idle for the longest time are closed",
            action="http.crowded",
            connections=connections,
            most=MOST_CONNECTIONS,
        )
