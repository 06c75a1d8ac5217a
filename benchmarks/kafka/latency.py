"""The time that Kafka adds between a write and the call of its receiver.

As in `benchmarks/latency.py`, the time begins before the writer sends the insert, and each side runs alone, with
the same stream of writes. Relay, broker and worker handle some changes before the measurement, because their first
changes take longer.
"""

from contextlib import ExitStack
from typing import Final

from benchmarks.busy import Heard
from benchmarks.contestants import Contestant, daemon, writer
from benchmarks.figures import Pair, Row, Target, quantile
from benchmarks.kafka.stage import Stage, state_of
from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.people import COLLECTION, person

__all__ = ["measure_latency"]

_NAME: Final = "kafka_latency"
_PARTITIONS: Final = 16
_LIMIT_MS: Final = 10.0
_TARGET: Final = Target(limit=1.0, tolerated=None, better="lower")


def measure_latency(stage: Stage) -> list[Row]:
    """Measure the row.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    rounds = stage.plan.long_rounds
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    for i in range(rounds):
        for side in (ours, theirs) if i % 2 == 0 else (theirs, ours):
            side.append(_through_kafka(stage, i) if side is ours else _direct(stage, i))
        medians = " and ".join(f"{quantile(side[-1], 0.5):.2f}" for side in (ours, theirs))
        stage.say(f"latency, round {i + 1} of {rounds}: median {medians} ms")
    medians_of = [[quantile(turn, 0.5) for turn in side] for side in (ours, theirs)]
    return [
        Row(
            key="kafka_latency",
            what="latency, added by Kafka",
            about="milliseconds between sending a write and calling its receiver, median, through a relay and "
            f"Kafka, minus those of a change stream, at {stage.plan.rate:g} writes/s",
            peer="the limit",
            unit="ms",
            pairs=[Pair(max(0.0, a - b), _LIMIT_MS) for a, b in zip(*medians_of, strict=True)],
            target=_TARGET,
            cpu="both sides wait for servers most of this time",
            details={
                "through_kafka_ms": [round(value, 2) for value in medians_of[0]],
                "direct_ms": [round(value, 2) for value in medians_of[1]],
                "through_kafka_p99_ms": [round(quantile(turn, 0.99), 2) for turn in ours],
                "direct_p99_ms": [round(quantile(turn, 0.99), 2) for turn in theirs],
            },
        )
    ]


def _through_kafka(stage: Stage, seed: int) -> list[float]:
    name = f"{_NAME}_{seed}"
    with ExitStack() as stack:
        stack.enter_context(stage.relay(name, _PARTITIONS, app="app")).wait_ready()
        worker = stack.enter_context(
            daemon(_assignment(stage, name), state_of(name), flags=stage.from_topic(name))
        )
        worker.wait_ready()
        count = stage.plan.warm_up  # the writer uses these numbers again for its warm-up
        stage.client[name][COLLECTION].insert_many([person(number) for number in range(count)])
        stage.wait_saved(name, Heard([worker]), count)
        return _turn(stage, worker, name, seed)


def _direct(stage: Stage, seed: int) -> list[float]:
    name = f"{_NAME}_direct_{seed}"
    with daemon(_assignment(stage, name), state_of(name)) as process:
        process.wait_ready()
        return _turn(stage, process, name, seed)


def _assignment(stage: Stage, name: str) -> Assignment:
    return stage.assignment(name, stage.plan.warm_up + stage.plan.writes)


def _turn(stage: Stage, process: Contestant, name: str, seed: int) -> list[float]:
    """Milliseconds of the writes of one side."""
    with writer(_assignment(stage, name), rate=stage.plan.rate, seed=seed) as writing:
        sent, arrived = writing.measured()["sent"], process.measured()["arrived"]
    times = [(end - begin) / 1e6 for begin, end in zip(sent, arrived, strict=True)]
    return times[stage.plan.warm_up :]
