"""What the busy application looks like: how many receivers, of what, and what they do."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Self

__all__ = ["COLLECTION_PREFIX", "COUNTERS", "Shape"]

COLLECTION_PREFIX, COUNTERS = "items", "counters"

_VARIABLE = "BENCH_SHAPE"


@dataclass(frozen=True, slots=True)
class Shape:
    """An application.

    Attributes:
        receivers: of each change.
        collections: that are watched.
        wait_ms: that each receiver waits, as for a service.
        compute_ms: that each receiver keeps the processor.
        counters: documents that the receivers count into; 0 for none.
        transactional: whether each delivery is a transaction.
    """

    receivers: int = 1
    collections: int = 1
    wait_ms: float = 0.0
    compute_ms: float = 0.0
    counters: int = 0
    transactional: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """Where the application finds it."""
        return {_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def received(cls) -> Self:
        """The one of this process."""
        return cls(**json.loads(os.environ.get(_VARIABLE, "{}")))
