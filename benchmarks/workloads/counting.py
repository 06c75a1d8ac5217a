"""Counts the instructions of a block. The process itself sends requests to valgrind's callgrind.

A program sends requests to valgrind with a sequence of instructions that does nothing without valgrind ("client
requests", a stable part of its interface, usually wrapped in C macros). The sequence is put into a page of memory
and called, so nothing has to be compiled. Linux on x86-64 only.
"""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["counted", "is_counting"]

# rax = the request, rdx = 0; four rotations of rdi that cancel out, and `xchg rbx, rbx`; the answer is in rdx.
_CODE: Final = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")

_RUNNING_ON_VALGRIND: Final = 0x1001
_CALLGRIND: Final = 0x43540000  # "CT"
_ZERO_STATS, _DUMP_STATS_AT, _START, _STOP = (_CALLGRIND + number for number in (1, 3, 4, 5))

_page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
_page.write(_CODE)
_call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(_page)))


def _request(code: int, argument: int = 0) -> int:
    block = (ctypes.c_uint64 * 6)(code, argument)
    return int(_call(ctypes.addressof(block)))


def is_counting() -> bool:
    """Whether this process runs under valgrind."""
    return bool(_request(_RUNNING_ON_VALGRIND))


@contextmanager
def counted(name: str) -> Iterator[None]:
    """Let callgrind write a dump of the instructions of the block. Its line `desc: Trigger` has this name."""
    text = ctypes.create_string_buffer(name.encode())
    _request(_START)
    _request(_ZERO_STATS)
    yield
    _request(_DUMP_STATS_AT, ctypes.addressof(text))
    _request(_STOP)
