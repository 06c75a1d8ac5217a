"""Receivers with limits and batch receivers of a group that reads from a topic."""

import time
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient

import mongoz
from dispatcher.core.state import State as StateDatabase
from dispatcher.embedded.broker import EmbeddedBroker
from mongoz import Batch
from mongoz.core.signals import post_save
from tests.integration.deliveries import Indexer, Parked
from tests.support import dispatching, eventually

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.kafka.publisher import Publisher


def id_of(number: int) -> ObjectId:
    return ObjectId(f"{number:024x}")


@pytest.fixture
def parked(foreign: Any) -> Parked:
    return Parked(foreign)


@pytest.fixture
async def publisher(broker: EmbeddedBroker, client: AsyncMongoClient[Any], database: str) -> Publisher:
    made = Publisher(broker.address, f"{database}.accounts")
    made.create()
    await made.begin(StateDatabase(client, f"{database}_state"))
    return made


def reading(registry: mongoz.Registry, publisher: Publisher, **changes: Any) -> Any:
    return dispatching(registry, kafka=publisher.address, kafka_topic=publisher.topic, **changes)


async def test_a_rate_limits_deliveries_of_a_topic_and_parks_the_others(account, dispatched, publisher, parked):
    """Another receiver does not wait for the limited receiver."""
    at: list[float] = []
    told: list[int] = []

    @post_save(account, name="limited", rate="20/s")
    async def limited(sender, instance, **kwargs):
        at.append(time.monotonic())

    @post_save(account, name="plain")
    async def plain(sender, instance, **kwargs):
        told.append(int(str(instance.id), 16))

    async with reading(dispatched, publisher) as running:
        for number in range(60):
            publisher.insert(id_of(number))
        await eventually(lambda: len(told) == 60)
        await eventually(lambda: len(at) == 60)
        await eventually(lambda: parked.empty)
        assert running.stats.figures_of("limited", "post_save").limited > 0
    # The bucket holds the tokens of one second: 20. The other 40 take two seconds.
    for first, last in zip(at, at[21:], strict=False):
        assert last - first >= 1 / 20 - 0.02


async def test_events_of_a_topic_are_delivered_in_batches_and_the_position_follows(
    account, dispatched, publisher, parked
):
    """The next dispatcher repeats no event."""
    indexer = Indexer(account, Batch(size=5, wait=60))
    async with reading(dispatched, publisher):
        for number in range(9):
            publisher.insert(id_of(number), name=f"{number}")
        changed = {"_id": id_of(3), "name": "changed"}
        last = publisher.publish(publisher.made("replace", id_of(3), fullDocument=changed))
        await eventually(lambda: len(indexer.deliveries) == 10)
        await eventually(lambda: parked.token >= last, what="the position passes the batches")
    assert [len(batch) for batch in indexer.batches] == [5, 5]
    assert sorted(indexer.done) == [*map(str, range(9)), "changed"]
    assert [name for name in indexer.done if name in {"3", "changed"}] == ["3", "changed"]
    assert len({delivery.id for delivery in indexer.deliveries}) == 10
    indexer.batches.clear()
    publisher.insert(id_of(99), name="later")
    async with reading(dispatched, publisher) as running:
        await eventually(lambda: running.service.close_batches() or indexer.batches)
    assert indexer.batches == [["later"]]


async def test_events_of_a_failed_batch_of_a_topic_are_parked_and_form_a_batch_again(
    account, dispatched, publisher, parked
):
    broken = True

    def fails(batch: Any) -> Exception | None:
        return ConnectionError("down") if broken else None

    indexer = Indexer(
        account, Batch(size=4, wait=0.05), fails=fails, retry=mongoz.signals.Retry(99, base=0.02, cap=0.1)
    )
    async with reading(dispatched, publisher, park_after=0.0):
        for number in range(8):
            last = publisher.insert(id_of(number), name=f"{number}")
        await eventually(lambda: len(parked.rows) == 8)
        await eventually(lambda: parked.token >= last, what="the position does not wait for parked events")
        broken = False
        await eventually(lambda: parked.empty)
    assert sorted(indexer.done) == sorted(map(str, range(8)))
