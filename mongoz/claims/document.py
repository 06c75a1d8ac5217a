"""The document of a book of claims, in the collection `claims` of the state database. No I/O.

A process writes the document, and dispatchers read it. `_id` is the incarnation: eight random bytes that identify
the book, in hexadecimal digits. The other fields:

    group       the group of dispatchers
    beat        a number that grows with each beat. A beat is a write of this document by its process
    beat_at     the server's time of the last beat
    seconds     the timeout: if there is no beat for four fifths of it, dispatchers take the open claims over
    high        the highest number that was given to a claim
    open        the numbers of the open claims, as a flat list of intervals: first, last, first, last, ...
    released    the numbers of the claims that the process has left to dispatchers
    receivers   the receivers of the process with `delivery="any"`: id, former (earlier ids), sender, signal, name;
                a receiver stays in this list after the application has disconnected it
    host, pid, started_at      the process
    fenced_at, fenced_by       when, and by whom ("process", "dispatcher" or "operator"), the book was ended; after
                               that, the document does not change any more

Every claim with a number up to `high` that is neither in `open` nor in `released` is done.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

__all__ = ["CLAIMS", "BookSnapshot", "BookState", "NamedReceiver", "intervals_of", "is_within"]

CLAIMS: Final = "claims"
"""The name of the collection."""


class NamedReceiver(NamedTuple):
    """A receiver that runs in the writing process, and that a dispatcher can take over.

    Attributes:
        id: the id in stamps.
        former: the ids that the receiver had under earlier names.
        sender: the name of the document class.
        signal: the name of the signal.
        name: the name of the receiver.
    """

    id: bytes
    former: tuple[bytes, ...]
    sender: str
    signal: str
    name: str

    @property
    def ids(self) -> tuple[bytes, ...]:
        """The present id and the earlier ids."""
        return (self.id, *self.former)


class BookSnapshot(NamedTuple):
    """The claims of a book at one moment.

    Attributes:
        high: the number of the newest claim; 0 if there is no claim yet.
        open: the numbers of the open claims: first and last number of each interval, one after another.
        released: the numbers of the released claims.
    """

    high: int = 0
    open: tuple[int, ...] = ()
    released: Collection[int] = ()


class BookState(NamedTuple):
    """A book of claims, as dispatchers read it from its document.

    Attributes:
        beat: a number that grows with each beat.
        seconds: the timeout.
        claims: the claims at the time of the last beat.
        receivers: the receivers that can be taken over.
        fenced: the book was ended, so its document does not change any more.
    """

    beat: int
    seconds: float
    claims: BookSnapshot
    receivers: tuple[NamedReceiver, ...] = ()
    fenced: bool = False

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "BookState | None":
        """Read a document; None if it is malformed, for example edited by hand."""
        try:
            beat, seconds = document["beat"], float(document["seconds"])
            claims = BookSnapshot(document["high"], tuple(document["open"]), frozenset(document["released"]))
            receivers = tuple(
                NamedReceiver(
                    bytes(one["id"]), tuple(map(bytes, one["former"])), one["sender"], one["signal"], one["name"]
                )
                for one in document["receivers"]
            )
        except (KeyError, TypeError, ValueError):
            return None
        numbers = (beat, claims.high, *claims.open, *claims.released)
        if not all(type(number) is int for number in map(_as_int, numbers)) or not 0 < seconds < float("inf"):
            return None
        if len(claims.open) % 2 or list(claims.open) != sorted(claims.open):
            return None
        return cls(beat, seconds, claims, receivers, document.get("fenced_at") is not None)


def _as_int(value: object) -> object:
    """Convert an integer of the driver, which may be an Int64, to a plain int. Other values stay unchanged."""
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def intervals_of(numbers: Iterable[int]) -> tuple[int, ...]:
    """The numbers as intervals: first, last, first, last, ...

    Args:
        numbers: without repetitions, in any order.
    """
    flat: list[int] = []
    for number in sorted(numbers):
        if flat and flat[-1] == number - 1:
            flat[-1] = number
        else:
            flat += (number, number)
    return tuple(flat)


def is_within(number: int, intervals: tuple[int, ...]) -> bool:
    """Whether a number is in one of the intervals."""
    place = bisect_right(intervals, number)
    return place % 2 == 1 or (place > 0 and intervals[place - 1] == number)
