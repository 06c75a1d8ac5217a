"""The status of a group as one value: what `dispatcher status` and the dashboard show."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from dispatcher.core.state_checks import Misfit
from dispatcher.operate.health import Health, health_of
from dispatcher.operate.status_model import (
    GapStatus,
    Letters,
    MemberStatus,
    ParkedStatus,
    PartitionStatus,
    PauseStatus,
)

__all__ = ["Counts", "Overview"]


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
    partitions: list[PartitionStatus] = field(default_factory=list)
    members: list[MemberStatus] = field(default_factory=list)
    dead_letters: list[Letters] = field(default_factory=list)
    parked: list[ParkedStatus] = field(default_factory=list)
    parked_deliveries: int = 0
    paused: list[PauseStatus] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[GapStatus] = field(default_factory=list)
    gap_count: int = 0
    at_least: list[str] = field(default_factory=list)
    misfits: list[Misfit] = field(default_factory=list)

    @property
    def alive(self) -> list[MemberStatus]:
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
