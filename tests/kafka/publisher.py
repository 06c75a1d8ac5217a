"""A small relay for tests: it publishes given events, or publishes as a zombie or a foreign program."""

import asyncio
import itertools
import os
import time
from typing import Any

import bson
import confluent_kafka
from bson import Timestamp
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from pymongo import AsyncMongoClient

from dispatcher.core.resume_tokens import token_at
from dispatcher.core.state import State
from dispatcher.kafka.config import load_config
from dispatcher.kafka.envelope import encode
from dispatcher.kafka.relay_state import NO_RECORD, Mark, RelayPosition, RelayStore
from dispatcher.kafka.topics import TopicLayout, read_topic
from mongoz import Registry
from tests.list_source import event
from tests.support import PATIENCE, dispatching

_names = itertools.count()


def new_name() -> str:
    """The name of a topic that does not exist yet."""
    return f"test.{os.getpid()}.{next(_names)}"


class Publisher:
    """Publishes events of one collection to a topic of its own.

    Attributes:
        layout: the layout of the topic.
        token: the token of the last published event.
        marks: the last record of each partition.
        term: the present term.
    """

    layout: TopicLayout

    def __init__(self, address: str, place: str, partitions: int = 1, topic: str = "") -> None:
        self.topic = topic or new_name()
        self.address = address
        self.place = place
        self.partitions = partitions
        self.second = int(time.time())
        self.term = 0
        self.token = token_at(Timestamp(self.second, 0))
        self.marks = [NO_RECORD] * partitions
        self._numbers = [0] * partitions
        self._count = 0
        self._admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
        self._producer = confluent_kafka.Producer(
            {"bootstrap.servers": address, "acks": "all", "linger.ms": 0, "log_level": 0}
        )

    def create(self, **config: str) -> None:
        """Create the topic."""
        new = NewTopic(self.topic, num_partitions=self.partitions, replication_factor=1, config=config)
        self._admin.create_topics([new], operation_timeout=PATIENCE)[self.topic].result(PATIENCE)

    def delete(self) -> None:
        """Delete the topic."""
        self._admin.delete_topics([self.topic], operation_timeout=PATIENCE)[self.topic].result(PATIENCE)

    def forget_before(self, partition: int, offset: int) -> None:
        """Delete the first records of a partition, as retention does."""
        until = confluent_kafka.TopicPartition(self.topic, partition, offset)
        for done in self._admin.delete_records([until]).values():
            done.result(PATIENCE)

    def ends(self, partitions: int) -> dict[int, int]:
        """The offset after the last record of each partition."""
        wanted = {
            confluent_kafka.TopicPartition(self.topic, one): OffsetSpec.latest() for one in range(partitions)
        }
        return {
            of.partition: int(done.result(PATIENCE).offset)
            for of, done in self._admin.list_offsets(wanted).items()
        }

    def committed(self, group: str) -> int:
        """The committed offset of a consumer group in partition 0; negative if there is none."""
        # list_consumer_group_offsets of the AdminClient crashes at times, while the coordinator is not ready.
        consumer = confluent_kafka.Consumer(
            {"bootstrap.servers": self.address, "group.id": group, "enable.auto.commit": False, "log_level": 0}
        )
        try:
            (found,) = consumer.committed([confluent_kafka.TopicPartition(self.topic, 0)], timeout=PATIENCE)
        except confluent_kafka.KafkaException:  # the coordinator is not ready
            return -1
        finally:
            consumer.close()
        return int(found.offset)

    async def begin(self, state: State) -> None:
        """Record the first state, and take a term."""
        self.layout = await self.known_layout()
        self.store = RelayStore(state, self.topic)
        await self.store.begin(self.layout, self.position, {self.place: self.token})
        await self.take_term()

    async def begin_again(self) -> None:
        """Continue in the new topic of this name, as `dispatcher relay --new-topic` does."""
        self.layout = await self.known_layout()
        self.marks = [NO_RECORD] * self.partitions
        await self.take_term(position=self.position)

    async def known_layout(self) -> TopicLayout:
        """The layout of the topic, as soon as the brokers know it."""
        admin = load_config(self.address).admin()
        async with asyncio.timeout(PATIENCE):
            while (facts := await read_topic(admin, self.topic)) is None:
                await asyncio.sleep(0.01)
        return facts.layout

    @property
    def position(self) -> RelayPosition:
        return RelayPosition(self.token, "f", tuple(self.marks))

    async def take_term(self, **changes: Any) -> None:
        """Begin a new term at the saved position."""
        taken = await self.store.take_term(
            self.layout, {self.place: token_at(Timestamp(self.second, 0))}, **changes
        )
        assert taken is not None
        self.term = taken.term
        self._numbers = [0] * self.partitions

    async def save(self) -> None:
        """Save the position after all published events."""
        assert await self.store.save(self.term, self.position)

    def made(self, operation: str, id_: Any, **more: Any) -> bytes:
        """The next event."""
        self._count += 1
        return event(self._count, operation, id_, second=self.second, place=self.place, **more)

    def publish(self, made: bytes, partition: int = 0, stamp: bytes = b"") -> str:
        """Publish an event; returns its token."""

        number = self._numbers[partition]
        self._numbers[partition] += 1
        offset = self.send(encode(self.term, number, made, stamp), partition)
        self.marks[partition] = Mark(offset + 1, self.term, number)
        self.token = str(bson.decode(made)["_id"]["_data"])
        return self.token

    def insert(self, id_: Any, partition: int = 0, **fields: Any) -> str:
        """Publish an insert; returns its token."""
        document = {"_id": id_, "name": "published", **fields}
        return self.publish(self.made("insert", id_, fullDocument=document), partition)

    def send(self, value: bytes, partition: int = 0) -> int:
        """Send a record, and return its offset."""
        offsets: list[int] = []

        def on_delivery(error: Any, message: Any) -> None:
            assert error is None, error
            offsets.append(message.offset())

        self._producer.produce(self.topic, value, partition=partition, on_delivery=on_delivery)
        assert self._producer.flush(PATIENCE) == 0
        return offsets[0]


async def begun(address: str, client: AsyncMongoClient[Any], database: str, partitions: int = 1) -> Publisher:
    """A publisher of the collection `accounts`, with a new topic, in its first term."""
    made = Publisher(address, f"{database}.accounts", partitions)
    made.create()
    await made.begin(State(client, f"{database}_state"))
    return made


def reading(registry: Registry, publisher: Publisher, **changes: Any) -> Any:
    """A dispatcher that reads from the topic of a publisher."""
    return dispatching(registry, kafka=publisher.address, kafka_topic=publisher.topic, **changes)
