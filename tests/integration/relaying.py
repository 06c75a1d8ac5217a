"""Helpers for tests of the relay. They run a relay inside of the test, and read its topic."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bson

import mongoz
from dispatcher.core.state import State
from dispatcher.kafka.acceptance import BEGINNING, Decision, RecordPlace, accept
from dispatcher.kafka.config import load_config
from dispatcher.kafka.envelope import Envelope, RecordKind, decode, token_in
from dispatcher.kafka.relay_state import RelayState, RelayStore
from dispatcher.relay.service import RelayService, RelayTarget
from dispatcher.settings import Settings
from mongoz import Registry
from mongoz.core.signals import post_delete, post_save, post_update
from tests.support import PATIENCE, Daemon, Running, eventually_sync, settings_for

_names = itertools.count()


def relay_name() -> str:
    """A name that no other test uses."""
    return f"t{next(_names)}"


class Relaying(Running[RelayService]):
    """A relay inside of the test."""

    async def publishing(self) -> None:
        """Waits until the change stream is open."""
        await eventually_or_failed(self.task, lambda: any(one.connected for one in self.service.gauges().values()))

    async def published(self, token: str) -> None:
        """Waits until everything up to a token is published."""
        await eventually_or_failed(self.task, lambda: (self.service.position or "") >= token)


async def eventually_or_failed(task: "asyncio.Task[Any]", condition: Any) -> None:
    """Waits until a condition is true; raises the error of a task that ends meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            if task.done():
                task.result()
                raise AssertionError("the relay has ended")
            await asyncio.sleep(0.005)


def relay_settings(registry: Registry, **changes: Any) -> Settings:
    """Settings for fast tests."""
    return settings_for(registry, **{"grace": 30.0, **changes})


@contextlib.asynccontextmanager
async def relaying(
    registry: Registry,
    servers: str,
    name: str,
    *,
    partitions: int | None = 4,
    path: Path | None = None,
    apps: Sequence[str] = ("shop:registry",),
    also: Sequence[Registry] = (),
    **changes: Any,
) -> AsyncIterator[Relaying]:
    """Runs a relay inside of the test.

    Args:
        also: the registries of further applications.
    """
    target = RelayTarget(load_config(servers, path), name, partitions, apps)
    running = Relaying(RelayService([registry, *also], relay_settings(registry, **changes), target))
    try:
        await running.publishing()
        yield running
    finally:
        await running.stop()


async def compact(servers: str, topic: str) -> None:
    """Let the brokers compact a topic."""
    await configure(servers, topic, "cleanup.policy", "compact")


async def configure(servers: str, topic: str, name: str, value: str) -> None:
    """Set a property of a topic."""
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    await asyncio.wrap_future(admin.incremental_alter_configs([resource])[resource])


class RelayProcess(Daemon):
    """`dispatcher relay` as a process."""

    command = "relay"
    started = "relay.started"


class Read(NamedTuple):
    """A record that a reader accepts."""

    partition: int
    key: bytes | None
    envelope: Envelope
    event: dict[str, Any]


def records_of(servers: str, topic: str) -> Iterator[tuple[int, int, bytes | None, Envelope]]:
    """All records of a topic, from its beginning: partition, offset, key and envelope."""
    from confluent_kafka import Producer, TopicPartition

    config = load_config(servers)
    producer = Producer({"bootstrap.servers": servers})
    count = len(producer.list_topics(topic, PATIENCE).topics[topic].partitions)
    # The embedded broker reports wrong high watermarks, so each partition gets a last record that marks its end.
    ends: dict[int, int] = {}

    def ended(error: Any, message: Any) -> None:
        assert error is None, error
        ends[message.partition()] = message.offset()

    for partition in range(count):
        producer.produce(topic, b"end", partition=partition, on_delivery=ended)
    assert producer.flush(PATIENCE) == 0
    consumer = config.consumer("test")
    consumer.assign([TopicPartition(topic, number, 0) for number in range(count)])
    left = set(range(count))
    try:
        while left:
            message = eventually_sync(lambda: consumer.poll(0.1))
            assert not message.error(), message.error()
            if message.value() != b"end":
                yield message.partition(), message.offset(), message.key(), decode(message.value())
            if message.offset() == ends[message.partition()]:
                left.discard(message.partition())
    finally:
        consumer.close()


def accepted(servers: str, topic: str) -> list[Read]:
    """The records that a reader of all partitions delivers, in the order of their partitions."""
    positions: dict[int, Any] = {}
    read = []
    for partition, offset, key, envelope in sorted(records_of(servers, topic), key=lambda one: one[:2]):
        # `records_of` leaves out the end records of earlier calls, so offsets can be missing.
        position = positions.get(partition, BEGINNING)._replace(offset=offset)
        place = RecordPlace(offset, envelope.term, envelope.number, token_in(envelope))
        decision, positions[partition] = accept(position, place)
        if decision is Decision.DELIVER:
            event = bson.decode(envelope.event) if envelope.kind is RecordKind.EVENT else {}
            read.append(Read(partition, key, envelope, event))
    return read


def make_document(registry: mongoz.Registry, database_name: str, name: str) -> Any:
    """A document class with a receiver, so that its collection is watched."""

    class Made(mongoz.Document):
        number: int = mongoz.Integer(default=0)

        class Meta:
            abstract = False
            collection = name
            database = database_name

        Meta.registry = registry  # type: ignore[attr-defined]

    async def receive(sender: Any, **kwargs: Any) -> None:
        """Does nothing."""

    for signal in (post_save, post_update, post_delete):
        signal(Made, name=f"of {name}")(receive)
    return Made


async def last_token(foreign: Any, client: Any, database: str) -> str:
    """A token after all writes so far."""
    async with await client[database].watch() as stream:
        return stream.resume_token["_data"]


async def saved_state(client: Any, database: str, name: str) -> RelayState:
    state = await RelayStore(State(client, f"{database}_state"), f"mongoz.{name}").load()
    assert state is not None
    return state
