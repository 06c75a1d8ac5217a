"""The memory of a relay and of a worker, while a million changes pass through them.

The relay and the worker run while the changes are written. This process reads the memory of the relay after each
tenth of the changes that the relay has published. The worker reads its own memory after each tenth of the changes
that it has delivered.
"""

from contextlib import ExitStack
from typing import Final

from benchmarks.contestants import daemon
from benchmarks.figures import Pair, Row, Target
from benchmarks.kafka.stage import Stage, state_of
from benchmarks.memory import NO_CPU, growth_row
from benchmarks.processes import memory_mb
from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.people import COLLECTION, people

__all__ = ["measure_memory"]

_NAME: Final = "kafka_memory"
_PARTITIONS: Final = 16
_LIMIT_MB: Final = 150.0
_PATIENCE_SECONDS: Final = 500.0
_PEAK: Final = Target(limit=1.0, tolerated=1.2, better="lower")


def measure_memory(stage: Stage) -> list[Row]:
    """Measure the rows.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    changes = stage.plan.long
    assignment = Assignment(stage.setting.url, _NAME, changes, "pace")
    topic = stage.topic(_NAME, _PARTITIONS)
    with ExitStack() as stack:
        relay = stack.enter_context(stage.relay(_NAME, _PARTITIONS, app="app"))
        relay.wait_ready()
        worker = stack.enter_context(daemon(assignment, state_of(_NAME), flags=stage.from_topic(_NAME)))
        worker.wait_ready()
        stage.say(f"writing {changes:,} documents")
        of_relay: list[float] = []
        portions = people(changes, at_once=changes // 100)
        for tenth in range(1, 11):
            for _ in range(10):
                stage.client[_NAME][COLLECTION].insert_many(next(portions))
            topic.wait(changes // 10 * tenth)
            of_relay.append(round(memory_mb(relay.pid), 1))
        peak = memory_mb(relay.pid, "VmHWM")
        measured = worker.measured(_PATIENCE_SECONDS)
    stage.client.drop_database(_NAME)
    stage.say(f"memory of the relay: {peak:.0f} MB at most; after each tenth {of_relay}")
    stage.say(
        f"memory of a worker: {measured['peak_mb']:.0f} MB at most; after each tenth {measured['memory_mb']}"
    )
    return [
        *_rows("relay", changes, peak, of_relay),
        *_rows("worker", changes, measured["peak_mb"], measured["memory_mb"]),
    ]


def _rows(which: str, changes: int, peak: float, tenths: list[float]) -> list[Row]:
    return [
        Row(
            key=f"kafka_memory_{which}",
            what=f"memory, {which}",
            about=f"the largest memory of a {which} in megabytes, over {changes:,} changes",
            peer="the limit",
            unit="MB",
            pairs=[Pair(peak, _LIMIT_MB)],
            target=_PEAK,
            cpu=NO_CPU,
            details={"changes": changes},
        ),
        growth_row(f"kafka_memory_{which}_growth", f"memory, {which}, growth", f"{changes:,} changes", tenths),
    ]
