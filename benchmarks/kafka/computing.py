"""Two processes against one, with a receiver that computes 5 ms for each change.

The processes are stopped (SIGSTOP) until the relay has published the whole backlog. Then all processes continue at
the same time, and read the backlog from the broker. The time ends with the last delivery.
"""

import time
from contextlib import ExitStack
from statistics import median
from typing import Final, NamedTuple

from benchmarks.busy import Heard
from benchmarks.figures import Measured, Pair, Row, Target
from benchmarks.kafka.stage import Stage, Usage
from benchmarks.processes import frozen
from benchmarks.workloads.shape import Shape

__all__ = ["measure_computing"]

_NAME: Final = "computing"
_PARTITIONS: Final = 16
_COMPUTE_MS: Final = 5
_WARM_UP: Final = 200
_TARGET: Final = Target(limit=1.7, tolerated=None, better="higher")


class _Turn(NamedTuple):
    rate: float
    cpu_seconds: float
    servers: Usage


def measure_computing(stage: Stage) -> list[Row]:
    """Measure the rows.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    rounds = stage.plan.long_rounds
    turns: list[tuple[_Turn, _Turn, _Turn]] = []
    with stage.relay(_NAME, _PARTITIONS) as relay:
        relay.wait_ready()
        for i in range(rounds):
            one = _turn(stage, [()])
            two = _turn(stage, [(), ()])
            supervised = _turn(stage, [("--processes", "2")], members=2)
            turns.append((one, two, supervised))
            rates = ", ".join(f"{turn.rate:,.0f}" for turn in turns[-1])
            stage.say(f"computing, round {i + 1} of {rounds}: one, two, --processes 2: {rates} changes/s")
    return [
        _row(stage, "kafka_two_workers", "two workers", "two workers", turns, 1),
        _row(stage, "kafka_two_processes", "--processes 2", "`run --processes 2`", turns, 2),
    ]


def _turn(stage: Stage, workers: list[tuple[str, ...]], members: int | None = None) -> _Turn:
    """Let some dispatchers deliver a backlog.

    Args:
        workers: the flags of each dispatcher.
        members: the total number of processes of these dispatchers; by default one for each dispatcher.
    """
    members = members or len(workers)
    changes, topic = stage.plan.computed, stage.topic(_NAME, _PARTITIONS)
    with ExitStack() as stack:
        shape = Shape(compute_ms=_COMPUTE_MS)
        heard = Heard([stack.enter_context(stage.worker(_NAME, *flags, shape=shape)) for flags in workers])
        stage.wait_shared(_NAME, heard, members)
        records = topic.records
        stage.write(_NAME, _WARM_UP)
        heard.wait("Delivering the first changes", lambda: heard.count >= _WARM_UP)
        with frozen(heard.pids):
            stage.write(_NAME, changes)
            topic.wait(records + _WARM_UP + changes)
            servers, began = stage.usage(), time.monotonic_ns()
        heard.wait("Delivering all changes", lambda: heard.count >= _WARM_UP + changes)
        seconds = (heard.last - began) / 1e9
        return _Turn(changes / seconds, heard.cpu_seconds, stage.usage().since(servers))


def _row(stage: Stage, key: str, what: str, ours: str, turns: list[tuple[_Turn, _Turn, _Turn]], which: int) -> Row:
    mongod, broker = (median(turn[which].servers[server] for turn in turns) for server in (0, 1))
    return Row(
        key=key,
        what=what,
        about=f"changes delivered per second, out of {stage.plan.computed:,} that wait in the broker, with a "
        f"receiver that computes {_COMPUTE_MS} ms, {ours}; in this time mongod used {mongod:.2f} s and the "
        f"broker {broker:.2f} s of "
        "processor time",
        peer="one worker",
        unit="/s",
        pairs=[Pair(turn[which].rate, turn[0].rate) for turn in turns],
        target=_TARGET,
        cpu=Measured(pairs=[Pair(turn[which].cpu_seconds, turn[0].cpu_seconds) for turn in turns]),
        details={"changes": stage.plan.computed, "mongod_seconds": mongod, "broker_seconds": broker},
    )
