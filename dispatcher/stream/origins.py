"""Decides which origin stamps count: a stamp counts once, for its own write.

Clients copy documents together with their stamps: they insert deleted documents again, restore exports, and `$set`
whole documents that they have read. If a stamp counted for another write, it would hide this write from receivers.
So a doubtful stamp does not count, and the write is delivered. In this module, a token is the id in a stamp (not a
resume token). It begins with the time at which the stamp was made.

A write may wait for a lock that a transaction holds, or for a server that stalls. Then its stamp comes late. This
stamp can't be a copy if it is on the document for which it was made, is the first with its token, and is not older
than the remembered tokens. The write is then delivered to all receivers that the stamp does not claim, and the
delivery id comes from the stamp. So receivers that ran in the writing process without a claim get the write again.

The decision depends on the times in the events, not on the clock of this machine.
"""

from datetime import UTC, datetime
from typing import Any, Final

from dispatcher.core.events import CALLED, Change
from mongoz.stamps import Call, Stamp, key_hash

# Maximum seconds between the time of a token and the time of its write. These times are close, because the ODM
# takes the time of a token from its estimate of the server's clock, and sends the write immediately.
_WINDOW: Final = 10

# The resolution of a token, in seconds.
_RESOLUTION: Final = 1

# Maximum seconds of a transaction: the server aborts a longer one. The writes of a transaction have the time of
# its commit.
_TRANSACTION: Final = 60

HORIZON: Final = 75
"""At its start, a reader first reads the tokens of this many seconds before the position. If the clocks agree,
the reader needs no earlier tokens: a copy that is made more than `HORIZON` seconds after its original does not
count."""

# A token matters until 75 s after its own time. By the server's clock, its write may be 10 s older than the token.
_REMEMBERED: Final = HORIZON + _RESOLUTION + _WINDOW + _RESOLUTION

_NO_RECEIVERS: Final[frozenset[bytes]] = frozenset()

# Maximum number of tokens in a generation: about 25 MB.
_MOST: Final = 250_000


class SeenTokens:
    """Remembers the tokens of the last minutes in two generations. The older generation is forgotten as a whole.

    A generation with too many tokens is forgotten early. After that, a token is certainly new only if it is later
    than the forgotten tokens.
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
        """Remember a token. Returns whether the token is certainly new.

        Args:
            token: the token of a stamp; it begins with its time in seconds.
            wall: the event's wall time in seconds.
        """
        if self._began is None or abs(wall - self._began) >= _REMEMBERED or len(self._recent) >= _MOST:
            self._next_generation(wall)
        if wall < self._doubtful_until:  # the server's clock was set back; all tokens since then are remembered
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
    """Judges the stamps of the changes of one stream, in the order of the stream.

    Args:
        group: the group of dispatchers; stamps of other groups do not count.
        paired: whether deletes already have the stamps of their markers. If so, markers do not count.

    Attributes:
        seen: the tokens of the last stamps.
        since: a time in seconds since 1970. The stamps of all later changes were seen.
    """

    def __init__(self, group: str, *, paired: bool = False) -> None:
        self._group = group
        self._paired = paired
        self.seen = SeenTokens()
        self.since = 0.0

    def remember(self, stamp: Stamp | None, wall_time: Any) -> bool:
        """Remember a stamp. Returns whether it belongs to this group and is new."""
        return self._add(stamp, _seconds(wall_time))

    def _add(self, stamp: Stamp | None, wall: float | None) -> bool:
        if stamp is None or wall is None or stamp.group != self._group:
            return False
        return self.seen.add(stamp.token.binary, wall)

    def judge(self, change: Change) -> Change:  # noqa: PLR0911 - one return for each reason
        """Return the change, with its origin if its stamp counts. The operation of a marker becomes `"marker"`.

        Call this once for each change of the stream with a stamp, even if the change is not delivered.
        """
        stamp = change.stamp
        if self._paired and stamp is not None and stamp.call is Call.DELETED and change.operation != "delete":
            return change
        wall = None if stamp is None else _seconds(change.wall_time)
        if stamp is None or wall is None or not self._add(stamp, wall) or not _is_its_own(stamp, change):
            return change
        operation = "update" if change.operation == "untouched" else change.operation
        if _is_marker(stamp, change):
            operation = "marker"
        elif (operation, stamp.call) not in CALLED:
            return change
        made = int.from_bytes(stamp.token.binary[:4], "big")
        latest = _WINDOW + _RESOLUTION + (_TRANSACTION if change.transaction is not None else 0)
        if -_WINDOW <= wall - made <= latest:
            return change._replace(operation=operation, origin=stamp, context=stamp.context)
        if latest < wall - made <= HORIZON and made >= self.since:
            claimed = _NO_RECEIVERS if stamp.claim is None else stamp.claim.receivers
            if claimed and claimed == stamp.receivers:  # the claim tells whether the receivers have run
                return change._replace(operation=operation, origin=stamp, context=stamp.context)
            in_doubt, id_ = stamp._replace(receivers=claimed, muted=False), str(stamp.token)
            return change._replace(operation=operation, origin=in_doubt, delivery_id=id_, context=stamp.context)
        return change


def _is_its_own(stamp: Stamp, change: Change) -> bool:
    """Returns whether a stamp was made for the document of the change."""
    try:
        return stamp.key == key_hash(".".join(change.namespace), change.id)
    except Exception:  # the application's codec decodes the id to a type that BSON can't encode
        return False


def _is_marker(stamp: Stamp, change: Change) -> bool:
    """Returns whether an update may announce a delete: it changes the stamp and nothing else, in a transaction."""
    return change.operation == "untouched" and stamp.call is Call.DELETED and change.transaction is not None


def _seconds(wall_time: Any) -> float | None:
    """Seconds since 1970. Codec options decide the type of a decoded date."""
    if isinstance(wall_time, datetime):
        return (wall_time if wall_time.tzinfo else wall_time.replace(tzinfo=UTC)).timestamp()
    try:
        return int(wall_time) / 1000  # DatetimeMS
    except (TypeError, ValueError):
        return None
