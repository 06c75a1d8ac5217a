"""Processor time of mongod for a backlog: 16 partitions and 4 workers on Kafka, against one dispatcher.

Each side finds its saved position, and the backlog after it. All processes of a side are started, deliver the
backlog, and are stopped. So the time includes the commands that the processes send at their start, and the
commands of the relay.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Final

from benchmarks.busy import Heard
from benchmarks.contestants import Contestant, busy_daemon
from benchmarks.figures import Pair, Row, Target
from benchmarks.kafka.stage import Stage, Usage
from benchmarks.workloads.shape import Shape

__all__ = ["measure_server_cpu"]

_NAME: Final = "server_cpu"
_DIRECT_STATE: Final = "server_cpu_direct"
_PARTITIONS, _WORKERS = 16, 4
_TARGET: Final = Target(limit=1.5, tolerated=3.0, better="lower")


def measure_server_cpu(stage: Stage) -> list[Row]:
    """Measure the row.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    changes, rounds = stage.plan.changes, stage.plan.long_rounds
    stage.client[_NAME].create_collection("items0")
    for start in (_relay, _worker, _direct):
        with start(stage) as process:
            process.wait_ready()  # then its position is saved
            process.end()
    pairs: list[tuple[Usage, Usage]] = []
    for i in range(rounds):
        stage.write(_NAME, changes)
        ours = _used(stage, changes, [_relay, *[_worker] * _WORKERS])
        peer = _used(stage, changes, [_direct])
        pairs.append((ours, peer))
        stage.say(f"server, round {i + 1} of {rounds}: {ours.mongod:.2f} and {peer.mongod:.2f} s CPU of mongod")
    return [
        Row(
            key="kafka_server_cpu",
            what="16 partitions, server",
            about=f"seconds of processor time of mongod for {changes:,} changes: a relay and {_WORKERS} workers "
            f"with {_PARTITIONS} partitions on Kafka, against one dispatcher on a change stream",
            peer="one change stream",
            unit="s CPU",
            pairs=[Pair(ours.mongod, peer.mongod) for ours, peer in pairs],
            target=_TARGET,
            cpu="the row is about a processor time itself",
            details={"changes": changes, "broker_seconds": round(median(ours.broker for ours, _ in pairs), 2)},
        )
    ]


def _relay(stage: Stage) -> Contestant:
    return stage.relay(_NAME, _PARTITIONS)


def _worker(stage: Stage) -> Contestant:
    return stage.worker(_NAME)


def _direct(stage: Stage) -> Contestant:
    return busy_daemon(stage.assignment(_NAME), _DIRECT_STATE, Shape())


def _used(stage: Stage, changes: int, starts: Sequence[Callable[[Stage], Contestant]]) -> Usage:
    """The processor time of the servers from the start of processes until these have delivered a backlog."""
    before = stage.usage()
    with ExitStack() as stack:
        processes = [stack.enter_context(start(stage)) for start in starts]
        heard = Heard(processes)
        heard.wait("Delivering all changes", lambda: heard.count >= changes)
        used = stage.usage().since(before)
        for process in processes:
            process.end()
    return used
