"""The process of a relay: checks server and brokers, joins the relay's group, publishes, and ends cleanly.

The processes of a relay form a group of dispatchers. The group has the name of the topic, and one partition. So
the process with the lease publishes, the other processes stand by, and operators see the relay like every other
group.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

from dispatcher.core.clients import close, closing
from dispatcher.core.oplog import oplog_window
from dispatcher.core.output.logs import log
from dispatcher.core.state import Group, State
from dispatcher.core.stats import Gauges, RelayFigures, Stats
from dispatcher.core.tasks import end, unless_set
from dispatcher.group.coordinator import Coordinator
from dispatcher.group.members import FORMAT, Members
from dispatcher.kafka.config import KafkaConfig
from dispatcher.kafka.relay_state import RelayStore
from dispatcher.kafka.topics import TopicFacts, WeaknessLog, prepared_topic, topic_name
from dispatcher.operate.observer import Observer
from dispatcher.operate.privileges import require_state
from dispatcher.operate.unreachable import require_changes
from dispatcher.position.documents import SavedPositions
from dispatcher.position.store import FirstPosition, PositionStore
from dispatcher.relay.admission import admit_relay, application_of, require_own_topic
from dispatcher.relay.applications import clients_of, routes_of_all, scope_of_all
from dispatcher.relay.parts import RelayParts
from dispatcher.relay.work import RelayWork
from dispatcher.settings import Settings
from dispatcher.stream.change_stream import token_of_now
from dispatcher.stream.scope import Scope
from mongoz import Registry


class RelayTarget(NamedTuple):
    """The destination of a relay, and the names of its applications.

    Attributes:
        name: the name of the relay.
        partitions: the requested number of partitions of the topic. None keeps the number of an existing topic,
            and gives a new topic the default number.
        apps: the names of the applications, each as `"package.module:registry"`.
    """

    config: KafkaConfig
    name: str = "changes"
    partitions: int | None = None
    apps: Sequence[str] = ()


class RelayService:
    """One process of a relay for one or more registries.

    Args:
        registries: the registries of the applications, with all receivers connected.

    Raises:
        ApplicationError: a registry has a setting that excludes a dispatcher, or the registries are on several
            deployments.
        NothingToDeliver: no receiver of a registry may run in a dispatcher.
    """

    def __init__(self, registries: Sequence[Registry], settings: Settings, target: RelayTarget) -> None:
        self._settings = settings
        self._target = target
        self._topic = topic_name(target.name)
        self._routes = routes_of_all(registries, settings)
        self._scope = scope_of_all(self._routes, settings.state_database)
        self._clients = clients_of(registries, settings)
        self._coordinator: Coordinator[RelayWork] | None = None
        self.stats = Stats(relay=RelayFigures())
        self.observer = Observer(
            self.stats, group=self._topic, settings=settings, gauges=self.gauges, troubles=self.troubles
        )

    def gauges(self) -> dict[int, Gauges]:
        """The gauges of the relay, if this process holds the lease."""
        held = {} if self._coordinator is None else self._coordinator.held
        return {number: one.work.gauges() for number, one in held.items()}

    def troubles(self) -> list[str]:
        """Readable reasons why this process does not work for its relay."""
        one = self._coordinator
        if one is None:
            return []
        return one.troubles() + [trouble for held in one.held.values() if (trouble := held.work.trouble)]

    @property
    def position(self) -> str | None:
        """The token up to which all events are published; None if another process publishes."""
        held = () if self._coordinator is None else self._coordinator.held.values()
        return next((one.work.position for one in held), None)

    async def run(self, stop: asyncio.Event) -> None:
        """Publish, or stand by, until `stop` is set."""
        started = await unless_set(stop, self._start())
        if started is None:
            log.info("stopped during the start", action="relay.stopped", **self._counters())
            return
        parts, coordinator = started
        async with closing(parts.group.state.client, parts.watching):
            self.observer.begin(stop)
            observing = self.observer.watch(parts.group)
            try:
                await coordinator.run(stop)
            finally:
                await end(observing)
                log.info("stopped", action="relay.stopped", **self._counters())

    async def _start(self) -> tuple[RelayParts, Coordinator[RelayWork]]:
        """Check the server and the brokers, and join the group."""
        async with self._clients.patient_client() as client:
            await self._clients.check(client)
        client, watching = self._clients.lasting_client(), self._clients.watching_client()
        try:
            group = Group(State(client, self._settings.state_database, self._clients.address), self._topic)
            parts = RelayParts(
                group,
                watching,
                self._scope,
                [*map(".".join, self._scope.namespaces), *map(str, self._scope.patterns)],
                self._target.config,
                self._target.partitions,
                self._settings,
                self.stats,
                WeaknessLog(),
            )
            return parts, await self._join(parts)
        except BaseException:
            await close(client, watching)
            raise

    async def _join(self, parts: RelayParts) -> Coordinator[RelayWork]:
        group, version = parts.group, _version_of(self._scope)
        application = application_of(self._target.apps)
        facts = {
            "application": application,
            "version": version,
            "format": FORMAT,
            "lease_seconds": self._settings.lease,
            "receivers": [],
        }
        members = Members(group, facts, self._heartbeat_fields)
        store = PositionStore(group, members.id)
        now = partial(token_of_now, group.state.client, self._scope, group.state.address)
        begin = partial(_begin, store, now)

        async def join() -> bool:
            # All checks precede the first write.
            await require_state(group.state)
            for routes in self._routes:
                await require_changes(group.state.client, routes)
            await admit_relay(store, application, adopt=self._settings.adopt)
            topic = await self._prepare(group)
            if (await store.load()).layout is None:
                await require_own_topic(parts.config, topic, store, group.state.name)
            parts.weaknesses.note(topic, await oplog_window(group.state.client))
            begun = await begin(await store.load())
            await admit_relay(store, application, adopt=self._settings.adopt)
            await members.join()
            return begun

        begun = await self._clients.patiently(join)
        log.info(
            "first start: publishing changes from now on" if begun else "publishing changes after the position",
            action="relay.started",
            address=group.state.address,
            kafka=parts.config.servers,
            topic=self._topic,
            member=members.id,
            publishing=list(parts.names),
            begins="now" if begun else "position",
        )
        self._coordinator = Coordinator(
            store,
            members,
            lease=self._settings.lease,
            version=version,
            begin=begin,
            work=partial(RelayWork, parts, store),
            resized=self._count_change,
        )
        return self._coordinator

    async def _prepare(self, group: Group) -> TopicFacts:
        """Create the topic, or check it."""
        saved = await RelayStore(group.state, self._topic).load()
        return await prepared_topic(
            self._target.config,
            self._topic,
            self._target.partitions,
            None if saved is None else saved.topic,
            continues=self._settings.on_history_lost != "fail",
        )

    def _heartbeat_fields(self) -> dict[str, Any]:
        """The fields of a heartbeat that change."""
        held = {} if self._coordinator is None else self._coordinator.held
        return {"partitions": list(held), "stats": self.observer.stats_document(), "http": self.observer.http}

    def _counters(self) -> dict[str, int]:
        """The counters for the log."""
        relay = self.stats.relay
        return {**self.stats.as_dict(), **({} if relay is None else relay.counters())}

    def _count_change(self) -> None:
        self.stats.lease_changes += 1


async def _begin(store: PositionStore, now: Callable[[], Coroutine[Any, Any, str]], saved: SavedPositions) -> bool:
    """If the relay's group has no position yet, record the present position. Returns whether it was recorded."""
    position = saved.positions.get(0)
    if saved.layout is not None and position is not None and position.token is not None:
        return False
    return await store.begin(1, {0: FirstPosition(await now())}, new=saved.layout is None)


def _version_of(scope: Scope) -> str:
    """A hash that identifies the published collections, and the format of the state."""
    return sha256(f"{FORMAT} {scope.fingerprint}".encode()).hexdigest()[:16]
