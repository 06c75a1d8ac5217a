"""The figures of the scenario with writing processes, and their limits. Pure.

A delivery is one write for one receiver. The stamp of a write tells which receivers its process has claimed.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from tests.chaos.figures import MEMORY_MB, Figure

__all__ = [
    "AUDIT",
    "LONGEST_SECONDS",
    "RECEIVERS",
    "STARTED",
    "TAKEOVER_SECONDS",
    "WRITES_EACH",
    "Call",
    "Commit",
    "Fault",
    "Fence",
    "WritersEvidence",
    "read_call",
    "writers_figures",
]

RECEIVERS: Final = ("first", "work", "last")
"""The receivers that a writing process calls."""
AUDIT: Final = "audit"
"""The receiver that only dispatchers call."""
WRITES_EACH: Final = 10_000_000
"""The number of values of `n` that one process may use."""
TAKEOVER_SECONDS: Final = 5.0
"""The time for a takeover, in addition to the timeout of the claims."""

STARTED: Final = "started"
"""The line of a writing process that has installed its signal handlers."""
LONGEST_SECONDS: Final = 20.0
"""The longest call of a receiver."""

_STOPS: Final = frozenset({"stopped for a moment", "stopped for longer than the timeout"})
_KILLS: Final = frozenset({"killed", "killed while cut off"})
_CUTS: Final = frozenset({"cut off from the state", "cut off from everything"})

_START_SECONDS: Final = 5.0


class Call(NamedTuple):
    """A call of a receiver that ended.

    Attributes:
        id: `delivery.id`.
        n: the value in the document; -1 if the receiver got only the id of the document.
        began, ended: as `time.monotonic_ns()`.
    """

    receiver: str
    id: str
    signal: str
    document: str
    n: int
    origin: str
    pid: int
    began: int
    ended: int


class Commit(NamedTuple):
    """A committed write, as the server reports it.

    Attributes:
        token: the token in the stamp of the write; empty for a write of the foreign client.
        n: the written value; None for a delete.
        at: its time, as `time.monotonic_ns()`.
        incarnation: the incarnation of its claim, in hexadecimal digits; empty without a claim.
        claimed: the names of the claimed receivers.
    """

    document: str
    n: int | None
    at: int
    token: str = ""
    incarnation: str = ""
    claimed: frozenset[str] = frozenset()


class Fault(NamedTuple):
    """An injected fault.

    Attributes:
        kind: its kind.
        pid: the process id of the affected process.
        began, ended: as `time.monotonic_ns()`.
    """

    kind: str
    pid: int
    began: int
    ended: int


class Fence(NamedTuple):
    """The end of a book of claims.

    Attributes:
        pid: the id of the process that wrote the book.
        author: the author of the fence; None if the book is not fenced.
        at: its time, as `time.monotonic_ns()`.
    """

    pid: int
    author: str | None = None
    at: int = 0


@dataclass
class WritersEvidence:
    """The records of a run.

    Attributes:
        timeout: the timeout of the claims, in seconds.
        commits: all writes, in the order of their commits.
        calls: all calls of receivers.
        writer_faults: the faults of writing processes.
        dispatcher_faults: the faults of dispatchers.
        late_answers: answers of the server that came too late. So a dispatcher lost a lease, could not renew it,
            or handed over a partition whose position was not saved. A busy machine causes this without a fault.
        claims: the times at which dispatchers got partitions, as `time.monotonic_ns()`, in order.
        starts: the start of each writing process by its pid, as `time.monotonic_ns()`.
        numbers: the pid of each writing process, by the number of the process.
        fences: the ends of the books, by incarnation.
        wanted: the planned number of faults.
        deaths: unexpected ends of processes, in words.
        peak_mb: the largest observed resident memory of a dispatcher.
        seconds: the duration.
    """

    timeout: float
    commits: Sequence[Commit] = ()
    calls: Sequence[Call] = ()
    writer_faults: Sequence[Fault] = ()
    dispatcher_faults: Sequence[Fault] = ()
    late_answers: Sequence[Fault] = ()
    claims: Sequence[int] = ()
    starts: Mapping[int, int] = field(default_factory=dict)
    numbers: Mapping[int, int] = field(default_factory=dict)
    fences: Mapping[str, Fence] = field(default_factory=dict)
    wanted: int = 0
    deaths: Sequence[str] = ()
    peak_mb: float = 0.0
    seconds: float = 0.0


def read_call(line: str) -> Call:
    """A line of the ledger."""
    receiver, id_, signal, document, n, origin, pid, began, ended = line.split(" ")
    return Call(receiver, id_, signal, document, int(n), origin, int(pid), int(began), int(ended))


def writers_figures(evidence: WritersEvidence) -> list[Figure]:
    """Computes the figures."""
    judge = _Judge(evidence)
    own = [commit for commit in evidence.commits if commit.token]
    lost, lost_unclaimed, lost_by_dispatchers = judge.lost()
    repeated, doubled = judge.repeated(), judge.ids()
    stops = sum(fault.kind in _STOPS for fault in evidence.writer_faults)
    kinds = Counter(fault.kind for fault in (*evidence.writer_faults, *evidence.dispatcher_faults))
    origins = Counter(call.origin for call in evidence.calls if call.receiver != "deleting")
    by_fence = Counter(fence.author for fence in evidence.fences.values())
    return [
        Figure("writes of the processes", len(own)),
        Figure("  of them unclaimed", sum(not commit.claimed for commit in own)),
        Figure("writes of a foreign client", len(evidence.commits) - len(own)),
        Figure("faults", kinds.total(), least=evidence.wanted),
        *(Figure(f"  {kind}", count) for kind, count in sorted(kinds.items())),
        Figure("answers of the server that came too late", len(evidence.late_answers)),
        Figure("deliveries in process", origins["process"]),
        Figure("deliveries by dispatchers", origins["stream"]),
        Figure("deliveries taken over", origins["takeover"]),
        Figure("books fenced by dispatchers", by_fence["dispatcher"]),
        Figure("claimed deliveries lost", lost.total(), most=0),
        *(Figure(f"  {receiver}", count) for receiver, count in sorted(lost.items())),
        Figure("deliveries lost while unclaimed", lost_unclaimed.total()),
        *(
            Figure(f"  {cause}", count, most=None if cause == _CUT else 0)
            for cause, count in sorted(lost_unclaimed.items())
        ),
        Figure("deliveries of dispatchers lost", lost_by_dispatchers, most=0),
        Figure("never written", judge.never_written, most=0),
        Figure("delivered under two ids", doubled["claimed"], most=0),
        Figure("  unclaimed", doubled["unclaimed"]),
        Figure("begun in process too late", judge.begun_too_late(), most=stops),
        Figure("out of order in dispatchers", judge.out_of_order(), most=0),
        Figure("repeated", repeated.total()),
        *(
            Figure(f"  after: {cause}", count, most=0 if cause == _NOTHING else None)
            for cause, count in sorted(repeated.items())
        ),
        Figure("slowest takeover after a death", judge.slowest(), "s", most=evidence.timeout + TAKEOVER_SECONDS),
        Figure("unexpected ends of processes", len(evidence.deaths), most=0),
        Figure("peak memory of a dispatcher", evidence.peak_mb, "MB", most=MEMORY_MB),
        Figure("took", evidence.seconds, "s"),
    ]


_NOTHING = "nothing"
_CUT = "the state was cut off"


class _Judge:
    """Assigns the calls to the writes."""

    def __init__(self, evidence: WritersEvidence) -> None:
        self._evidence = evidence
        self._by_token = {commit.token: commit for commit in evidence.commits if commit.token}
        self._by_value = {(commit.document, commit.n): commit for commit in evidence.commits}
        self._deleting = {call.document: call.pid for call in evidence.calls if call.receiver == "deleting"}
        self.never_written = 0
        self._calls: dict[tuple[Commit, str], list[Call]] = defaultdict(list)
        for call in sorted(evidence.calls, key=lambda call: call.ended):
            if call.receiver == "deleting":
                continue
            commit = self._commit_of(call)
            if commit is None:
                self.never_written += 1
            else:
                self._calls[commit, call.receiver].append(call)

    def _commit_of(self, call: Call) -> Commit | None:
        value = None if call.signal == "post_delete" else call.n
        return self._by_token.get(call.id) or self._by_value.get((call.document, value))

    def lost(self) -> tuple[Counter[str], Counter[str], int]:
        """Counts the lost deliveries.

        Returns:
            Three counts: of claimed deliveries, for each receiver; of unclaimed deliveries, for each cause; and
            of the deliveries that processes never claim.
        """
        claimed, unclaimed, others = Counter[str](), Counter[str](), 0
        for commit in self._evidence.commits:
            for receiver in (*RECEIVERS, AUDIT):
                if (commit, receiver) in self._calls:
                    continue
                if not commit.token or receiver == AUDIT:
                    others += 1
                elif receiver in commit.claimed:
                    claimed[receiver] += 1
                else:
                    unclaimed[self._why_unclaimed(commit)] += 1
        return claimed, unclaimed, others

    def _why_unclaimed(self, commit: Commit) -> str:
        pid = self._writer_of(commit)
        if pid is None:
            return "unknown process"
        last = int(self._evidence.timeout * 1e9)
        faults = [
            fault
            for fault in self._evidence.writer_faults
            if fault.pid == pid and fault.began <= commit.at <= fault.ended + last
        ]
        if any(fault.kind in _CUTS for fault in faults):
            return _CUT
        if faults:
            return f"after: {faults[-1].kind}"
        if commit.at - self._evidence.starts[pid] < _START_SECONDS * 1e9:
            return "the process has just started"
        return _NOTHING

    def _writer_of(self, commit: Commit) -> int | None:
        """The process id of the author of a write."""
        if commit.incarnation in self._evidence.fences:
            return self._evidence.fences[commit.incarnation].pid
        if commit.n is None:
            return self._deleting.get(commit.document)
        return self._evidence.numbers.get(commit.n // WRITES_EACH)

    def ids(self) -> Counter[str]:
        """The number of deliveries that had several ids."""
        return Counter(
            "claimed" if receiver in commit.claimed else "unclaimed"
            for (commit, receiver), calls in self._calls.items()
            if len({call.id for call in calls}) > 1
        )

    def begun_too_late(self) -> int:
        """The number of deliveries that a process began after a dispatcher had begun them or fenced the book."""
        found = 0
        for (commit, receiver), calls in self._calls.items():
            taken = [call.began for call in calls if call.origin != "process"]
            fence = self._evidence.fences.get(commit.incarnation)
            if receiver in commit.claimed and fence is not None and fence.author == "dispatcher":
                taken.append(fence.at)
            found += sum(
                call.origin == "process" and call.began > min(taken, default=call.began) for call in calls
            )
        return found

    def out_of_order(self) -> int:
        """The number of first deliveries by dispatchers that began too early.

        Such a delivery began before the receiver's first delivery of an earlier write to the same document.
        """
        began: dict[tuple[str, str], list[int]] = defaultdict(list)
        for commit in self._evidence.commits:
            for receiver in (*RECEIVERS, AUDIT):
                times = [
                    call.began for call in self._calls.get((commit, receiver), ()) if call.origin != "process"
                ]
                if times:
                    began[commit.document, receiver].append(min(times))
        return sum(later < earlier for times in began.values() for earlier, later in pairwise(times))

    def repeated(self) -> Counter[str]:
        """The causes of repetitions."""
        return Counter(
            self._cause(commit, before, again)
            for (commit, _), calls in self._calls.items()
            for before, again in pairwise(calls)
        )

    def _cause(self, commit: Commit, before: Call, again: Call) -> str:
        """The cause of a repetition: the last fault of a process that made one of the two deliveries.

        If there was no fault, the author of the fence is the cause. A fault of a writing process long after the
        first delivery does not count, because the claim was done by then.
        """
        until = before.ended + int(self._evidence.timeout * 1e9)
        for call in (before, again):
            if call.origin == "process":
                own = [
                    fault
                    for fault in self._evidence.writer_faults
                    if fault.pid == call.pid
                    and fault.began <= min(until, again.ended)
                    and fault.ended >= before.began
                ]
            else:
                faults = (*self._evidence.late_answers, *self._evidence.dispatcher_faults)
                own = [fault for fault in faults if fault.pid == call.pid and fault.began <= again.ended]
            if own:
                return own[-1].kind
        fence = self._evidence.fences.get(commit.incarnation)
        author = None if fence is None else fence.author
        return _NOTHING if author is None else f"fenced by a {author}"

    def slowest(self) -> float:
        """The longest time from the death of a process to a takeover, in seconds.

        The time begins at the latest of these events: the death, the write, the last fault of a dispatcher, the
        last time when a dispatcher got a partition, and the end of an earlier delivery of the document to the
        receiver. A takeover waits for earlier claims of its document and receiver, even if they belong
        to living processes.
        """
        deaths = {fault.pid: fault.began for fault in self._evidence.writer_faults if fault.kind in _KILLS}
        faults = (*self._evidence.late_answers, *self._evidence.dispatcher_faults)
        others = sorted([*(fault.ended for fault in faults), *self._evidence.claims])
        slowest = 0
        ended: defaultdict[tuple[str, str], list[int]] = defaultdict(list)  # of earlier writes
        places = {commit: place for place, commit in enumerate(self._evidence.commits)}
        for (commit, receiver), calls in sorted(self._calls.items(), key=lambda one: places[one[0][0]]):
            earlier = ended[commit.document, receiver]
            taken = [call.began for call in calls if call.origin == "takeover"]
            death = deaths.get(self._writer_of(commit) or 0)
            if taken and death is not None and min(taken) >= death:
                place = bisect_right(others, min(taken))
                waits = [at for at in earlier if at <= min(taken)]
                since = max(death, commit.at, others[place - 1] if place else 0, *waits)
                slowest = max(slowest, min(taken) - since)
            earlier += (call.ended for call in calls)
        return slowest / 1e9
