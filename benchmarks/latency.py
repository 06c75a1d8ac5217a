"""The time from a write to the call of its receiver.

The time begins before the writer sends the insert. Only this instant is always before the call of the receiver.
The acknowledgement is not: a change stream shows a write as soon as a majority of the servers has the write. So
the receiver may be called before the writer gets the acknowledgement. (This was so for a tenth to a half of the
writes.) Therefore both sides include the commit time of the server, which moves the ratio towards 1. The details
have the time to the acknowledgement for comparison. All processes run on one machine and read its monotonic clock.

Each side runs alone with the writer and the server, in turns. Both sides of a round get the same stream of writes.
If both ran together, they would wake up at the same time for each write. On few cores the result would depend on
which side runs first, and on the work of the other side.
"""

from typing import Any, NamedTuple

from pymongo import MongoClient

from benchmarks.contestants import Contestant, bare_loop, daemon, writer
from benchmarks.figures import Pair, Row, Target, quantile
from benchmarks.plan import Plan
from benchmarks.setting import Setting
from benchmarks.workloads.environment import Assignment

__all__ = ["measure_latency"]

_P50 = Target(limit=1.2, tolerated=3.0, better="lower")
_P99 = Target(limit=2.0, tolerated=None, better="lower")
_DATABASE, _STATE = "latency", "latency_state"


class Turn(NamedTuple):
    """The times of one side for one stream of writes: milliseconds from sending, in the order of the writes.

    Attributes:
        received: until the call of the receiver.
        acknowledged: until the acknowledgement.
    """

    received: list[float]
    acknowledged: list[float]


def measure_latency(setting: Setting) -> list[Row]:
    """Measure the two rows.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    url, plan, say = setting.url, setting.plan, setting.say
    assignment = Assignment(url, _DATABASE, plan.warm_up + plan.writes, "arrivals")
    ours: list[Turn] = []
    theirs: list[Turn] = []
    with MongoClient[dict[str, Any]](url) as client:
        for i in range(plan.rounds):
            for side in (ours, theirs) if i % 2 == 0 else (theirs, ours):
                for name in (_DATABASE, _STATE):
                    client.drop_database(name)
                with daemon(assignment, _STATE) if side is ours else bare_loop(assignment) as process:
                    side.append(_turn(process, assignment, plan, seed=i))
            medians = " and ".join(f"{quantile(side[-1].received, 0.5):.2f}" for side in (ours, theirs))
            say(f"latency, round {i + 1} of {plan.rounds}: median {medians} ms")
    return [
        _row("latency_p50", "median", 0.5, ours, theirs, plan, _P50),
        _row("latency_p99", "p99", 0.99, ours, theirs, plan, _P99),
    ]


def _turn(process: Contestant, assignment: Assignment, plan: Plan, *, seed: int) -> Turn:
    """Time one side on one stream of writes."""
    process.wait_ready()
    with writer(assignment, rate=plan.rate, seed=seed) as writing:
        written, arrived = writing.measured(), process.measured()["arrived"]
    sent = written["sent"]
    return Turn(
        _milliseconds(sent, arrived)[plan.warm_up :],
        _milliseconds(sent, written["acknowledged"])[plan.warm_up :],
    )


def _milliseconds(begins: list[int], ends: list[int]) -> list[float]:
    return [(end - begin) / 1e6 for begin, end in zip(begins, ends, strict=True)]


def _row(
    key: str,
    what: str,
    share: float,
    ours: list[Turn],
    theirs: list[Turn],
    plan: Plan,
    target: Target,
) -> Row:
    return Row(
        key=key,
        what=f"latency, {what}",
        about=f"milliseconds between sending a write and calling its receiver, at {plan.rate:g} writes/s",
        peer="a bare PyMongo loop",
        unit="ms",
        pairs=[
            Pair(quantile(a.received, share), quantile(b.received, share))
            for a, b in zip(ours, theirs, strict=True)
        ],
        target=target,
        cpu="both sides wait for the server most of this time",
        details={
            "writes": plan.writes,
            "warm_up": plan.warm_up,
            "rate": plan.rate,
            "acknowledged_ms": {
                side: [round(quantile(turn.acknowledged, share), 3) for turn in turns]
                for side, turns in (("ours", ours), ("peer", theirs))
            },
        },
    )
