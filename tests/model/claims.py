"""Simulates processes that write with claims, the documents of their books, and the dispatchers, all with faults.

Each seed is one run.

Each claim is for one write with one receiver. The faults:

    beats         land late, out of order, never, without an answer, or with a late answer
    processes     are killed, stopped for a while (their clocks go on), cut off from the state
    writes        do not take effect, or have an unknown outcome; calls are torn by the end of their event loop
    dispatchers   are killed, and forget what they saw; are stopped before they fence
    books         disappear: their documents in the state are removed

Afterwards all faults end. `Simulation.run` returns every violation of this promise: a claimed delivery that the
process did not finish is taken over, no delivery starts in the process after its takeover, and no delivery is made
twice unless the process had a fault.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from dispatcher.claims.verdict import ClaimVerdict, Sightings, verdict_of
from mongoz.claims.book import Book, OpenClaim
from mongoz.claims.document import BookSnapshot, BookState

__all__ = ["Faults", "Rules", "Simulation"]

SECONDS = 15.0

Decide = Callable[..., ClaimVerdict]


def accepts_beat(document: dict[str, Any], beat: int) -> bool:
    return document.get("fenced_at") is None and document["beat"] < beat


def accepts_fence(document: dict[str, Any], seen: int) -> bool:
    return document.get("fenced_at") is None and document["beat"] == seen


@dataclass(frozen=True)
class Rules:
    """The rules of processes and dispatchers. The defaults are right; a test replaces one of them by a wrong rule.

    Attributes:
        book: the class of books.
        decide: the decision about a claim.
        beat: whether a document accepts a beat.
        fence: whether a document accepts a fence.
        valid_since: the time from which a beat is valid: its sending or its acknowledgement.
        patience: 1.0 if dispatchers fence at the right time; 0.6 if they fence too early, by 0.4 of the timeout.
        clock_stops: whether the clock of a process stops with the process.
        checks: whether a process checks before each receiver that its book is valid.
        releases: whether a torn call releases its claim.
    """

    book: type[Book] = Book
    decide: Decide = verdict_of
    beat: Callable[[dict[str, Any], int], bool] = accepts_beat
    fence: Callable[[dict[str, Any], int], bool] = accepts_fence
    valid_since: Callable[[float, float], float] = lambda sent, acknowledged: sent
    patience: float = 1.0
    clock_stops: bool = False
    checks: bool = True
    releases: bool = True


@dataclass
class Faults:
    """How often each event happened, in one run or in many."""

    killed: int = 0
    stopped: int = 0
    beats_lost: int = 0
    answers_lost: int = 0
    torn: int = 0
    unknown: int = 0
    fenced: int = 0
    fences_refused: int = 0
    taken: int = 0
    done: int = 0
    left: int = 0
    missing: int = 0
    unclaimed: int = 0

    def add(self, other: "Faults") -> None:
        for name, times in vars(other).items():
            setattr(self, name, getattr(self, name) + times)


class Beat(NamedTuple):
    """A beat on its way."""

    process: "Process"
    book: Book
    number: int
    snapshot: BookSnapshot
    sent: float
    is_answered: bool


@dataclass(slots=True, eq=False)
class Write:
    """A stamped write.

    Attributes:
        claim: its open claim; None after its call has ended, or has left the receiver to a dispatcher.
        fenced: what a dispatcher decided last about the claim after its book was fenced; None before.
    """

    process: "Process"
    incarnation: bytes
    number: int
    claim: OpenClaim | None
    in_stream: bool = False
    began: float | None = None
    ended: float | None = None
    taken: float | None = None
    is_finished: bool = False
    fenced: ClaimVerdict | None = None


@dataclass(slots=True, eq=False)
class Process:
    """A writing process. `has_fault` allows repetitions of its deliveries."""

    book: Book
    alive: bool = True
    stopped_until: float = 0.0
    lag: float = 0.0
    beat: int = 0
    has_fault: bool = False
    cut_until: float = 0.0


@dataclass(slots=True, eq=False)
class Dispatcher:
    """A dispatcher, with the books as it has seen them."""

    sightings: Sightings
    seen: dict[bytes, BookState | None] = field(default_factory=dict)
    dead: set[bytes] = field(default_factory=set)
    alive: bool = True
    stopped_until: float = 0.0


class Simulation:
    """One run.

    Attributes:
        findings: the violations of the promise: `"lost"`, `"started after the takeover"`, `"twice"`, `"stuck"`,
            and `"not final"`: two decisions about one claim contradict each other.
    """

    def __init__(self, seed: int, rules: Rules | None = None) -> None:
        self.random = random.Random(seed)
        self.rules = rules or Rules()
        self.findings: set[str] = set()
        self.faults = Faults()
        self.time = 1_000.0
        self.documents: dict[bytes, dict[str, Any]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.writes: list[Write] = []
        self.ending = False
        self._bad_network = self.random.choice((0.0, 0.1, 0.5))
        self._slow = self.random.choice((0.1, 1.0, 8.0, 30.0))
        self.processes = [self._start() for _ in range(self.random.randint(1, 2))]
        self.dispatchers = [self._dispatcher() for _ in range(2)]

    def run(self) -> set[str]:
        """Take random steps, end all faults, and return the findings."""
        choose = self.random
        rare = [self._kill, self._stop, self._cut, self._tear, self._kill_dispatcher, self._stop_dispatcher]
        if choose.random() < 0.2:
            rare.append(self._remove_document)
        often = [self._write, self._write, self._land, self._receive, self._receive, self._end_receiver]
        for _ in range(choose.randint(40, 150)):
            self._advance(choose.expovariate(1 / choose.choice((0.05, 0.5, 2.0))))
            step = choose.choice(rare) if choose.random() < 0.06 else choose.choice(often)
            step()
        self._finish()
        return self.findings

    # Time

    def _advance(self, seconds: float) -> None:
        """Let time pass: beats and fences land, processes beat, dispatchers poll, each at its time."""
        until = self.time + seconds
        while self._events and self._events[0][0] <= until:
            at, _, event = heapq.heappop(self._events)
            self.time = max(self.time, at)
            event()
        self.time = until

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    def _clock_of(self, process: Process) -> float:
        return self.time - process.lag

    # Processes

    def _start(self) -> Process:
        process = Process(Book(SECONDS))
        process.book = self._new_book(process)
        self._at(self.time, partial(self._beat, process))
        return process

    def _new_book(self, process: Process) -> Book:
        return self.rules.book(SECONDS, lambda: self._clock_of(process))

    def _running(self) -> list[Process]:
        return [one for one in self.processes if self._can_act(one)]

    def _beat(self, process: Process) -> None:
        if not process.alive:
            return
        if process.stopped_until > self.time:
            self._at(process.stopped_until, partial(self._beat, process))
            return
        self._at(self.time + SECONDS / (15 if process.book.has_open else 5), partial(self._beat, process))
        if process.beat and not process.book.is_valid and process.book.is_over:
            process.book, process.beat = self._new_book(process), 0
            process.has_fault = True  # the claims of its earlier book may be repeated
        process.beat += 1
        delay, back = (self.random.expovariate(1 / (0.1 * self._slow)) for _ in range(2))
        is_answered = True
        if not self.ending:
            if process.cut_until > self.time or self.random.random() < self._bad_network:
                process.has_fault, is_answered = True, False
                self.faults.beats_lost += 1
                delay = self.random.uniform(0, 20) if self.random.random() < 0.4 else float("inf")
            elif self.random.random() < self._bad_network:
                process.has_fault, is_answered = True, False
                self.faults.answers_lost += 1
            elif self.random.random() < 0.1:
                back += self.random.uniform(0, 12)
        if delay + back > 1:  # a longer delay can make the book invalid
            process.has_fault = True
        beat = Beat(
            process, process.book, process.beat, process.book.snapshot(), self._clock_of(process), is_answered
        )
        self._at(self.time + delay, partial(self._land_beat, beat, back))

    def _land_beat(self, beat: Beat, back: float) -> None:
        incarnation = beat.book.incarnation
        if beat.number == 1 and incarnation not in self.documents:
            self.documents[incarnation] = {"beat": 0}
        document = self.documents.get(incarnation)
        is_accepted = document is not None and self.rules.beat(document, beat.number)
        if document is not None and is_accepted:
            high, open_, released = beat.snapshot
            claims = {"high": high, "open": list(open_), "released": list(released)}
            document.update(beat=beat.number, seconds=SECONDS, receivers=[], **claims)
        if beat.is_answered:
            self._at(self.time + back, partial(self._answer, beat, is_accepted))

    def _answer(self, beat: Beat, is_accepted: bool) -> None:
        process = beat.process
        if process.stopped_until > self.time:
            self._at(process.stopped_until, partial(self._answer, beat, is_accepted))
        elif is_accepted:
            beat.book.acknowledge(self.rules.valid_since(beat.sent, self._clock_of(process)), frozenset())
        else:
            process.has_fault = True
            beat.book.end()

    def _write(self) -> None:
        process = self._one(self._running())
        if process is None:
            return
        claim = process.book.claim()
        if claim is None:
            self.faults.unclaimed += 1
            return
        write = Write(process, process.book.incarnation, claim.number, claim)
        self.writes.append(write)

    def _land(self) -> None:
        """A write takes effect, or does not, or its outcome is unknown."""
        write = self._one([w for w in self.writes if not w.in_stream and w.claim is not None])
        if write is None or not self._can_act(write.process):
            return
        assert write.claim is not None
        fate = self.random.random()
        if fate < 0.1:
            write.claim.done()
            write.claim = None
        elif fate < 0.2:
            self.faults.unknown += 1
            write.in_stream = self.random.random() < 0.5
            write.claim.release()
            write.claim = None
        else:
            write.in_stream = True

    def _receive(self) -> None:
        write = self._one([w for w in self.writes if w.in_stream and w.claim is not None and w.began is None])
        if write is None or not self._can_act(write.process):
            return
        assert write.claim is not None
        if self.rules.checks and not write.claim.may_start:
            self.faults.left += 1
            write.claim = None  # dropped
            return
        write.began = self.time
        if write.taken is not None:
            self.findings.add("started after the takeover")

    def _end_receiver(self) -> None:
        write = self._one([w for w in self.writes if w.began is not None and w.claim is not None])
        if write is None or not self._can_act(write.process):
            return
        assert write.claim is not None
        write.ended = self.time
        write.claim.done()
        write.claim = None

    def _tear(self) -> None:
        """The event loop of a call ends."""
        write = self._one([w for w in self.writes if w.claim is not None])
        if write is None or not self._can_act(write.process):
            return
        self.faults.torn += 1
        write.process.has_fault = True
        assert write.claim is not None
        if not self.rules.releases:
            write.claim.done()
        write.claim = None

    def _can_act(self, process: Process) -> bool:
        return process.alive and process.stopped_until <= self.time

    def _kill(self) -> None:
        process = self._one([p for p in self.processes if p.alive])
        if process is not None:
            self.faults.killed += 1
            process.alive, process.has_fault = False, True
            self.processes.append(self._start())

    def _stop(self) -> None:
        process = self._one(self._running())
        if process is not None:
            self.faults.stopped += 1
            seconds = self.random.choice((1.0, 10.0, 14.0, 30.0))
            process.stopped_until, process.has_fault = self.time + seconds, True
            if self.rules.clock_stops:
                process.lag += seconds

    def _cut(self) -> None:
        process = self._one(self._running())
        if process is not None:
            process.cut_until, process.has_fault = self.time + self.random.uniform(1, 30), True

    def _remove_document(self) -> None:
        found = self._one(list(self.documents))
        if found is not None:
            self.faults.missing += 1
            del self.documents[found]
            for process in self.processes:
                if process.book.incarnation == found:
                    process.has_fault = True

    # Dispatchers

    def _dispatcher(self) -> Dispatcher:
        one = Dispatcher(Sightings(SECONDS))
        self._at(self.time + self.random.random(), partial(self._poll, one))
        return one

    def _kill_dispatcher(self) -> None:
        place = self.random.randrange(len(self.dispatchers))
        self.dispatchers[place].alive = False  # its fences may still land
        self.dispatchers[place] = self._dispatcher()

    def _stop_dispatcher(self) -> None:
        one = self.random.choice(self.dispatchers)
        one.stopped_until = self.time + self.random.uniform(1, 30)

    def _poll(self, one: Dispatcher) -> None:
        if not one.alive:
            return
        if one.stopped_until > self.time:
            self._at(one.stopped_until, partial(self._poll, one))
            return
        one.seen = {write.incarnation: None for write in self.writes if not write.is_finished}
        for incarnation in one.seen:
            document = self.documents.get(incarnation)
            one.seen[incarnation] = None if document is None else BookState.read(document)
        # The dispatcher may be stopped after it has read the documents.
        is_stopped = not self.ending and self.random.random() < 0.05
        pause = self.random.uniform(0, 30) if is_stopped else 0.0
        self._at(self.time + pause, partial(self._look, one, one.seen))
        self._at(self.time + pause + 1.0, partial(self._poll, one))

    def _look(self, one: Dispatcher, seen: dict[bytes, BookState | None]) -> None:
        """Fence silent books, and decide about claims."""
        for incarnation, state in seen.items():
            one.sightings.note(incarnation, state, self.time)
            early = SECONDS * (1 - self.rules.patience)
            if (state is None or not state.fenced) and one.sightings.is_silent(incarnation, self.time + early):
                delay = self.random.expovariate(1 / (0.1 * self._slow))
                if not self.ending and self.random.random() < 0.1:  # stopped before it sends the fence
                    delay += self.random.uniform(0, 30)
                beat = None if state is None else state.beat
                self._at(self.time + delay, partial(self._land_fence, one, incarnation, beat))
        self._judge(one)

    def _land_fence(self, one: Dispatcher, incarnation: bytes, seen: int | None) -> None:
        document = self.documents.get(incarnation)
        if seen is None:
            if document is None:
                one.dead.add(incarnation)
        elif document is not None and self.rules.fence(document, seen):
            self.faults.fenced += 1
            document["fenced_at"] = self.time
        else:
            self.faults.fences_refused += 1

    def _judge(self, one: Dispatcher) -> None:
        for write in self.writes:
            if not write.in_stream or write.incarnation not in one.seen:
                continue
            state, is_dead = one.seen[write.incarnation], write.incarnation in one.dead
            found = self.rules.decide(state, write.number, is_dead=is_dead)
            if state is not None and state.fenced:
                if write.fenced not in (None, found):
                    self.findings.add("not final")
                write.fenced = found
            if write.is_finished or found is ClaimVerdict.WAIT:
                continue
            write.is_finished = True
            if found is ClaimVerdict.DONE:
                self.faults.done += 1
                if write.ended is None:
                    self.findings.add("lost")
                continue
            self.faults.taken += 1
            write.taken = self.time
            if write.ended is not None and not write.process.has_fault:
                self.findings.add("twice")

    # The end

    def _finish(self) -> None:
        """All faults end, all calls end, and enough time passes for takeovers."""
        self.ending = True
        for process in self.processes:
            process.stopped_until = min(process.stopped_until, self.time)
            process.cut_until = 0.0
        for _ in range(3 * len(self.writes)):
            self._advance(0.1)
            for step in (self._land, self._receive, self._end_receiver):
                step()
        self._advance(4 * SECONDS)
        for write in self.writes:
            if write.in_stream and not write.is_finished and not (write.claim and write.process.alive):
                self.findings.add("stuck")

    def _one(self, items: list[Any]) -> Any:
        return self.random.choice(items) if items else None
