"""Computes the partition of a document from the hash of its `_id`, and names partitions in messages. No I/O.

The server computes the hash, as for hashed indexes. The hash is signed, so its remainder may be negative.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

HASH: Final = "_mongoz_hash"
"""The field of an event that contains the hash of its document's `_id`. Only some streams ask for it."""


def hash_of(field: str) -> dict[str, Any]:
    """An expression for the hash of an `_id`.

    Args:
        field: path of the `_id`, such as `"$documentKey._id"`.
    """
    return {"$toHashedIndexKey": field}


def number_of(hashed: Any, partitions: int) -> dict[str, Any]:
    """An expression for the partition of a document.

    Args:
        hashed: an expression for the hash, see `hash_of`; or the path of a hash, such as `"$hash"`.
    """
    return {"$abs": {"$mod": [hashed, partitions]}}


def belongs(hashed: Any, partition: int, partitions: int) -> dict[str, Any]:
    """An expression that is true for the documents of one partition. `hashed` is as in `number_of`."""
    return {"$eq": [number_of(hashed, partitions), partition]}


def partition_of(hashed: int, partitions: int) -> int:
    """The partition of a hash."""
    return abs(hashed) % partitions


def in_ranges(numbers: Iterable[int]) -> str:
    """Numbers of partitions for people, such as `"0, 2 to 5"`."""
    ranges: list[str] = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda one: one[1] - one[0]):
        first, *others = (number for _, number in run)
        if len(others) > 1:
            ranges.append(f"{first} to {others[-1]}")
        else:
            ranges.extend(map(str, (first, *others)))
    return ", ".join(ranges)


def name_partitions(numbers: Iterable[int]) -> str:
    """Partitions for people, such as `"partition 3"` or `"partitions 0, 2 to 5"`."""
    several = list(numbers)
    return f"partition{'' if len(several) == 1 else 's'} {in_ranges(several)}"
