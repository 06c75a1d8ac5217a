"""A side as a process: told what to do by lines of JSON on stdin, it answers each with one on stdout.

    -> {"operation": "load", "count": 20000}        <- {"seconds": 0.11, "cpu_seconds": 0.1}

It says `{"ready": true}` when it is prepared, and ends when stdin does: with whoever started it, at the latest.
All sides run on uvloop, as the daemon does. While nothing is measured the loop is free, so that no client has to
catch up with its heartbeats in the midst of a measurement.

    python -m benchmarks.workloads.sides.worker MODULE URL
"""

import asyncio
import importlib
import json
import sys

import uvloop

from benchmarks.workloads.sides.timing import Operations

__all__ = ["work"]


async def work(module: str, url: str) -> None:
    """Measure what is asked for, until nobody asks any more.

    Args:
        module: the side's, in this package.
        url: of the server.
    """
    operations: Operations = await importlib.import_module(f"{__package__}.{module}").prepare(url)
    print(json.dumps({"ready": True}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        clock = await operations[asked["operation"]](asked["count"])
        print(json.dumps({"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}), flush=True)


if __name__ == "__main__":
    uvloop.run(work(sys.argv[1], sys.argv[2]))
