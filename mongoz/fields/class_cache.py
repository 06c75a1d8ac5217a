"""What is made once for each class, until pydantic builds a class anew."""

from collections.abc import Callable
from functools import cache
from typing import Final, TypeVar

__all__ = ["compiled", "forget_compiled"]

T = TypeVar("T")

_forget: Final[list[Callable[[], None]]] = []


def compiled(make: Callable[[type], T]) -> Callable[[type], T]:
    """Call `make` once for each class. Its result must not change unless the class does."""
    cached = cache(make)
    _forget.append(cached.cache_clear)
    return cached


def forget_compiled() -> None:
    """Make all of it anew, since a class has changed. That happens while an application is imported, if ever."""
    for forget in _forget:
        forget()
