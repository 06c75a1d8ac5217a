"""The figures of a run and their limits. Pure."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tests.ledger import Entry, disorder

__all__ = ["Event", "Evidence", "Figure", "causes", "figures"]

Orders = Mapping[str, Sequence[int]]
"""Writes by document."""
Write = tuple[str, int]
"""The name of a document, and the number of the write."""

PLAIN, TRANSACTIONAL = "note", "book"
"""The receivers that every scenario has."""

# A write that is committed more than this number of seconds after its stamp was made is in doubt, see
# `dispatcher/stream/origins.py`. The daemon then delivers it, too. Such a write took at least this long.
IN_DOUBT_SECONDS = 10

MEMORY_MB = 150
STALL_SECONDS = 30


class Event(NamedTuple):
    """An injected fault.

    Attributes:
        at: its time, as `time.monotonic_ns()`.
        kind: its kind.
        pid: the process id of the affected daemon; None if no daemon is affected.
    """

    at: int
    kind: str
    pid: int | None = None


class Figure(NamedTuple):
    """A number with a name and optional limits."""

    name: str
    value: float
    unit: str = ""
    most: float | None = None
    least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value is within the limits."""
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    @property
    def must(self) -> str:
        """The limits, in words."""
        if self.most == self.least is not None or self.most == 0:
            return f"{self.most:,.9g} {self.unit}".strip()
        least = "" if self.least is None else f"at least {self.least:,.9g} {self.unit}"
        most = "" if self.most is None else f"at most {self.most:,.9g} {self.unit}"
        return ", ".join(word.strip() for word in (least, most) if word)


@dataclass
class Evidence:
    """The records of a run.

    Attributes:
        foreign: the writes of the foreign client, by document, in the order of their commits.
        own: the application's own writes, in the same form.
        durations: the seconds of each of the application's own writes.
        entries: every call of a plain receiver, in order.
        books: the effects of the transactional receiver, by document, in the order of its commits.
        letters: the writes whose deliveries are dead letters, by receiver.
        doomed: the writes that a receiver always refuses, by receiver; they must become dead letters.
        events: the injected faults, in order.
        wanted: the planned number of faults.
        deaths: unexpected ends of processes, in words.
        peak_mb: the largest observed resident memory of a daemon.
        seconds: the duration.
    """

    foreign: Orders = field(default_factory=dict)
    own: Orders = field(default_factory=dict)
    durations: Mapping[Write, float] = field(default_factory=dict)
    entries: Sequence[Entry] = ()
    books: Orders = field(default_factory=dict)
    letters: Mapping[str, Collection[Write]] = field(default_factory=dict)
    doomed: Mapping[str, Collection[Write]] = field(default_factory=dict)
    events: Sequence[Event] = ()
    wanted: int = 0
    deaths: Sequence[str] = ()
    peak_mb: float = 0.0
    seconds: float = 0.0

    @property
    def orders(self) -> dict[str, list[int]]:
        """The writes of all clients, by document. The numbers of a document increase with each write."""
        names = {*self.foreign, *self.own}
        return {name: sorted([*self.foreign.get(name, ()), *self.own.get(name, ())]) for name in names}

    @property
    def in_doubt(self) -> set[Write]:
        """The application's own writes that may be in doubt."""
        return {write for write in _writes(self.own) if self.durations.get(write, 0) > IN_DOUBT_SECONDS}


def figures(
    evidence: Evidence,
    *,
    faults: str,
    memory: float = MEMORY_MB,
    stall: float = STALL_SECONDS,
    late: int = 0,
    harmless: Collection[str] = (),
) -> list[Figure]:
    """Computes the figures.

    Args:
        evidence: the evidence of the run.
        faults: the name of the faults.
        memory: the maximum memory of a daemon in MB.
        stall: the maximum time without a delivery in seconds.
        late: the maximum number of deliveries that begin in an outdated term.
        harmless: kinds of faults that must not cause a repetition.
    """
    counted = [
        Figure("writes of a foreign client", len(_writes(evidence.foreign))),
        Figure("writes of the application", len(_writes(evidence.own))),
        Figure("writes in doubt", len(evidence.in_doubt)),
        Figure(faults, len(evidence.events), least=evidence.wanted),
        *_kinds(evidence.events),
        *_of_plain_receivers(evidence, {"nothing", *harmless}),
        *_of_the_transactional_receiver(evidence),
        *_of_dead_letters(evidence),
        Figure("unexpected ends of processes", len(evidence.deaths), most=0),
        Figure("longest stall", longest_stall(_by(evidence.entries, "stream")), "s", most=stall),
        Figure("peak memory of a daemon", evidence.peak_mb, "MB", most=memory),
        Figure("took", evidence.seconds, "s"),
    ]
    return [figure._replace(most=late) if figure.name == _OUTDATED else figure for figure in counted]


def _kinds(events: Iterable[Event]) -> list[Figure]:
    kinds = Counter(event.kind for event in events)
    return [Figure(f"  {kind}", count) for kind, count in sorted(kinds.items())] if len(kinds) > 1 else []


def _of_plain_receivers(evidence: Evidence, harmless: Collection[str]) -> list[Figure]:
    counts: Counter[str] = Counter()
    whys: Counter[str] = Counter()
    by_receiver = defaultdict(list)
    for entry in evidence.entries:
        by_receiver[entry.receiver].append(entry)
    for receiver in {PLAIN, *by_receiver}:
        counts += _of_one(receiver, by_receiver[receiver], evidence)
        whys += causes(_by(by_receiver[receiver], "stream"), evidence.events, harmless)
    return [
        Figure("deliveries by the daemon", len(_by(evidence.entries, "stream"))),
        Figure("deliveries in process", len(_by(evidence.entries, "process"))),
        *(Figure(name, counts[name], most=0) for name in _WRONG),
        Figure(_BOTH_IN_DOUBT, counts[_BOTH_IN_DOUBT]),
        Figure("repeated", whys.total()),
        *(
            Figure(f"  after: {why}", count, most=0 if why in harmless else None)
            for why, count in sorted(whys.items())
        ),
    ]


_OUTDATED = "begun in a term that was over"
_BOTH_IN_DOUBT = "delivered by both in doubt"
_WRONG = (
    *("lost", "delivered by both", "delivered by the wrong one", "never written"),
    *("out of order within a term", "out of order in process", _OUTDATED),
    *("repeated in process", "repeated with another id"),
)


def _of_one(receiver: str, entries: Sequence[Entry], evidence: Evidence) -> Counter[str]:
    """The errors in the deliveries to one receiver."""
    stream, process = _by(entries, "stream"), _by(entries, "process")
    foreign, own = _writes(evidence.foreign), _writes(evidence.own)
    delivered, ran = {entry.write for entry in stream}, {entry.write for entry in process}
    doomed = set(evidence.doomed.get(receiver, ()))
    both, in_doubt = delivered & ran, evidence.in_doubt
    by_daemon = {name: [n for n in order if (name, n) not in doomed] for name, order in evidence.foreign.items()}
    return Counter(
        {
            "lost": len((foreign - delivered - doomed) | (own - ran - delivered)),
            "delivered by both": len(both - in_doubt),
            _BOTH_IN_DOUBT: len(both & in_doubt),
            "delivered by the wrong one": len((delivered & own - in_doubt) | (ran & foreign)),
            "never written": len((delivered | ran) - foreign - own),
            "out of order within a term": len(disorder(stream, by_daemon)),
            "out of order in process": len(disorder(process, evidence.own)),
            _OUTDATED: outdated(stream),
            "repeated in process": len(process) - len(ran),
            "repeated with another id": _renamed(entries),
        }
    )


def _of_the_transactional_receiver(evidence: Evidence) -> list[Figure]:
    booked, written = _writes(evidence.books), _writes(evidence.orders)
    doubled = disordered = 0
    for order in evidence.books.values():
        doubled += len(order) - len(set(order))
        disordered += sum(later < earlier for earlier, later in pairwise(order))
    return [
        Figure("transactional effects", len(booked)),
        Figure(
            "transactional effects lost",
            len(written - booked - set(evidence.doomed.get(TRANSACTIONAL, ()))),
            most=0,
        ),
        Figure("transactional effects doubled", doubled, most=0),
        Figure("transactional effects out of order", disordered, most=0),
        Figure("transactional effects without a write", len(booked - written), most=0),
    ]


def _of_dead_letters(evidence: Evidence) -> list[Figure]:
    dead = {(receiver, write) for receiver, writes in evidence.letters.items() for write in writes}
    doomed = {(receiver, write) for receiver, writes in evidence.doomed.items() for write in writes}
    return [
        Figure("dead letters", len(dead)),
        Figure("dead letters missing", len(doomed - dead), most=0),
        Figure("dead letters of deliverable writes", len(dead - doomed), most=0),
    ]


def _by(entries: Iterable[Entry], origin: str) -> list[Entry]:
    return [entry for entry in entries if entry.origin == origin]


def _writes(orders: Orders) -> set[Write]:
    return {(name, n) for name, order in orders.items() for n in order}


def causes(entries: Iterable[Entry], events: Sequence[Event], harmless: Collection[str] = ()) -> Counter[str]:
    """The causes of repeated deliveries.

    The cause is the last fault of the process that made the delivery before the repetition. But if the
    repetition has the lower term of the two, it came late: then the cause is the last fault of the process that
    made the repetition. If that process had no fault, the cause is the last fault of all processes. Without any
    fault, it is "nothing".

    Args:
        entries: the entries of one receiver, in order.
        events: in order.
        harmless: kinds of events that count only if the process had no other fault.
    """
    found: Counter[str] = Counter()
    latest: dict[Write, Entry] = {}
    for entry in entries:
        before = latest.get(entry.write)
        latest[entry.write] = entry
        if before is None:
            continue
        if before.pid == entry.pid and before.term == entry.term:
            found["another attempt" if entry.attempt > before.attempt else "nothing"] += 1
            continue
        earlier = [event for event in events if event.at <= entry.at]
        one = before.pid if entry.term >= before.term else entry.pid
        to_it = [event for event in earlier if event.pid == one]
        harm = [event for event in to_it if event.kind not in harmless]
        found[(harm or to_it or earlier)[-1].kind if earlier else "nothing"] += 1
    return found


def outdated(entries: Sequence[Entry]) -> int:
    """The number of deliveries that began in an outdated term.

    When the delivery began, a change of the document was already delivered in a later term.

    Args:
        entries: the entries of one receiver, in order.
    """
    begun: dict[str, dict[int, int]] = defaultdict(dict)
    for entry in entries:
        begun[entry.name].setdefault(entry.term, entry.at)
    return sum(
        any(term > entry.term and at < entry.began for term, at in begun[entry.name].items()) for entry in entries
    )


def _renamed(entries: Sequence[Entry]) -> int:
    """The number of writes with several delivery ids, and of ids with several writes."""
    ids, writes = defaultdict(set), defaultdict(set)
    for entry in entries:
        ids[entry.write, entry.origin].add(entry.delivery)
        writes[entry.delivery].add(entry.write)
    return sum(len(found) > 1 for found in (*ids.values(), *writes.values()))


def longest_stall(entries: Iterable[Entry]) -> float:
    """The longest time between two deliveries, in seconds. At any time there are writes to deliver."""
    times = sorted(entry.at for entry in entries)
    return max((later - earlier for earlier, later in pairwise(times)), default=0) / 1e9
