"""The rows of a group's status: members, partitions, letters, parked deliveries, pauses and gaps."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["GapStatus", "Letters", "MemberStatus", "ParkedStatus", "PartitionStatus", "PauseStatus"]


@dataclass
class MemberStatus:
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
class PartitionStatus:
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
class ParkedStatus:
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
class PauseStatus:
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
class GapStatus:
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
