"""The commands that many members with many partitions send to MongoDB, while changes flow through all partitions.

The server counts its commands. The commands of the relay and of the writes are measured before the members start,
and subtracted. The commands by which drivers check that the server lives are left out.
"""

import time
from contextlib import ExitStack
from typing import Any, Final

from benchmarks.busy import Heard
from benchmarks.figures import Pair, Row, Target
from benchmarks.kafka.stage import Stage
from benchmarks.kafka.topic import Topic

__all__ = ["measure_commands"]

_NAME: Final = "commands"
_LIMIT: Final = 5.0
_TARGET: Final = Target(limit=1.0, tolerated=2.0, better="lower")
_NOT_COUNTED: Final = frozenset({"hello", "isMaster", "ismaster", "serverStatus"})

# The number of documents in each interval is large enough to move all positions every second.
_EVERY_SECONDS: Final = 0.5
_WRITTEN: Final = 200


def measure_commands(stage: Stage) -> list[Row]:
    """Measure the row.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    partitions, members = stage.plan.partitions, stage.plan.members
    topic = stage.topic(_NAME, partitions)
    topic.create()
    with ExitStack() as stack:
        stack.enter_context(stage.relay(_NAME, partitions)).wait_ready()
        stage.write(_NAME, _WRITTEN)
        topic.wait(_WRITTEN)
        without = _commands(stage)
        stage.say(f"starting {members} members")
        workers = []
        for _ in range(members):
            workers.append(stack.enter_context(stage.worker(_NAME, "--lease", "15")))
            workers[-1].wait_ready()
        heard = Heard(workers)
        stage.wait_shared(_NAME, heard, members)
        _wait_flowing(stage, topic, heard)
        seen = _commands(stage)
    of_members = {name: round((seen[name] - without.get(name, 0.0)) / members, 3) for name in seen}
    found = sum(of_members.values())
    stage.say(f"commands: {found:.2f} per second and member")
    return [
        Row(
            key="kafka_commands",
            what=f"{members} members, {partitions} partitions",
            about="commands to MongoDB of each member in a second, while changes flow through all partitions",
            peer="the limit",
            unit="commands/s",
            pairs=[Pair(found, _LIMIT)],
            target=_TARGET,
            cpu="the row counts commands",
            details={name: count for name, count in of_members.items() if count},
        )
    ]


def _wait_flowing(stage: Stage, topic: Topic, heard: Heard) -> None:
    """Wait until all partitions deliver. The commands of the start are not part of the row."""
    records = topic.records
    stage.write(_NAME, _WRITTEN)
    stage.wait_saved(_NAME, heard, records + _WRITTEN)


def _commands(stage: Stage) -> dict[str, float]:
    """The number of commands per second, by the name of the command."""
    seconds = stage.plan.counted
    before, began = _totals(stage), time.monotonic()
    due = began
    while due < began + seconds:
        stage.write(_NAME, _WRITTEN)
        due += _EVERY_SECONDS
        time.sleep(max(0.0, due - time.monotonic()))
    after, ended = _totals(stage), time.monotonic()
    return {name: (count - before.get(name, 0)) / (ended - began) for name, count in after.items()}


def _totals(stage: Stage) -> dict[str, int]:
    status: dict[str, Any] = stage.client.admin.command("serverStatus")
    found: dict[str, Any] = status["metrics"]["commands"]
    return {
        name: int(one["total"])
        for name, one in found.items()
        if isinstance(one, dict) and "total" in one and name not in _NOT_COUNTED
    }
