"""Makes instances from many rows, without garbage collections in between."""

import gc
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["make_all"]

T = TypeVar("T")

# Minimum number of rows for which the collector pauses. Fewer rows cause no full collection.
_MANY: Final = 100


def make_all(make: Callable[[dict[str, Any]], T], rows: list[dict[str, Any]]) -> list[T]:
    """Call `make` for each row, and return the results in order.

    Python starts a garbage collection after each 700 new objects, and a full one when the number of objects has
    grown by a quarter. All objects made here are alive, so these collections free nothing. With thousands of rows
    they take half of the time. This function awaits nothing, so no other task runs while the collector pauses.
    """
    if len(rows) < _MANY or not gc.isenabled():  # the application may have disabled the collector
        return [make(row) for row in rows]
    gc.disable()
    try:
        return [make(row) for row in rows]
    finally:
        gc.enable()
