"""One consumer reads all partitions of a process. Each partition can be paused, moved to an offset, and left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient

from dispatcher.core.state import State
from dispatcher.kafka.config import load_config
from dispatcher.kafka.log import PartitionLog, TopicLog
from dispatcher.kafka.relay_state import RelayStore
from tests.kafka.server import KafkaServer
from tests.support import PATIENCE, eventually

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.kafka.publisher import Publisher

RECORDS = 40


@pytest.fixture
async def topic(client: AsyncMongoClient[Any], database: str, broker: KafkaServer) -> AsyncIterator[TopicLog]:
    """A topic with two partitions: one that is larger than its queue, and an empty one."""
    state = State(client, f"{database}_state")
    publisher = Publisher(broker.address, f"{database}.accounts", partitions=2)
    publisher.create()
    await publisher.begin(state)
    for _ in range(RECORDS):
        publisher.insert(ObjectId(), 0, tags=["x" * 20_000])
    relay = RelayStore(state, publisher.topic)
    log = TopicLog(load_config(broker.address), publisher.topic, "test", relay, megabytes=1, address="")
    async with log.opened():
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
