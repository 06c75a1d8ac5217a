"""Computes the names of lanes, and reads the heads of lanes from the results of queries. No I/O.

`parking/store.py` explains lanes, heads and their marks.
"""

from collections.abc import Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any, NamedTuple

import bson

from dispatcher.core.keys import lane_key
from dispatcher.core.state import CODEC_OPTIONS
from dispatcher.core.undecodable import UndecodedKey
from mongoz.keys import canonical_of


class Lane(NamedTuple):
    """A lane that is due.

    Attributes:
        id: the name of the lane, see `lane_id`.
        state: why the head of the lane waits.
        due_at: the time at which the head is due.
        first: `_id` of the first delivery.
        size: the recorded size of the first delivery, in bytes.
    """

    id: str
    state: str
    due_at: Any
    first: str
    size: int


def lane_id(group: str, receiver: str, document: str, namespace: tuple[str, str], id_: Any) -> str:
    """The name of a lane.

    Args:
        receiver: the name of the receiver. The id of the receiver is not used: the id depends on the signal,
            and a function must get all deliveries of a document in order, whatever their signals.
    """
    named = bson.encode({"": [group, receiver, document, *namespace]}) + _key_of(id_)
    return blake2b(named, digest_size=16).hexdigest()


def _key_of(id_: Any) -> bytes:
    """Represents an `_id` in the name of a lane."""
    if not isinstance(id_, UndecodedKey):
        return lane_key(id_)
    try:
        return lane_key(bson.decode(id_.raw, codec_options=CODEC_OPTIONS)[""])
    except Exception:  # no driver decodes it
        return canonical_of(id_.raw)


def lane_of(row: Mapping[str, Any]) -> Lane:
    """The lane of a row.

    The row is a delivery with the mark of a head. Its field `first` has the first delivery of the lane.

    Raises:
        ValueError: the delivery is malformed.
    """
    lane, state = row["lane"], row["state"]
    if not isinstance(lane, str) or not isinstance(state, str):
        raise ValueError("the delivery waits, but its lane or its state is not text")  # noqa: TRY004
    (first,) = row["first"]
    size = first.get("size")
    due_at = row["due_at"] if isinstance(row["due_at"], datetime) else "$$NOW"
    return Lane(lane, state, due_at, first["_id"], size if isinstance(size, int) else 0)


def is_head(row: Mapping[str, Any]) -> bool:
    """Returns whether the first delivery of a lane has the mark of the head.

    If it does not, `HeldStore.due` must move the mark to it.
    """
    return isinstance(row.get("due_at"), datetime) and isinstance(row.get("state"), str)


def lane_of_head(row: Mapping[str, Any]) -> Lane:
    """The lane of a delivery for which `is_head` is true."""
    size = row.get("size")
    return Lane(row["lane"], row["state"], row["due_at"], row["_id"], size if isinstance(size, int) else 0)
