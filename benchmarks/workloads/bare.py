"""The other side: the shortest loop over a change stream that PyMongo's async client allows, on uvloop as well.

It watches what the daemon watches, with the same pipeline and the same images, and keeps no position, hydrates
nothing, and calls its user's code without an await: the limit of what can be had.

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
    """Hand every change to the meter, until all expected ones were there.

    Args:
        assignment: what to measure.
        token: start after it; by default now.
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
            batch_size=1_000,
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
