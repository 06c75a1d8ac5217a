"""Hops: how many receivers of dispatchers lie between a write and what somebody else wrote.

What a receiver in a dispatcher writes comes back through the change stream, to other receivers. Two that trigger
each other would go on for ever, so every such write carries how far it is from the first one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

__all__ = ["MOST_HOPS", "ask_hops", "current_hops", "inside_dispatcher"]

MOST_HOPS: Final = 16
"""A change that came over more hops than this is dead-lettered."""

_hops: ContextVar[int] = ContextVar("mongoz_hops", default=0)

ask_hops: Final = _hops.get
"""What the writes of this task have to carry; 0 outside of a dispatcher. A function of C: every write asks."""


def current_hops() -> int:
    """The same, for who is in no hurry."""
    return _hops.get()


@contextmanager
def inside_dispatcher(hops: int = 0) -> Iterator[None]:
    """Within the block, writes are those of a dispatcher's receiver: they run no `post_*` receivers themselves.

    Args:
        hops: of the change that the receiver is called for.
    """
    token = _hops.set(hops + 1)
    try:
        yield
    finally:
        _hops.reset(token)
