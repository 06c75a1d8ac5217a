"""The loop that the relay is compared with: the shortest code that publishes the events of a change stream.

It runs on uvloop, and has the same pipeline and images as the relay, and a producer with the same properties. But
it does not number the events, saves no position, and waits for no answers. Each batch goes to one partition, and
the next batch to the next partition. So its rate is the upper limit.

    python -m benchmarks.workloads.bare_relay BROKERS TOPIC
"""

import sys
from typing import Any

import uvloop
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient

from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.meters import say
from benchmarks.workloads.shape import COLLECTION_PREFIX
from dispatcher.kafka.config import load_config
from dispatcher.stream.scope import Scope

__all__ = ["publish"]

_AT_ONCE = 1_000


async def publish(assignment: Assignment, brokers: str, topic: str) -> None:
    """Publish all events until the process is ended."""
    producer = load_config(brokers).producer(
        linger_ms=1, queue_buffering_max_messages=0, queue_buffering_max_kbytes=2_147_483_647
    )
    scope = Scope.of([(assignment.database, f"{COLLECTION_PREFIX}0")])._replace(hashed=True)
    client = AsyncMongoClient[RawBSONDocument](assignment.url, document_class=RawBSONDocument)
    async with client:
        stream = await client[assignment.database].watch(
            scope.pipeline(),
            full_document="whenAvailable",
            full_document_before_change="whenAvailable",
            batch_size=_AT_ONCE,
        )
        async with stream:
            say({"ready": True})
            records: list[dict[str, Any]] = []
            partition, partitions = 0, len(producer.list_topics(topic).topics[topic].partitions)
            async for event in stream:
                records.append({"value": event.raw})
                if len(records) == _AT_ONCE:
                    producer.produce_batch(topic, records, partition)
                    producer.poll(0)
                    records, partition = [], (partition + 1) % partitions


if __name__ == "__main__":
    uvloop.run(publish(Assignment.received(), sys.argv[1], sys.argv[2]))
