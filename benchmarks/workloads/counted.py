"""Runs the operations that `benchmarks/guard.py` counts, without I/O.

The same interpreter also runs their references: bare code that the operations are compared with.

valgrind --tool=callgrind --instr-atstart=no python -m benchmarks.workloads.counted
"""

import asyncio
import datetime
import gc
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import bson
from bson.codec_options import CodecOptions
from confluent_kafka import Message
from pydantic import BaseModel
from pymongo import AsyncMongoClient
from pymongo.results import UpdateResult

import mongoz
from benchmarks.workloads.counting import counted
from benchmarks.workloads.documents import Human
from benchmarks.workloads.people import CREATED, person
from benchmarks.workloads.sides import mongoz_odm, mongoz_signals
from benchmarks.workloads.sides.mongoz_odm import Announced, Claimed, Heard, Person, Silent, Stamped, Stored
from dispatcher.claims.store import ClaimStore
from dispatcher.claims.watch import ClaimWatch
from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import EventBatch, Start
from dispatcher.core.lease import Lease
from dispatcher.core.partitions import HASH
from dispatcher.core.state import Group, State
from dispatcher.core.stats import Stats
from dispatcher.delivery.routes import Routes
from dispatcher.group.sessions import GroupSessions
from dispatcher.kafka.acceptance import LogPosition
from dispatcher.kafka.envelope import encode
from dispatcher.kafka.log import TopicLog
from dispatcher.kafka.relay_state import NO_RECORD, RelayPosition
from dispatcher.kafka.source import KafkaSource
from dispatcher.operate.pauses import Pauses
from dispatcher.pace.limit import LimitsByName
from dispatcher.position.documents import SavedPositions
from dispatcher.position.store import PositionStore
from dispatcher.relay.ledger import RecordLedger
from dispatcher.relay.records import Packer
from dispatcher.runtime.assembly import Assembly
from dispatcher.runtime.pipeline import Pipeline
from dispatcher.settings import Settings
from mongoz.claims.document import BookSnapshot, BookState, NamedReceiver
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.connection.database import OpenCollection
from mongoz.core.signals import post_save
from mongoz.signals import Batch, BatchEvent
from mongoz.signals.hops import inside_dispatcher
from mongoz.signals.receivers import stamp_ids
from mongoz.stamps import FIELD, Call, Claim, Stamp, key_hash

__all__ = ["main"]

_TIMES: Final = 200

# The partitions of the relay's topic.
_PARTITIONS: Final = 32

# Seconds for all deliveries. Under valgrind they take some seconds.
_PATIENCE: Final = 300.0

# The incarnation of the process that makes the counted writes.
_INCARNATION: Final = b"counting"

_CONTEXT: Final = '{"user":"ada","request":"7c0e"}'
"""The context of the writes that have one."""

_SECOND: Final = 1_704_067_200
"""The time of the events, in seconds since 1970."""

Step = Callable[[Any], Awaitable[object]]


class Plain(BaseModel):
    """The same fields as the document, and nothing else."""

    name: str
    email: str
    number: int
    tags: list[str]
    joined_at: datetime.datetime


class Batched(Stored):
    """Has one batch receiver."""

    class Meta:
        collection = CREATED


class Bounded(Stored):
    """Has one receiver with a limit."""

    class Meta:
        collection = CREATED


@post_save(Batched, batch=Batch(size=_TIMES // 2, wait=_PATIENCE))
async def after_many(sender: type[Human], batch: list[BatchEvent], **kwargs: Any) -> None:
    """Do nothing."""


@post_save(Bounded, concurrency=5)
async def after_each(sender: type[Human], **kwargs: Any) -> None:
    """Do nothing."""


class _NoDriver:
    """A collection that answers immediately, without a server."""

    async def insert_one(self, _row: dict[str, Any], session: object = None) -> None:
        """Do nothing."""

    async def update_one(self, *_arguments: object, **_options: object) -> UpdateResult:
        """Find one document."""
        return UpdateResult({"n": 1}, acknowledged=True)


async def _count(name: str, step: Step, inputs: list[Any]) -> None:
    """Count one step for each input. Some uncounted steps come first, to exclude work that is done once."""
    for one in inputs[_TIMES:]:
        await step(one)
    with counted(f"{name} {_TIMES}"):
        for one in inputs[:_TIMES]:
            await step(one)


async def _count_signals() -> None:
    operations = await mongoz_signals.prepare("")
    for name in ("await", "send"):
        await operations[name](_TIMES)
        with counted(f"{name} {_TIMES}"):
            await operations[name](_TIMES)


async def _count_hydration() -> None:
    async def validate(row: dict[str, Any]) -> None:
        Plain.model_validate(row)

    async def hydrate(row: dict[str, Any]) -> None:
        Person.from_row(row)

    await _count("validate", validate, _people())
    await _count("hydrate", hydrate, [{"_id": bson.ObjectId(), **row} for row in _people()])


async def _count_creates() -> None:
    for registry in (mongoz_odm.plain_registry, mongoz_odm.stamping_registry, mongoz_odm.claiming_registry):
        registry.clock._compared_at = time.monotonic()
        registry.clock._origin = time.time() - time.monotonic()
    claims = mongoz_odm.claiming_registry.claims
    assert claims is not None
    named = mongoz_odm.claiming_registry.claimable_receivers()
    claims.book.acknowledge(float("inf"), frozenset(id_ for one in named for id_ in one.ids))
    for document in (Silent, Heard, Announced, Stamped, Claimed):
        _do_without_server(document)
    driver = _NoDriver()

    async def make_and_encode(row: dict[str, Any]) -> None:
        made = Plain.model_validate(row)
        await driver.insert_one(made.model_dump() | {"_id": bson.ObjectId()})

    await _count("make", make_and_encode, _people())
    for document in (Silent, Heard, Stamped, Claimed):
        await _count(f"create_{document.__name__.lower()}", _creating(document), _people())


def _do_without_server(document: type[Human]) -> None:
    collection = document.get_collection()
    client = collection.database.deployment.opened
    collection._opened = OpenCollection(client, _NoDriver(), client.session_pool)


async def _count_changes() -> None:
    """Changes of one field of a loaded document that has no receivers."""
    _do_without_server(Person)

    async def save(loaded: Person) -> None:
        loaded.name += "!"
        await loaded.save()

    async def update(loaded: Person) -> None:
        await loaded.update(name=loaded.name + "!")

    for name, step in (("save", save), ("update", update)):
        rows = [
            {**row, "_id": bson.ObjectId(), "joined_at": row["joined_at"].replace(tzinfo=None)}
            for row in _people()
        ]
        await _count(name, step, [Person.from_row(row) for row in rows])


async def _count_contexts() -> None:
    """Writes inside a context.

    This comes last: after a process has entered its first context, each of its writes looks for a context.
    """
    with mongoz.context(user="ada", request="7c0e"):
        await _count("create_context", _creating(Stamped), _people())


def _creating(document: type[Human]) -> Step:
    async def create(row: dict[str, Any]) -> None:
        await document(**row).create()

    return create


async def _count_deliveries() -> None:
    """From an undecoded event to the receiver: the whole work for each change."""
    events = _events()

    async def bare(event: RawEvent) -> None:
        change = bson.decode(event.raw, codec_options=CODEC_OPTIONS)
        await mongoz_odm.after(sender=Announced, instance=change["fullDocument"])

    await _count("loop", bare, events)
    await _count_delivery("deliver", Announced, events)
    await _count_delivery("deliver_batch", Batched, events)
    await _count_delivery("deliver_limited", Bounded, events)
    stamp = partial(_stamp, receivers=frozenset(), is_claimed=False, context=_CONTEXT)
    await _count_delivery("deliver_context", Announced, _events(stamp))


async def _count_delivery(name: str, document: type[Human], events: list[RawEvent]) -> None:
    pipeline = _pipeline(_Watch(), document)

    async def deliver(portion: list[RawEvent]) -> None:
        with inside_dispatcher():
            await pipeline._take(EventBatch(portion, portion[-1]["_id"]["_data"]))
            async with asyncio.timeout(_PATIENCE):  # a worker that crashes leaves its job in the queue
                await pipeline._capacity.idle()

    await deliver(events[_TIMES:])
    # The daemon measures at most a thousand durations a second. Under valgrind deliveries are so slow that it
    # would measure each of them. Here it must measure none.
    for figures in pipeline._stats.receivers.values():
        figures.due = float("inf")
    with counted(f"{name} {_TIMES}"):
        await deliver(events[:_TIMES])
    if pipeline._stats.delivered != len(events):
        raise RuntimeError(f"{name}: {len(events)} changes, {pipeline._stats.delivered} deliveries")
    await pipeline._lanes.stop(0.0)


class _Watch(ClaimWatch):
    """A watch that does no I/O."""

    def __init__(self) -> None:
        super().__init__(ClaimStore(_group()), 15.0)
        self._beat = 0

    def wake(self) -> None:
        """Do nothing."""

    def note(self, claims: BookSnapshot) -> None:
        """Record the claims of the counted process."""
        self._beat += 1
        named = tuple(NamedReceiver(key, (), "", "post_save", "") for key in _receivers())
        self._note({_INCARNATION: BookState(self._beat, 15.0, claims, named)})


async def _count_own() -> None:
    """Own changes, whose receivers ran in the writing process. Claims are decided after each portion."""
    for name, is_claimed in (("own", False), ("own_claimed", True)):
        watch = _Watch()
        watch.note(BookSnapshot())
        pipeline = _pipeline(watch)
        events = _events(partial(_stamp, is_claimed=is_claimed))

        async def settle(portion: list[RawEvent], watch: _Watch = watch, pipeline: Pipeline = pipeline) -> None:
            await pipeline._take(EventBatch(portion, portion[-1]["_id"]["_data"]))
            watch.note(BookSnapshot(high=2 * _TIMES))
            pipeline._claims.decide()
            watch.note(BookSnapshot())

        await settle(events[_TIMES:])
        with counted(f"{name} {_TIMES}"):
            await settle(events[:_TIMES])
        if pipeline.position != _token(2 * _TIMES - 1) or pipeline._stats.delivered:
            raise RuntimeError(f"{pipeline._stats.delivered} deliveries of own changes up to {pipeline.position}")


def _stamp(
    number: int,
    id_: bson.ObjectId,
    *,
    receivers: frozenset[bytes] | None = None,
    is_claimed: bool,
    context: str = "",
) -> bytes:
    collection, receivers = Announced.get_collection(), _receivers() if receivers is None else receivers
    return Stamp(
        "default",
        Call.CREATED,
        bson.ObjectId(_SECOND.to_bytes(4, "big") + number.to_bytes(8, "big")),
        key_hash(f"{collection.database.name}.{collection.name}", id_),
        receivers,
        claim=Claim(_INCARNATION, number + 1, receivers) if is_claimed else None,
        context=context,
    ).pack()


def _receivers() -> frozenset[bytes]:
    signal = Announced.meta.signals.post_save
    return frozenset(key for one in signal.receivers for key in stamp_ids(one, Announced, "post_save"))


def _group() -> Group:
    """A group whose client never connects, because a delivery that succeeds does no I/O."""
    return Group(State(AsyncMongoClient[Any]("mongodb://127.0.0.1:1", connect=False), "state"), "default")


def _pipeline(watch: ClaimWatch, document: type[Human] = Announced) -> Pipeline:
    """The pipeline of the daemon."""
    group, routes = _group(), Routes([document], "default")
    assembly = Assembly(
        group,
        group.state.client,
        mongoz_odm.plain_registry,
        routes,
        Settings(),
        Stats(),
        Pauses(group),
        GroupSessions(group, "member"),
        watch,
        LimitsByName(routes.receivers),
    )
    saved = {"_id": "default:0", "partition": 0, "token": _token(-1), "term": 1}
    position = SavedPositions.read([saved], "default", "state").positions[0]
    pipeline = assembly.pipeline(PositionStore(group), Lease.for_ever(), position)
    pipeline._on_controls()
    return pipeline


def _events(stamp: Callable[[int, bson.ObjectId], bytes] | None = None) -> list[RawEvent]:
    """The events to count, and after them in the list the events of the warm-up.

    Callers deliver the warm-up first, so its events have the smaller tokens.
    """
    return [RawEvent(_event(number, stamp)) for number in (*range(_TIMES, 2 * _TIMES), *range(_TIMES))]


def _event(number: int, stamp: Callable[[int, bson.ObjectId], bytes] | None = None) -> bytes:
    """The event of an insert, as a server sends it."""
    collection = Announced.get_collection()
    namespace = {"db": collection.database.name, "coll": collection.name}
    id_ = bson.ObjectId()
    stamped = {} if stamp is None else {FIELD: stamp(number, id_)}
    event = {
        "_id": {"_data": _token(number)},
        "operationType": "insert",
        "clusterTime": bson.Timestamp(1_700_000_000, number + 1),
        "wallTime": datetime.datetime.fromtimestamp(_SECOND, tz=datetime.UTC),
        "fullDocument": {"_id": id_, **person(number), **stamped},
        "ns": namespace,
        "documentKey": {"_id": id_},
    }
    return bson.encode(event, codec_options=CodecOptions[dict[str, Any]]())


def _token(number: int) -> str:
    return f"82{1_700_000_000:08X}{number + 2:08X}2B042C0100296E5A1004"


def _people() -> list[dict[str, Any]]:
    return [person(number) for number in range(2 * _TIMES)]


async def _count_relay() -> None:
    """From an undecoded event to the acknowledged record: the relay's own work for each change."""
    packer = Packer(1, _PARTITIONS, 1_000_000)
    acknowledged = [Message("topic", partition=0, offset=offset) for offset in range(2 * _TIMES)]
    ends = [0] * _PARTITIONS
    ledger = RecordLedger(1, RelayPosition(_token(-1), "", (NO_RECORD,) * _PARTITIONS), "")

    def publish(events: list[RawEvent]) -> None:
        assert not packer.large_among(events)
        packed = packer.pack(events, {})
        for part, report in zip(packed.parts, ledger.add(_token(0), packed.parts, packed.size), strict=True):
            begin = ends[part.partition]
            end = ends[part.partition] = begin + part.records
            for offset in range(begin, end):
                report(None, acknowledged[offset])

    numbers = range(2 * _TIMES)
    events = [RawEvent(bson.encode(bson.decode(_event(n)) | {HASH: bson.Int64(n * 7_919)})) for n in numbers]
    publish(events[_TIMES:])
    with counted(f"publish {_TIMES}"):
        publish(events[:_TIMES])
    if not ledger.is_empty:
        raise RuntimeError("not all records are acknowledged")


async def _count_topic() -> None:
    """From the Kafka client's messages to undecoded events. A topic needs this instead of a change stream."""
    config: Any = None
    relay: Any = None
    topic = TopicLog(config, "topic", "default", relay, megabytes=16, address="")
    partition = topic.partition(0)
    topic._open[0], partition.most = partition, 1_000_000
    source = KafkaSource(partition, Start(_token(-1)), batch_size=_TIMES, read_large=_no_large, saved=lambda: None)
    messages: Any = [
        Message("topic", partition=0, offset=n, value=encode(1, n, _event(n))) for n in range(2 * _TIMES)
    ]

    async def read(some: Any, position: LogPosition) -> LogPosition:
        topic._distribute(some)
        events, after, _ = source._take(iter(await partition.read(_TIMES)), position)
        if len(events) != _TIMES:
            raise RuntimeError(f"{_TIMES} records, {len(events)} events")
        return after

    position = await read(messages[:_TIMES], LogPosition(0, 1, -1, _token(-1)))
    with counted(f"read_topic {_TIMES}"):
        await read(messages[_TIMES:], position)


async def _no_large(_large: object) -> None:
    """No event is large."""


async def main() -> None:
    """Count everything."""
    gc.disable()
    await _count_signals()
    await _count_hydration()
    await _count_creates()
    await _count_changes()
    await _count_deliveries()
    await _count_own()
    await _count_relay()
    await _count_topic()
    await _count_contexts()


if __name__ == "__main__":
    asyncio.run(main())
