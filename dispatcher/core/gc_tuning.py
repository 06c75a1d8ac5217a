"""Reference cycles: looked for by the clock, and not by the number of objects.

Thousands of decoded documents live at any time here, and going through them all after every 700 new objects takes
a third of the throughput. They hold no cycles, so that reference counting frees them as always. But errors do,
with everything that the frames they came through hold, which may be many megabytes in few objects; receivers may.
"""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from dispatcher.core.tasks import end

__all__ = ["collecting"]

# Objects after which Python looks by itself: as good as never.
_THRESHOLDS: Final = (100_000, 20, 100)

# Seconds between two looks at what is new since the last one; it takes a few milliseconds, even under full load.
_EVERY: Final = 5.0

# Every so many looks go through everything, but for what was there at the start.
_ALL: Final = 12

_YOUNG: Final = 1
_EVERYTHING: Final = 2


@asynccontextmanager
async def collecting() -> AsyncIterator[None]:
    """Look for reference cycles by the clock, for the time of the block."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    looking = asyncio.create_task(_look(), name="collect-garbage")
    try:
        yield
    finally:
        await end([looking])
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _look() -> None:
    looks = 0
    while True:
        await asyncio.sleep(_EVERY)
        looks += 1
        gc.collect(_EVERYTHING if looks % _ALL == 0 else _YOUNG)
