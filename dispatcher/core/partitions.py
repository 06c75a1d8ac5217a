"""Partitions: which of them a document belongs to. The server tells, by the hash of the `_id`. Pure.

The hash is the one that the server has for hashed indexes. It is signed, so its remainder may be negative.
"""

from typing import Any, Final

__all__ = ["HASH", "belongs", "hash_of", "partition_of"]

HASH: Final = "_mongoz_hash"
"""Where the events of a stream carry the hash of their document, while somebody asks for it."""


def hash_of(field: str) -> dict[str, Any]:
    """An expression for the hash that decides.

    Args:
        field: where the `_id` of the document is found, like `"$documentKey._id"`.
    """
    return {"$toHashedIndexKey": field}


def belongs(hashed: Any, partition: int, partitions: int) -> dict[str, Any]:
    """An expression that is true for what belongs to one partition.

    Args:
        hashed: an expression for the hash, see `hash_of`; or where a hash is found, like `"$hash"`.
        partition: which.
        partitions: how many there are.
    """
    return {"$eq": [{"$abs": {"$mod": [hashed, partitions]}}, partition]}


def partition_of(hashed: int, partitions: int) -> int:
    """Which partition a hash belongs to."""
    return abs(hashed) % partitions
