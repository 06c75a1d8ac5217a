"""Values that are computed once for each class, and again after pydantic has rebuilt any class."""

from collections.abc import Callable
from functools import cache
from typing import Final, TypeVar

__all__ = ["cached_per_class", "clear_class_caches"]

T = TypeVar("T")

_clear_functions: Final[list[Callable[[], None]]] = []


def cached_per_class(make: Callable[[type], T]) -> Callable[[type], T]:
    """Call `make` once for each class. Its result must depend on the class only."""
    cached = cache(make)
    _clear_functions.append(cached.cache_clear)
    return cached


def clear_class_caches() -> None:
    """Drop all cached values, because a class has changed. Usually this happens only during imports."""
    for clear in _clear_functions:
        clear()
