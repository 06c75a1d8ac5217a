"""Decides whether a claim is done, must wait or is taken over, and when its process counts as dead. No I/O.

Before a dispatcher takes over the claims of a process, it *fences* the book of the process with one write. The
write succeeds only if the document still has the beat that the dispatcher saw. No later beat changes a fenced
book, so all dispatchers decide alike from then on.

Clocks of different machines are never compared. The dispatcher measures the timeout from the moment at which it
saw a beat for the first time. The process measures the timeout from the moment before it sent the beat, see
`mongoz/claims/book.py`.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from mongoz.claims.document import BookState, is_within

TAKEN: Final = 0.8
"""The part of the timeout after which a book without a new beat is fenced."""


class ClaimVerdict(StrEnum):
    """The decision about one claim."""

    DONE = "done"
    """The process has finished the deliveries."""

    WAIT = "wait"
    """The process may still make the deliveries."""

    TAKE = "take"
    """The process starts none of the deliveries any more. A dispatcher makes them."""


# Python looks up `DONE` ten times as fast as `ClaimVerdict.DONE`, and does so several times for each write.
DONE: Final = ClaimVerdict.DONE
WAIT: Final = ClaimVerdict.WAIT
TAKE: Final = ClaimVerdict.TAKE


def verdict_of(state: BookState | None, number: int, *, is_dead: bool = False) -> ClaimVerdict:
    """Decide about a claim.

    Args:
        state: the book of the process; None if its document is missing or malformed.
        number: the number of the claim.
        is_dead: whether the document has been missing or malformed for the whole timeout.
    """
    if state is None:
        return TAKE if is_dead else WAIT
    high, open_, released = state.claims
    if number in released:
        return TAKE
    if number <= high and not (open_ and is_within(number, open_)):
        return DONE
    return TAKE if state.fenced else WAIT


class _Sighting(NamedTuple):
    """The last beat that was seen in a book.

    Attributes:
        beat: the number of the beat; None if the document of the book is missing or malformed.
        seconds: the timeout of the book.
        since: the time at which this process saw the beat for the first time.
    """

    beat: int | None
    seconds: float
    since: float


class Sightings:
    """Measures how long each book has been without a new beat, by the clock of this process.

    Args:
        timeout: the minimum timeout of a book, in seconds. It also applies to a book whose document is missing.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._seen: dict[bytes, _Sighting] = {}

    def note(self, incarnation: bytes, state: BookState | None, at: float) -> None:
        """Record the state of a book.

        Args:
            incarnation: the incarnation of the book.
            state: the book as it was read; None if its document is missing or malformed.
            at: the time after the read.
        """
        before = self._seen.get(incarnation)
        if state is not None:
            beat, seconds = state.beat, max(state.seconds, self._timeout)
        else:  # keep the timeout that an earlier read of the book has shown
            beat, seconds = None, self._timeout if before is None else before.seconds
        if before is None or before.beat != beat:
            self._seen[incarnation] = _Sighting(beat, seconds, at)

    def is_silent(self, incarnation: bytes, now: float) -> bool:
        """Whether a book has had no new beat for so long that it may be fenced.

        A silent book without a document can't be fenced. Its process counts as dead.
        """
        seen = self._seen.get(incarnation)
        if seen is None:
            return False
        return now - seen.since >= seen.seconds * (1.0 if seen.beat is None else TAKEN)

    def forget(self, incarnation: bytes) -> None:
        """Forget a book that has no claims to decide about."""
        self._seen.pop(incarnation, None)
