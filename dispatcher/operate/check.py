"""`dispatcher check`: one finding for each check of the application and its deployment, with a remedy.

It changes nothing on the server.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final, Literal, NamedTuple

from pymongo.errors import OperationFailure, PyMongoError

from dispatcher.core.clients import Clients
from dispatcher.core.driver_errors import in_short
from dispatcher.core.oplog import MOST_SKEW, Oplog, clock_offset, look_at_oplog
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.state import Group, State
from dispatcher.core.stats import duration
from dispatcher.delivery.application import group_of, routes_of
from dispatcher.delivery.routes import Routes
from dispatcher.delivery.where import Conditions
from dispatcher.exceptions import DispatcherError, PositionError
from dispatcher.group.layout import taken
from dispatcher.operate.privileges import create_role, missing, needed, useful
from dispatcher.operate.setup import few_connections
from dispatcher.operate.unreachable import Unreachable, unreachable_receivers, without_changes
from dispatcher.position.store import PositionStore
from dispatcher.settings import Settings
from dispatcher.stream.collections import WatchedCollection, watched_collections
from dispatcher.stream.scope import scope_of
from mongoz import Registry

Level = Literal["ok", "warning", "error"]

# The first version that can send a large change event in parts.
_SPLITS_EVENTS: Final = (6, 0, 9)

# Minimum seconds of headroom: with less, an operator has no time to react.
_HEADROOM: Final = 3_600.0

_SECONDS_PER_DAY: Final = 86_400.0


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        level: `"error"` if `run` would fail, or would not deliver some changes.
        remedy: for a warning or an error; otherwise empty.
    """

    level: Level
    topic: str
    text: str
    remedy: str = ""


async def check(registry: Registry, settings: Settings, application: str = "") -> AsyncIterator[Finding]:
    """Check an application and its deployment.

    Args:
        registry: the registry of the application. Its receivers are connected already.
        application: its name, `"package.module:registry"`; empty to skip the check that it owns the group.

    Yields:
        The findings. An error that prevents further checks is the last one.
    """
    try:
        group = group_of(registry, settings)
        routes = routes_of(registry, settings, group)
    except DispatcherError as error:
        yield Finding("error", "application", error.message, error.remedy)
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
        yield Finding("error", "server", error.message, error.remedy)
    except PyMongoError as error:
        verdict = clients.verdict(error)
        yield Finding("error", "server", verdict.message, verdict.remedy)


def role_for(registry: Registry, settings: Settings) -> str:
    """The command for mongosh that creates a role with the least privileges for an application."""
    group = group_of(registry, settings)
    routes = routes_of(registry, settings, group)
    scope = scope_of(routes)
    rights = [*needed(scope, settings.state_database), *useful(routes)]
    return create_role(group, scope, rights, settings.state_database)


def _application(group: str, routes: Routes) -> str:
    receivers = sum(len(found) for one in routes.listeners for found in one.receivers.values())
    return f"group {group!r}: {receivers} receivers of {len(routes.listeners)} documents"


def _unreachable(one: Unreachable) -> Finding:
    return Finding("warning", "receivers", f"{one.receiver} of {one.place} never runs: {one.text}", one.remedy)


class _Checks(NamedTuple):
    """The checks that need the server."""

    state: State
    registry: Registry
    settings: Settings
    routes: Routes
    clients: Clients
    application: str

    async def all(self) -> AsyncIterator[Finding]:
        """Run all checks, in an order in which each fault is reported once."""
        yield await self._version()
        if 0 < self.clients.connections < self.settings.concurrency:
            yield Finding("warning", "connections", *few_connections(self.clients, self.settings))
        rights = [finding async for finding in self._rights()]
        for finding in rights:
            yield finding
        if any(finding.level == "error" for finding in rights):
            return
        yield await self._clock()
        oplog = await look_at_oplog(self.state.client)
        async for finding in self._position(oplog):
            yield finding
        async for finding in self._collections():
            yield finding
        async for finding in self._conditions():
            yield finding

    async def _version(self) -> Finding:
        version = str((await self.state.client.admin.command("buildInfo"))["version"])
        numbers = tuple(int(part) for part in version.partition("-")[0].split("."))
        text = f"MongoDB {version} at {self.clients.address}"
        if numbers < _SPLITS_EVENTS:
            return Finding(
                "warning",
                "server",
                f"{text} can't split a change event of more than 16 MB",
                "Upgrade to 6.0.9 or later if a document and its images together can exceed 16 MB.",
            )
        return Finding("ok", "server", text)

    async def _rights(self) -> AsyncIterator[Finding]:
        database = self.settings.state_database
        lacking = await missing(self.state.client, needed(scope_of(self.routes), database))
        remedy = "Grant it, or create the role that `dispatcher check APP --role` prints."
        for right in lacking:
            yield Finding("error", "rights", f"The user lacks {right}", remedy)
        if not lacking:
            yield Finding("ok", "rights", "The user has all required privileges")
        for right in await missing(self.state.client, useful(self.routes)):
            yield Finding("warning", "rights", f"The user lacks {right}", remedy)

    async def _clock(self) -> Finding:
        offset = await clock_offset(self.state.client)
        text = f"The clock of the server is {abs(offset):.3f} s {'ahead of' if offset > 0 else 'behind'} this one"
        if abs(offset) > MOST_SKEW:
            return Finding("warning", "clock", text, "Synchronize both clocks with NTP.")
        return Finding("ok", "clock", text)

    async def _position(self, oplog: Oplog | None) -> AsyncIterator[Finding]:
        if oplog is not None:
            yield self._oplog(oplog)
        group = self.routes.group
        try:
            saved = await PositionStore(Group(self.state, group), "check").load()
        except PositionError as error:
            yield Finding("error", "position", error.message, error.remedy)
            return
        before = saved.layout.application if saved.layout is not None else ""
        if self.application and before not in ("", self.application):
            wrong = taken(group, before, self.application)
            yield Finding("error", "application", wrong.message, wrong.remedy)
        found = [token_time(one.token).time for one in saved.positions.values() if one.token is not None]
        if not found:
            yield Finding(
                "ok",
                "position",
                "No position is saved: the first run delivers the changes after its start",
            )
            return
        oldest = float(min(found))
        if oplog is None:
            return
        headroom, age = oplog.headroom(oldest), oplog.ends - oldest
        text = f"It is {duration(age)} old, and the oplog holds it for another {duration(headroom)}"
        remedy = "Run a dispatcher now, and enlarge the oplog with replSetResizeOplog."
        if headroom <= 0:
            lost = f"The oplog begins {duration(-headroom)} after the position: the changes in between are lost"
            yield Finding("error", "position", lost, "See --on-history-lost in `dispatcher run --help`.")
        elif headroom < max(_HEADROOM, 2 * age):
            yield Finding("warning", "position", f"{text}: the oplog is too short for the lag", remedy)
        else:
            yield Finding("ok", "position", text)
        async for finding in self._image_expiry(age):
            yield finding

    def _oplog(self, oplog: Oplog) -> Finding:
        window = oplog.window + oplog.spare
        text = f"It holds the last {duration(oplog.window)}"
        if oplog.spare:
            text += f". It is not full, and will hold about {duration(window)} at this rate"
        retention = self.settings.delivery_retention * _SECONDS_PER_DAY
        if self._transactional and oplog.window > retention:
            return Finding(
                "error",
                "oplog",
                f"{text}, but records of transactional deliveries are kept for {duration(retention)} only: "
                "changes that are read again later would be delivered twice",
                "Keep them longer with --delivery-retention.",
            )
        if window < _HEADROOM:
            return Finding(
                "warning",
                "oplog",
                f"{text}: changes are lost if no dispatcher runs for longer than that",
                "Enlarge it with replSetResizeOplog.",
            )
        return Finding("ok", "oplog", text)

    @property
    def _transactional(self) -> bool:
        found = (r for one in self.routes.listeners for many in one.receivers.values() for r in many)
        return any(receiver.options.transactional for receiver in found)

    async def _image_expiry(self, lag: float) -> AsyncIterator[Finding]:
        try:
            answer = await self.state.client.admin.command({"getClusterParameter": "changeStreamOptions"})
        except OperationFailure:  # a missing privilege, reported above, or an older server
            return
        expires = answer["clusterParameters"][0].get("preAndPostImages", {}).get("expireAfterSeconds", "off")
        if isinstance(expires, int | float) and expires < max(_HEADROOM, 2 * lag):
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
            except OperationFailure:  # the validator is too slow, or has a rare operator
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
            yield Finding("error", "where", error.message, error.remedy)
