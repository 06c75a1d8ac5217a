"""The application for the measurements of claims. The dispatcher and the writing process run it.

dispatcher run benchmarks.workloads.claiming:registry
python -m benchmarks.workloads.claiming RATE|fast claimed|unclaimed
"""

import asyncio
import sys
from time import monotonic, process_time
from typing import Any

import mongoz
from benchmarks.workloads.environment import GROUP, Assignment
from benchmarks.workloads.meters import rss_mb, say
from benchmarks.workloads.shape import CLAIMED, CLAIMS_STATE
from mongoz.core.signals import post_save

# The number of documents in one call of `create_many`.
_AT_ONCE = 100

# Maximum number of single writes at the same time.
_CONCURRENT = 50

assignment = Assignment.received()
registry = mongoz.Registry(
    assignment.url, dispatched=GROUP, state=CLAIMS_STATE, claims=sys.argv[-1] != "unclaimed"
)


class Item(mongoz.Document):
    number: int = mongoz.Integer()
    text: str = mongoz.String(default="x" * 100)

    class Meta:
        registry = registry
        database = assignment.database
        collection = CLAIMED


@post_save(Item, name="note")
async def note(sender: type[Item], instance: Item, **kwargs: Any) -> None:  # noqa: ARG001 - a receiver's keywords
    if instance.number < 0:  # a change by another client: this process is the dispatcher
        say({"measured": {"cpu_seconds": process_time()}})


async def write(rate: float | None) -> None:
    """Write the documents, and report.

    Args:
        rate: writes per second; None writes as fast as possible, in portions.
    """
    async with registry:
        await Item(number=0).create()  # this write waits for the first beat
        before, memory = await _beats(), list[float]()
        began, began_cpu = monotonic(), process_time()
        if rate is None:
            memory = await _write_portions()
        else:
            await _write_steadily(began, rate)
        seconds, cpu_seconds = monotonic() - began, process_time() - began_cpu
        measured = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "beats": await _beats() - before,
            "unclaimed": 0 if registry.claims is None else registry.claims.unclaimed.total(),
            "memory_mb": memory,
        }
        say({"measured": measured})


async def _write_steadily(began: float, rate: float) -> None:
    places = asyncio.Semaphore(_CONCURRENT)

    async def create(number: int) -> None:
        await Item(number=number).create()
        places.release()

    async with asyncio.TaskGroup() as group:
        for number in range(assignment.expected):
            await asyncio.sleep(max(0.0, began + number / rate - monotonic()))
            await places.acquire()
            group.create_task(create(number))


async def _write_portions() -> list[float]:
    """Write the documents in portions. Returns the megabytes of this process after each tenth of them."""
    memory, tenth = list[float](), assignment.expected // 10
    for number in range(0, assignment.expected, _AT_ONCE):
        await Item.create_many([Item(number=number + i) for i in range(_AT_ONCE)])
        if (number + _AT_ONCE) // tenth > len(memory):
            memory.append(round(rss_mb(), 1))
    return memory


async def _beats() -> int:
    """The number of beats so far, as the state database has it."""
    if registry.claims is None:
        return 0
    id_ = registry.claims.book.incarnation.hex()
    book = await registry.client[CLAIMS_STATE].claims.find_one({"_id": id_})
    return 0 if book is None else int(book["beat"])


if __name__ == "__main__":
    asyncio.run(write(None if sys.argv[1] == "fast" else float(sys.argv[1])))
