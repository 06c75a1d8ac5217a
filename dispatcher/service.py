"""The daemon: puts the parts together, looks whether it can work, runs, and ends in order."""

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.errors import ConfigurationError, ConnectionFailure, OperationFailure, PyMongoError

from dispatcher.cancelling import end
from dispatcher.exceptions import (
    ApplicationError,
    CannotConnect,
    ExitCode,
    NotAReplicaSet,
    NothingToDeliver,
    ServerError,
)
from dispatcher.failures import fatal, in_short
from dispatcher.images import Images
from dispatcher.observe import Stats, get_logger
from dispatcher.pipeline import Pipeline
from dispatcher.positions import Position, PositionStore
from dispatcher.routing import Routes
from dispatcher.settings import Settings
from dispatcher.source import ChangeStreamSource, Scope
from mongoz import Registry
from mongoz.connection.address import first_seed
from mongoz.exceptions import ImproperlyConfigured

__all__ = ["Service", "run"]

log = get_logger()

_MIN_WIRE_VERSION: Final = 17  # MongoDB 6.0: pre and post images, wallTime

# A getMore waits for a second; a server that is silent for a minute is gone, whatever TCP says.
_SOCKET_TIMEOUT_MS: Final = 60_000

# A stream in server selection waits for a node that may never come back: better fail soon, and try again.
_SELECTION_TIMEOUT_MS: Final = 5_000

# How long a server that was thought lost may stay unasked; the driver's default is ten seconds.
_HEARTBEAT_MS: Final = 2_000

# Threads that receivers started with asyncio.to_thread, and the seconds they are given at the end.
_THREADS: Final = "dispatcher-thread"
_THREAD_PATIENCE: Final = 5.0


class Service:
    """One dispatcher process for one registry.

    Args:
        registry: of the application, whose receivers are connected by now.
        settings: the operator's.

    Raises:
        ApplicationError: the registry can't be served as it is.
        NothingToDeliver: no receiver of it could ever run here.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.settings = settings
        self.stats = Stats()
        self._registry = registry
        group = registry.dispatched
        if group is None:
            if not settings.deliver_everything:
                raise ApplicationError(
                    "The registry is not dispatched, so the application's own writes can't be told apart: "
                    "their receivers would run twice.",
                    remedy="Make it with Registry(..., dispatched=True), or accept it with --deliver-everything.",
                )
            group = "default"
        self._source: ChangeStreamSource | None = None
        self._url = _url_of(registry, settings)
        self._address = registry.address
        self.routes = Routes(registry.all_documents, group)
        if not self.routes.namespaces:
            if not registry.all_documents:
                raise NothingToDeliver(
                    "The registry has no documents.",
                    remedy="Is the module with the documents imported, and does their Meta name this registry?",
                )
            raise NothingToDeliver(
                f"None of the {len(registry.all_documents)} documents of the registry has a post_save, "
                "post_update or post_delete receiver that may run in the dispatcher.",
                remedy="Is the module with the receivers imported? Name it with --import MODULE.",
            )

    @property
    def ready(self) -> bool:
        """Whether the change stream is open at this moment."""
        return self._source is not None and self._source.connected

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set.

        Raises:
            DispatcherError: it can't work, or can't go on.
        """
        starting = asyncio.create_task(self._start(), name="start")
        stopped = asyncio.create_task(stop.wait(), name="wait-for-stop")
        await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
        await end([stopped] if starting.done() else [stopped, starting])
        if starting.cancelled():
            log.info("stopped before it had begun", action="dispatcher.stopped", **self.stats.as_dict())
            return
        client, pipeline = starting.result()
        async with client, self._registry:
            try:
                await pipeline.run(stop)
            finally:
                log.info("stopped", action="dispatcher.stopped", **self.stats.as_dict())

    async def _start(self) -> tuple[AsyncMongoClient[Any], Pipeline]:
        """Look whether the server will do, and take the position over."""
        async with self._client(serverSelectionTimeoutMS=int(self.settings.connect_timeout * 1000)) as client:
            await self._check_server(client)
        client = self._client(serverSelectionTimeoutMS=_SELECTION_TIMEOUT_MS, heartbeatFrequencyMS=_HEARTBEAT_MS)
        try:
            return client, await self._build(client)
        except BaseException:
            await client.close()
            raise

    def _client(self, **options: Any) -> AsyncMongoClient[Any]:
        return AsyncMongoClient(
            self._url, appname="mongoz-dispatcher", socketTimeoutMS=_SOCKET_TIMEOUT_MS, **options
        )

    async def _build(self, client: AsyncMongoClient[Any]) -> Pipeline:
        scope = Scope.of(self.routes.namespaces)
        source = self._source = ChangeStreamSource(
            client, scope, batch_size=self.settings.batch_size, address=self._address, stats=self.stats
        )
        store = PositionStore(client, self.settings.state_database, self.routes.group)
        try:
            position = await self._position(store, source, scope.fingerprint)
        except PyMongoError as error:
            raise (fatal(error, self._address) or self._unreachable(error)) from error
        return Pipeline(
            source=source,
            images=Images(client, self._registry.codec_options, self._address),
            routes=self.routes,
            store=store,
            position=position,
            fingerprint=scope.fingerprint,
            codec_options=self._registry.codec_options,
            settings=self.settings,
            stats=self.stats,
            address=self._address,
        )

    async def _position(self, store: PositionStore, source: ChangeStreamSource, fingerprint: str) -> Position:
        position = await store.claim()
        says = {
            "address": self._address,
            "group": self.routes.group,
            "term": position.term,
            "watching": [".".join(namespace) for namespace in self.routes.namespaces],
            "receivers": sum(len(r) for listener in self.routes.listeners for r in listener.receivers.values()),
            "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
        }
        if position.token is None:
            token = await source.now()
            # Saved before anything is read: what is written from here on is delivered, come what may.
            await store.save(token, fingerprint, [])
            log.info(
                "first start: delivering changes from now on",
                action="dispatcher.started",
                **says,
                begins="now",
            )
            return position._replace(token=token, fingerprint=fingerprint)
        begins = "position" if position.fingerprint == fingerprint else "time of the position"
        log.info(
            "delivering changes from the saved position on",
            action="dispatcher.started",
            **says,
            begins=begins,
        )
        return position

    async def _check_server(self, client: AsyncMongoClient[Any]) -> None:
        """Look whether this server has change streams.

        Raises:
            CannotConnect: nothing answers.
            NotAReplicaSet: it has none.
            ServerError: it is too old.
            AccessDenied: it does not let us in.
        """
        try:
            hello = await client.admin.command("hello")
        except (ConnectionFailure, ConfigurationError, OperationFailure) as error:
            await self._look_for_a_standalone()
            raise (fatal(error, self._address) or self._unreachable(error)) from error
        if hello.get("msg") != "isdbgrid":  # mongos is in front of replica sets
            self._refuse_standalone(hello)
        if hello.get("maxWireVersion", 0) < _MIN_WIRE_VERSION:
            raise ServerError(
                f"The server at {self._address} is older than MongoDB 6.0.", remedy="Upgrade the server."
            )

    async def _look_for_a_standalone(self) -> None:
        """A URL with replicaSet= finds no server where there is a standalone one; say so then."""
        options: dict[str, Any] = {
            "serverSelectionTimeoutMS": 1_000,
            "replicaSet": None,
            "directConnection": True,
        }
        try:
            async with AsyncMongoClient(f"mongodb://{self._address}/", **options) as client:
                hello = await client.admin.command("hello")
        except PyMongoError:
            return
        self._refuse_standalone(hello)

    def _refuse_standalone(self, hello: dict[str, Any]) -> None:
        if hello.get("setName"):
            return
        if hello.get("isreplicaset"):
            raise NotAReplicaSet(
                f"The server at {self._address} was started as part of a replica set that is not initiated.",
                remedy="Run rs.initiate() in mongosh once.",
            )
        raise NotAReplicaSet(
            f"The server at {self._address} is a standalone mongod, which has no change streams.",
            remedy="Start it with --replSet rs0 and run rs.initiate() in mongosh once; one node is enough.",
        )

    def _unreachable(self, error: Exception) -> CannotConnect:
        return CannotConnect(
            f"No MongoDB server answers at {self._address} within {self.settings.connect_timeout:g} s: "
            f"{in_short(error)}",
            remedy="Is it running, are address and replicaSet of the URL right, may this machine reach it?",
        )


def _relax_garbage_collection() -> None:
    """Look for reference cycles less often.

    Thousands of decoded documents live at any time here, and going through them all after every 700 new objects
    takes a third of the throughput. They hold no cycles, so reference counting frees them as it always does.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def _url_of(registry: Registry, settings: Settings) -> str:
    if settings.url is not None:
        try:
            first_seed(settings.url)
            registry.point_to(settings.url)
        except ImproperlyConfigured as error:
            raise CannotConnect(str(error), remedy="Mend --url or DISPATCHER_URL.") from error
        return settings.url
    if registry.url is None:
        raise ApplicationError(
            "The registry was made from a client, so the dispatcher does not know the URL to watch.",
            remedy="Make the registry from a URL; Registry(url, driver='motor') uses Motor.",
        )
    return registry.url


def run(service: Callable[[asyncio.Event], Coroutine[Any, Any, None]], loop: str = "auto") -> None:
    """Run a service until SIGINT or SIGTERM; a second one ends the process at once.

    Args:
        service: what to run; it is given the event that the signals set.
        loop: `"auto"` takes uvloop where there is one.
    """
    factory = None
    if loop == "auto" and sys.platform != "win32":
        import uvloop  # noqa: PLC0415 - not installed on Windows

        factory = uvloop.new_event_loop

    async def main() -> None:
        _relax_garbage_collection()
        threads = ThreadPoolExecutor(thread_name_prefix=_THREADS)
        asyncio.get_running_loop().set_default_executor(threads)
        stop = asyncio.Event()
        _stop_on_signals(stop)
        try:
            await service(stop)
        finally:
            await _leave_threads(threads)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def _leave_threads(threads: ThreadPoolExecutor) -> None:
    """Let threads that receivers started end, but not for ever: Python would wait for them without a limit."""
    threads.shutdown(wait=False, cancel_futures=True)
    deadline = asyncio.get_running_loop().time() + _THREAD_PATIENCE
    while any(thread.name.startswith(_THREADS) for thread in threading.enumerate()):
        if asyncio.get_running_loop().time() > deadline:
            log.warning("threads of receivers are still at work and are left behind", action="dispatcher.threads")
            sys.stdout.flush()
            os._exit(ExitCode.OK)
        await asyncio.sleep(0.02)


def _stop_on_signals(stop: asyncio.Event) -> None:
    """Have SIGINT and SIGTERM set an event, for as long as this process lives.

    A handler interrupts the main thread anywhere, inside of the logger too, so it does not log.
    """
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def on_signal(number: int, _frame: Any) -> None:
        seen.append(number)
        if len(seen) > 1:
            os.write(2, b"forced to stop\n")
            os._exit(ExitCode.FORCED)
        loop.call_soon_threadsafe(begin_to_stop, signal.Signals(number).name)

    def begin_to_stop(name: str) -> None:
        log.info("stopping; a second signal ends at once", action="dispatcher.stopping", signal=name)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
