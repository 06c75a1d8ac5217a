"""The memory of the daemon during a long backlog: its maximum and its growth.

It is measured inside the process after each tenth of the changes. One round is enough: it takes minutes, and
memory does not depend on the load of the machine.
"""

from pymongo import MongoClient

from benchmarks.contestants import daemon
from benchmarks.figures import Pair, Row, Target
from benchmarks.setting import Setting
from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.people import COLLECTION, people

__all__ = ["measure_memory"]

_DATABASE, _STATE = "memory", "memory_state"
_LIMIT_MB = 150.0
_PATIENCE_SECONDS = 400.0
_PEAK = Target(limit=1.0, tolerated=1.2, better="lower")
_GROWTH = Target(limit=1.1, tolerated=1.5, better="lower")


def measure_memory(setting: Setting) -> list[Row]:
    """Measure the two rows.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    changes = setting.plan.long
    assignment = Assignment(setting.url, _DATABASE, changes, "pace")
    with MongoClient[dict[str, object]](setting.url) as client:
        with daemon(assignment, _STATE) as process:  # saves a position; all changes are written after it
            process.wait_ready()
        setting.say(f"writing a backlog of {changes:,} inserts")
        for portion in people(changes):
            client[_DATABASE][COLLECTION].insert_many(portion)
        with daemon(assignment, _STATE) as process:
            measured = process.measured(_PATIENCE_SECONDS)
        for name in (_DATABASE, _STATE):
            client.drop_database(name)
    tenths: list[float] = measured["memory_mb"]
    setting.say(f"memory: {measured['peak_mb']:.0f} MB at most; after each tenth {tenths}")
    return [
        Row(
            key="memory",
            what="memory",
            about=f"megabytes of the daemon at most, over a backlog of {changes:,} changes",
            peer="the limit",
            unit="MB",
            pairs=[Pair(measured["peak_mb"], _LIMIT_MB)],
            target=_PEAK,
            details={"changes": changes, "memory_mb": tenths, "seconds": measured["seconds"]},
        ),
        Row(
            key="memory_growth",
            what="memory, growth",
            about="megabytes after the last tenth of these changes, against those after the second tenth",
            peer="itself, earlier",
            unit="MB",
            pairs=[Pair(tenths[-1], tenths[1])],
            target=_GROWTH,
        ),
    ]
