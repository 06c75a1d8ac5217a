"""TCP links between clients and a server, for any protocol. The links can be broken.

All links run in one thread. Any other thread can break them.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Literal

__all__ = ["Link", "Links", "links"]

_HOST = "127.0.0.1"
_CHUNK = 1 << 16

Way = Literal["reset", "silence"]
"""How a connection is cut: the other side is told, or not."""


class _Connection:
    """One connection of a client through a link."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.writers: list[asyncio.StreamWriter] = []
        self.silent = False
        self.ended = asyncio.Event()

    def reset(self) -> None:
        self.ended.set()
        for writer in self.writers:
            writer.transport.abort()


class Link:
    """A port that forwards connections to a server, until it is broken.

    Args:
        loop: the loop of the thread of all links.
        port: the port of the server.
        who: returns the name of a client by its local port; called once per connection.

    Attributes:
        port: its listening port.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, who: Callable[[int], str]) -> None:
        self._loop = loop
        self._server_port = port
        self._who = who
        self._connections: set[_Connection] = set()
        self._cut: dict[str, Way] = {}
        self._delay: Callable[[], float] | None = None
        self.port = 0

    # -- faults, from any thread ---------------------------------------------------------------------

    def cut(self, *sources: str, way: Way = "reset") -> None:
        """Cuts the present connections of these clients, and their new ones until `mend`.

        Args:
            sources: names of clients, see `who`.
            way: `"silence"` loses all data, and new connections get no answer.
        """
        self._do(self._begin_cut, sources, way)

    def mend(self) -> None:
        """Forwards all connections again. Silenced connections are reset, because they lost data."""
        self._do(self._mend)

    def reset(self, share: Callable[[], bool] = lambda: True) -> int:
        """Resets connections; returns their number.

        Args:
            share: decides whether a connection is reset.
        """
        return self._do(self._reset, share)

    def silence(self, share: Callable[[], bool] = lambda: True) -> int:
        """Silently loses all data of present connections; returns their number. New connections work.

        Args:
            share: decides whether a connection is silenced.
        """
        return self._do(self._silence, share)

    def slow_down(self, delay: Callable[[], float] | None) -> None:
        """Delays each piece of data by this number of seconds; None ends the delay."""
        self._do(self._set_delay, delay)

    def close_slowly(self, seconds: float) -> int:
        """Closes all connections: the server's side now, the client's side later. Returns their number."""
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
        if connection.silent:  # the other side is not told about the close
            await connection.ended.wait()

    async def listen(self, port: int = 0) -> asyncio.Server:
        """Starts listening."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._serve(reader, writer)

        server = await asyncio.start_server(serve, _HOST, port)
        self.port = server.sockets[0].getsockname()[1]
        return server


async def _first(*work: Awaitable[Any]) -> None:
    """Waits until one task is done, and ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Links:
    """Makes links; all of them run in one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []

    def to(self, port: int, who: Callable[[int], str] = lambda _port: "") -> Link:
        """A link to a port of this machine."""
        link = Link(self._loop, port, who)
        self._servers.append(self._await(link.listen()))
        return link

    def close(self) -> None:
        """Ends all links."""
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
def links() -> Iterator[Links]:
    """Links that end with the block."""
    made = Links()
    try:
        yield made
    finally:
        made.close()
