"""One HTTP request to a process, over its Unix socket."""

import asyncio
from collections.abc import Iterable
from typing import Final, NamedTuple

import h11

_CHUNK: Final = 65_536

# Headers of one connection, which are not passed on, and headers that are made anew.
_OF_REQUEST: Final = frozenset(
    b"connection keep-alive te trailer transfer-encoding upgrade expect content-length".split()
)
_OF_ANSWER: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date"})

Headers = Iterable[tuple[bytes, bytes]]

_LOCAL: Final[Headers] = ((b"host", b"localhost"),)


class Answer(NamedTuple):
    """An answer. `status` is 0 if the process does not answer; `body` has the reason then."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


async def ask(
    path: str, target: bytes, *, method: str = "GET", headers: Headers = _LOCAL, body: bytes = b""
) -> Answer:
    """Send a request, and read the whole answer.

    Args:
        path: of the socket.
        target: the path of the request with its query.

    Raises:
        OSError: the process does not listen, or closed the connection.
        h11.RemoteProtocolError: likewise, within the answer.
    """
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_CHUNK)
        sent = [
            *(one for one in headers if one[0] not in _OF_REQUEST),
            (b"connection", b"close"),
            (b"content-length", str(len(body)).encode()),
        ]
        for event in (h11.Request(method=method, target=target, headers=sent), h11.Data(body), h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")
        return await _answer(connection, reader)
    finally:
        writer.close()


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader) -> Answer:
    status, headers, body = 0, [], bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response):
            status, headers = event.status_code, [one for one in event.headers if one[0] not in _OF_ANSWER]
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return Answer(status, headers, bytes(body))
