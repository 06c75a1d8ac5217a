"""The writer of the latency rows: single inserts at a steady mean rate, by a plain PyMongo client.

The gaps between two writes have an exponential distribution. With regular gaps, the writes could coincide with a
timer, and the result would depend on chance. The gaps depend on the seed only, so both sides of a round get the
same stream of writes. The writer reports the times of each write and its acknowledgement as a line of JSON.

    python -m benchmarks.workloads.writer RATE SEED
"""

import sys
import time
from random import Random
from typing import Any

from pymongo import MongoClient

from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.meters import say
from benchmarks.workloads.people import COLLECTION, person

__all__ = ["write"]


def write(assignment: Assignment, rate: float, seed: int) -> None:
    """Write the expected number of documents."""
    random = Random(seed)
    sent: list[int] = []
    acknowledged: list[int] = []
    with MongoClient[dict[str, Any]](assignment.url) as client:
        collection = client[assignment.database][COLLECTION]
        due = time.monotonic()
        for number in range(assignment.expected):
            row = person(number)
            due += random.expovariate(rate)
            time.sleep(max(0.0, due - time.monotonic()))
            sent.append(time.monotonic_ns())
            collection.insert_one(row)
            acknowledged.append(time.monotonic_ns())
    say({"measured": {"sent": sent, "acknowledged": acknowledged}})


if __name__ == "__main__":
    write(Assignment.received(), float(sys.argv[1]), int(sys.argv[2]))
