"""The HTTP server: listens from the start, and serves while the dispatcher runs.

The socket is opened first, so that a used port fails immediately. Clients that connect early wait until the
server is loaded. Loading takes a tenth of a second, and must not delay the first delivery.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

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

# Maximum seconds that loading the server waits for the first delivery; seconds between two checks.
_HEAD_START: Final = 1.0
_LOOK: Final = 0.02

# Seconds for requests that are running at shutdown.
_PATIENCE: Final = 1


class Web:
    """The HTTP server of one process."""

    def __init__(self, settings: Settings, observer: Observer) -> None:
        self._settings = settings
        self._observer = observer
        self._socket = _listen(settings.http)
        if self._socket is not None:
            observer.http = _url(self._socket)

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
        await self._let_deliveries_go_first()
        server, dashboard, make_protocol = await self._load_server()
        serving = asyncio.create_task(server.serve([]), name="http")
        watching = asyncio.create_task(dashboard.watch(), name="dashboard")
        try:
            log.info("the HTTP server is listening", action="http.listening", address=self._observer.http)
            await accept(self._socket, make_protocol)
        finally:
            self._socket.close()
            await end([watching])
            server.should_exit = True
            await asyncio.wait([serving], timeout=_PATIENCE * 2)

    async def _let_deliveries_go_first(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAD_START):
                while self._observer.not_ready():  # noqa: ASYNC110 - nothing else waits for this
                    await asyncio.sleep(_LOOK)

    async def _load_server(self) -> tuple[Any, Any, Any]:
        """Call `_make_server`, and call it again while no file descriptor is free for loading modules."""
        while True:
            try:
                return await asyncio.to_thread(self._make_server)
            except Exception as error:
                if lack_in(error) is None:
                    raise
                log_failure(error)
            await asyncio.sleep(AGAIN_AFTER)

    def _make_server(self) -> tuple[Any, Any, Any]:
        """Load the modules, which takes a while. Return the server, the dashboard and a factory of connections."""
        import uvicorn  # noqa: PLC0415 - see above

        from dispatcher.web.app import make_app  # noqa: PLC0415
        from dispatcher.web.connections import HttpConnection  # noqa: PLC0415
        from dispatcher.web.dashboard.api import Dashboard  # noqa: PLC0415
        from dispatcher.web.guard import is_loopback  # noqa: PLC0415

        assert self._socket is not None
        host = self._socket.getsockname()[0]
        hosts = ("localhost", "127.0.0.1", "::1", host) if is_loopback(host) else None

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                """Leave signals to the dispatcher."""
                yield

        logger = logging.getLogger("uvicorn.error")
        logger.handlers, logger.propagate = [_Forwarding()], False
        token = self._settings.http_token
        dashboard = Dashboard(
            self._observer,
            loopback=hosts is not None,
            token=token.get_secret_value() if token is not None else None,
        )
        app: Any = make_app(self._observer, hosts=hosts, further=dashboard.routes())
        config = uvicorn.Config(
            app,
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
        return server, dashboard, partial(HttpConnection, config, server.server_state, {})


class _Forwarding(logging.Handler):
    """Writes the lines of uvicorn to our log."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        log.warning(record.getMessage().strip(), action="http.trouble", exc_info=error)


def _log_failure(serving: "asyncio.Task[None]") -> None:
    if not serving.cancelled() and (error := serving.exception()) is not None:
        log.error("the HTTP server failed; no request is answered any more", action="http.failed", exc_info=error)


def _listen(where: str) -> socket.socket | None:
    """A listening socket; None for `--http off`."""
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
            instead=_url(free),
        )
        return free


def _bound(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address.host, address.port))
        made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise CannotListen(
            f"The HTTP server can't listen at {address.host}:{address.port}: {error.strerror or error}",
            remedy="Choose another address with --http HOST:PORT, port 0 for a free one, or --http off.",
        ) from error
    return made


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
