"""The shape of the busy application: receivers, collections and work; and names of the claiming application."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Self

__all__ = [
    "BESIDE",
    "CLAIMED",
    "CLAIMS_STATE",
    "COLLECTION_PREFIX",
    "COUNTERS",
    "INDEX",
    "RECEIVER_PREFIX",
    "Shape",
]

COLLECTION_PREFIX, COUNTERS, INDEX = "items", "counters", "index"

RECEIVER_PREFIX, BESIDE = "receive-", "beside"
"""The name of a receiver is the prefix and a number, from 1 on. The additional receiver is named `BESIDE`."""

CLAIMED, CLAIMS_STATE = "claimed", "claims_state"
"""The collection and the state database of the claiming application, `claiming.py`."""

_VARIABLE = "BENCH_SHAPE"


@dataclass(frozen=True, slots=True)
class Shape:
    """An application.

    Attributes:
        receivers: the number of receivers of each change.
        collections: the number of watched collections.
        wait_ms: waiting time of each receiver, as if it called a service.
        compute_ms: processor time of each receiver.
        counters: the number of documents that receivers count into; 0 for none.
        transactional: whether each delivery is a transaction.
        batch: the maximum number of events in a call of a receiver; 0 for single deliveries.
        indexes: whether receivers write each document into another collection.
        beside: an additional receiver, with the name `BESIDE`, which gets the same changes: `"slow batch"` or
            `"limited"`; empty for none.
        times_beside: whether the meter counts the deliveries of the additional receiver, instead of those of the
            last ordinary receiver.
    """

    receivers: int = 1
    collections: int = 1
    wait_ms: float = 0.0
    compute_ms: float = 0.0
    counters: int = 0
    transactional: bool = False
    batch: int = 0
    indexes: bool = False
    beside: str = ""
    times_beside: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """The environment variable for the application."""
        return {_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def received(cls) -> Self:
        """The shape for this process."""
        return cls(**json.loads(os.environ.get(_VARIABLE, "{}")))
