"""A TCP proxy between clients and a MongoDB server. The proxy can lose requests or answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

__all__ = ["Proxy", "proxied"]

_SESSIONS = b"logicalSessionTimeoutMinutes"
_HEADER = 16  # the header of a message; its first four bytes are the length


class Proxy:
    """Forwards whole messages of MongoDB's protocol between clients and one server.

    Attributes:
        port: its port on 127.0.0.1.
        refusing: whether all connections are closed, and new ones are closed immediately.
        lost: the number of lost requests or answers.
        electing: whether the server looks like a member without data, as during a start or recovery.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self.port = 0
        self.refusing = False
        self.lost = 0
        self.delay = 0.0
        self.electing = False
        self._rules: list[tuple[Callable[[bytes], bool], bool, bool]] = []
        self._hanging, self._hangs_on = 0, ""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._generation = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """The URL for clients, with `directConnection`, because the replica set has the server's own address."""
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    def cut_after_request(self, *commands: str, times: int = 1, then_refuse: bool = False) -> None:
        """Forwards a request, waits for the answer, loses it, and cuts the connection.

        Args:
            commands: names of commands.
            times: the number of affected requests.
            then_refuse: whether to refuse connections after the last of these requests.
        """
        self._lose(commands, times, forward=True, then_refuse=then_refuse)

    def cut_before_request(self, *commands: str, times: int = 1, then_refuse: bool = False) -> None:
        """Cuts the connection instead of forwarding a request."""
        self._lose(commands, times, forward=False, then_refuse=then_refuse)

    def hang_after_request(self, command: str, times: int = 1) -> None:
        """Forwards a request and never answers, like a silently dead connection."""
        self._hanging += times
        self._hangs_on = command

    def strand(self) -> None:
        """Stops answers on present connections without closing them; new connections work."""
        self._generation += 1

    def stall(self) -> None:
        """Stops all data in both directions, and closes nothing."""
        self._flowing.clear()

    def flow(self) -> None:
        """Forwards the held data and all later data."""
        self._flowing.set()

    def _lose(self, commands: tuple[str, ...], times: int, *, forward: bool, then_refuse: bool) -> None:
        def is_one(message: bytes) -> bool:
            return any(_is(message, command) for command in commands)

        self._rules += [(is_one, forward, then_refuse and n == times - 1) for n in range(times)]

    def refuse(self) -> None:
        """Cuts all connections, and refuses new ones until `accept`."""
        self.refusing = True
        for writer in list(self._writers):
            writer.transport.abort()

    def accept(self) -> None:
        """Accepts connections again, and loses nothing."""
        self.refusing = False
        self._rules.clear()

    def _shown(self, answer: bytes) -> bytes:
        """The message for the client, with the same length as the original."""
        return answer.replace(_SESSIONS, b"x" * len(_SESSIONS)) if self.electing else answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client."""
        self._writers.add(writer)
        try:
            if not self.refusing:
                await self._forward(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        generation = self._generation
        server_reader, server_writer = await asyncio.open_connection(*self._server)
        self._writers.add(server_writer)
        try:
            while True:  # a client sends one request at a time, except for requests with no or many answers
                message = await _message(reader)
                rule = next((rule for rule in self._rules if rule[0](message)), None)
                if rule is not None:
                    self._rules.remove(rule)
                await self._flowing.wait()
                if generation < self._generation:
                    await reader.read()
                    return
                if self._hanging and _is(message, self._hangs_on):
                    self._hanging -= 1
                    self.lost += 1
                    await reader.read()  # until the client gives up
                    return
                if self.delay:
                    await asyncio.sleep(self.delay)
                if rule is None or rule[1]:
                    server_writer.write(message)
                    if _wants_no_answer(message):
                        continue
                    answer = await _message(server_reader)
                await self._flowing.wait()
                if rule is not None:
                    self.lost += 1
                    if rule[2]:
                        self.refuse()
                    return
                writer.write(self._shown(answer))
                while _more_to_come(answer):
                    answer = await _message(server_reader)
                    if generation == self._generation:
                        writer.write(self._shown(answer))
        finally:
            self._writers.discard(server_writer)
            server_writer.transport.abort()


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(_HEADER)
    return head + await reader.readexactly(int.from_bytes(head[:4], "little") - _HEADER)


def _is(message: bytes, command: str) -> bool:
    # An OP_MSG: flags, a section's kind (0), the document's length, the first element's type, its name.
    return message[12:16] == (2013).to_bytes(4, "little") and message[26:].startswith(command.encode() + b"\0")


def _wants_no_answer(message: bytes) -> bool:
    return message[12:16] == (2013).to_bytes(4, "little") and bool(message[16] & 2)


def _more_to_come(message: bytes) -> bool:
    return message[12:16] == (2013).to_bytes(4, "little") and bool(message[16] & 2)


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """A proxy between clients and the server of this URL."""
    address = urlsplit(url)
    proxy = Proxy(address.hostname or "127.0.0.1", address.port or 27017)

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine, because a coroutine cancelled before its first step would leave its connection open.
        task = asyncio.create_task(proxy.serve(reader, writer))
        proxy._tasks.add(task)
        task.add_done_callback(proxy._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
        while proxy._tasks:
            for task in list(proxy._tasks):
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports close in the next iteration of the loop
