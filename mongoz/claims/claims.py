"""The claims of one registry: the present book, the thread that records it, and the count of unclaimed writes.

A process begins to claim at its first stamped write. While the book is not valid, writes wait for a beat, but not
for long: see `mongoz/claims/wait.py`. So a write is claimed even if it is the only write of a script. The first
write after a pause of the process is claimed too, and so is the first write after a dispatcher has fenced the
book.
"""

import atexit
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any, Final
from weakref import WeakSet

from mongoz.claims.beats import BeatThread, Bell, BookRecorder, ClaimRefusal
from mongoz.claims.book import Book, OpenClaim
from mongoz.claims.document import NamedReceiver
from mongoz.claims.wait import BeatWait

__all__ = ["TIMEOUT", "Claims"]

TIMEOUT: Final = 15.0
"""Default of the timeout, in seconds."""

_UNNAMED: Final = ClaimRefusal(
    "new receiver", "a receiver was connected after the last beat; the next beat names it"
)

_log: Final = logging.getLogger("mongoz.claims")

_used: WeakSet["Claims"] = WeakSet()

# The pids of `multiprocessing` children that close their claims when they end. A child inherits this set.
_closing: Final[set[int]] = set()


class Claims:
    """The claims of this process for one registry.

    Args:
        group: the group of dispatchers.
        state: the name of the state database.
        connect: opens a synchronous client for the thread.
        receivers: returns those receivers of the process that dispatchers can take over.
        seconds: the timeout of the books.

    Attributes:
        state: the name of the state database.
        refusal: the reason why the last attempt at a beat failed, or why this process may claim nothing. None if
            the last beat was acknowledged, or if there was no attempt.
        unclaimed: the number of writes with receivers that are not claimed, by cause.
    """

    def __init__(
        self,
        group: str,
        state: str,
        connect: Callable[[], Any],
        receivers: Callable[[], Iterable[NamedReceiver]],
        seconds: float = TIMEOUT,
    ) -> None:
        self.state = state
        self.unclaimed: Counter[str] = Counter()
        self._recorder = (group, state, connect, receivers)
        self._seconds = seconds
        self._lock = Lock()
        self._begin()

    def _begin(self) -> None:
        self._bell = Bell()
        self.book = self._new_book()
        self.refusal: ClaimRefusal | None = None
        self._pid = os.getpid()
        self._thread: BeatThread | None = None
        self._logged: set[str] = set()
        self._wait = BeatWait()

    def _new_book(self) -> Book:
        return Book(self._seconds, on_news=self._bell.ring)

    @property
    def is_ready(self) -> bool:
        """Whether a write can go on without waiting for a beat."""
        return self._pid == os.getpid() and (self.book.is_valid or self._wait.is_over)

    @property
    def is_running(self) -> bool:
        """Whether the thread was started, and `close` was not called after that."""
        return self._thread is not None

    async def prepare(self) -> None:
        """Start the thread if it does not run, and wait for a beat, for a short time."""
        if self._pid != os.getpid():  # a fork without a call of `leave_to_parent`
            self.leave_to_parent()
        if not self._start():
            self._bell.ring()  # end the pause of the thread: the machine may have slept, for example
        await self._wait.until(lambda: self.book.is_valid)

    def _start(self) -> bool:
        """Start the thread if it does not run. Returns whether it was started."""
        with self._lock:
            starts = self._thread is None or not self._thread.is_alive()
            if starts:
                _used.add(self)
                _close_with_child()
                group, state, connect, receivers = self._recorder
                self._thread = BeatThread(self, BookRecorder(group, state, connect, receivers), self._bell)
                self._thread.start()
            return starts

    def note_attempt(self, refusal: ClaimRefusal | None) -> None:
        """Record the end of an attempt at a beat. Without a refusal, the beat was acknowledged."""
        self.refusal = refusal
        if refusal is None:
            self._wait.end_outage()
        elif not refusal.is_passing:
            self._wait.give_up()

    def claim(self, covered: frozenset[Any], *, is_whole: bool) -> OpenClaim | None:
        """A new claim; None if the process can't claim now. If receivers stay unclaimed, the cause is counted.

        Args:
            covered: those receivers of the write that a beat has named.
            is_whole: `covered` has all receivers of the write that dispatchers can take over.
        """
        claim = self.book.claim(covered) if covered else None
        if claim is None:
            self._note_unclaimed(self._cause(covered))
        elif not is_whole:
            self._note_unclaimed(_UNNAMED)
        return claim

    def _cause(self, covered: frozenset[Any]) -> ClaimRefusal:
        if self.refusal is not None:
            return self.refusal
        if self.book.is_valid:
            return ClaimRefusal("crowded", "too many claims are open") if covered else _UNNAMED
        return ClaimRefusal("no beat", "the state database has not acknowledged a beat in time")

    def _note_unclaimed(self, cause: ClaimRefusal) -> None:
        """Count a write with receivers that are lost if this process dies. Each cause is logged once."""
        self.unclaimed[cause.name] += 1
        if cause.name not in self._logged:
            self._logged.add(cause.name)
            _log.warning("receivers of writes are not protected against the death of this process: %s", cause.text)

    def replace_book(self) -> Book:
        """Begin a new incarnation with an empty book. End the book of the earlier incarnation, and return it."""
        before, self.book = self.book, self._new_book()
        before.end()
        return before

    def leave_to_parent(self) -> None:
        """In a forked child: begin anew. The claims so far belong to the parent process."""
        self.book.leave_to_parent()
        self._lock = Lock()
        self._begin()

    def close(self) -> None:
        """Record the end of the book, and stop the thread. A later write begins a new incarnation."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            thread.stop()
        self.book.end()
        self._wait = BeatWait()


def _close_all() -> None:
    for claims in list(_used):
        claims.close()


def _close_with_child() -> None:
    """In a child of `multiprocessing`: close all claims at its end. Such a child runs no functions of `atexit`."""
    multiprocessing: Any = sys.modules.get("multiprocessing")
    if multiprocessing is None or multiprocessing.parent_process() is None or os.getpid() in _closing:
        return
    _closing.add(os.getpid())
    multiprocessing.util.Finalize(None, _close_all, exitpriority=0)


def _leave_all_to_parent() -> None:
    for claims in list(_used):
        claims.leave_to_parent()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_leave_all_to_parent)
