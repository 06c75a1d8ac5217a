"""A TCP proxy between clients and an Apache Kafka. The proxy can lose requests."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

from tests.support import PATIENCE

_PRODUCE = 0  # the key of this kind of request


class KafkaProxy:
    """Forwards whole requests of Kafka's protocol.

    Attributes:
        lost: the number of lost requests.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._loses: Callable[[bytes], bool] = lambda _request: False
        self.lost = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def close(self) -> None:
        """Cuts all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    def lose_produce_requests(self, count: int) -> None:
        """Loses the next produce requests. Their answers never come; later requests are forwarded."""
        left = count

        def loses(request: bytes) -> bool:
            nonlocal left
            if int.from_bytes(request[4:6], "big") != _PRODUCE or not left:
                return False
            left -= 1
            self.lost += 1
            return True

        self._loses = loses

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client."""
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        answering = asyncio.create_task(_copy(server_reader, writer))
        self._writers |= {writer, server_writer}
        try:
            while True:
                size = await reader.readexactly(4)
                request = size + await reader.readexactly(int.from_bytes(size, "big"))
                if not self._loses(request):
                    server_writer.write(request)
                    await server_writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            answering.cancel()
            self._writers -= {writer, server_writer}
            server_writer.transport.abort()
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@contextlib.contextmanager
def kafka_proxied(port: int, own_port: int) -> Iterator[KafkaProxy]:
    """Runs a proxy in a thread during a block.

    Args:
        port: the port of the broker, which may start later.
        own_port: the port of the proxy itself. The broker must advertise this port, or a port that forwards to it.
    """
    proxy, started = KafkaProxy(port), threading.Event()
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        stopping, loop = asyncio.Event(), asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(stopping.set))
        async with await asyncio.start_server(proxy.serve, "127.0.0.1", own_port):
            started.set()
            await stopping.wait()
            proxy.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(PATIENCE)
        yield proxy
    finally:
        for each in stop:
            each()
        thread.join()
