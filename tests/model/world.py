"""A real server, the clients of the model, a dispatcher that starts and stops, and the calls of receivers."""

import asyncio
import contextlib
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

import pymongo
from pymongo import AsyncMongoClient

import mongoz
from dispatcher.claims import waiting, watch
from dispatcher.claims.store import ClaimStore
from dispatcher.core.state import Group as GroupState
from dispatcher.core.state import State
from dispatcher.runtime.service import Service
from mongoz.claims.beats import BookRecorder
from mongoz.claims.book import OpenClaim
from mongoz.claims.claims import Claims
from mongoz.claims.document import BookSnapshot
from mongoz.connection.clock import ServerClock
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.keys import canonical
from tests.model.model import (
    CLIENTS,
    DEFAULTS,
    GROUPS,
    LAST,
    RECEIVERS,
    STAMP,
    WITH_IMAGES,
    Client,
    Event,
    Group,
    Listening,
    Told,
)
from tests.support import Running, settings_for

__all__ = ["END", "Document", "Seen", "World"]

Document = tuple[str, Any]
"""(collection, `_id`)"""

END: Final = "end"
"""The name that a document gets with its last write."""

_IMAGES: Final = {"changeStreamPreAndPostImages": {"enabled": True}}
_PATIENCE: Final = 10.0
_PAUSE: Final = 0.002
_SLOW_ONE_IN: Final = 11
_TIMEOUT: Final = 1_000.0  # so long that no claim ends because this machine is busy
_PACE: Final = 0.02


class Clock(ServerClock):
    """The clock of a client that stalls after it has made a stamp, before it writes."""

    __slots__ = ("delay",)

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay

    def now(self) -> float:
        return super().now() - self.delay


class DrivenClaims(Claims):
    """The claims of a client. The test decides when they are recorded, and when they end.

    Attributes:
        ends: the fate of the process, see `FATES`; empty for a process that finishes its claims.
    """

    def __init__(self, client: Client, url: str, group: str, state: str, receivers: Callable[[], Any]) -> None:
        self._client: Any = pymongo.MongoClient(url)
        self.who, self.group = client, group
        super().__init__(group, state, lambda: self._client, receivers, _TIMEOUT)
        self.begin_again()

    def begin_again(self) -> None:
        """A new process begins."""
        self._begin()
        self._beats = BookRecorder(*self._recorder)
        self._recorded = BookSnapshot()
        self.ends = ""

    async def prepare(self) -> None:
        """Records the first beat."""
        await self.beat()

    async def beat(self) -> None:
        """Records the claims as they are."""
        book, taken = self.book, self.book.snapshot()
        await asyncio.to_thread(self._beats.record, self)
        self._recorded = taken if self.book is book else BookSnapshot()  # the numbers of a new book begin again
        self._is_awaited = False

    def claim(self, covered: frozenset[Any], *, is_whole: bool) -> OpenClaim | None:
        """A new claim."""
        made = super().claim(covered, is_whole=is_whole)
        if self.ends == "ends before":
            self.book.end()
        return made

    @property
    def needs_beat(self) -> bool:
        """Whether the state does not have the present claims yet."""
        return self.book.is_over or not self.book.is_known or self.book.snapshot() != self._recorded

    def close(self) -> None:
        """Closes the client."""
        self._beats.finish()


class Gate:
    """The last receiver of a write waits here.

    Args:
        is_last: whether all earlier receivers of the write have run.
    """

    def __init__(self, is_last: Callable[[], bool]) -> None:
        self.is_last = is_last
        self.entered, self.opened = asyncio.Event(), asyncio.Event()


class Seen:
    """The observations of one document: the calls of receivers, and the server's events.

    Attributes:
        by_dispatcher: calls in the dispatchers, in order, by group.
        in_process: calls in the writing process, in order.
        events: the events of the server, in order.
        oddities: errors in calls, in words.
        closed: whether the document is judged, so that further calls are errors.
    """

    def __init__(self) -> None:
        self.by_dispatcher: dict[Group, list[Told]] = {group: [] for group in GROUPS}
        self.in_process: list[Told] = []
        self.events: list[Event] = []
        self.oddities: list[str] = []
        self.closed = False
        self._delivered, self._reported = {group: asyncio.Event() for group in GROUPS}, asyncio.Event()
        self._deliveries: dict[Group, list[tuple[Any, str, str]]] = {group: [] for group in GROUPS}
        self._repeatable: set[tuple[str, str, str]] = set()
        self._ids_in_process: set[str] = set()

    async def ended(self) -> bool:
        """Waits for the last write: its event and its deliveries. Returns False after the deadline."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._reported.wait()
                for delivered in self._delivered.values():
                    await delivered.wait()
        except TimeoutError:
            return False
        return True

    async def has(self, number: int, group: Group) -> bool:
        """Waits for a number of deliveries. Returns False after the deadline."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while len(self.by_dispatcher[group]) < number:
                    await asyncio.sleep(_PAUSE)
        return len(self.by_dispatcher[group]) >= number

    def event(self, event: dict[str, Any]) -> None:
        """Records an event of the server."""
        description = event.get("updateDescription") or {}
        paths = [*description.get("updatedFields", ()), *description.get("removedFields", ())]
        paths += [array["field"] for array in description.get("truncatedArrays") or ()]
        names = frozenset(path.partition(".")[0] for path in paths) - {STAMP}
        self.events.append(Event(event["operationType"], names, "txnNumber" in event))
        if (event.get("fullDocument") or {}).get("name") == END:
            self._reported.set()

    def call(self, client: str, told: Told, kwargs: dict[str, Any], group: Group = "ours") -> None:
        """Records a call of a receiver in a client or in the dispatcher of a group."""
        delivery = kwargs["delivery"]
        self.oddities += [f"{told.receiver}, {told.signal}: {what}" for what in _oddities(told, kwargs)]
        if client:
            self._ids_in_process.add(delivery.id)
            self.in_process.append(told._replace(receiver=f"{client}/{told.receiver}"))
            return
        if delivery.session is not None and (group, delivery.id, told.receiver) in self._repeatable:
            return  # the transaction of this delivery ran again; the verdict checks its effects
        self._repeatable.add((group, delivery.id, told.receiver))
        self.by_dispatcher[group].append(told)
        self._deliveries[group].append((delivery.cluster_time, delivery.id, told.receiver))
        if told.instance is not None and told.instance[0] == END and told.receiver == LAST:
            self._delivered[group].set()

    def told_by(self, group: Group) -> list[Told]:
        """The calls in the dispatcher of a group. Valid only after all calls in process are recorded."""
        pairs = zip(self.by_dispatcher[group], self._deliveries[group], strict=True)
        return [told._replace(is_known=id_ in self._ids_in_process) for told, (_, id_, _) in pairs]

    def unsteady_ids(self, group: Group) -> list[str]:
        """Violations of two rules: a receiver gets each id once, and its cluster times never go back."""
        words, times = [], defaultdict(list)
        for cluster_time, _, receiver in self._deliveries[group]:
            times[receiver].append(cluster_time)
        for receiver, order in times.items():
            if order != sorted(order):
                words.append(f"delivery.cluster_time of {receiver} goes back: {order}")
        count = Counter((id_, receiver) for _, id_, receiver in self._deliveries[group])
        return words + [
            f"{one[1]} got delivery.id {one[0]} {times} times" for one, times in count.items() if times > 1
        ]


def _oddities(told: Told, kwargs: dict[str, Any]) -> Iterator[str]:
    """Errors in a call that do not depend on the change."""
    delivery, origin = kwargs["delivery"], kwargs["delivery"].origin
    expected = {"post_save": {"created", "previous"}, "post_update": {"update_fields", "previous"}}
    keywords = {"sender", "instance", "delivery"} | expected.get(told.signal, set())
    if set(kwargs) != keywords:
        yield f"keywords {sorted(kwargs)}"
    if not isinstance(kwargs["instance"], kwargs["sender"]):
        yield f"an instance of {type(kwargs['instance'])}"
    for name in ("instance", "previous"):
        shown = kwargs.get(name)
        if shown is not None and (STAMP in vars(shown) or STAMP in (shown.__pydantic_extra__ or {})):
            yield f"a stamp on {name}"
    if told.update_fields is not None and not isinstance(kwargs["update_fields"], frozenset):
        yield f"update_fields is a {type(kwargs['update_fields'])}"
    if (delivery.signal, delivery.attempt, delivery.replayed) != (told.signal, 1, False):
        yield f"{delivery}"
    times = {delivery.cluster_time is None, delivery.wall_time is None}
    if times != {origin == "process"} or (delivery.term > 0) != (origin != "process"):
        yield f"{delivery}"
    if delivery.superseded and not told.is_taken:
        yield f"{delivery}"


class World:
    """The environment that all sequences share. The sequences share no documents.

    Args:
        url: the URL of the server.
        database: the database of the documents. Nothing else uses it; the state has a database of its own.
        park_after: seconds after which deliveries that wait for claims are parked.
    """

    def __init__(self, url: str, database: str, park_after: float = 5.0) -> None:
        self._url = url
        self._database = database
        self._park_after = park_after
        self._patched = contextlib.ExitStack()
        self.claims: dict[str, DrivenClaims] = {}
        self.gates: dict[str, Gate] = {}
        self._seen: dict[tuple[str, bytes], Seen] = defaultdict(Seen)
        self._models: dict[str, dict[str, Any]] = {}
        self._registries: list[mongoz.Registry] = []
        self._calls = 0
        self._running: dict[Group, Running | None] = dict.fromkeys(GROUPS)
        self._numbers = itertools.count(random.randrange(2**40))
        self._observing: asyncio.Task[None] | None = None
        self.late: list[str] = []
        self.restarts = 0
        self.client: AsyncMongoClient[Any] = AsyncMongoClient(url)
        self._daemons = {group: self._registry(group) for group in GROUPS}
        for group, daemon in self._daemons.items():
            for listening, document in _listenings(_documents(daemon, database)):
                self._connect(document, listening, client=None, group=group)
        for client in CLIENTS.values():
            registry = self._registry(client.group)
            registry.clock = Clock(client.delay)
            if registry.claims is not None:
                assert registry.dispatched is not None
                receivers = registry.claimable_receivers
                claims = DrivenClaims(client, url, registry.dispatched, self._state, receivers)
                registry.claims = self.claims[client.name] = claims
            documents = self._models[client.name] = _documents(registry, database)
            for listening, document in _listenings(documents):
                if client.has(listening):
                    self._connect(document, listening, client=client)

    def _registry(self, group: str | None) -> mongoz.Registry:
        name = None if group is None else self._database if group == "ours" else f"{self._database}_{group}"
        dispatched = name if name is not None else False
        registry = mongoz.Registry(self._url, dispatched=dispatched, state=self._state)
        self._registries.append(registry)
        return registry

    @property
    def _state(self) -> str:
        return f"{self._database}_state"

    def _connect(self, document: Any, listening: Listening, client: Client | None, group: Group = "ours") -> None:
        collection, who = document.meta.collection.name, client.name if client else ""
        name = listening.formerly if client and client.is_old and listening.formerly else listening.name
        options: dict[str, Any] = {"name": name, "delivery": listening.mode}
        if listening.formerly and name == listening.name:
            options["formerly"] = listening.formerly
        if listening.least is not None:
            options["where"] = {"n": {"$gte": listening.least}}
        if listening.transactional:
            options["transactional"] = True

        async def receive(sender: Any, **kwargs: Any) -> None:
            self._calls += 1
            if self._calls % _SLOW_ONE_IN == 0:  # some deliveries are in flight when the dispatcher stops
                await asyncio.sleep(_PAUSE)
            delivery, id_ = kwargs["delivery"], kwargs["instance"].id
            if delivery.session is not None:
                effect = {"delivery": delivery.id, "of": id_, "group": group}
                effects = delivery.session.client[self._database]["effects"]
                await effects.insert_one(effect, session=delivery.session)
            seen = self.seen((collection, id_))
            told = _told(name, collection, kwargs)
            if seen.closed:
                self.late.append(f"{who or 'the dispatcher'} called {told} for {id_} after the verdict")
            seen.call(who, told, {"sender": sender, **kwargs}, group)
            if client is None:
                return
            claims, gate = self.claims.get(who), self.gates.get(who)
            if claims is not None and claims.ends == "ends between" and listening.mode == "any":
                claims.book.end()
            if gate is not None and gate.is_last():
                gate.entered.set()
                await gate.opened.wait()

        if listening.fields:
            post_update(document, fields=list(listening.fields), **options)(receive)
        else:
            for connect in (post_save, post_update, post_delete):
                connect(document, **options)(receive)

    async def start(self) -> None:
        """Creates the collections, and starts the observer and the dispatchers."""
        for module, name in ((watch, "_PACE"), (waiting, "_AGAIN")):
            self._patched.enter_context(mock.patch.object(module, name, _PACE))
        database = self.client[self._database]
        for name in RECEIVERS:
            await database.create_collection(name, **(_IMAGES if name in WITH_IMAGES else {}))
        await database.create_collection("effects")
        opened = asyncio.Event()
        self._observing = asyncio.create_task(self._observe(opened), name="observe")
        await opened.wait()
        for group in GROUPS:
            await self.start_dispatcher(group)
        positions = self.client[self._state]["positions"]
        async with asyncio.timeout(_PATIENCE):
            while await positions.count_documents({"claims": True}) < len(GROUPS):
                await asyncio.sleep(_PAUSE)

    async def close(self) -> None:
        """Ends everything, and removes the databases."""
        for group in GROUPS:
            with contextlib.suppress(Exception):
                await self.stop_dispatcher(group)
        if self._observing is not None:
            self._observing.cancel()
            await asyncio.wait([self._observing])
        self._patched.close()
        for claims in self.claims.values():
            await asyncio.to_thread(claims.close)
        for registry in self._registries:
            await registry.close()
        for name in (self._database, self._state):
            await self.client.drop_database(name)
        await self.client.close()

    async def _observe(self, opened: asyncio.Event) -> None:
        pipeline = [{"$match": {"ns.coll": {"$in": list(RECEIVERS)}}}]
        async with await self.client[self._database].watch(pipeline, batch_size=1000) as stream:
            opened.set()
            async for event in stream:
                if "documentKey" in event:
                    self.seen((event["ns"]["coll"], event["documentKey"]["_id"])).event(event)

    async def start_dispatcher(self, group: Group = "ours") -> None:
        """Starts the dispatcher, unless it runs.

        Raises:
            Exception: the error that ended the dispatcher.
        """
        running = self._running[group]
        if running is not None and not running.task.done():
            return
        daemon = self._daemons[group]
        settings = settings_for(daemon, state_database=self._state, park_after=self._park_after)
        running = self._running[group] = Running(Service(daemon, settings))
        self.restarts += 1
        async with asyncio.timeout(_PATIENCE):
            while not (running.service.ready or running.task.done()):
                await asyncio.sleep(0.002)
        if running.task.done():
            await running.task

    async def stop_dispatcher(self, group: Group = "ours") -> None:
        """Stops the dispatcher, if it runs.

        Raises:
            Exception: the error that ended the dispatcher.
        """
        running, self._running[group] = self._running[group], None
        if running is not None:
            await running.stop()

    async def beat_all(self) -> None:
        """Lets all clients record their claims."""
        for claims in self.claims.values():
            if claims.needs_beat:
                await claims.beat()

    async def kill(self, client: str) -> None:
        """A client dies without a further beat. A fence ends its book, and a new process begins."""
        claims = self.claims[client]
        store = ClaimStore(GroupState(State(self.client, self._state), claims.group))
        incarnation = claims.book.incarnation
        book = (await store.read([incarnation]))[incarnation]
        if book is not None:
            await store.fence(incarnation, book.beat)
        claims.begin_again()

    def model(self, client: str, collection: str) -> Any:
        """The document class of a collection in a client of the ODM."""
        return self._models[client][collection]

    def raw(self, collection: str) -> Any:
        """A collection of a client without the ODM."""
        return self.client[self._database][collection]

    def seen(self, document: Document) -> Seen:
        """The observations of a document."""
        collection, id_ = document
        return self._seen[collection, canonical(id_)]

    def number(self) -> int:
        """A number that is not yet an `_id`."""
        return next(self._numbers)

    async def effects(self, id_: Any, group: Group) -> list[str]:
        """The effects of the transactional receiver for a document: the delivery ids that it has stored."""
        found = self.raw("effects").find({"of": id_, "group": group})
        return [row["delivery"] async for row in found]


def _documents(registry: mongoz.Registry, database: str) -> dict[str, Any]:
    """The document classes of an application, by collection."""

    class Item(mongoz.Document):
        id: Any = mongoz.Object(alias="_id", null=True)
        name: str = mongoz.String(default="")
        n: int = mongoz.Integer(default=0)
        tags: list[str] = mongoz.Array(str, default=list)

        Meta = type("Meta", (), {"registry": registry, "database": database, "collection": "items"})

    class Other(mongoz.Document):
        id: Any = mongoz.Object(alias="_id", null=True)
        name: str = mongoz.String(default="")
        n: int = mongoz.Integer(default=0)
        tags: list[str] = mongoz.Array(str, default=list)

        Meta = type("Meta", (), {"registry": registry, "database": database, "collection": "others"})

    return {"items": Item, "others": Other}


def _listenings(documents: dict[str, Any]) -> Iterator[tuple[Listening, Any]]:
    return ((one, documents[name]) for name, listenings in RECEIVERS.items() for one in listenings)


def _told(name: str, collection: str, kwargs: dict[str, Any]) -> Told:
    """A call in the form of the model."""
    delivery = kwargs["delivery"]
    image, fixed = delivery.image, True
    # Without images, the found version of an updated document depends on the time of the lookup.
    if delivery.origin != "process" and collection not in WITH_IMAGES and image in ("current", "key"):
        fixed = False
        image = image if delivery.signal == "post_delete" else "looked up"
    if delivery.superseded:
        fixed, image = False, "superseded"
    return Told(
        name,
        delivery.signal,
        kwargs.get("created"),
        kwargs.get("update_fields"),
        _shown(kwargs["instance"]) if fixed else None,
        _shown(kwargs.get("previous")),
        image,
        is_taken=delivery.origin == "takeover",
    )


def _shown(instance: Any) -> Any:
    if instance is None:
        return None
    return tuple(_hashable(vars(instance).get(name)) for name in DEFAULTS)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
