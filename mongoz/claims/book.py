"""A book: the claims of one incarnation of this process, their numbers, and how they end. No I/O.

When a book is over, for example because a dispatcher has fenced it, the process begins a new incarnation, with a
new book. A forked child begins a new incarnation too.

A claim is open until it ends. It ends as *done* when its receivers have run, or when its write certainly did not
take effect. In all other cases it ends as *released*: then dispatchers run its receivers without waiting for the
timeout. If Python deletes the object of an open claim, the claim is released, too. So an exception, a closed event
loop or a forgotten case can't make a claim disappear.

The process records its book in the state database from time to time (a beat). A book is *valid* for three quarters
of its timeout, counted from the moment before its last acknowledged beat was sent. When dispatchers see no beat
for four fifths of the timeout, they take the open claims over. They count from the moment at which they saw the
last beat, and they see a beat only after the process has sent it. So no receiver starts in this process after a
dispatcher has taken its claim over.
"""

import secrets
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any, Final

from mongoz.claims.document import BookSnapshot, intervals_of
from mongoz.uptime import now

__all__ = ["HELD", "MOST_OPEN", "MOST_RELEASED", "Book", "OpenClaim"]

HELD: Final = 0.75
"""The part of the timeout for which a beat is valid, counted from the moment before the beat was sent."""

MOST_RELEASED: Final = 1_000
"""Maximum number of released claims. A book keeps every released claim, so a book with too many is ended."""

MOST_OPEN: Final = 100_000
"""Maximum number of open claims. The intervals of their numbers must fit into one document."""


class Book:
    """The claims of one incarnation.

    Args:
        seconds: the timeout.
        clock: returns seconds. The clock can't be set, and also counts the time in which the machine sleeps.
        on_news: called when a beat should be sent soon, because dispatchers may wait for it: the last open claim
            is done, or a claim is released. Between two snapshots it is called once at most, by any thread or
            finalizer. If `on_news` is None, nothing is called.

    Attributes:
        incarnation: eight random bytes.
        named: the ids of the receivers that the last acknowledged beat has named.
        is_over: no receiver of this incarnation starts any more.
        is_paused: no further claim begins. The present claims go on.
    """

    __slots__ = (
        "_clock",
        "_has_told",
        "_high",
        "_lock",
        "_on_news",
        "_open",
        "_released",
        "_valid_until",
        "incarnation",
        "is_over",
        "is_paused",
        "named",
        "seconds",
    )

    def __init__(
        self, seconds: float, clock: Callable[[], float] = now, on_news: Callable[[], None] | None = None
    ) -> None:
        self.incarnation = secrets.token_bytes(8)
        self.seconds = seconds
        self.named: frozenset[bytes] = frozenset()
        self.is_over = False
        self.is_paused = False
        self._clock = clock
        self._valid_until = float("-inf")
        self._lock = Lock()
        self._high = 0
        self._open: set[int] = set()
        # Appended without the lock: a finalizer can append while its own thread holds the lock.
        self._released: deque[int] = deque()
        self._on_news = on_news
        self._has_told = on_news is None

    @property
    def is_valid(self) -> bool:
        """Whether receivers may start now.

        If a book with an acknowledged beat is found invalid, it is over for ever.
        """
        if self.is_over:
            return False
        if self._clock() < self._valid_until:
            return True
        self.is_over = self.is_known
        return False

    @property
    def is_known(self) -> bool:
        """Whether a beat was acknowledged."""
        return self._valid_until > 0

    @property
    def has_open(self) -> bool:
        """Whether there are open claims."""
        return bool(self._open)

    @property
    def high(self) -> int:
        """The number of the newest claim; 0 if there was none."""
        return self._high

    @property
    def released(self) -> int:
        """The number of released claims."""
        return len(self._released)

    def acknowledge(self, sent: float, named: frozenset[bytes]) -> None:
        """Record that a majority has acknowledged a beat.

        Args:
            sent: the time just before the beat was sent, by the clock of the book.
            named: the ids of the receivers that the beat named.
        """
        if self.is_known and not self.is_valid:  # too late: dispatchers may have taken the claims over
            return
        if named != self.named:
            # An equal set stays the same object, because `persistence/origin.py` compares it with `is`.
            self.named = named
        self._valid_until = max(self._valid_until, sent + HELD * self.seconds)

    def claim(self, covered: frozenset[Any] = frozenset()) -> "OpenClaim | None":
        """A new claim; None if the book is not valid, is paused, or has too many open claims.

        Args:
            covered: the claimed receivers.
        """
        if self.is_paused or not self.is_valid or len(self._open) >= MOST_OPEN:
            return None
        with self._lock:  # a snapshot with this number in `high` must also have it in `open`
            self._high = number = self._high + 1
            self._open.add(number)
        return OpenClaim(self, number, covered)

    def snapshot(self) -> BookSnapshot:
        """The claims at this moment. Any thread may call this."""
        self._has_told = self._on_news is None  # reset before the claims are read, so that no news is missed
        with self._lock:
            high, open_ = self._high, list(self._open)
        # The released claims are read after the open claims. So a claim that is released between the two reads is
        # in both lists, and is never missing. The deque is copied first, because making a tuple may run
        # finalizers, which append to it.
        return BookSnapshot(high, intervals_of(open_), tuple(self._released.copy()))

    def end(self) -> None:
        """Start no receiver of this incarnation any more."""
        self.is_over = True

    def leave_to_parent(self) -> None:
        """In a forked child: the claims belong to the parent process."""
        self.is_over = True
        self._lock = Lock()  # another thread of the parent may have held it

    def finish(self, number: int) -> None:
        """Record that a claim is done."""
        self._open.discard(number)
        if not (self._has_told or self._open):
            self._tell()

    def release(self, number: int) -> None:
        """Record that a claim is left to dispatchers."""
        self._released.append(number)
        self._open.discard(number)
        if not self._has_told:
            self._tell()

    def _tell(self) -> None:
        self._has_told = True
        if self._on_news is not None:
            self._on_news()


class OpenClaim:
    """One claim, from its number to its end. If Python deletes the object before the end, the claim is released.

    Attributes:
        covered: the claimed receivers. Other receivers of the same write are not taken over.
    """

    __slots__ = ("_is_ended", "book", "covered", "number")

    def __init__(self, book: Book, number: int, covered: frozenset[Any] = frozenset()) -> None:
        self.covered = covered
        self.book = book
        self.number = number
        self._is_ended = False

    @property
    def packed(self) -> bytes:
        """The incarnation and the number, for the stamp."""
        return self.book.incarnation + self.number.to_bytes(8, "big")

    @property
    def may_start(self) -> bool:
        """Whether a receiver of this claim may start in this process. Otherwise a dispatcher runs the receiver."""
        return not self._is_ended and self.book.is_valid

    def done(self) -> None:
        """End the claim: the receivers have run, or the write certainly did not take effect."""
        if not self._is_ended:
            self._is_ended = True
            self.book.finish(self.number)

    def release(self) -> None:
        """Leave the claimed receivers to dispatchers, unless the claim has ended."""
        if not self._is_ended:
            self._is_ended = True
            self.book.release(self.number)

    def __del__(self) -> None:
        self.release()
