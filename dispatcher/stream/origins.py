"""Which origin stamps count: a stamp silences its own write, once.

Clients copy documents. They re-insert what they deleted, restore what they exported, and `$set` whole documents
that they read a moment ago; the stamps come along. A stamp that is taken for another write than its own hides that
write from its receivers. So in doubt it does not count, and the write is delivered.

A write may wait: for a lock that a transaction holds, or for a server that stalls. Its stamp comes late then. If
it is the first of its token, on its own document, and not older than what is remembered, then nobody can have
copied it: the write is delivered to all receivers, those that ran included, under the id that they know it by.

Everything is told by what the events themselves say: this machine's clock has no part in it.
"""

from datetime import UTC, datetime
from typing import Any, Final

from dispatcher.core.events import CALLED, Change
from mongoz.stamps import Call, Stamp, key_hash

__all__ = ["HORIZON", "Origins", "Seen"]

# Seconds between the making of a token and the write: clocks are compared, and the write is sent at once.
_WINDOW: Final = 10

# A token tells whole seconds only.
_RESOLUTION: Final = 1

# What is written in a transaction has the time of its commit; the server ends transactions after so many seconds.
_TRANSACTION: Final = 60

HORIZON: Final = 75
"""Seconds before the position from which the seen tokens are read again. A copy whose stamp may still count was
made at most this long after the original, but for clocks that differ."""

# A token may matter until 75 s after its own time, and its write may have been up to 10 s before that time.
_REMEMBERED: Final = HORIZON + _RESOLUTION + _WINDOW + _RESOLUTION

_NOBODY: Final[frozenset[bytes]] = frozenset()

# Tokens in a generation, at most: some 25 MB.
_MOST: Final = 250_000


class Seen:
    """The tokens of the latest while, in two generations: the older one is forgotten as a whole.

    What is so many that it must be forgotten early leaves doubt behind: tokens from before then are not new for
    certain.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._older: set[bytes] = set()
        self._began: float | None = None
        self._latest = self._latest_of_older = 0.0
        self._doubtful_until = 0.0

    def __len__(self) -> int:
        return len(self._recent) + len(self._older)

    def add(self, token: bytes, wall: float) -> bool:
        """Remember a token; whether it is certain that it was not seen before.

        Args:
            token: of a stamp; begins with its time in seconds.
            wall: the event's wall time in seconds.
        """
        if self._began is None or abs(wall - self._began) >= _REMEMBERED or len(self._recent) >= _MOST:
            self._next_generation(wall)
        if wall < self._doubtful_until:  # the server's clock was put back: nothing of that time was forgotten
            self._doubtful_until = 0.0
        self._latest = wall
        if token in self._recent or token in self._older:
            return False
        self._recent.add(token)
        return int.from_bytes(token[:4], "big") + _RESOLUTION > self._doubtful_until

    def _next_generation(self, wall: float) -> None:
        if self._older:
            self._doubtful_until = self._latest_of_older
        self._older, self._recent = self._recent, set()
        self._latest_of_older = self._latest
        self._began = wall


class Origins:
    """Looks at the stamps of one stream's changes, in the order of the stream.

    Args:
        group: the dispatchers that this process belongs to; stamps for others mean nothing to it.

    Attributes:
        seen: the tokens of the stamps that were written lately.
        since: the stamps of all changes from then on were seen, in seconds since 1970.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self.seen = Seen()
        self.since = 0.0

    def saw(self, stamp: Stamp | None, wall_time: Any) -> bool:
        """Remember that a stamp was written; whether it was for us, and for the first time.

        Args:
            stamp: if it was readable.
            wall_time: of the event.
        """
        wall = _seconds(wall_time)
        if stamp is None or wall is None or stamp.group != self._group:
            return False
        return self.seen.add(stamp.token.binary, wall)

    def judge(self, change: Change) -> Change:
        """The same change, with its origin if its stamp counts; an update may turn out to be a marker.

        Each change of the stream that has a stamp must come by here once, whether or not it is delivered.
        """
        stamp = change.stamp
        if stamp is None or not self.saw(stamp, change.wall_time) or not _is_its_own(stamp, change):
            return change
        operation = "update" if change.operation == "untouched" else change.operation
        if _is_marker(stamp, change):
            operation = "marker"
        elif (operation, stamp.call) not in CALLED:
            return change
        wall, made = _seconds(change.wall_time), int.from_bytes(stamp.token.binary[:4], "big")
        assert wall is not None  # else it was not seen
        latest = _WINDOW + _RESOLUTION + (_TRANSACTION if change.transaction is not None else 0)
        if -_WINDOW <= wall - made <= latest:
            return change._replace(operation=operation, origin=stamp)
        if latest < wall - made <= HORIZON and made >= self.since:
            in_doubt = stamp._replace(receivers=_NOBODY, muted=False)
            return change._replace(operation=operation, origin=in_doubt, delivery_id=str(stamp.token))
        return change


def _is_its_own(stamp: Stamp, change: Change) -> bool:
    """Whether it was made for this document."""
    try:
        return stamp.key == key_hash(".".join(change.namespace), change.id)
    except Exception:  # an id that the application's codec made something of which BSON does not know
        return False


def _is_marker(stamp: Stamp, change: Change) -> bool:
    """Whether an update may announce a delete: it touches the stamp and nothing else, inside a transaction."""
    return change.operation == "untouched" and stamp.call is Call.DELETED and change.transaction is not None


def _seconds(wall_time: Any) -> float | None:
    """Seconds since 1970. Codec options decide what a date is decoded to."""
    if isinstance(wall_time, datetime):
        return (wall_time if wall_time.tzinfo else wall_time.replace(tzinfo=UTC)).timestamp()
    try:
        return int(wall_time) / 1000  # DatetimeMS
    except (TypeError, ValueError):
        return None
