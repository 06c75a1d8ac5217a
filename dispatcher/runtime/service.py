"""The daemon: checks the server, joins the group, delivers, and ends cleanly."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from pymongo import AsyncMongoClient

from dispatcher.claims.store import ClaimStore
from dispatcher.claims.watch import ClaimWatch
from dispatcher.core.clients import Clients, close, closing
from dispatcher.core.oplog import oplog_window
from dispatcher.core.output.logs import log
from dispatcher.core.state import Group, State
from dispatcher.core.stats import Gauges, Stats, TopicFigures
from dispatcher.core.tasks import end, unless_set
from dispatcher.delivery.application import group_of, routes_of
from dispatcher.delivery.where import Conditions
from dispatcher.group.coordinator import Coordinator
from dispatcher.group.facts import facts_of, version_of
from dispatcher.group.layout import admit, begin, divide_into, require_source
from dispatcher.group.members import Members
from dispatcher.group.new_receivers import name_new_receivers
from dispatcher.group.origin import ChangeOrigin, StreamOrigin, TopicOrigin
from dispatcher.group.sessions import GroupSessions
from dispatcher.kafka.log import TopicLog, topic_of
from dispatcher.kafka.topics import WeaknessLog
from dispatcher.operate.dead_letters import drop_old
from dispatcher.operate.observer import Observer
from dispatcher.operate.pauses import Pauses
from dispatcher.operate.privileges import require_state
from dispatcher.operate.setup import few_connections, warn_about_collections, warn_about_streams
from dispatcher.operate.unreachable import require_changes
from dispatcher.pace.limit import LimitsByName
from dispatcher.position.documents import Layout, SavedPositions
from dispatcher.position.store import PositionStore
from dispatcher.runs.store import Runs
from dispatcher.runtime.assembly import Assembly
from dispatcher.runtime.pipeline import Pipeline
from dispatcher.runtime.watchdog import Watchdog
from dispatcher.settings import Settings
from dispatcher.stream.change_stream import token_of_now
from dispatcher.stream.scope import scope_of
from mongoz import Registry
from mongoz.signals import Delivery
from mongoz.signals.hops import inside_dispatcher

# Seconds between two checks of whether a backfill was handed over.
_HANDOVER: Final = 0.2


class Service:
    """One dispatcher process for one registry: a member of the group, with a share of its partitions.

    Args:
        registry: the registry of the application, with all receivers connected.
        application: the name of the application in the group, `"package.module:registry"`; empty if the
            group may belong to any application.

    Raises:
        ApplicationError: the registry has a setting that excludes a dispatcher.
        NothingToDeliver: no receiver of the registry may run in a dispatcher.
    """

    def __init__(self, registry: Registry, settings: Settings, application: str = "") -> None:
        self.settings = settings
        self.stats = Stats(topic=None if settings.kafka is None else TopicFigures())
        self._registry = registry
        self._application = application
        self._coordinator: Coordinator[Pipeline] | None = None
        group = group_of(registry, settings)
        self._clients = Clients(registry, settings)
        self.routes = routes_of(registry, settings, group)
        self.limits = LimitsByName(self.routes.receivers)
        self.observer = Observer(
            self.stats, group=group, settings=settings, gauges=self.gauges, troubles=self.troubles
        )

    def gauges(self) -> dict[int, Gauges]:
        """The gauges of the pipelines of this process, by partition."""
        return {number: pipeline.gauges() for number, pipeline in self.held.items()}

    def troubles(self) -> list[str]:
        """Readable reasons why this process does not work for its group."""
        return [] if self._coordinator is None else self._coordinator.troubles()

    @property
    def ready(self) -> bool:
        """Whether this is a healthy member: in touch with the group, with all its sources open.

        A hot standby is ready. While a newer version of the application runs, this process must not take over
        partitions, so it is not ready.
        """
        one = self._coordinator
        return (
            one is not None
            and one.in_touch
            and not one.outdated
            and all(held.work.connected for held in one.held.values())
        )

    @property
    def member_id(self) -> str:
        """The id of this process in the group; empty before it has joined."""
        return "" if self._coordinator is None else self._coordinator.member_id

    @property
    def live(self) -> tuple[str, ...]:
        """The ids of all living members, in the order of their starts."""
        return () if self._coordinator is None else self._coordinator.live

    @property
    def layout(self) -> Layout | None:
        """The layout of the group; None before the start."""
        return None if self._coordinator is None else self._coordinator.layout

    @property
    def held(self) -> Mapping[int, Pipeline]:
        """The pipelines of the partitions that this process holds."""
        held = {} if self._coordinator is None else self._coordinator.held
        return {number: held[number].work for number in sorted(held)}

    @property
    def position(self) -> str | None:
        """The lowest position of the partitions that this process holds; None if it holds none."""
        return min((pipeline.position for pipeline in self.held.values()), default=None)

    def close_batches(self) -> None:
        """Begin the batches that wait for more events, if all other deliveries of their partition are finished."""
        for pipeline in self.held.values():
            pipeline.close_batches()

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set."""
        started = await unless_set(stop, self._start())
        if started is None:
            log.info("stopped during the start", action="dispatcher.stopped", **self.stats.as_dict())
            return
        assembly, coordinator = started
        group = assembly.group
        client = group.state.client
        async with closing(client, assembly.watching, self._registry):
            stamped = self._registry.dispatched is not None
            self.observer.begin(stop)
            observing = self.observer.watch(group)
            days = self.settings.dead_letter_retention
            forgetting = drop_old(group, days=days, stats=self.stats)
            observing.append(asyncio.create_task(forgetting, name="forget-old-letters"))
            observing.append(asyncio.create_task(assembly.controls.watch(), name="watch-controls"))
            if assembly.topic is not None:
                watch = assembly.topic.watch
                weaknesses = WeaknessLog().watch(lambda: watch.facts, partial(oplog_window, client))
                observing.append(asyncio.create_task(weaknesses, name="check-topic"))
            else:
                observing.append(asyncio.create_task(warn_about_streams(group), name="check-streams"))
            warning = warn_about_collections(client, self.routes, stamped=stamped)
            checking = asyncio.create_task(warning, name="check-collections")
            try:
                if assembly.topic is not None:
                    assembly.topic.start()
                # All workers inherit this context.
                with inside_dispatcher(), Watchdog(self.settings.block_after, self._delivery_in):
                    await coordinator.run(stop)
            finally:
                if assembly.topic is not None:
                    await assembly.topic.close()
                await end([checking, *observing])
                log.info("stopped", action="dispatcher.stopped", **self.stats.as_dict())

    async def _start(self) -> tuple[Assembly, Coordinator[Pipeline]]:
        """Check the server, and join the group."""
        async with self._clients.patient_client() as client:
            await self._clients.check(client)
        if 0 < self._clients.connections < self.settings.concurrency:
            text, remedy = few_connections(self._clients, self.settings)
            log.warning(f"{text}, so deliveries wait for a connection", action="connections.few", remedy=remedy)
        client, watching = self._clients.lasting_client(), self._clients.watching_client()
        try:
            group = Group(State(client, self.settings.state_database, self._clients.address), self.routes.group)
            return await self._join(group, watching)
        except BaseException:
            await close(client, watching)
            raise

    async def _join(self, group: Group, watching: AsyncMongoClient[Any]) -> tuple[Assembly, Coordinator[Pipeline]]:
        scope = scope_of(self.routes)
        version = version_of(self.routes)
        facts = facts_of(self.routes, self.settings, version, self._application)
        members = Members(group, facts, self._heartbeat_fields)
        store = PositionStore(group, members.id)
        topic = topic_of(group, self.settings)
        origin: ChangeOrigin = StreamOrigin(partial(token_of_now, group.state.client, scope, group.state.address))

        async def record(saved: SavedPositions) -> bool:
            return await begin(store, origin, scope, self.settings, saved)

        async def join() -> tuple[Assembly, bool]:
            # All checks precede the first write.
            nonlocal origin
            await require_state(group.state)
            await require_changes(group.state.client, self.routes)
            if topic is not None:
                await topic.watch.open()
                origin = TopicOrigin(topic.watch)
            await admit(store, self.settings, self._application)
            await require_source(store, origin, scope, self.settings)
            assembly = await self._assemble(group, watching, members.sessions, topic)
            begun = await record(await store.load())
            await admit(store, self.settings, self._application)
            await divide_into(store, self.settings.partitions)
            await members.join()
            return assembly, begun

        assembly, begun = await self._clients.patiently(join)
        await self._await_backfill(Runs(group), members)
        self._log_start(group.state.address, members.id, origin, begun=begun)
        name_new = partial(name_new_receivers, group, self.routes.receivers, version)
        await self._clients.patiently(name_new)
        self._coordinator = Coordinator(
            store,
            members,
            lease=self.settings.lease,
            version=version,
            begin=record,
            work=partial(assembly.pipeline, store),
            resized=self._divide_limits,
        )
        return assembly, self._coordinator

    def _log_start(self, address: str, member: str, origin: ChangeOrigin, *, begun: bool) -> None:
        """Log where the deliveries begin.

        Args:
            begun: whether this start has recorded the first position of the group.
        """
        log.info(
            "first start: delivering changes from now on" if begun else "delivering changes after the position",
            action="dispatcher.started",
            address=address,
            group=self.routes.group,
            member=member,
            watching=[*map(".".join, self.routes.namespaces), *map(str, self.routes.patterns)],
            receivers=len(self.routes.receivers),
            loop=type(asyncio.get_running_loop()).__module__.partition(".")[0],
            begins="now" if begun else "position",
            source="change streams" if origin.topic is None else str(origin.topic),
        )

    async def _await_backfill(self, runs: Runs, members: Members) -> None:
        """Wait until no command delivers existing documents by itself, see `runs/backfill.py`."""
        waited = False
        while await self._clients.patiently(runs.has_one_alone):
            if not waited:
                log.info("a backfill is handed over to the dispatchers", action="backfill.handed_over")
            waited = True
            await self._clients.patiently(members.beat)
            await asyncio.sleep(_HANDOVER)

    async def _assemble(
        self, group: Group, watching: AsyncMongoClient[Any], sessions: GroupSessions, topic: TopicLog | None
    ) -> Assembly:
        await self.routes.prepare(Conditions(group.state, self._registry.codec_options))
        await group.state.create_indexes()
        if any(receiver.options.transactional for receiver in self.routes.receivers):
            await group.state.keep_deliveries_for(self.settings.delivery_retention)
        await group.state.keep_claims_for(self.settings.delivery_retention)
        settings = self.settings
        if topic is not None:  # half of the bytes is for records that are fetched ahead
            settings = settings.model_copy(update={"max_queued_mb": max(1, settings.max_queued_mb // 2)})
        return Assembly(
            group,
            watching,
            self._registry,
            self.routes,
            settings,
            self.stats,
            Pauses(group),
            sessions,
            ClaimWatch(ClaimStore(group), self.settings.claim_timeout),
            self.limits,
            topic,
        )

    def _delivery_in(self, task: "asyncio.Task[Any]") -> Delivery | None:
        """The delivery whose receiver runs in a task. Thread-safe."""
        held = () if self._coordinator is None else tuple(self._coordinator.held.values())
        found = (one.work.delivery_in(task) for one in held)
        return next((delivery for delivery in found if delivery is not None), None)

    def _heartbeat_fields(self) -> dict[str, Any]:
        """The fields of a heartbeat that change."""
        return {
            "partitions": list(self.held),
            "stats": self.observer.stats_document(),
            "http": self.observer.http,
        }

    def _divide_limits(self) -> None:
        """Divide the limits of this process among the partitions that it holds now."""
        self.stats.lease_changes += 1
        pipelines = self.held.values()
        layout = self.layout
        if layout is not None:
            self.limits.share(len(pipelines), layout.partitions)
        for place, pipeline in enumerate(pipelines):
            pipeline.resize(place, len(pipelines))
