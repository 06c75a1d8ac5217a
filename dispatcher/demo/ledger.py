"""Counts of the demo: writes, expected deliveries, and deliveries. No I/O."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

_SIGNALS: Final = {
    "insert": "post_save",
    "replace": "post_save",
    "update": "post_update",
    "delete": "post_delete",
}

Document = tuple[str, str]
"""(namespace, `_id` as text)"""


class ShownDelivery(NamedTuple):
    """One delivery, for the screen."""

    at: datetime
    operation: str
    namespace: str
    key: str
    receiver: str
    seconds: float
    """From the commit, by the server's clock, to the call of the receiver."""


class Lost(NamedTuple):
    """An expected delivery that was never made."""

    operation: str
    namespace: str
    key: str
    receiver: str


class Balance(NamedTuple):
    """The lost deliveries, and the number of unexpected ones."""

    lost: list[Lost]
    unexpected: int


@dataclass(slots=True)
class _DeliveredChange:
    """One change: the receivers that were called for it."""

    signal: str
    receivers: set[str] = field(default_factory=set)


class Ledger:
    """Matches each write with its expected deliveries.

    A delivery does not name its write. But all deliveries of one change have the same id, and the changes of one
    document arrive in commit order. So the changes of a document are matched with its writes, one by one.

    Args:
        owed: by namespace and signal, the names of the receivers that must get each change.
    """

    def __init__(self, owed: Mapping[tuple[str, str], frozenset[str]]) -> None:
        self._owed = owed
        self._writes: dict[Document, list[str]] = defaultdict(list)
        self._changes: dict[Document, dict[str, _DeliveredChange]] = defaultdict(dict)
        self._seconds: list[float] = []
        self.operations: Counter[tuple[str, str]] = Counter()
        """Writes by (namespace, operation)."""
        self.ordered: Counter[str] = Counter()
        """The ordered quantity of each product."""
        self.written = 0
        self.expected = 0
        self.delivered = 0
        self.repeated = 0

    def add_write(self, line: Mapping[str, Any]) -> None:
        """Count a write that the writer reported."""
        namespace, operation = line["namespace"], line["operation"]
        self._writes[namespace, line["id"]].append(operation)
        self.operations[namespace, operation] += 1
        self.written += 1
        self.expected += len(self._receivers(namespace, operation))
        if operation == "insert" and "product" in line:
            self.ordered[line["product"]] += line["quantity"]

    def add_delivery(self, line: Mapping[str, Any]) -> ShownDelivery:
        """Count a delivery that the dispatcher logged."""
        namespace, key, signal = line["namespace"], line["key"], line["signal"]
        changes = self._changes[namespace, key]
        change = changes.setdefault(line["delivery_id"], _DeliveredChange(signal))
        if line["receiver"] in change.receivers:
            self.repeated += 1
        else:
            change.receivers.add(line["receiver"])
            self.delivered += 1
        at = datetime.fromisoformat(line["began"])
        # The commit time has whole milliseconds, so a delivery can seem to begin before the commit.
        seconds = max(0.0, (at - datetime.fromisoformat(line["wall_time"]).replace(tzinfo=UTC)).total_seconds())
        self._seconds.append(seconds)
        return ShownDelivery(at, line["operation"], namespace, key, line["receiver"].rpartition(".")[2], seconds)

    @property
    def in_flight(self) -> int:
        """Expected deliveries that are not made yet; 0 if the dispatcher is ahead of the writer's report."""
        return max(0, self.expected - self.delivered)

    @property
    def median(self) -> float:
        """The median of the seconds from commit to receiver."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    @property
    def p99(self) -> float:
        """The 99th percentile of the seconds from commit to receiver."""
        return sorted(self._seconds)[math.ceil(len(self._seconds) * 0.99) - 1] if self._seconds else 0.0

    def verdict(self) -> Balance:
        """Match deliveries with writes."""
        lost: list[Lost] = []
        unexpected = 0
        for document in self._writes.keys() | self._changes.keys():
            its = self._match(document)
            lost += its.lost
            unexpected += its.unexpected
        return Balance(lost, unexpected)

    def _match(self, document: Document) -> Balance:
        lost: list[Lost] = []
        unexpected = 0
        changes = list(self._changes.get(document, {}).values())
        for operation in self._writes.get(document, ()):
            owed = self._receivers(document[0], operation)
            called: set[str] = set()
            # If the next change has another signal, it belongs to a later write. Then the change of this write
            # was lost.
            if owed and changes and changes[0].signal == _SIGNALS[operation]:
                called = changes.pop(0).receivers
            lost += [Lost(operation, *document, receiver) for receiver in sorted(owed - called)]
            unexpected += len(called - owed)
        return Balance(lost, unexpected + sum(len(change.receivers) for change in changes))

    def _receivers(self, namespace: str, operation: str) -> frozenset[str]:
        return self._owed.get((namespace, _SIGNALS[operation]), frozenset())
