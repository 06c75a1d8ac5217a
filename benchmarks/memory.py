"""The memory of the daemon: after its start, and the maximum and the growth during a long backlog.

It is measured inside the process after each tenth of the changes. One round is enough: it takes minutes, and
memory does not depend on the load of the machine.
"""

import time
from collections.abc import Sequence

from pymongo import MongoClient

from benchmarks.contestants import daemon
from benchmarks.figures import Pair, Row, Target
from benchmarks.processes import memory_mb
from benchmarks.setting import Setting
from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.people import COLLECTION, people

__all__ = ["NO_CPU", "growth_row", "measure_memory"]

NO_CPU = "the row is about memory"

_DATABASE, _STATE = "memory", "memory_state"
_LIMIT_MB, _START_MB = 150.0, 70.0
_SETTLED = 2.0
_START = Target(limit=1.0, tolerated=1.4, better="lower")
_PATIENCE_SECONDS = 400.0
_PEAK = Target(limit=1.0, tolerated=1.2, better="lower")
_GROWTH = Target(limit=1.1, tolerated=1.5, better="lower")


def measure_memory(setting: Setting) -> list[Row]:
    """Measure the rows.

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
            about=f"the largest memory of the daemon in megabytes, while it delivers a backlog of {changes:,} "
            "changes",
            peer="the limit",
            unit="MB",
            pairs=[Pair(measured["peak_mb"], _LIMIT_MB)],
            target=_PEAK,
            cpu=NO_CPU,
            details={"changes": changes, "memory_mb": tenths, "seconds": measured["seconds"]},
        ),
        growth_row("memory_growth", "memory, growth", f"{changes:,} changes", tenths),
        _start_row(setting),
    ]


def growth_row(key: str, what: str, of: str, tenths: Sequence[float]) -> Row:
    """The row about the growth of the memory of a process.

    Args:
        of: the work. The megabytes were measured after each tenth of it.
    """
    return Row(
        key=key,
        what=what,
        about=f"megabytes after the last tenth of {of}, against those after the second tenth",
        peer="itself, earlier",
        unit="MB",
        pairs=[Pair(tenths[-1], tenths[1])],
        target=_GROWTH,
        cpu=NO_CPU,
        details={"memory_mb": list(tenths)},
    )


def _start_row(setting: Setting) -> Row:
    """The memory of a daemon that has nothing to do yet."""
    assignment = Assignment(setting.url, _DATABASE, 0, "pace")
    with daemon(assignment, _STATE, app="examples.shop.app") as process:
        process.wait_ready()
        time.sleep(_SETTLED)
        measured = memory_mb(process.pid)
    setting.say(f"memory: {measured:.0f} MB after the start of the example application")
    return Row(
        key="memory_start",
        what="memory, start",
        about=f"megabytes of a daemon {_SETTLED:g} seconds after the start of the example application",
        peer="the limit",
        unit="MB",
        pairs=[Pair(measured, _START_MB)],
        target=_START,
        cpu=NO_CPU,
    )
