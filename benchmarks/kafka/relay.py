"""The relay against a bare loop that reads the same change stream and publishes with `produce_batch`.

Both processes run all the time, each with a topic of its own. They are stopped (SIGSTOP) while a backlog is
written. Then they continue one after the other, so each has the machine for itself. The time of a side is measured
until the broker has written the last record. The order of the sides changes from round to round.
"""

import os
import signal
import time
from statistics import median
from typing import Final, NamedTuple

from benchmarks.contestants import Contestant, bare_relay
from benchmarks.figures import Measured, Pair, Row, Target
from benchmarks.kafka.stage import Stage, Usage
from benchmarks.kafka.topic import Topic
from benchmarks.processes import cpu_seconds, frozen

__all__ = ["measure_relay"]

_NAME: Final = "relaying"
_PARTITIONS: Final = 32
_WARM_UP: Final = 2_000
_RATE: Final = Target(limit=0.7, tolerated=0.35, better="higher")
_CPU: Final = Target.cost(1.5)


class _Side(NamedTuple):
    process: Contestant
    topic: Topic


class _Turn(NamedTuple):
    seconds: float
    cpu_seconds: float
    servers: Usage


def measure_relay(stage: Stage) -> list[Row]:
    """Measure the row.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    changes, rounds = stage.plan.changes, stage.plan.long_rounds
    bare_topic = Topic(stage.brokers, "bare", _PARTITIONS)
    bare_topic.create()
    turns: list[tuple[_Turn, _Turn]] = []
    with (
        stage.relay(_NAME, _PARTITIONS) as ours,
        bare_relay(stage.assignment(_NAME), stage.brokers, bare_topic.name) as theirs,
    ):
        ours.wait_ready()
        theirs.wait_ready()
        sides = _Side(ours, stage.topic(_NAME, _PARTITIONS)), _Side(theirs, bare_topic)
        stage.write(_NAME, _WARM_UP)
        for side in sides:
            side.topic.wait(_WARM_UP)
        for i in range(rounds):
            with frozen([side.process.pid for side in sides]):
                stage.write(_NAME, changes)
                records = _WARM_UP + (i + 1) * changes
                order = sides if i % 2 == 0 else sides[::-1]
                taken = {side: _turn(stage, side, records) for side in order}
            turns.append((taken[sides[0]], taken[sides[1]]))
            rates = " and ".join(f"{changes / turn.seconds:,.0f}" for turn in turns[-1])
            stage.say(f"relay, round {i + 1} of {rounds}: {rates} changes/s")
    return _rows(changes, turns)


def _turn(stage: Stage, side: _Side, records: int) -> _Turn:
    pid = side.process.pid
    cpu, servers = cpu_seconds(pid), stage.usage()
    began = time.time()
    os.kill(pid, signal.SIGCONT)
    side.topic.wait(records)
    seconds = side.topic.last_append - began
    turn = _Turn(seconds, cpu_seconds(pid) - cpu, stage.usage().since(servers))
    os.kill(pid, signal.SIGSTOP)
    return turn


def _rows(changes: int, turns: list[tuple[_Turn, _Turn]]) -> list[Row]:
    def each(seconds: list[float]) -> float:
        return round(median(seconds) / changes * 1e6, 2)

    servers = {
        side: {
            "mongod_us": each([pair[i].servers.mongod for pair in turns]),
            "broker_us": each([pair[i].servers.broker for pair in turns]),
        }
        for i, side in enumerate(("ours", "peer"))
    }
    return [
        Row(
            key="kafka_relay",
            what="relay",
            about=f"changes per second that a relay publishes out of a backlog of {changes:,}, against a loop "
            "with produce_batch over the same change stream, where the loop keeps no order and saves nothing",
            peer="a bare loop",
            unit="/s",
            pairs=[Pair(changes / ours.seconds, changes / peer.seconds) for ours, peer in turns],
            target=_RATE,
            cpu=Measured(
                pairs=[
                    Pair(ours.cpu_seconds / changes * 1e6, peer.cpu_seconds / changes * 1e6)
                    for ours, peer in turns
                ],
                target=_CPU,
            ),
            details={"changes": changes, "servers": servers},
        )
    ]
