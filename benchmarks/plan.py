"""How much is measured."""

from dataclasses import dataclass

__all__ = ["QUICK", "WHOLE", "Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run.

    Attributes:
        rounds: pairs of every row; a round measures both sides once.
        changes: length of the backlog.
        writes: that are timed per side and round, for latency.
        documents: that are loaded.
        loads: of all of them, per side and round.
        operations: single creates, saves and updates per side and round.
        sends: of a signal per side and round.
        long: changes over which memory is watched.
        waits: changes that one dispatcher, and then four, deliver to a receiver that waits.
        rate: writes per second while latency is measured.
    """

    rounds: int
    changes: int
    writes: int
    documents: int
    loads: int
    operations: int
    sends: int
    long: int
    waits: int
    rate: float = 200.0

    @property
    def warm_up(self) -> int:
        """Writes before those that are timed: connections, caches and branches get warm on both sides."""
        return max(20, self.writes // 10)


WHOLE = Plan(
    rounds=5,
    changes=60_000,
    writes=1_200,
    documents=20_000,
    loads=2,
    operations=1_000,
    sends=100_000,
    long=1_000_000,
    waits=40_000,
)
QUICK = Plan(
    rounds=2,
    changes=10_000,
    writes=400,
    documents=5_000,
    loads=2,
    operations=200,
    sends=20_000,
    long=20_000,
    waits=2_000,
)
