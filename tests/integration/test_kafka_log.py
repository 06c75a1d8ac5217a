"""One consumer reads all partitions of a process. Each partition can be paused, moved to an offset, and left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient

from dispatcher.core.state import State
from dispatcher.kafka.config import load_config
from dispatcher.kafka.log import PartitionLog, TopicLog
from dispatcher.kafka.relay_state import RelayStore
from tests.integration.deliveries import actions
from tests.kafka import server as kafka
from tests.kafka.server import KafkaServer
from tests.support import PATIENCE, eventually

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.kafka.publisher import Publisher

RECORDS = 40


@asynccontextmanager
async def opened(address: str, client: AsyncMongoClient[Any], database: str, size: int) -> AsyncIterator[TopicLog]:
    """A topic with two partitions: one with forty records of this size, and an empty one."""
    state = State(client, f"{database}_state")
    publisher = Publisher(address, f"{database}.accounts", partitions=2)
    publisher.create()
    await publisher.begin(state)
    for _ in range(RECORDS):
        publisher.insert(ObjectId(), 0, tags=["x" * size])
    relay = RelayStore(state, publisher.topic)
    async with TopicLog(
        load_config(address), publisher.topic, "test", relay, megabytes=1, address=""
    ).opened() as log:
        yield log


@pytest.fixture
async def topic(client: AsyncMongoClient[Any], database: str, broker: KafkaServer) -> AsyncIterator[TopicLog]:
    """The records of the first partition are larger than its queue."""
    async with opened(broker.address, client, database, 20_000) as log:
        yield log


async def paused(topic: TopicLog) -> PartitionLog:
    """Waits until partition 0 is paused, and returns it. Its queue is full, and the other queue has room."""
    full, empty = topic.partition(0), topic.partition(1)
    await full.seek(0)
    await empty.seek(0)
    await eventually(lambda: full.paused, what="the full partition is paused")
    return full


async def first_of(feed: PartitionLog) -> int:
    """The offset of the next record."""
    async with asyncio.timeout(PATIENCE):
        while not (found := await feed.read(1)):
            pass
    return found[0][0]


async def test_a_paused_partition_continues_after_a_seek(topic: TopicLog) -> None:
    feed = await paused(topic)
    await feed.seek(7)
    assert await first_of(feed) == 7


async def test_a_partition_that_was_left_while_paused_can_be_read_again(topic: TopicLog) -> None:
    feed = await paused(topic)
    await feed.leave()
    again = topic.partition(0)
    await again.seek(7)
    assert await first_of(again) == 7


async def test_a_seek_ends_a_pause_that_begins_during_the_seek(
    topic: TopicLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = await paused(topic)
    clear = feed.clear

    def order_first() -> None:
        feed.paused = False
        topic.on_room()  # the queue is still full
        assert feed.paused
        clear()

    monkeypatch.setattr(feed, "clear", order_first)
    await feed.seek(7)
    assert await first_of(feed) == 7


async def test_a_partition_that_was_left_after_a_cancelled_seek_can_be_read_again(topic: TopicLog) -> None:
    feed = topic.partition(0)
    seeking = asyncio.create_task(feed.seek(0))
    await asyncio.sleep(0)
    seeking.cancel()
    with suppress(asyncio.CancelledError):
        await seeking
    await feed.leave()
    assert not feed.assigned
    again = topic.partition(0)
    await again.seek(7)
    assert await first_of(again) == 7


async def test_offsets_that_can_not_be_committed_delay_no_partition(
    client: AsyncMongoClient[Any], database: str, kafka_server: KafkaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    said = actions(capsys)
    # One broker can't hold three replicas of the offsets. So no broker coordinates the group.
    with kafka.running({"offsets.topic.replication.factor": 3}) as own:
        async with opened(own.address, client, database, 1) as topic:
            feed = topic.partition(0)
            await feed.seek(0)
            assert await first_of(feed) == 0
            topic.commit(0, 1)
            await eventually(lambda: "kafka.not_committed" in said(), what="a commit has failed")
            await feed.seek(7)
            assert await first_of(feed) == 7
            closing = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - closing < PATIENCE
