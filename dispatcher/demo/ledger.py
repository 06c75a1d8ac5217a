"""The books of the demo: what was written, what is owed for it, and what was delivered. Pure."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

__all__ = ["Delivered", "Ledger", "Lost", "Verdict"]

_SIGNALS: Final = {
    "insert": "post_save",
    "replace": "post_save",
    "update": "post_update",
    "delete": "post_delete",
}

Document = tuple[str, str]
"""(namespace, `_id` as text)"""


class Delivered(NamedTuple):
    """One delivery, for showing it."""

    at: datetime
    operation: str
    namespace: str
    key: str
    receiver: str
    seconds: float
    """From the commit, by the server's clock, until the receiver was called."""


class Lost(NamedTuple):
    """A delivery that is owed and was never made."""

    operation: str
    namespace: str
    key: str
    receiver: str


class Verdict(NamedTuple):
    """What is missing, and how many deliveries nobody had asked for."""

    lost: list[Lost]
    unexpected: int


@dataclass(slots=True)
class _Change:
    """What became of one change: the receivers that were called for it."""

    signal: str
    receivers: set[str] = field(default_factory=set)


class Ledger:
    """Matches every write with the deliveries that it owes.

    A delivery does not say which write it is for. But all deliveries of one change have one id, and the
    changes of one document arrive in commit order: so they are laid beside that document's writes, one by one.

    Args:
        owed: the receivers of (namespace, signal).
    """

    def __init__(self, owed: Mapping[tuple[str, str], frozenset[str]]) -> None:
        self._owed = owed
        self._writes: dict[Document, list[str]] = defaultdict(list)
        self._changes: dict[Document, dict[str, _Change]] = defaultdict(dict)
        self._seconds: list[float] = []
        self.operations: Counter[tuple[str, str]] = Counter()
        """Writes by (namespace, operation)."""
        self.ordered: Counter[str] = Counter()
        """Pieces ordered of each product."""
        self.written = 0
        self.expected = 0
        self.delivered = 0
        self.repeated = 0

    def add_write(self, line: Mapping[str, Any]) -> None:
        """Note a write, as the writer reported it."""
        namespace, operation = line["namespace"], line["operation"]
        self._writes[namespace, line["id"]].append(operation)
        self.operations[namespace, operation] += 1
        self.written += 1
        self.expected += len(self._receivers(namespace, operation))
        if operation == "insert" and "product" in line:
            self.ordered[line["product"]] += line["quantity"]

    def add_delivery(self, line: Mapping[str, Any]) -> Delivered:
        """Note a delivery, as the dispatcher logged it."""
        namespace, key, signal = line["namespace"], line["key"], line["signal"]
        changes = self._changes[namespace, key]
        change = changes.setdefault(line["delivery_id"], _Change(signal))
        if line["receiver"] in change.receivers:
            self.repeated += 1
        else:
            change.receivers.add(line["receiver"])
            self.delivered += 1
        at = datetime.fromisoformat(line["began"])
        # The server's clock has milliseconds, and so a delivery can seem to precede its commit.
        seconds = max(0.0, (at - datetime.fromisoformat(line["wall_time"]).replace(tzinfo=UTC)).total_seconds())
        self._seconds.append(seconds)
        return Delivered(at, line["operation"], namespace, key, line["receiver"].rpartition(".")[2], seconds)

    @property
    def in_flight(self) -> int:
        """Deliveries that are owed and did not arrive yet. The dispatcher may be ahead of the writer's report."""
        return max(0, self.expected - self.delivered)

    @property
    def median(self) -> float:
        """Seconds from commit to receiver; half of the deliveries were faster."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    @property
    def p99(self) -> float:
        """Seconds within which 99 of 100 deliveries were made."""
        return sorted(self._seconds)[math.ceil(len(self._seconds) * 0.99) - 1] if self._seconds else 0.0

    def verdict(self) -> Verdict:
        """Lay deliveries beside writes."""
        lost: list[Lost] = []
        unexpected = 0
        for document in self._writes.keys() | self._changes.keys():
            its = self._match(document)
            lost += its.lost
            unexpected += its.unexpected
        return Verdict(lost, unexpected)

    def _match(self, document: Document) -> Verdict:
        lost: list[Lost] = []
        unexpected = 0
        changes = list(self._changes.get(document, {}).values())
        for operation in self._writes.get(document, ()):
            owed = self._receivers(document[0], operation)
            called: set[str] = set()
            # A change of another kind belongs to a later write: this one's was lost.
            if owed and changes and changes[0].signal == _SIGNALS[operation]:
                called = changes.pop(0).receivers
            lost += [Lost(operation, *document, receiver) for receiver in sorted(owed - called)]
            unexpected += len(called - owed)
        return Verdict(lost, unexpected + sum(len(change.receivers) for change in changes))

    def _receivers(self, namespace: str, operation: str) -> frozenset[str]:
        return self._owed.get((namespace, _SIGNALS[operation]), frozenset())
