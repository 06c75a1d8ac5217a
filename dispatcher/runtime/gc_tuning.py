"""Runs the garbage collector at fixed intervals instead of after a number of new objects.

Thousands of decoded documents are alive at any time. By default, Python runs the garbage collector after every
700 new objects, and this takes a third of the throughput. Documents hold no reference cycles, so reference
counting frees them. The collector is still needed: an error forms a cycle with the frames of its traceback, and
these frames may hold many megabytes in few objects. Receivers may form cycles too.
"""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from dispatcher.core.tasks import end

# Thresholds of Python's own collections. With these numbers, Python almost never starts a collection.
_THRESHOLDS: Final = (100_000, 20, 100)

# Seconds between two collections of young objects, which take a few milliseconds even under full load.
_EVERY: Final = 5.0

# Every twelfth collection is a full one. It skips the objects from before the start, because they are frozen.
_ALL: Final = 12

_YOUNG: Final = 1
_EVERYTHING: Final = 2


@asynccontextmanager
async def collecting() -> AsyncIterator[None]:
    """Collect garbage at fixed intervals while the block runs."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    collector = asyncio.create_task(_collect_regularly(), name="collect-garbage")
    try:
        yield
    finally:
        await end([collector])
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _collect_regularly() -> None:
    rounds = 0
    while True:
        await asyncio.sleep(_EVERY)
        rounds += 1
        gc.collect(_EVERYTHING if rounds % _ALL == 0 else _YOUNG)
