"""`dispatcher check`: checks the application and its deployment. Warnings and errors have a remedy.

It changes nothing on the server.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

from pymongo.errors import OperationFailure, PyMongoError

from dispatcher.core.clients import Clients
from dispatcher.core.driver_errors import in_short
from dispatcher.core.oplog import Oplog, look_at_oplog
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.state import Group, State
from dispatcher.core.stats import duration
from dispatcher.delivery.application import group_of, routes_of
from dispatcher.delivery.routes import Routes
from dispatcher.delivery.where import Conditions
from dispatcher.exceptions import DispatcherError, PositionError
from dispatcher.group.layout import require_same_source, taken
from dispatcher.group.origin import ChangeOrigin, StreamOrigin
from dispatcher.kafka.config import config_of
from dispatcher.operate.acls import after_role, dispatcher_acls
from dispatcher.operate.claim_checks import ClaimChecks
from dispatcher.operate.findings import Finding, Level
from dispatcher.operate.privileges import create_application_role, create_role, needed, useful_to_run
from dispatcher.operate.server_checks import HEADROOM, ServerChecks, of_oplog, of_position
from dispatcher.operate.setup import few_connections
from dispatcher.operate.stream_load import REMEDY, stream_load
from dispatcher.operate.topic_checks import TopicChecks, failed
from dispatcher.operate.unreachable import Unreachable, unreachable_receivers, without_changes
from dispatcher.position.documents import SavedPositions
from dispatcher.position.store import PositionStore
from dispatcher.settings import Settings
from dispatcher.stream.change_stream import token_of_now
from dispatcher.stream.collections import WatchedCollection, watched_collections
from dispatcher.stream.scope import scope_of
from mongoz import Registry

_SECONDS_PER_DAY: Final = 86_400.0

_ROLE: Final = "dispatcher check APP --role"


async def check(registry: Registry, settings: Settings, application: str = "") -> AsyncIterator[Finding]:
    """Check an application and its deployment.

    Args:
        registry: the registry of the application. Its receivers are connected already.
        application: the name of the application, `"package.module:registry"`; empty to skip the check that the
            group belongs to this application.

    Yields:
        The findings. If an error prevents all further checks, only warnings about unreachable receivers may
        follow it.
    """
    try:
        group = group_of(registry, settings)
        routes = routes_of(registry, settings, group)
    except DispatcherError as error:
        yield Finding.of("application", error)
        for one in unreachable_receivers(registry, Routes((), "default")):
            yield _unreachable(one)
        return
    yield Finding("ok", "application", _application(group, routes))
    for one in unreachable_receivers(registry, routes):
        yield _unreachable(one)
    try:
        clients = Clients(registry, settings)
        async with clients.patient_client() as client:
            await clients.check(client)
            state = State(client, settings.state_database, clients.address)
            async for finding in _Checks(state, registry, settings, routes, clients, application).all():
                yield finding
    except DispatcherError as error:
        yield Finding.of("server", error)
    except PyMongoError as error:
        yield Finding.of("server", clients.verdict(error))


def role_for(registry: Registry, settings: Settings) -> str:
    """The commands for mongosh that create roles with the least privileges.

    The first role is for dispatchers. The second role lets the application claim receivers. This role is absent if
    claims are turned off. With `--kafka`, the commands for the rights on Kafka follow in a comment.
    """
    group = group_of(registry, settings)
    scope, streams = scope_of(routes_of(registry, settings, group)), settings.kafka is None
    database = settings.state_database
    rights = [*needed(scope, database, streams=streams), *useful_to_run(scope, streams=streams)]
    role = create_role(group, scope, rights, database)
    if registry.claims is not None:
        role += f"\n\n{create_application_role(group, database)}"
    return role if streams else after_role(role, dispatcher_acls(settings.kafka_topic, group), config_of(settings))


def _application(group: str, routes: Routes) -> str:
    receivers = sum(len(found) for one in routes.listeners for found in one.receivers.values())
    return f"group {group!r}: {receivers} receivers of {len(routes.listeners)} documents"


def _unreachable(one: Unreachable) -> Finding:
    return Finding("warning", "receivers", f"{one.receiver} of {one.place} never runs: {one.text}", one.remedy)


def _oldest(saved: SavedPositions) -> float | None:
    """The cluster time of the oldest position, in seconds since 1970; None without a position."""
    found = [token_time(one.token).time for one in saved.positions.values() if one.token is not None]
    return float(min(found)) if found else None


class _Checks(NamedTuple):
    """The checks that need the server."""

    state: State
    registry: Registry
    settings: Settings
    routes: Routes
    clients: Clients
    application: str

    async def all(self) -> AsyncIterator[Finding]:
        """Run the checks. If rights are missing, stop: the later checks would report the same fault again."""
        server, streams = ServerChecks(self.state, self.clients, _ROLE), self.settings.kafka is None
        yield await server.version()
        if 0 < self.clients.connections < self.settings.concurrency:
            yield Finding("warning", "connections", *few_connections(self.clients, self.settings))
        scope, database = scope_of(self.routes), self.settings.state_database
        required = needed(scope, database, streams=streams)
        rights = [finding async for finding in server.rights(required, useful_to_run(scope, streams=streams))]
        for finding in rights:
            yield finding
        if any(finding.level == "error" for finding in rights):
            return
        yield await server.clock()
        oplog = await look_at_oplog(self.state.client)
        async for finding in self._group(oplog):
            yield finding
        async for finding in self._collections():
            yield finding
        async for finding in ClaimChecks(self.state, self.registry, self.routes).all():
            yield finding
        async for finding in self._conditions():
            yield finding

    async def _group(self, oplog: Oplog | None) -> AsyncIterator[Finding]:
        """The group: its application, its source, and its position in the source."""
        group = self.routes.group
        try:
            saved = await PositionStore(Group(self.state, group), "check").load()
        except PositionError as error:
            yield Finding.of("position", error)
            return
        before = saved.layout.application if saved.layout is not None else ""
        if self.application and before not in ("", self.application):
            yield Finding.of("application", taken(group, before, self.application))
        if self.settings.kafka is None:
            for finding in self._stream(saved, oplog):
                yield finding
            load = await stream_load(Group(self.state, group), oplog, self.settings.partitions)
            yield (
                Finding("warning", "streams", str(load), REMEDY)
                if load.is_high
                else Finding("ok", "streams", str(load))
            )
            async for finding in self._image_expiry(saved, oplog):
                yield finding
            return
        checks = TopicChecks(self.state, self.settings)
        try:
            origin = await checks.origin()
        except DispatcherError as error:
            yield failed(error)
            return
        other = self._other_source(saved, origin)
        if other is not None:
            yield other
            return
        yield Finding("ok", "source", f"The group {group!r} reads from {origin.topic}")
        if self._transactional and origin.watch.facts.retention is not None:
            for finding in self._short_records("topic", "warning", origin.watch.facts.retention):
                yield finding
        async for finding in checks.for_dispatcher(origin, scope_of(self.routes), saved, oplog):
            yield finding

    def _stream(self, saved: SavedPositions, oplog: Oplog | None) -> Iterator[Finding]:
        """The position of a group that reads from change streams."""
        if oplog is not None:
            yield from [*self._short_records("oplog", "error", oplog.window)] or [of_oplog(oplog)]
        scope, client = scope_of(self.routes), self.state.client
        other = self._other_source(saved, StreamOrigin(partial(token_of_now, client, scope, self.state.address)))
        oldest = _oldest(saved)
        if other is not None:
            yield other
        elif oldest is None:
            text = "No position is saved: the first run delivers the changes after its start"
            yield Finding("ok", "position", text)
        elif oplog is not None:
            yield of_position(oplog, oldest, "run")

    def _other_source(self, saved: SavedPositions, origin: ChangeOrigin) -> Finding | None:
        """An error if the group has read from a different source until now; else None."""
        try:
            require_same_source(self.routes.group, saved, origin, self.settings)
        except PositionError as error:
            return Finding.of("source", error)
        return None

    def _short_records(self, place: str, level: Level, kept: float) -> Iterator[Finding]:
        """A finding if records in the state are deleted earlier than the changes that they belong to.

        Args:
            place: `"oplog"` or `"topic"`.
            level: the level of the finding if there are transactional receivers. Without them, the level is
                `"warning"`.
            kept: the seconds for which the changes are kept.
        """
        retention = self.settings.delivery_retention * _SECONDS_PER_DAY
        records = "records of transactional deliveries"
        if not self._transactional:
            level, records = "warning", "claims of processes that have ended"
        if kept > retention and (self._transactional or self._claims):
            holds = "for ever" if kept == float("inf") else f"for {duration(kept)}"
            yield Finding(
                level,
                place,
                f"The {place} keeps changes {holds}, but {records} are kept for "
                f"{duration(retention)} only: changes that are read again later would be delivered twice",
                "Keep the records longer with --delivery-retention.",
            )

    @property
    def _claims(self) -> bool:
        return self.registry.claims is not None and bool(self.registry.claimable_receivers())

    @property
    def _transactional(self) -> bool:
        found = (r for one in self.routes.listeners for many in one.receivers.values() for r in many)
        return any(receiver.options.transactional for receiver in found)

    async def _image_expiry(self, saved: SavedPositions, oplog: Oplog | None) -> AsyncIterator[Finding]:
        oldest = _oldest(saved)
        if oldest is None or oplog is None:
            return
        lag = oplog.ends - oldest
        try:
            answer = await self.state.client.admin.command({"getClusterParameter": "changeStreamOptions"})
        except OperationFailure:  # a missing privilege, reported above, or an older server
            return
        expires = answer["clusterParameters"][0].get("preAndPostImages", {}).get("expireAfterSeconds", "off")
        if isinstance(expires, int | float) and expires < max(HEADROOM, 2 * lag):
            yield Finding(
                "warning",
                "images",
                f"The server keeps images for {duration(float(expires))}, and the position is {duration(lag)} "
                "old: the images of a change may be removed before the change is delivered",
                "Raise preAndPostImages.expireAfterSeconds of the cluster parameter changeStreamOptions.",
            )

    async def _collections(self) -> AsyncIterator[Finding]:
        try:
            watched = await watched_collections(self.state.client, scope_of(self.routes))
        except OperationFailure as error:
            yield Finding(
                "warning",
                "images",
                f"The image options of the collections can't be read: {in_short(error)}",
                "Grant listCollections on the databases of the documents.",
            )
            return
        for one in without_changes(watched, self.routes):
            yield _unreachable(one)._replace(level="error")
        for finding in self._images(watched):
            yield finding
        if self.registry.dispatched is not None:
            async for finding in self._validators(watched):
                yield finding

    def _images(self, watched: Iterable[WatchedCollection]) -> Iterator[Finding]:
        plain = [one for one in watched if one.kind in ("", "collection")]
        for one in plain:
            if one.has_images:
                continue
            listeners = self.routes.listening_to(one.namespace)
            signals = {name for listener in listeners for name, many in listener.receivers.items() if many}
            lacks = [
                text
                for signal, text in (
                    ("post_update", "updates are delivered with the current document"),
                    ("post_delete", "deletes are delivered with the id only"),
                )
                if signal in signals
            ]
            if lacks:
                state = "keeps no images" if one.kind else "does not exist yet"
                yield Finding(
                    "warning", "images", f"{one.name} {state}: {', '.join(lacks)}", "Run `dispatcher setup APP`."
                )
        if plain and all(one.has_images for one in plain):
            yield Finding("ok", "images", f"All {len(plain)} collections keep pre and post images")

    async def _validators(self, watched: Iterable[WatchedCollection]) -> AsyncIterator[Finding]:
        for one in watched:
            try:
                refused = await one.refuses_stamp(self.state.client, self.routes.group)
            except OperationFailure:  # the validator is too slow, or has an operator that the query can't use
                continue
            if refused:
                yield Finding(
                    "warning",
                    "validators",
                    f"The validator of {one.name} refuses the field _mongoz, so the application's writes fail",
                    "Add {_mongoz: {bsonType: 'binData'}} to the properties of its $jsonSchema.",
                )

    async def _conditions(self) -> AsyncIterator[Finding]:
        conditions = Conditions(self.state, self.registry.codec_options)
        try:
            if await self.routes.prepare(conditions):
                yield Finding("ok", "where", "The server accepts the where= of all receivers")
        except DispatcherError as error:
            yield Finding.of("where", error)
