"""Receivers with limits and batch receivers of a group that reads from a topic."""

import time
from collections import defaultdict
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient

import mongoz
from dispatcher.core.partitions import partition_of
from dispatcher.embedded.broker import EmbeddedBroker
from mongoz import Batch
from mongoz.core.signals import post_save
from tests.integration.deliveries import Indexer, Parked
from tests.support import eventually

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.kafka.publisher import Publisher, begun, reading


def id_of(number: int) -> ObjectId:
    return ObjectId(f"{number:024x}")


@pytest.fixture
def parked(foreign: Any) -> Parked:
    return Parked(foreign)


@pytest.fixture
async def of_three(broker: EmbeddedBroker, client: AsyncMongoClient[Any], database: str) -> Publisher:
    """Publishes to a topic of three partitions."""
    return await begun(broker.address, client, database, partitions=3)


async def test_deliveries_of_a_topic_beyond_the_rate_are_parked(account, dispatched, publisher, parked):
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
    # The attempts of one second may begin together: 20. The other 40 attempts take two seconds.
    for first, last in zip(at, at[21:], strict=False):
        assert last - first >= 1 / 20 - 0.02


LAG = 0.2
"""Seconds by which a busy machine may delay the start of a receiver."""


class Paced:
    """A receiver with a rate. It records the time and the partition of each attempt."""

    def __init__(self, account: Any, rate: str) -> None:
        self.at: list[tuple[float, int]] = []
        post_save(account, name="paced", rate=rate)(self)

    async def __call__(self, sender: Any, instance: Any, **kwargs: Any) -> None:
        self.at.append((time.monotonic(), instance.amount))

    def of(self, *partitions: int) -> list[float]:
        """The times of the attempts for changes of some partitions."""
        return [at for at, partition in self.at if partition in partitions]


def check_pace(at: list[float], per_second: float, burst: float) -> None:
    """Checks that no period has more attempts than the burst and the rate allow."""
    for place, first in enumerate(at):
        for count, last in enumerate(at[place:], 1):
            assert last - first >= (count - burst) / per_second - LAG


def publish(publisher: Publisher, foreign: Any, each: int) -> None:
    """Publish inserts to all partitions in turn. As in a relay, the `_id` of a document decides its partition."""
    documents = [{"_id": ObjectId()} for _ in range(50 * each)]
    hashed = [{"$documents": documents}, {"$project": {"hash": {"$toHashedIndexKey": "$_id"}}}]
    ids: dict[int, list[ObjectId]] = defaultdict(list)
    for row in foreign.aggregate(hashed):
        ids[partition_of(row["hash"], publisher.partitions)].append(row["_id"])
    for number in range(each):
        for partition in range(publisher.partitions):
            publisher.insert(ids[partition][number], partition, amount=partition)


async def test_all_partitions_of_a_topic_share_the_rate_of_a_member(
    account, foreign, dispatched, of_three, parked
):
    """A member with three of three partitions has the whole rate once, not three times."""
    paced = Paced(account, "360/min")
    async with reading(dispatched, of_three) as running:
        await eventually(lambda: len(running.service.held) == 3)
        publish(of_three, foreign, each=8)
        await eventually(lambda: {head["state"] for head in parked.heads} == {"limited"})
        await eventually(lambda: len(paced.at) == 24)
        await eventually(lambda: parked.empty)
    check_pace(paced.of(0, 1, 2), per_second=6, burst=6)
    assert [len(paced.of(partition)) for partition in range(3)] == [8, 8, 8]


async def test_members_share_a_rate_by_their_partitions_of_a_topic(account, foreign, dispatched, of_three, parked):
    """A member with two of three partitions has two thirds of the rate. A single member has the whole rate."""
    paced = Paced(account, "360/min")
    async with reading(dispatched, of_three) as one:
        async with reading(dispatched, of_three) as other:
            await eventually(lambda: sorted(len(each.service.held) for each in (one, other)) == [1, 2])
            owned = [tuple(each.service.held) for each in (one, other)]
            publish(of_three, foreign, each=12)
            await eventually(lambda: len(paced.at) == 36)
            await eventually(lambda: parked.empty)
            assert sorted(each.stats.delivered for each in (one, other)) == [12, 24]
        for partitions in owned:
            check_pace(paced.of(*partitions), per_second=2 * len(partitions), burst=2 * len(partitions))
        await eventually(lambda: len(one.service.held) == 3)
        paced.at.clear()
        publish(of_three, foreign, each=6)
        await eventually(lambda: len(paced.at) == 18)
    check_pace(paced.of(0, 1, 2), per_second=6, burst=6)


async def test_a_member_makes_one_attempt_at_a_slow_rate_with_one_or_two_partitions(
    account, foreign, dispatched, of_three, parked
):
    """Each member may make at least one attempt in a period, here an hour.

    So each of the two members makes one attempt. One member holds one partition, the other member holds two.
    """
    paced = Paced(account, "1/h")
    async with reading(dispatched, of_three) as one, reading(dispatched, of_three) as other:
        await eventually(lambda: sorted(len(each.service.held) for each in (one, other)) == [1, 2])
        publish(of_three, foreign, each=4)
        await eventually(lambda: len(parked.heads) == 10)
        assert sorted(each.stats.delivered for each in (one, other)) == [1, 1]
    assert len(paced.at) == 2


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
