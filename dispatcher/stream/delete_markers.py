"""Joins delete markers with their deletes.

A deleted document has no field for a stamp. So the ODM stamps the document and deletes it, in one transaction. The
stream then has two events: an update, which is the marker, and a delete. A marker belongs to the next delete of
its document in its transaction. A marker without a delete is an update that changed only the stamp. Later changes
of the document are deferred until the delete arrives, or until it is certain that no delete follows.
"""

from collections.abc import Hashable, Iterator
from typing import Final, NamedTuple

from dispatcher.core.events import DELIVERABLE, Change

# Maximum number of deferred changes of one document. Transactions of the ODM have no deferred changes.
_MOST_DEFERRED: Final = 100


FINISHED_MARKER: Final = "finished marker"
"""The operation of a marker that an earlier process has finished.

Its delete can be unfinished: a process that reads a topic may end between the marker and the delete. If the next
process reads a change stream, the delete has no stamp of its own, and needs the stamp of the marker.
"""

_MARKERS: Final = frozenset({"marker", FINISHED_MARKER})


class _Open(NamedTuple):
    """A marker whose delete has not arrived, and the deferred changes of its document."""

    marker: Change
    deferred: list[Change]

    @property
    def finished(self) -> bool:
        """Returns whether an earlier process has finished the marker."""
        return self.marker.operation == FINISHED_MARKER


class DeleteMarkers:
    """The markers of the transaction that is being read."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def settle(self, changes: list[Change]) -> list[Change]:
        """Copy the stamps of markers to their deletes. Returns the changes in order.

        Markers and deferred changes keep their places in the order, with the operations `"marker"` and
        `"deferred"`. When it is known whether a marker has a delete, the deferred changes are returned a second
        time, with their own operations. A marker without a delete is returned a second time, as `"untouched"`. A
        delete with a marker contains the token of the marker, unless the marker is finished. A finished marker
        defers nothing.
        """
        if not self._open and _MARKERS.isdisjoint([change.operation for change in changes]):
            return changes  # the usual case
        return [settled for change in changes for settled in self._settle(change)]

    def give_up(self) -> list[Change]:
        """Return the open markers and the deferred changes at the end of the stream: no delete follows."""
        return [change for key in list(self._open) for change in self._give_up(key)]

    def _settle(self, change: Change) -> Iterator[Change]:
        key = (change.transaction, change.key)
        yield from self._without_delete(key, change)
        if change.operation in _MARKERS:
            # A transaction may have thousands of markers. No receiver gets their documents, so they are dropped.
            marker = change.without_documents()
            self._open[key] = found = _Open(marker, [])
            yield marker._replace(operation="finished") if found.finished else marker
        elif change.operation not in DELIVERABLE or key not in self._open:
            yield change
        elif change.operation == "delete":
            found = self._open.pop(key)
            marker = found.marker
            yield from found.deferred
            token = "" if found.finished else marker.token
            yield change._replace(
                origin=marker.origin, context=marker.context, delivery_id=marker.delivery_id, marker=token
            )
        elif self._open[key].finished:
            yield change
        else:
            self._open[key].deferred.append(change)
            yield change._replace(operation="deferred")

    def _without_delete(self, key: Hashable, change: Change) -> Iterator[Change]:
        """Release the markers that can't get a delete after this change, or that have too many deferred changes.

        The changes of a transaction follow each other and have the same cluster time, so a change with another
        cluster time comes after the end of the transaction. If a document has two markers, the later one counts.
        """
        for other, (marker, deferred) in list(self._open.items()):
            if marker.cluster_time != change.cluster_time or (
                other == key and (change.operation in _MARKERS or len(deferred) >= _MOST_DEFERRED)
            ):
                yield from self._give_up(other)

    def _give_up(self, key: Hashable) -> Iterator[Change]:
        found = self._open.pop(key)
        if not found.finished:
            yield found.marker._replace(operation="untouched")
        yield from found.deferred
