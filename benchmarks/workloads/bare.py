"""The other side: the shortest loop over a change stream with PyMongo's async client, also on uvloop.

It has the same pipeline and images as the daemon. It saves no position, makes no instances, and calls the user's
code without an await. So it is the upper limit.

    python -m benchmarks.workloads.bare [TOKEN]
"""

import sys
from typing import Any

import uvloop
from pymongo import AsyncMongoClient

from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.meters import make_meter, say
from benchmarks.workloads.people import COLLECTION
from dispatcher.stream.scope import Scope

__all__ = ["watch"]


async def watch(assignment: Assignment, token: str | None) -> None:
    """Give each change to the meter, until all expected ones have arrived.

    Args:
        assignment: the measurement.
        token: the resume token to start after; None starts now.
    """
    meter, left = make_meter(assignment), assignment.expected
    pipeline = Scope.of([(assignment.database, COLLECTION)]).pipeline()
    start = {"_data": token} if token else None
    async with AsyncMongoClient[dict[str, Any]](assignment.url) as client:
        stream = await client[assignment.database].watch(
            pipeline,
            full_document="whenAvailable",
            full_document_before_change="whenAvailable",
            start_after=start,
            batch_size=4_000,
        )
        async with stream:
            say({"ready": True})
            async for event in stream:
                meter.event(event["fullDocument"]["number"])
                left -= 1
                if not left:
                    return


if __name__ == "__main__":
    uvloop.run(watch(Assignment.received(), sys.argv[1] if len(sys.argv) > 1 else None))
