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
from pymongo.errors import PyMongoError

from dispatcher.cancelling import end
from dispatcher.conditions import Conditions
from dispatcher.controls import Controls
from dispatcher.dead_letters import DeadLetters
from dispatcher.exceptions import ExitCode
from dispatcher.gaps import Gaps
from dispatcher.images import Images
from dispatcher.measuring import Gauges
from dispatcher.observe import Stats, get_logger
from dispatcher.observing import Observer
from dispatcher.parked import Parked
from dispatcher.pipeline import Pipeline
from dispatcher.positions import Position, PositionStore
from dispatcher.preparing import group_of, routes_of, scope_of, warn_of_oddities
from dispatcher.retention import forget_old_letters
from dispatcher.server import Server
from dispatcher.settings import Settings
from dispatcher.source import ChangeStreamSource
from dispatcher.state import index_state, keep_deliveries_for
from dispatcher.transactional import Transactions
from mongoz import Registry
from mongoz.signals.hops import inside_dispatcher

__all__ = ["Service", "run"]

log = get_logger()

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
        self._source: ChangeStreamSource | None = None
        self._pipeline: Pipeline | None = None
        group = group_of(registry, settings)
        self._server = Server(registry, settings)
        self._address = self._server.address
        self.routes = routes_of(registry, settings, group)
        self.observer = Observer(self.stats, group=group, settings=settings, gauges=self.gauges)

    def gauges(self) -> dict[int, Gauges]:
        """How the pipelines of this process are, by partition."""
        return {} if self._pipeline is None else {0: self._pipeline.gauges()}

    @property
    def ready(self) -> bool:
        """Whether the change stream is open at this moment."""
        return self._source is not None and self._source.connected

    @property
    def position(self) -> str | None:
        """The resume token up to which everything is finished; None before the start."""
        return None if self._pipeline is None else self._pipeline.position

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
        self._pipeline = pipeline
        async with client, self._registry:
            stamped = self._registry.dispatched is not None
            self.observer.begin(stop)
            observing = self.observer.watch(client)
            days = self.settings.dead_letter_retention
            where = (client, self.settings.state_database, self.routes.group)
            forgetting = forget_old_letters(*where, days=days, stats=self.stats)
            observing.append(asyncio.create_task(forgetting, name="forget-old-letters"))
            looking = asyncio.create_task(warn_of_oddities(client, self.routes, stamped=stamped), name="look")
            try:
                with inside_dispatcher():  # so that every worker is, from its start on
                    await pipeline.run(stop)
            finally:
                await end([looking, *observing])
                log.info("stopped", action="dispatcher.stopped", **self.stats.as_dict())

    async def _start(self) -> tuple[AsyncMongoClient[Any], Pipeline]:
        """Look whether the server will do, and take the position over."""
        async with self._server.patient_client() as client:
            await self._server.check(client)
        client = self._server.client(
            serverSelectionTimeoutMS=_SELECTION_TIMEOUT_MS, heartbeatFrequencyMS=_HEARTBEAT_MS
        )
        try:
            return client, await self._build(client)
        except BaseException:
            await client.close()
            raise

    async def _build(self, client: AsyncMongoClient[Any]) -> Pipeline:
        scope = scope_of(self.routes)
        source = self._source = ChangeStreamSource(
            client, scope, batch_size=self.settings.batch_size, address=self._address, stats=self.stats
        )
        database, group = self.settings.state_database, self.routes.group
        store = PositionStore(client, database, group)
        codec_options = self._registry.codec_options
        conditions = Conditions(client, database, self.routes, codec_options, self._address)
        try:
            conditional = await conditions.prepare()
            await index_state(client, database)
            if self._transactional:
                await keep_deliveries_for(client, database, self.settings.delivery_retention)
            position = await self._position(store, source, scope.fingerprint)
        except PyMongoError as error:
            raise self._server.verdict(error) from error
        return Pipeline(
            source=source,
            images=Images(client, codec_options, self._address),
            routes=self.routes,
            store=store,
            position=position,
            fingerprint=scope.fingerprint,
            codec_options=codec_options,
            settings=self.settings,
            stats=self.stats,
            address=self._address,
            dead_letters=DeadLetters(client, database, group, self.stats),
            parked=Parked(client, database, group),
            controls=Controls(client, database, group),
            gaps=Gaps(client, database, group, self.stats, address=self._address),
            transactions=Transactions(self._registry, client, database, group),
            conditions=conditions if conditional else None,
        )

    @property
    def _transactional(self) -> bool:
        """Whether a receiver is."""
        by_signal = (listener.receivers.values() for listener in self.routes.listeners)
        return any(r.options.transactional for signals in by_signal for receivers in signals for r in receivers)

    async def _position(self, store: PositionStore, source: ChangeStreamSource, fingerprint: str) -> Position:
        position = await store.claim()
        says = {
            "address": self._address,
            "group": self.routes.group,
            "term": position.term,
            "watching": [*map(".".join, self.routes.namespaces), *map(str, self.routes.patterns)],
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


def _relax_garbage_collection() -> None:
    """Look for reference cycles less often.

    Thousands of decoded documents live at any time here, and going through them all after every 700 new objects
    takes a third of the throughput. They hold no cycles, so reference counting frees them as it always does.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


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
