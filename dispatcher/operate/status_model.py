"""The status of a group of dispatchers, for commands, dashboard and metrics. It contains only data."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from dispatcher.core.state_checks import Misfit

Word = Literal["failing", "blocked", "behind", "delivering", "idle", "paused", "down"]

WORDS: Final[tuple[Word, ...]] = ("failing", "blocked", "behind", "delivering", "idle", "paused", "down")
"""The words for health. The first five are in order, from the worst to the best."""

NO_DISPATCHER: Final = "no live dispatcher has this receiver"


class ReceiverHealth(NamedTuple):
    """The health of one receiver of one signal.

    Attributes:
        receiver: its name.
        health: its health in one word, see `Health`.
        signal: the name of the signal; empty if it is unknown.
        why: the reason, for people; may be empty.
        error_rate: the share of the last minute's attempts that failed, from 0 to 1; None without attempts.
        concurrency: the maximum number of attempts at once in each process; None if there is none.
        rate: the maximum number of attempts in a period, such as `"100/min"`; None if there is none.
        batch: the maximum number of events in a batch; None if the receiver gets single events.
    """

    receiver: str
    signal: str
    health: Word
    why: str = ""
    error_rate: float | None = None
    concurrency: int | None = None
    rate: str | None = None
    batch: int | None = None

    @property
    def limits(self) -> str:
        """The limits, for people; empty without limits."""
        named = {"at once": self.concurrency, "events a batch": self.batch}
        texts = [f"{count} {text}" for text, count in named.items() if count is not None]
        return ", ".join([*texts, *([self.rate] if self.rate else [])])


class Health(NamedTuple):
    """The health of a group.

    Attributes:
        health: the health of the group in one word: failing, blocked, behind, delivering, idle, paused or down.
        receivers: the health of each receiver of each signal.
        why: the reason, for people; may be empty.
    """

    health: Word
    why: str
    receivers: list[ReceiverHealth]

    def of(self, receiver: str, signal: str) -> ReceiverHealth:
        """The health of one receiver. A receiver that no dispatcher has is down."""
        for one in self.receivers:
            if one.receiver == receiver and one.signal in (signal, ""):
                return one
        return ReceiverHealth(receiver, signal, "down", NO_DISPATCHER)

    def as_dict(self) -> dict[str, Any]:
        """Convert it to a dict for JSON."""
        return {**self._asdict(), "receivers": [one._asdict() for one in self.receivers]}


def number(value: Any) -> float:
    """Convert a counter to a number; 0 for other types, which another version of this program may have written."""
    return float(value) if isinstance(value, int | float) else 0.0


@dataclass
class MemberStatus:
    """A process of the group.

    Attributes:
        id: its id, which is new at every start.
        host: the name of its machine.
        pid: its process id.
        version: a hash of its collections and receivers.
        application: the name of its application on the command line; None if it is unknown.
        started_at: the server's time of its start.
        partitions: the numbers of the partitions that it holds.
        seen_seconds: the seconds since its last heartbeat, by the server's clock.
        alive: whether its last heartbeat is younger than one and a half lease times, and its process is not known
            to be dead.
        receivers: the receivers that it knows, each as `{id, former_ids, name, formerly, signal, document,
            concurrency, rate, batch}`.
        stats: its counters and gauges.
        http: its URL; None if it does not listen.
    """

    id: str
    host: str
    pid: int
    version: str
    application: str | None
    started_at: datetime | None
    seen_seconds: float
    alive: bool
    partitions: list[int]
    receivers: list[dict[str, Any]]
    stats: dict[str, Any]
    http: str | None

    @property
    def lag_seconds(self) -> float | None:
        """The largest lag of its partitions; None if it reports none."""
        reported = [one for one in dict(self.stats.get("partitions") or {}).values() if isinstance(one, dict)]
        return max((number(one.get("lag_seconds")) for one in reported), default=None)

    @property
    def claims(self) -> dict[str, Any]:
        """Its report on deliveries that wait for writing processes; empty if it has none."""
        found = self.stats.get("claims")
        return found if isinstance(found, dict) else {}

    @property
    def known(self) -> list[dict[str, Any]]:
        """`receivers`, without malformed entries: another version may have written them."""
        return [one for one in self.receivers if isinstance(one, dict) and one.get("name") is not None]

    @property
    def counted(self) -> list[dict[str, Any]]:
        """The counters of its receivers, without malformed entries."""
        return [one for one in self.stats.get("receivers") or () if isinstance(one, dict) and "receiver" in one]


@dataclass
class PartitionStatus:
    """One partition.

    Attributes:
        number: its number, from 0 on.
        term: grows with every new owner.
        owner: id of the member that owns it; None if it has no owner.
        where: host and process id of the owner, for people.
        position_at: the time up to which everything is delivered; None if no position is saved.
        position_age_seconds: the seconds since `position_at`, by the server's clock.
        lag_seconds: the age of the oldest undelivered change, if a live owner reports it.
        lag_changes: the number of undelivered changes, if a live owner reports it.
        saved_seconds: the seconds since the last save of the position.
        headroom_seconds: the seconds until the oplog no longer holds the position; None if they are unknown. If
            the group reads from a topic: the seconds until the topic may delete the records after the position.
        delivery_lag_seconds: the age of the oldest change that is read and not delivered, if a live owner reports
            it.
        broker_lag: the number of records of the topic, up to the relay's position, that are not read. If no live
            owner reports it, the number of records, up to the same position, that are not finished. None if the
            number is unknown, and without a topic.
    """

    number: int
    owner: str | None
    where: str | None
    term: int
    position_at: datetime | None
    position_age_seconds: float | None
    lag_seconds: float | None
    lag_changes: float | None
    saved_seconds: float | None
    headroom_seconds: float | None
    delivery_lag_seconds: float | None = None
    broker_lag: int | None = None


@dataclass
class SourceStatus:
    """The source of a group.

    Attributes:
        topic: its name; None for change streams.
        cluster: the id of the Kafka cluster.
    """

    topic: str | None = None
    cluster: str | None = None

    def __str__(self) -> str:
        return (
            "change streams"
            if self.topic is None
            else f"the topic {self.topic} of the Kafka cluster {self.cluster}"
        )


@dataclass
class PublishedStatus:
    """A collection or pattern that a relay publishes.

    Attributes:
        name: the collection or pattern, with its database.
        since: the time since which all its changes are published.
    """

    name: str
    since: datetime | None


@dataclass
class ReaderStatus:
    """A group that reads from the topic of a relay.

    Attributes:
        group: its name.
        alive: the number of its live processes.
        broker_lag: the number of records, up to the relay's position, that it has not finished; None if it is
            unknown.
        headroom_seconds: the seconds until the topic may delete a record that the group has not finished; None if
            they are unknown.
    """

    group: str
    alive: int
    broker_lag: int | None
    headroom_seconds: float | None


@dataclass
class RelayStatus:
    """A relay.

    Attributes:
        topic: the name of its topic.
        cluster: the id of the Kafka cluster.
        partitions: the number of partitions of the topic.
        term: the term of its producer.
        alive: host and process id of its live processes.
        owner: host and process id of the process that publishes; None if no such process is alive.
        position_at: the time up to which everything is published.
        position_age_seconds: the seconds since `position_at`, by the server's clock.
        saved_seconds: the seconds since the last save of the position.
        lag_seconds: the age of the oldest change that is not acknowledged by the brokers; None without an owner.
        records_in_flight: records that are not acknowledged; None without an owner.
        changes_per_second: the number of changes that the owner reads in a second; 0 without an owner.
        trouble: the reason why the owner can't use the topic now; None if it can.
        headroom_seconds: the seconds until the oplog no longer holds the position; None if they are unknown.
        retention_seconds: the seconds for which the topic keeps a record; None if they are unknown, or unlimited.
        publishes: the collections and patterns that it publishes.
        readers: the groups that read from the topic; empty in the status of such a group.
    """

    topic: str
    cluster: str
    partitions: int
    term: int
    alive: list[str]
    owner: str | None
    position_at: datetime | None
    position_age_seconds: float
    saved_seconds: float | None
    lag_seconds: float | None
    records_in_flight: int | None
    changes_per_second: float
    trouble: str | None
    headroom_seconds: float | None
    retention_seconds: float | None
    publishes: list[PublishedStatus]
    readers: list[ReaderStatus] = field(default_factory=list)

    @property
    def destination(self) -> SourceStatus:
        """The topic."""
        return SourceStatus(self.topic, self.cluster)


@dataclass
class DeadLetterCount:
    """The dead letters of one receiver and signal.

    Attributes:
        count: the number of dead letters.
        newest_at: the end of the last attempt of the newest dead letter.
        receiver: its name; None for changes that could not be decoded.
        signal: its name; None for changes that could not be decoded.
    """

    receiver: str | None
    signal: str | None
    count: int
    newest_at: datetime | None


@dataclass
class ParkedCount:
    """The documents whose deliveries to one receiver are parked for one reason.

    Attributes:
        receiver: its name.
        documents: the number of documents.
        due_at: the time of the earliest next attempt.
        reason: the `state` of the first parked delivery of each document, see docs/reference/state.md.
        oldest_at: the earliest commit of a change among the first parked deliveries of these documents.
    """

    receiver: str | None
    reason: str | None
    documents: int
    due_at: datetime | None
    oldest_at: datetime | None = None


@dataclass
class BookStatus:
    """A book of claims: the claims that one writing process has not finished, see docs/reference/state.md.

    Attributes:
        host: the name of the machine of the writing process.
        pid: the process id of the writing process.
        process: the id of the book. The writing process has this id until it begins another book.
        started_at: the time at which the process began to claim.
        beat_at: the time of its last beat, by the server's clock.
        seconds: the timeout of its claims, in seconds.
        alive: whether the book has not ended, and its last beat is younger than the timeout.
        open: the number of open claims.
        released: the number of claims that the process left to the dispatchers.
        fenced_at: the time at which the book ended; None if it has not ended.
        fenced_by: the side that ended the book: `"process"`, `"dispatcher"` or `"operator"`.
        waiting: the number of deliveries that wait, in the memory of dispatchers, for the writing process.
    """

    process: str
    host: str | None
    pid: int | None
    started_at: datetime | None
    beat_at: datetime
    seconds: float
    alive: bool
    open: int
    released: int
    fenced_at: datetime | None
    fenced_by: str | None
    waiting: int


@dataclass
class ClaimsStatus:
    """The claims of writing processes.

    Attributes:
        processes: the number of live processes that claim.
        open: the number of open claims in books that have not ended.
        released: the number of claims in these books that the processes left to the dispatchers.
        waiting: the number of deliveries that wait, in the memory of dispatchers, for writing processes.
        parked: the number of documents with parked deliveries that wait for writing processes.
        oldest_seconds: the seconds since the commit of the oldest write whose deliveries wait; 0 without one.
        taken_over: the number of deliveries that the live dispatchers have taken over since their start.
        orphaned: the number of documents with parked deliveries to a receiver that no dispatcher has.
        books: the most important books. Books with waiting deliveries come first, and then books with open claims.
    """

    processes: int = 0
    open: int = 0
    released: int = 0
    waiting: int = 0
    parked: int = 0
    oldest_seconds: float = 0.0
    taken_over: int = 0
    orphaned: int = 0
    books: list[BookStatus] = field(default_factory=list)


@dataclass
class Pause:
    """A pause.

    Attributes:
        receiver: its name; None if everything is paused.
        since: the server's time of the request.
        by: the person who requested it, if known.
    """

    receiver: str | None
    since: datetime | None
    by: str | None


@dataclass
class GapStatus:
    """Changes that were never delivered.

    Attributes:
        kind: the cause, see docs/reference/state.md.
        noted_at: the server's time at which the gap was first recorded.
        text: a sentence about the cause and the changes.
        namespace: the namespace of the collection; None if several collections are affected.
    """

    kind: str
    namespace: str | None
    noted_at: datetime | None
    text: str


@dataclass
class GroupStatus:
    """A group at one moment.

    Attributes:
        group: its name; for a relay, the name of its topic.
        at: the server's time of this status.
        members: its processes, live and dead.
        paused: the pauses of receivers, or of everything.
        gap_count: the number of all gaps.
        health: the health of the group and of its receivers.
        clock_offset_seconds: the seconds by which the server's clock is ahead of ours.
        oplog_window_seconds: the seconds of the past that the oplog holds; None if it can't be read.
        source: the source of the changes.
        is_relay: whether the group is a relay: its processes publish changes, and deliver none.
        relay: the status of the group's relay: the group itself if it is a relay, or the relay of the topic that
            the group reads; otherwise None.
        partition_count: the number of partitions in the layout.
        partitions: the partitions with a saved position or an owner.
        dead_letters: the counts of dead letters by receiver and signal.
        parked: the counts of documents with parked deliveries, by receiver and reason.
        parked_deliveries: the number of parked deliveries.
        claims: the claims of writing processes.
        runs: records of `replay` and `backfill`.
        gaps: the newest gaps.
        at_least: the names of the figures that are lower bounds, because counting all documents takes too long:
            `dead_letters`, `parked`, `parked_deliveries`, `gap_count` or `claims`.
        misfits: malformed documents of the state, which are left out: `{collection, id, problem, remedy}`.
    """

    group: str
    at: datetime
    clock_offset_seconds: float
    oplog_window_seconds: float | None
    source: SourceStatus = field(default_factory=SourceStatus)
    is_relay: bool = False
    relay: RelayStatus | None = None
    partition_count: int = 1
    partitions: list[PartitionStatus] = field(default_factory=list)
    members: list[MemberStatus] = field(default_factory=list)
    dead_letters: list[DeadLetterCount] = field(default_factory=list)
    parked: list[ParkedCount] = field(default_factory=list)
    parked_deliveries: int = 0
    claims: ClaimsStatus = field(default_factory=ClaimsStatus)
    paused: list[Pause] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[GapStatus] = field(default_factory=list)
    gap_count: int = 0
    at_least: list[str] = field(default_factory=list)
    misfits: list[Misfit] = field(default_factory=list)
    health: Health = field(default_factory=lambda: Health("down", "", []))

    @property
    def alive(self) -> list[MemberStatus]:
        """The live processes."""
        return [one for one in self.members if one.alive]

    @property
    def dead_letter_count(self) -> int:
        """The number of all dead letters."""
        return sum(one.count for one in self.dead_letters)

    @property
    def headroom_seconds(self) -> float | None:
        """The smallest headroom of all partitions."""
        known = [one.headroom_seconds for one in self.partitions if one.headroom_seconds is not None]
        return min(known, default=None)

    @property
    def broker_lag(self) -> int | None:
        """The broker lag of all partitions; None if it is unknown, and without a topic."""
        known = [one.broker_lag for one in self.partitions if one.broker_lag is not None]
        return sum(known) if known else None

    @property
    def delivery_lag_seconds(self) -> float | None:
        """The largest delivery lag of all partitions; None if no live owner reports it."""
        known = [one.delivery_lag_seconds for one in self.partitions if one.delivery_lag_seconds is not None]
        return max(known, default=None)

    @property
    def broker_troubles(self) -> list[str]:
        """The reasons why live processes can't use the topic now, each once."""
        found = [one.stats.get("trouble") for one in self.alive]
        if self.relay is not None:
            found.append(self.relay.trouble)
        return list(dict.fromkeys(one for one in found if one))

    def as_dict(self) -> dict[str, Any]:
        """Convert the status to a dict for JSON."""
        return {
            **asdict(self),
            "misfits": [one._asdict() for one in self.misfits],
            "health": self.health.as_dict(),
            "dead_letter_count": self.dead_letter_count,
            "headroom_seconds": self.headroom_seconds,
            "broker_lag": self.broker_lag,
            "delivery_lag_seconds": self.delivery_lag_seconds,
            "broker_troubles": self.broker_troubles,
        }
