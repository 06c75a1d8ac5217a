"""Beats: a thread with its own client records the book of this process in the state database.

Usually the time from one beat to the next is a fifth of the timeout of the book (see `mongoz/claims/book.py`).
While claims are open, or while dispatchers can't know yet that all claims are done, this time is a fifteenth of
the timeout. A beat comes even earlier when the last open claim is done, or when a claim is released, because
dispatchers may hold deliveries back until they read that beat. Two beats are at least a thirtieth of the timeout
apart, so many writes do not cause many beats.

The thread is independent of event loops: a receiver that blocks its loop does not stop the beats. Between two
beats the thread has only a weak reference to the claims, so the thread ends when the registry of the claims is
gone.
"""

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, Protocol
from weakref import ref

import pymongo
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from mongoz.claims.book import MOST_RELEASED, Book
from mongoz.claims.document import CLAIMS, BookSnapshot, NamedReceiver
from mongoz.uptime import now

__all__ = ["BeatPause", "BeatThread", "Bell", "BookRecorder", "ClaimRefusal", "Recorded", "pause_after"]

# Collections of the dispatcher.
_POSITIONS: Final = "positions"  # with the layout of the group
_MEMBERS: Final = "members"
_UNAUTHORIZED: Final = 13

# Maximum number of ended books whose end is not recorded yet. Dispatchers notice an unrecorded end only when no
# more beats come.
_MOST_ENDED: Final = 10

# Maximum seconds for recording the end of the last book.
_LAST_BEAT: Final = 2.0


class ClaimRefusal(NamedTuple):
    """A reason why this process claims nothing now.

    Attributes:
        name: the name of the reason, for counters.
        text: the reason in a sentence, for people.
        is_passing: whether the next beat may succeed. If so, a write may wait for that beat.
    """

    name: str
    text: str
    is_passing: bool = False


class Recorded(Protocol):
    """The claims that a thread records."""

    book: Book

    def note_attempt(self, refusal: ClaimRefusal | None) -> None:
        """Record the end of an attempt at a beat. Without a refusal, the beat was acknowledged."""

    def replace_book(self) -> Book:
        """Begin a new incarnation with an empty book. End the book of the earlier incarnation, and return it."""


class BeatPause(NamedTuple):
    """The limits of the time until the next beat, in seconds.

    Attributes:
        least: no beat comes earlier than this after the start of the last beat.
        settled: after the bell has rung, the beat waits this long, because the bell often rings again soon.
        most: if the bell does not ring, the beat comes this long after the start of the last beat.
    """

    least: float
    settled: float
    most: float


def pause_after(seconds: float, *, is_waiting: bool) -> BeatPause:
    """The limits of the time until the next beat.

    Args:
        seconds: the timeout of the book.
        is_waiting: whether claims are open, or dispatchers can't know yet that all claims are done.
    """
    return BeatPause(seconds / 30, seconds / 300, seconds / (15 if is_waiting else 5))


class Bell:
    """Wakes the thread of the beats.

    A finalizer may interrupt `ring`, and call it again in the same thread. With a lock, the second call would wait
    for ever. So the bell uses a `SimpleQueue`: its `put` may be called again while it runs.
    """

    def __init__(self) -> None:
        self._rung: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        """Wake the thread."""
        self._rung.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait for the bell, for at most `seconds`. Returns whether the bell was rung."""
        try:
            self._rung.get(timeout=max(0.0, seconds))
        except Empty:
            return False
        with suppress(Empty):
            while True:
                self._rung.get_nowait()
        return True


class BookRecorder:
    """Writes books to the state database.

    Args:
        group: the group of dispatchers.
        state: the name of the state database.
        connect: opens a synchronous client.
        receivers: returns the receivers that dispatchers can take over from this process.
    """

    def __init__(
        self, group: str, state: str, connect: Callable[[], Any], receivers: Callable[[], Iterable[NamedReceiver]]
    ) -> None:
        self._group = group
        self._state = state
        self._connect = connect
        self._receivers = receivers
        self._client: Any = None
        self._is_announced = False
        self._beat = 0
        self._recorded = BookSnapshot()  # the claims in the last acknowledged beat
        self._named: tuple[NamedReceiver, ...] = ()
        self._ended: deque[Book] = deque(maxlen=_MOST_ENDED)
        self._started_at = datetime.now(UTC)
        self._book: Book | None = None

    def record(self, claims: Recorded) -> BeatPause:
        """Record the present book. Returns the limits of the time until the next beat."""
        book = claims.book
        seconds = book.seconds
        with pymongo.timeout(seconds / 3):
            try:
                refusal = self._look_at_dispatchers()
                if refusal is not None:
                    # Note the reason before the book pauses: unclaimed writes are counted under the noted reason.
                    claims.note_attempt(refusal)
                    if self._book is None:
                        return pause_after(seconds, is_waiting=False)
                self._write_present(claims, is_paused=refusal is not None)
                if refusal is None:
                    claims.note_attempt(None)
                while self._ended:
                    self._write_end(self._ended[0])
                    self._ended.popleft()
            except Exception as error:  # errors of any type: the next beat may succeed
                claims.note_attempt(_refusal_of(error, self._state))
                return pause_after(seconds, is_waiting=True)
        book = claims.book
        is_waiting = book.is_over or book.has_open or book.snapshot() != self._recorded
        return pause_after(seconds, is_waiting=is_waiting)

    def _write_present(self, claims: Recorded, *, is_paused: bool) -> None:
        """Write a beat of the present book. If the book is over, begin a new one, and write its first beat."""
        if not self._is_over(claims.book):
            self._write_book(claims.book, is_paused=is_paused)
        if self._is_over(claims.book):
            self._ended.append(claims.replace_book())
            self._beat = 0
            self._write_book(claims.book, is_paused=is_paused)

    def _write_book(self, book: Book, *, is_paused: bool) -> None:
        self._book, book.is_paused = book, is_paused
        self._write(book)

    def finish(self) -> None:
        """Record the end of the last book, and close the client."""
        if self._book is not None:
            self._book.end()
            # After an error here, dispatchers notice the end because no more beats come.
            with suppress(Exception), pymongo.timeout(_LAST_BEAT):
                self._write_end(self._book)
        if self._client is not None:
            self._client.close()

    def _is_over(self, book: Book) -> bool:
        if book.released > MOST_RELEASED:
            book.end()
        return not book.is_valid and book.is_over

    @property
    def _collection(self) -> Any:
        return self._database.get_collection(CLAIMS, write_concern=WriteConcern("majority"))

    @property
    def _database(self) -> Any:
        if self._client is None:
            self._client = self._connect()
        return self._client[self._state]

    def _look_at_dispatchers(self) -> ClaimRefusal | None:
        """The reason why nothing may be claimed now, or None.

        Before a dispatcher has announced takeovers, no dispatcher takes claims over. A dispatcher of a version
        without claims would deliver a claimed change again.
        """
        if not self._is_announced:
            layout = self._newest_of(_POSITIONS).find_one({"_id": self._group}, {"claims": 1})
            self._is_announced = layout is not None and bool(layout.get("claims"))
        if not self._is_announced:
            return _not_announced(self._group, self._state)
        earlier = {"group": self._group, "claims": {"$ne": True}}
        found = self._newest_of(_MEMBERS).find_one(earlier, {"host": 1, "pid": 1})
        return None if found is None else _is_earlier(self._group, found)

    def _newest_of(self, name: str) -> Any:
        return self._database.get_collection(
            name, read_concern=ReadConcern("majority"), read_preference=ReadPreference.PRIMARY
        )

    def _write(self, book: Book) -> None:
        """Write a beat. If the document of the book is fenced or missing, end the book."""
        self._beat += 1
        # The receivers of earlier beats stay in the list: an open claim, or a write that is being prepared, may
        # have a receiver that the application has disconnected.
        receivers = tuple(dict.fromkeys((*self._named, *self._receivers())))
        taken = book.snapshot()
        sent = now()
        update: dict[str, Any] = {
            "$set": {
                "beat": self._beat,
                "high": taken.high,
                "open": list(taken.open),
                "released": list(taken.released),
            },
            "$currentDate": {"beat_at": True},
        }
        if receivers != self._named or not book.is_known:
            update["$set"]["receivers"] = [_fields_of(one) for one in receivers]
        if not book.is_known:
            update["$setOnInsert"] = self._identity(book)
        id_ = book.incarnation.hex()
        condition = {"_id": id_, "fenced_at": {"$exists": False}, "beat": {"$lt": self._beat}}
        try:
            result = self._collection.update_one(condition, update, upsert=not book.is_known)
        except DuplicateKeyError:  # the answer to the first beat got lost, and then the book was fenced
            book.end()
            return
        if not (result.matched_count or result.upserted_id):
            book.end()
            return
        self._named, self._recorded = receivers, taken
        book.acknowledge(sent, frozenset(id_ for one in receivers for id_ in one.ids))

    def _write_end(self, book: Book) -> None:
        """Fence a book of this process, so that dispatchers take its open claims over without waiting."""
        taken = book.snapshot()
        fields = {"high": taken.high, "open": list(taken.open), "released": list(taken.released)}
        condition = {"_id": book.incarnation.hex(), "fenced_at": {"$exists": False}}
        update = {
            "$set": {**fields, "fenced_by": "process"},
            "$currentDate": {"fenced_at": True},
        }
        self._collection.update_one(condition, update)

    def _identity(self, book: Book) -> dict[str, Any]:
        return {
            "group": self._group,
            "seconds": book.seconds,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": self._started_at,
        }


def _fields_of(receiver: NamedReceiver) -> dict[str, Any]:
    return {**receiver._asdict(), "former": list(receiver.former)}


def _not_announced(group: str, state: str) -> ClaimRefusal:
    text = (
        f"no dispatcher of the group {group!r} has announced takeovers in the state database {state!r}. Start a "
        "dispatcher of a version with claims. If the dispatchers use another state database, give its name: "
        "Registry(..., state=...)."
    )
    return ClaimRefusal("not announced", text)


def _is_earlier(group: str, member: Mapping[str, Any]) -> ClaimRefusal:
    text = (
        f"a dispatcher of the group {group!r} is of a version without claims, and would call claimed receivers "
        f"again: pid {member.get('pid')} on {member.get('host')}. Replace it."
    )
    return ClaimRefusal("earlier dispatcher", text)


def _refusal_of(error: Exception, state: str) -> ClaimRefusal:
    if isinstance(error, OperationFailure) and error.code == _UNAUTHORIZED:
        text = (
            f"the database user of this process may not record claims in the state database {state!r}: "
            f"{_message_of(error)}. Grant the rights that `dispatcher check APP --role` prints for the "
            "application."
        )
        return ClaimRefusal("unauthorized", text)
    text = f"the state database {state!r} can't be written now: {error}"
    return ClaimRefusal("no beat", text, is_passing=True)


def _message_of(error: OperationFailure) -> str:
    """The server's message, without the command that it repeats."""
    return str((error.details or {}).get("errmsg", error)).partition(" to execute command")[0]


class BeatThread(threading.Thread):
    """Records the book of the claims from time to time, until the claims are gone or closed."""

    def __init__(self, claims: Recorded, recorder: BookRecorder, bell: Bell) -> None:
        super().__init__(name="mongoz-claims", daemon=True)
        self._claims = ref(claims)
        self._recorder = recorder
        self._bell = bell
        self._stopping = threading.Event()

    def run(self) -> None:
        """Beat until the claims are gone or closed."""
        while not self._stopping.is_set():
            claims = self._claims()
            if claims is None:
                break
            began = now()
            pause = self._recorder.record(claims)
            del claims
            self._rest(began, pause)
        self._recorder.finish()

    def _rest(self, began: float, pause: BeatPause) -> None:
        """Wait until the next beat is due.

        Args:
            began: the time at which the last beat began.
            pause: the limits of the time until the next beat.
        """
        self._stopping.wait(max(0.0, began + pause.least - now()))
        if self._bell.wait(began + pause.most - now()):
            self._stopping.wait(pause.settled)

    def stop(self) -> None:
        """Make the thread record the end of the book and then end. Wait a short time for the thread."""
        self._stopping.set()
        self._bell.ring()
        self.join(_LAST_BEAT + 0.5)
