"""Joins delete markers with their deletes.

A deleted document has no field for a stamp. So the ODM stamps the document and deletes it, in one transaction, and
the stream brings an update, the marker, and a delete. A marker belongs to the next delete of its document in its
transaction. A marker without a delete changed only the stamp. Until the delete is found or ruled out, later
changes of the document are deferred.
"""

from collections.abc import Hashable, Iterator
from typing import Final, NamedTuple

from dispatcher.core.events import DELIVERABLE, Change

# Changes of one document that are deferred, at most; transactions of the ODM have none.
_MOST_DEFERRED: Final = 100


class _Open(NamedTuple):
    """A marker whose delete has not come, and the deferred changes of its document."""

    marker: Change
    deferred: list[Change]


class DeleteMarkers:
    """The markers of the transaction that is being read."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def settle(self, changes: list[Change]) -> list[Change]:
        """The same changes in order; deletes have the stamps of their markers.

        Markers and deferred changes keep their places in the order, as `"marker"` and `"deferred"`. Deferred
        changes come again as themselves when it is known what their marker announces. A marker without a delete
        comes again as `"untouched"`; otherwise its delete names it.
        """
        if not self._open and "marker" not in [change.operation for change in changes]:
            return changes  # nearly always
        return [settled for change in changes for settled in self._settle(change)]

    def give_up(self) -> list[Change]:
        """The markers and the deferred changes at the end of the stream: no delete follows."""
        return [change for key in list(self._open) for change in self._give_up(key)]

    def _settle(self, change: Change) -> Iterator[Change]:
        key = (change.transaction, change.key)
        yield from self._without_delete(key, change)
        if change.operation == "marker":
            # A transaction may have thousands of markers, and no receiver gets their documents.
            marker = change._replace(document=None, before=None, raw=b"")
            self._open[key] = _Open(marker, [])
            yield marker
        elif change.operation not in DELIVERABLE or key not in self._open:
            yield change
        elif change.operation == "delete":
            marker, deferred = self._open.pop(key)
            yield from deferred
            yield change._replace(origin=marker.origin, delivery_id=marker.delivery_id, marker=marker.token)
        else:
            self._open[key].deferred.append(change)
            yield change._replace(operation="deferred")

    def _without_delete(self, key: Hashable, change: Change) -> Iterator[Change]:
        """The markers for which this change proves that no delete follows.

        The changes of a transaction come next to each other and have one cluster time, so a change with another
        time is after its end. Of two markers of one document the later one counts.
        """
        for other, (marker, deferred) in list(self._open.items()):
            if marker.cluster_time != change.cluster_time or (
                other == key and (change.operation == "marker" or len(deferred) >= _MOST_DEFERRED)
            ):
                yield from self._give_up(other)

    def _give_up(self, key: Hashable) -> Iterator[Change]:
        marker, deferred = self._open.pop(key)
        yield marker._replace(operation="untouched")
        yield from deferred
