"""The HTTP server: listens from the start, and serves while the dispatcher runs.

The socket is opened first, so that a port in use causes an error immediately. Clients that connect early wait
until the server is loaded. Loading takes a tenth of a second, and must not delay the first delivery.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from dispatcher.core.file_descriptors import lack_in
from dispatcher.core.output.logs import log
from dispatcher.core.tasks import end
from dispatcher.exceptions import CannotListen
from dispatcher.operate.observer import Observer
from dispatcher.settings import AUTO, OFF, Address, Settings
from dispatcher.web.accepting import AGAIN_AFTER, accept, log_failure

_USUAL: Final = Address("127.0.0.1", 8787)

# Maximum number of connections that wait to be accepted.
_BACKLOG: Final = 128

# The server is loaded when the dispatcher has begun to deliver, but at the latest after this number of seconds.
_HEAD_START: Final = 1.0
# Seconds between two checks whether the dispatcher delivers.
_LOOK: Final = 0.02

# Seconds for requests that are running at shutdown.
_PATIENCE: Final = 1


class Behind(NamedTuple):
    """The addresses of a process that gets its requests from a supervisor.

    Attributes:
        path: the Unix socket at which the process listens; empty to listen nowhere.
        url: the URL of the supervisor.
    """

    path: str
    url: str


class HttpServer:
    """Serves an ASGI application while the dispatcher runs.

    Args:
        listening: the socket; None to serve nothing.
        url: the address for clients; empty if there is none.
        make_app: loads and makes the application, given the host names that clients may use (None allows all).
    """

    def __init__(
        self, listening: socket.socket | None, url: str, make_app: Callable[[Sequence[str] | None], Any]
    ) -> None:
        self._socket = listening
        self._make_app = make_app
        self.url = url

    async def beside(self, run: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event) -> None:
        """Run the dispatcher, and serve HTTP while it runs.

        If the HTTP server fails, the dispatcher continues: the log and the probes show the failure.
        """
        serving = asyncio.create_task(self._serve(), name="http")
        serving.add_done_callback(_log_failure)
        try:
            await run(stop)
        finally:
            await end([serving])
            if self._socket is not None:
                self._socket.close()

    async def _serve(self) -> None:
        if self._socket is None:
            return
        server, make_protocol = await self._load_server()
        tasks = self._start_tasks()
        serving = asyncio.create_task(server.serve([]), name="http")
        try:
            await accept(self._socket, make_protocol)
        finally:
            self._socket.close()
            await end(tasks)
            server.should_exit = True
            await asyncio.wait([serving], timeout=_PATIENCE * 2)

    def _start_tasks(self) -> list["asyncio.Task[None]"]:
        """Start the tasks that run while requests are answered."""
        log.info("the HTTP server is listening", action="http.listening", address=self.url)
        return []

    async def _load_server(self) -> tuple[Any, Any]:
        """Call `_make_server`. If no file descriptor is free for loading modules, try again."""
        while True:
            try:
                return await asyncio.to_thread(self._make_server)
            except Exception as error:
                if lack_in(error) is None:
                    raise
                log_failure(error)
            await asyncio.sleep(AGAIN_AFTER)

    def _make_server(self) -> tuple[Any, Any]:
        """Load the modules, which takes a while. Return the server and a factory of connections."""
        import uvicorn  # noqa: PLC0415 - loaded late, see above

        from dispatcher.web.connections import HttpConnection  # noqa: PLC0415
        from dispatcher.web.guard import is_loopback  # noqa: PLC0415

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                """Leave signals to the dispatcher."""
                yield

        logger = logging.getLogger("uvicorn.error")
        logger.handlers, logger.propagate = [_Forwarding()], False
        host = urlsplit(self.url).hostname or ""
        config = uvicorn.Config(
            self._make_app(("localhost", "127.0.0.1", "::1", host) if is_loopback(host) else None),
            http=HttpConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_PATIENCE,
        )
        config.load()
        server = Server(config)
        return server, partial(HttpConnection, config, server.server_state, {})


class Web(HttpServer):
    """The HTTP server of one dispatcher process.

    Args:
        behind: the socket of this process and the URL of its supervisor, which listens at the address in the
            settings; None without a supervisor.
    """

    def __init__(self, settings: Settings, observer: Observer, behind: Behind | None = None) -> None:
        listening = listen(settings.http) if behind is None else _listen_at(behind.path)
        super().__init__(listening, url_of(listening) if behind is None else behind.url, self._app)
        self._settings = settings
        self._observer = observer
        self._behind = behind
        self._dashboard: Any = None
        observer.http = self.url or None

    async def _serve(self) -> None:
        if self._socket is not None:
            await self._let_deliveries_go_first()
            await super()._serve()

    async def _let_deliveries_go_first(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAD_START):
                while self._observer.not_ready():  # noqa: ASYNC110 - nothing else waits for this
                    await asyncio.sleep(_LOOK)

    def _start_tasks(self) -> list["asyncio.Task[None]"]:
        tasks = [] if self._behind is not None else super()._start_tasks()  # the supervisor logs its address
        return [*tasks, asyncio.create_task(self._dashboard.watch(), name="dashboard")]

    def _app(self, hosts: Sequence[str] | None) -> Any:
        from dispatcher.web.app import make_app  # noqa: PLC0415 - loaded late, see above
        from dispatcher.web.dashboard.api import Dashboard  # noqa: PLC0415
        from dispatcher.web.guard import OfClient  # noqa: PLC0415

        token = self._settings.http_token
        self._dashboard = Dashboard(
            self._observer,
            loopback=hosts is not None,
            token=token.get_secret_value() if token is not None else None,
        )
        app = make_app(self._observer, hosts=hosts, further=self._dashboard.routes())
        return app if self._behind is None else OfClient(app)


class _Forwarding(logging.Handler):
    """Writes the lines of uvicorn to our log."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        log.warning(record.getMessage().strip(), action="http.trouble", exc_info=error)


def _log_failure(serving: "asyncio.Task[None]") -> None:
    if not serving.cancelled() and (error := serving.exception()) is not None:
        log.error("the HTTP server failed; no request is answered any more", action="http.failed", exc_info=error)


def listen(where: str) -> socket.socket | None:
    """A listening socket; None for `--http off`.

    Raises:
        CannotListen: the address is in use, or not an address of this machine.
    """
    if where == OFF:
        return None
    if where != AUTO:
        return _bound(Address.parse(where))
    try:
        return _bound(_USUAL)
    except CannotListen:
        free = _bound(_USUAL._replace(port=0))
        log.warning(
            "the default port for HTTP is in use; listening on another one",
            action="http.port_taken",
            taken=f"{_USUAL.host}:{_USUAL.port}",
            instead=url_of(free),
        )
        return free


def _bound(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    remedy = "Choose another address with --http HOST:PORT, port 0 for a free one, or --http off."
    return _opened(made, (address.host, address.port), f"{address.host}:{address.port}", remedy)


def _listen_at(path: str) -> socket.socket | None:
    """A Unix socket; None without a path."""
    if not path:
        return None
    Path(path).unlink(missing_ok=True)  # a killed process leaves its socket behind
    remedy = "Set TMPDIR to a writable directory with a short path, or use --http off."
    return _opened(socket.socket(socket.AF_UNIX), path, path, remedy)


def _opened(made: socket.socket, address: Any, name: str, remedy: str) -> socket.socket:
    try:
        made.bind(address)
        made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise CannotListen(
            f"The HTTP server can't listen at {name}: {error.strerror or error}", remedy=remedy
        ) from error
    return made


def url_of(listening: socket.socket | None) -> str:
    """The URL of a socket; empty without one."""
    if listening is None:
        return ""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
