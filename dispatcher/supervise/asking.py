"""One HTTP request to a process, over its Unix socket."""

import asyncio
import socket
from collections.abc import Iterable
from typing import Final, NamedTuple

import h11

# Headers that are not passed on: they concern a single connection, or they are made anew.
_OF_REQUEST: Final = frozenset(
    b"connection keep-alive te trailer transfer-encoding upgrade expect content-length".split()
)
_OF_ANSWER: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date"})

Headers = Iterable[tuple[bytes, bytes]]

_LOCAL: Final[Headers] = ((b"host", b"localhost"),)
_NO_HOST: Final = (b"host", b"")  # HTTP/1.1 requires the header, and a client of HTTP/1.0 may send none


class Answer(NamedTuple):
    """An answer. If the process does not answer, `status` is 0, and `body` has the reason."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Reply(asyncio.Protocol):
    """Collects all bytes until the connection is closed.

    A process may refuse a request before reading it, and close the connection. Then the answer counts, not the
    error of the connection.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """As in asyncio."""
        self.data += data

    def connection_lost(self, _exc: Exception | None) -> None:
        """As in asyncio."""
        if not self.ended.done():
            self.ended.set_result(None)


async def ask(
    path: str, target: bytes, *, method: str = "GET", headers: Headers = _LOCAL, body: bytes = b""
) -> Answer:
    """Send a request, and read the whole answer.

    Args:
        path: the path of the socket.
        target: the path of the request with its query.

    Raises:
        BlockingIOError: the process does not accept connections, and too many connections wait already.
        OSError: the process does not listen.
        h11.RemoteProtocolError: the process closed the connection before the end of the answer.
    """
    given = [one for one in headers if one[0] not in _OF_REQUEST]
    made = _connected(path)
    transport, reply = await asyncio.get_running_loop().create_unix_connection(_Reply, sock=made)
    try:
        connection = h11.Connection(h11.CLIENT)
        sent = [
            *given,
            *(() if any(name == b"host" for name, _ in given) else (_NO_HOST,)),
            (b"connection", b"close"),
            (b"content-length", str(len(body)).encode()),
        ]
        events = (h11.Request(method=method, target=target, headers=sent), h11.Data(body), h11.EndOfMessage())
        transport.write(b"".join(connection.send(event) or b"" for event in events))
        await reply.ended
    finally:
        transport.abort()
    return _read(connection, bytes(reply.data))


def _connected(path: str) -> socket.socket:
    """Connect without the event loop, which would hide the reason of a failure.

    A Unix socket connects or fails without a wait.
    """
    made = socket.socket(socket.AF_UNIX)
    try:
        made.setblocking(False)
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made


def _read(connection: h11.Connection, data: bytes) -> Answer:
    status, headers, body = 0, [], bytearray()
    connection.receive_data(data)
    connection.receive_data(b"")
    while not isinstance(event := connection.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
        if isinstance(event, h11.Response):
            status, headers = event.status_code, [one for one in event.headers if one[0] not in _OF_ANSWER]
        elif isinstance(event, h11.Data):
            body += event.data
    return Answer(status, headers, bytes(body))
