"""A side as a process. It reads lines of JSON from stdin, and answers each with a line on stdout.

    -> {"operation": "load", "count": 20000}        <- {"seconds": 0.11, "cpu_seconds": 0.1}

It writes `{"ready": true}` when it is prepared. It ends when stdin ends, at the latest with its parent. All sides
run on uvloop, like the daemon. Between measurements the loop is free, so that no client has to catch up with its
heartbeats during a measurement.

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
    """Measure on request, until stdin ends.

    Args:
        module: the name of the module of the side, in this package.
        url: the URL of the server.
    """
    operations: Operations = await importlib.import_module(f"{__package__}.{module}").prepare(url)
    print(json.dumps({"ready": True}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        clock = await operations[asked["operation"]](asked["count"])
        print(json.dumps({"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}), flush=True)


if __name__ == "__main__":
    uvloop.run(work(sys.argv[1], sys.argv[2]))
