"""TCP between clients and a server, for breaking it on purpose: any protocol, byte by byte.

They run in a thread of their own, so that whoever breaks them can do it from anywhere.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Literal

__all__ = ["Wire", "Wires", "wires"]

_HOST = "127.0.0.1"
_CHUNK = 1 << 16

Way = Literal["reset", "silence"]
"""How a connection is cut: the other side is told, or not."""


class _Connection:
    """One connection of a client with the server behind a wire."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.writers: list[asyncio.StreamWriter] = []
        self.silent = False
        self.ended = asyncio.Event()

    def reset(self) -> None:
        self.ended.set()
        for writer in self.writers:
            writer.transport.abort()


class Wire:
    """A port that leads to a server, until it is told otherwise.

    Args:
        loop: of the thread that all wires run in.
        port: of the server.
        who: tells who a client is, by the port that it has on its side; asked once per connection.

    Attributes:
        port: where it listens.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, who: Callable[[int], str]) -> None:
        self._loop = loop
        self._server_port = port
        self._who = who
        self._connections: set[_Connection] = set()
        self._cut: dict[str, Way] = {}
        self._delay: Callable[[], float] | None = None
        self.port = 0

    # -- what may be done to it, from any thread -----------------------------------------------------

    def cut(self, *sources: str, way: Way = "reset") -> None:
        """Let nobody of these through, now and until `mend`.

        Args:
            sources: as `who` tells them.
            way: `"silence"` loses what is sent, and connections that are made get no answer.
        """
        self._do(self._begin_cut, sources, way)

    def mend(self) -> None:
        """Let everybody through, at once. What was silent so far is reset: it lost something."""
        self._do(self._mend)

    def reset(self, share: Callable[[], bool] = lambda: True) -> int:
        """Reset connections; how many.

        Args:
            share: asked for each of them.
        """
        return self._do(self._reset, share)

    def silence(self, share: Callable[[], bool] = lambda: True) -> int:
        """Lose everything on connections that there are now, without telling anybody; new ones work."""
        return self._do(self._silence, share)

    def slow_down(self, delay: Callable[[], float] | None) -> None:
        """Have each piece of data take so many seconds, or no time again."""
        self._do(self._set_delay, delay)

    def close_slowly(self, seconds: float) -> int:
        """Close the server's side of all connections, and the client's only so much later; how many."""
        return self._do(self._close_slowly, seconds)

    def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def do() -> Any:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(10)

    # -- in the thread of the loop -------------------------------------------------------------------

    def _begin_cut(self, sources: tuple[str, ...], way: Way) -> None:
        for source in sources:
            self._cut[source] = way
        for connection in list(self._connections):
            if connection.source in sources:
                if way == "silence":
                    connection.silent = True
                else:
                    connection.reset()

    def _mend(self) -> None:
        self._cut.clear()
        for connection in list(self._connections):
            if connection.silent:
                connection.reset()

    def _reset(self, share: Callable[[], bool]) -> int:
        chosen = [connection for connection in list(self._connections) if share()]
        for connection in chosen:
            connection.reset()
        return len(chosen)

    def _silence(self, share: Callable[[], bool]) -> int:
        chosen = [connection for connection in list(self._connections) if share()]
        for connection in chosen:
            connection.silent = True
        return len(chosen)

    def _set_delay(self, delay: Callable[[], float] | None) -> None:
        self._delay = delay

    def _close_slowly(self, seconds: float) -> int:
        chosen = list(self._connections)
        for connection in chosen:
            connection.silent = True
            connection.writers[-1].transport.abort()
            self._loop.call_later(seconds, connection.reset)
        return len(chosen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self._who(writer.get_extra_info("peername")[1]))
        connection.writers.append(writer)
        self._connections.add(connection)
        try:
            way = self._cut.get(connection.source)
            if way == "silence":
                connection.silent = True
                await connection.ended.wait()
            if way is not None:
                return
            server_reader, server_writer = await asyncio.open_connection(_HOST, self._server_port)
            connection.writers.append(server_writer)
            if connection.ended.is_set():
                return
            await _first(
                self._pump(connection, reader, server_writer),
                self._pump(connection, server_reader, writer),
                connection.ended.wait(),
            )
        except ConnectionError:
            return
        finally:
            self._connections.discard(connection)
            connection.reset()

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                if self._delay is not None:
                    await asyncio.sleep(self._delay())
                if not connection.silent:
                    writer.write(data)
                    await writer.drain()
        if connection.silent:  # nobody is told that the other side has gone
            await connection.ended.wait()

    async def listen(self, port: int = 0) -> asyncio.Server:
        """Begin."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._serve(reader, writer)

        server = await asyncio.start_server(serve, _HOST, port)
        self.port = server.sockets[0].getsockname()[1]
        return server


async def _first(*work: Awaitable[Any]) -> None:
    """Wait until one of several is done, and end the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Wires:
    """Makes wires; all of them run in one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []

    def to(self, port: int, who: Callable[[int], str] = lambda _port: "") -> Wire:
        """One that leads to a port of this machine."""
        wire = Wire(self._loop, port, who)
        self._servers.append(self._await(wire.listen()))
        return wire

    def close(self) -> None:
        """Cut them all, for good."""
        for server in self._servers:
            self._loop.call_soon_threadsafe(server.close)
        self._await(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _await(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@contextlib.contextmanager
def wires() -> Iterator[Wires]:
    """Wires that are gone when the block ends."""
    made = Wires()
    try:
        yield made
    finally:
        made.close()
