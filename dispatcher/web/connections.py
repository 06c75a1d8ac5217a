"""Connections: how long one may keep us waiting, and which one goes when there are too many.

A client that keeps us waiting is one whose request is not complete yet, or who does not take its answer. It has
`PATIENCE` seconds. The time that we need for an answer is not counted.
"""

import asyncio
from time import monotonic
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dispatcher.core.output.logs import get_logger

__all__ = ["MOST_CONNECTIONS", "PATIENCE", "Connection"]

log = get_logger()

PATIENCE: Final = 10.0
"""Seconds that a client may take to send its request, and to take its answer."""

MOST_CONNECTIONS: Final = 100
"""Beyond these, the client goes that has kept us waiting for longest."""

# Seconds between two log lines about clients that had to go.
_SAY_AGAIN: Final = 60.0

_said = -_SAY_AGAIN

# What a client is in while its request is not complete.
_SENDING: Final = (h11.IDLE, h11.SEND_BODY)


class Connection(H11Protocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None
    _waiting_since: float | None = None

    def connection_made(self, transport: Any) -> None:
        """As asyncio has it."""
        super().connection_made(transport)
        self._wait_for_client()
        if len(self.connections) > MOST_CONNECTIONS:
            self._send_one_away()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        if self._deadline is None:
            self._wait_for_client()
        super().data_received(data)
        if self.conn.their_state not in _SENDING:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """As uvicorn has it. It closes the connection if no further request comes within some seconds."""
        super().on_response_complete()
        if self._waiting_since is None:
            self._waiting_since = self.loop.time()

    def pause_writing(self) -> None:
        """As asyncio has it: the client does not take its answer."""
        super().pause_writing()
        self._wait_for_client()

    def resume_writing(self) -> None:
        """As asyncio has it."""
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

    def _send_one_away(self) -> None:
        """Make room, so that probes are answered however many clients do nothing."""
        waiting = [one for one in self.connections if isinstance(one, Connection) and one.since is not None]
        oldest = min(waiting, key=lambda one: one.since or 0.0, default=None)
        if oldest is not None:
            oldest.transport.abort()
            _say_so(len(self.connections))

    @property
    def since(self) -> float | None:
        """When the client began to keep us waiting; None if it does not."""
        return None if self.transport.is_closing() else self._waiting_since


def _say_so(connections: int) -> None:
    global _said  # noqa: PLW0603 - once a minute for the process
    if monotonic() - _said >= _SAY_AGAIN:
        _said = monotonic()
        log.warning(
            "too many clients are connected; those that have sent nothing for longest are sent away",
            action="http.crowded",
            connections=connections,
            most=MOST_CONNECTIONS,
        )
