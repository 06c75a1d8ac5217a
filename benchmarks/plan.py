"""The size of a run."""

from dataclasses import dataclass

__all__ = ["QUICK", "WHOLE", "Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run.

    Attributes:
        rounds: the number of rounds; a round measures both sides of a ratio once, e.g. mongoz and another
            ODM.
        long_rounds: the number of rounds of measurements that start many processes.
        changes: length of the backlog.
        writes: timed writes per side and round, for latency.
        documents: the number of documents in the loaded collection.
        loads: loads of this collection per side and round.
        operations: single creates, saves and updates per side and round.
        sends: sent signals per side and round.
        long: length of the backlog when the memory of the daemon is measured; also the number of writes with
            claims when the memory of the writing process is measured.
        claimed: writes with claims, and as many without claims, per round.
        waits: changes for one dispatcher and for four, with a receiver that waits.
        indexed: changes that are indexed in batches, and one by one.
        burst: changes in a burst for a receiver with a limit.
        large: events of 5 MB for a batch receiver.
        computed: changes for one worker on Kafka and for two, with a receiver that computes.
        members, partitions: the numbers of members and partitions in the group whose commands are counted.
        counted: seconds for which the commands are counted.
        rate: writes per second for latency.
    """

    rounds: int
    long_rounds: int
    changes: int
    writes: int
    documents: int
    loads: int
    operations: int
    sends: int
    long: int
    claimed: int
    waits: int
    indexed: int
    burst: int
    large: int
    computed: int
    members: int
    partitions: int
    counted: int
    rate: float = 200.0

    @property
    def warm_up(self) -> int:
        """Writes before the timed ones, to warm up both sides."""
        return max(20, self.writes // 10)


WHOLE = Plan(
    rounds=5,
    long_rounds=3,
    changes=60_000,
    writes=1_200,
    documents=20_000,
    loads=2,
    operations=1_000,
    sends=100_000,
    long=1_000_000,
    claimed=10_000,
    waits=40_000,
    indexed=100_000,
    burst=1_000,
    large=200,
    computed=1_500,
    members=20,
    partitions=256,
    counted=20,
)
QUICK = Plan(
    rounds=1,
    long_rounds=1,
    changes=20_000,
    writes=200,
    documents=5_000,
    loads=2,
    operations=400,
    sends=20_000,
    long=20_000,
    claimed=1_500,
    waits=1_000,
    indexed=2_000,
    burst=200,
    large=20,
    computed=200,
    members=2,
    partitions=32,
    counted=3,
)
