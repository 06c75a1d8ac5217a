"""The other side of the relay: the shortest loop that publishes the events of a change stream, also on uvloop.

The loop has the same pipeline and images as the relay, and a producer with the same properties. But it numbers
nothing, saves no position, waits for no answers, and distributes whole batches to the partitions in turns. So it
is the upper limit.

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
