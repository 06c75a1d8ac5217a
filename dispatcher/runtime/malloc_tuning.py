"""Keeps the memory of large buffers in the process.

An answer of the server with 1,000 events is a buffer of some hundred kilobytes, and for a moment there are
several copies of it. By default, glibc returns this memory to the system after each answer. The system then clears
pages for the next answer. For each event of the answer, this takes a fortieth of the time of a delivery.
"""

import os
import sys
from contextlib import suppress
from typing import Final

# The parameters of `mallopt`, see its manual page.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3

# The process keeps this many bytes of free memory at the end of the heap.
_KEPT: Final = 8_000_000

# Buffers of more bytes get pages of their own, which the process returns when the buffer is freed.
_LARGE: Final = 2_000_000

# The variables with which an operator sets these parameters.
_OPERATORS: Final = frozenset({"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"})


def keep_buffers() -> None:
    """Let glibc keep the memory of freed buffers, unless the operator has set the parameters of its memory.

    Other C libraries have other rules, and need no change. A Python without `ctypes` works, too.
    """
    if sys.platform != "linux" or not _OPERATORS.isdisjoint(os.environ):
        return
    with suppress(ImportError, OSError, AttributeError):
        from ctypes import CDLL  # noqa: PLC0415 - not every build of Python has it

        mallopt = CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _KEPT)
