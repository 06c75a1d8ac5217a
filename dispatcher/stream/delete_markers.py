"""Markers whose deletes are still to come.

A deleted document can't carry a stamp, so the ODM puts one onto the document and deletes it, in one transaction:
an update that is a marker, and a delete that the marker tells about. The marker claims the next delete of its
document in its transaction. One that claims none changed nothing but the stamp, and is delivered to nobody. Until
it is known which of the two it is, later changes of its document wait behind it.
"""

from collections.abc import Hashable, Iterator
from typing import Final, NamedTuple

from dispatcher.core.events import Change, Job

__all__ = ["Followed", "Markers", "slimmed"]

# Changes of one document that wait behind its marker; in a transaction of the ODM there are none.
_MOST_WAITING: Final = 100


class Followed(NamedTuple):
    """A marker, or what was taken for one, and the changes of its document that wait behind it.

    Attributes:
        marker: its job; its place in the order of the stream is taken already.
        waiting: jobs whose places are taken as well.
    """

    marker: Job
    waiting: list[Job]


class Markers:
    """The markers of the transaction that the stream is in the middle of."""

    def __init__(self) -> None:
        self._open: dict[Hashable, Followed] = {}

    def __len__(self) -> int:
        return len(self._open)

    def announce(self, change: Change, job: Job) -> None:
        """Keep a marker until its delete comes. None of the same document may be open."""
        job.announces = True
        self._open[_key(change)] = Followed(job, [])

    def claim(self, change: Change) -> Followed | None:
        """The marker of a delete, if it has one."""
        return self._open.pop(_key(change), None)

    def wait(self, change: Change, job: Job) -> bool:
        """Have a job wait behind the marker of its document; False if there is none."""
        followed = self._open.get(_key(change))
        if followed is None:
            return False
        followed.waiting.append(job)
        return True

    def unclaimed_at(self, change: Change) -> Iterator[Followed]:
        """Those that turn out to be none, now that this change comes: they are given up.

        The changes of a transaction come next to each other and have one cluster time, so that any other time
        is behind the end of it. Of two markers on one document the later one counts.
        """
        for key, followed in list(self._open.items()):
            marker = followed.marker.change
            assert marker is not None  # it is not finished
            if marker.cluster_time != change.cluster_time or (
                key == _key(change) and (change.operation == "marker" or len(followed.waiting) >= _MOST_WAITING)
            ):
                yield self._give_up(key)

    def unclaimed(self) -> Iterator[Followed]:
        """All of them, where the stream has nothing more."""
        for key in list(self._open):
            yield self._give_up(key)

    def _give_up(self, key: Hashable) -> Followed:
        followed = self._open.pop(key)
        followed.marker.announces = False
        return followed


def _key(change: Change) -> Hashable:
    return change.transaction, change.key


def slimmed(change: Change) -> Change:
    """A marker without what nobody is going to see. A transaction may have thousands of them."""
    return change._replace(document=None, before=None, raw=b"")
