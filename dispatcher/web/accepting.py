"""Accepts connections, and tries again if that fails. The server of uvloop would not try again."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from dispatcher.core.file_descriptors import lack_in
from dispatcher.core.output.logs import log
from dispatcher.core.output.throttle import Throttle

AGAIN_AFTER: Final = 1.0
"""Seconds between two attempts."""

_throttle: Final = Throttle()


async def accept(listening: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
    """Accept connections for ever. While no file descriptor is free, clients wait.

    Args:
        listening: a non-blocking socket.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = await loop.sock_accept(listening)
        except ConnectionError:  # the client has already disconnected
            continue
        except OSError as error:
            log_failure(error)
            await asyncio.sleep(AGAIN_AFTER)
            continue
        try:
            await loop.connect_accepted_socket(make_protocol, connection)
        except OSError as error:
            connection.close()
            log_failure(error)


def log_failure(error: Exception) -> None:
    """Log the error, at most once a minute."""
    further = _throttle.due("http.not_accepted")
    if further is not None:
        lack = lack_in(error)
        log.warning(
            "an HTTP connection can't be accepted; trying again",
            action="http.not_accepted",
            error=lack.message if lack else repr(error),
            remedy=lack.remedy if lack else "",
            further=further,
        )
