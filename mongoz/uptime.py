"""The clock for time limits between processes: it can't be set. On Linux it advances while the machine sleeps."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

__all__ = ["now"]

now: Final[Callable[[], float]] = (
    # The monotonic clock of Linux stops while the machine sleeps.
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""The present time of this clock, in seconds. Only the difference of two such times has a meaning."""
