"""The hops of a write: the number of receivers in dispatchers between the first write of its chain and this write.

The writes of a receiver in a dispatcher come back through the change stream, and trigger other receivers. Two
receivers that trigger each other would never end without a limit. So each of these writes carries its hops.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

__all__ = ["MAX_HOPS", "current_hops", "inside_dispatcher"]

MAX_HOPS: Final = 16
"""A change with more hops is dead-lettered."""

_hops: ContextVar[int] = ContextVar("mongoz_hops", default=0)

current_hops: Final = _hops.get
"""The hops of writes in this task; 0 outside of a dispatcher. It is a C function, since every write calls it."""


@contextmanager
def inside_dispatcher(hops: int = 0) -> Iterator[None]:
    """A block for a receiver in a dispatcher: writes in the block run no `post_*` receivers in process.

    Args:
        hops: the hops of the change that the receiver is called for.
    """
    token = _hops.set(hops + 1)
    try:
        yield
    finally:
        _hops.reset(token)
