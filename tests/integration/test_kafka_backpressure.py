"""A dispatcher whose receivers are slow bounds the records that it fetches from a topic."""

import asyncio
import itertools
import os
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient

import mongoz
from dispatcher.core.state import State
from dispatcher.kafka import polling
from dispatcher.kafka.envelope import encode
from mongoz.core.signals import post_save
from tests.integration.deliveries import make_account
from tests.kafka.server import KafkaServer
from tests.support import PATIENCE, dispatching, eventually

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
import confluent_kafka

from tests.kafka.publisher import Publisher

PARTITIONS = 4


@pytest.fixture
def gate() -> asyncio.Event:
    """The receiver waits for this event."""
    return asyncio.Event()


@pytest.fixture
def got(dispatched: mongoz.Registry, database: str, gate: asyncio.Event) -> list[ObjectId]:
    """The ids of the delivered documents."""
    account, ids = make_account(dispatched, database), []

    @post_save(account, name="saved", timeout=100)
    async def saved(sender, instance, **kwargs):
        await gate.wait()
        ids.append(instance.id)

    return ids


async def published(publisher: Publisher, count: int, size: int) -> list[ObjectId]:
    """Publish inserts of documents of this size, in bytes. Compressed they are about twenty times smaller."""
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": publisher.address, "compression.type": "lz4", "linger.ms": 50, "log_level": 0}
    )
    numbers, ids = [itertools.count() for _ in range(PARTITIONS)], [ObjectId() for _ in range(count)]
    for place, id_ in enumerate(ids):
        text = os.urandom(size // 40).hex() * 20
        made = publisher.made("insert", id_, fullDocument={"_id": id_, "name": "n", "text": text})
        partition = place % PARTITIONS
        producer.produce(
            publisher.topic, encode(publisher.term, next(numbers[partition]), made), partition=partition
        )
        if not place % 500:
            await asyncio.to_thread(producer.flush, PATIENCE)
    assert await asyncio.to_thread(producer.flush, PATIENCE) == 0
    return ids


@pytest.mark.slow
async def test_the_memory_of_fetched_records_is_bounded_and_further_records_wait_at_the_broker(
    gate, got, dispatched, client: AsyncMongoClient[Any], database, kafka_server: KafkaServer, monkeypatch
):
    monkeypatch.setattr(polling, "_LONG", 30.0)
    publisher = Publisher(kafka_server.address, f"{database}.accounts", PARTITIONS)
    publisher.create()
    await publisher.begin(State(client, f"{database}_state"))
    ids = await published(publisher, 3_000, 20_000)  # 60 MB
    reading = {"kafka": publisher.address, "kafka_topic": publisher.topic, "max_queued_mb": 16}
    async with dispatching(dispatched, **reading) as running:

        def buffered() -> int:
            return sum(one.topic.buffered_bytes for one in running.service.gauges().values())

        topic = running.service.held[0]._source._topic._log._topic
        await eventually(lambda: topic.prefetched > 0, what="the client reports its queue")
        # Fetched records may take half of `max_queued_mb`. The other half is for changes in delivery.
        assert 0 < buffered() <= 8_000_000 * 1.25
        gate.set()
        seen = 0
        async with asyncio.timeout(PATIENCE * 2):
            while len(got) < len(ids):
                seen = max(seen, buffered())
                await asyncio.sleep(0.02)
        assert seen <= 8_000_000 * 1.25
        await eventually(lambda: not buffered(), what="no fetched record is left")
    assert sorted(got) == sorted(ids)


@pytest.mark.slow
async def test_after_a_long_time_without_polls_all_partitions_are_paused_and_nothing_is_lost(
    gate, got, dispatched, client: AsyncMongoClient[Any], database, broker, monkeypatch
):
    monkeypatch.setattr(polling, "_LONG", 0.3)
    publisher = Publisher(broker.address, f"{database}.accounts", PARTITIONS)
    publisher.create()
    await publisher.begin(State(client, f"{database}_state"))
    ids = await published(publisher, 400, 10_000)  # 4 MB
    reading = {"kafka": publisher.address, "kafka_topic": publisher.topic, "max_queued_mb": 1}
    async with dispatching(dispatched, **reading) as running:
        topic = running.service.held[0]._source._topic._log._topic
        await eventually(lambda: topic.is_suspended, what="all partitions are paused")
        assert all(one.topic.is_paused for one in running.service.gauges().values())
        await eventually(lambda: topic.prefetched == 0, what="the client has dropped the fetched records")
        gate.set()
        await eventually(lambda: len(got) == len(ids), what="all are delivered")
        figures = running.service.stats.topic
        assert figures.dropped == {"duplicate": 0, "stale": 0, "ahead": 0}
    by_partition = [[one for one in got if ids.index(one) % PARTITIONS == number] for number in range(PARTITIONS)]
    assert [sorted(one, key=ids.index) for one in by_partition] == by_partition
    assert sorted(got) == sorted(ids)
