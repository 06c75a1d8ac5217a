"""What there is to know of a group of dispatchers: what `status` and the dashboard show."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from dispatcher.core.state_checks import Misfit
from dispatcher.operate.health import Health, health_of

__all__ = ["Counts", "Gap", "Letters", "Member", "Overview", "Parked", "Partition", "Paused"]


@dataclass
class Member:
    """A process of the group.

    Attributes:
        id: of the process.
        host: where it runs.
        pid: likewise.
        version: of this package.
        application: what it serves.
        started_at: when.
        seen_seconds: since it was last heard of, by the server's clock.
        alive: whether it was heard of lately.
        partitions: that it works on.
        receivers: that it knows: `{id, name, signal, document}` each.
        stats: its counters and gauges.
        http: where it answers; None if it does not.
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


@dataclass
class Partition:
    """One part of the work.

    Attributes:
        number: of the partition.
        owner: the member that works on it; None if nobody does.
        where: host and process id of the owner, for people.
        term: of the ownership.
        position_at: the time up to which everything is delivered; None if nothing was ever saved.
        position_age_seconds: since then, by the server's clock.
        lag_seconds: as the owner says, if it is alive.
        lag_changes: likewise.
        saved_seconds: since the position was last saved.
        headroom_seconds: after which the oplog would not hold the position any more; None if that is not known.
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


@dataclass
class Letters:
    """The dead letters of one receiver and signal.

    Attributes:
        receiver: its name; None for changes that nobody could read.
        signal: likewise.
        count: how many are kept.
        newest_at: when the last one was given up.
    """

    receiver: str | None
    signal: str | None
    count: int
    newest_at: datetime | None


@dataclass
class Parked:
    """The parked deliveries of one receiver.

    Attributes:
        receiver: its name.
        reason: why: `"retrying"`, `"blocked"`, `"paused"`, `"retry"` or `"interrupted"`.
        documents: that wait.
        due_at: when the first of them is tried again.
    """

    receiver: str | None
    reason: str | None
    documents: int
    due_at: datetime | None


@dataclass
class Paused:
    """A pause.

    Attributes:
        receiver: its name; None if everything is paused.
        since: when it began.
        by: who asked for it.
    """

    receiver: str | None
    since: datetime | None
    by: str | None


@dataclass
class Gap:
    """Changes that nobody got.

    Attributes:
        kind: what happened.
        namespace: of the collection; None if it is not only one.
        noted_at: when it was noticed.
        text: for people.
    """

    kind: str
    namespace: str | None
    noted_at: datetime | None
    text: str


@dataclass
class Overview:
    """A group at one moment.

    Attributes:
        group: its name.
        at: when.
        clock_offset_seconds: that the server's clock is ahead of ours.
        oplog_window_seconds: of the past that the oplog holds; None if it can't be seen.
        partitions: the work.
        members: the processes.
        dead_letters: by receiver.
        parked: by receiver and reason.
        parked_deliveries: all of them.
        paused: what is.
        runs: of `replay` and `backfill`, as they are recorded.
        gaps: the newest.
        gap_count: all of them.
        at_least: which of `dead_letters`, `parked`, `parked_deliveries` and `gap_count` are only a part of the
            documents that there are: counting all would take too long.
        misfits: documents of the state that make no sense, and are left out: `{collection, id, problem, remedy}`.
    """

    group: str
    at: datetime
    clock_offset_seconds: float
    oplog_window_seconds: float | None
    partitions: list[Partition] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    dead_letters: list[Letters] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    parked_deliveries: int = 0
    paused: list[Paused] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    gap_count: int = 0
    at_least: list[str] = field(default_factory=list)
    misfits: list[Misfit] = field(default_factory=list)

    @property
    def alive(self) -> list[Member]:
        """The processes that were heard of lately."""
        return [one for one in self.members if one.alive]

    @property
    def dead_letter_count(self) -> int:
        """All dead letters."""
        return sum(one.count for one in self.dead_letters)

    @property
    def headroom_seconds(self) -> float | None:
        """Of the partition that has the least."""
        known = [one.headroom_seconds for one in self.partitions if one.headroom_seconds is not None]
        return min(known, default=None)

    @property
    def health(self) -> Health:
        """How it and its receivers are."""
        return health_of(self.members, self.partitions, self.parked, self.paused, self.at)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            **asdict(self),
            "misfits": [one._asdict() for one in self.misfits],
            "health": self.health.as_dict(),
            "dead_letter_count": self.dead_letter_count,
            "headroom_seconds": self.headroom_seconds,
        }


class Counts(NamedTuple):
    """What metrics say of a group.

    Attributes:
        partitions: in its layout.
        members: that are alive; None while it is not known.
        dead_letters: that are kept, or so many at least if there are too many to count; None likewise.
        parked: deliveries; likewise.
        paused: names of receivers that are; "*" stands for all.
        health: how it is; None likewise.
    """

    partitions: int = 1
    members: int | None = None
    dead_letters: int | None = None
    parked: int | None = None
    paused: tuple[str, ...] = ()
    health: Health | None = None
