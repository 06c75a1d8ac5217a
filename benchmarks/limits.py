"""A receiver with `concurrency=5` beside a plain one, which gets the same changes: neither should slow the other.

The limited receiver waits 40 ms for each change, so it can do 125 changes per second. It first gets a burst of
changes, most of which are parked, and then one hundred changes per second. So it works at its limit all the time.
The burst is also measured for the plain receiver: parking is work of the same process.
"""

from dataclasses import replace
from typing import Final

from benchmarks.busy import Busy, Point, measure_busy
from benchmarks.figures import Pair, Row, Target
from benchmarks.setting import Setting
from benchmarks.workloads.shape import Shape

__all__ = ["measure_limits"]

_TARGET: Final = Target(limit=1.1, tolerated=None, better="lower")
_RATE: Final = Target(limit=0.91, tolerated=0.6, better="higher")


def measure_limits(setting: Setting) -> list[Row]:
    """Measure the rows.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    rounds, burst = setting.plan.long_rounds, setting.plan.burst
    both = Shape(beside="limited")
    plain: list[tuple[Point, Point]] = []
    limited: list[tuple[Point, Point]] = []
    for i in range(rounds):
        plain.append(_pair(setting, Busy(both, changes=burst), Busy(changes=burst)))
        timed = replace(both, times_beside=True)
        alone = replace(timed, receivers=0)
        limited.append(_pair(setting, *(Busy(one, changes=burst, timed=False) for one in (timed, alone))))
        medians = " and ".join(f"{point.p50:.2f}" for point in plain[-1])
        rates = " and ".join(f"{point.rate:,.0f}" for point in limited[-1])
        bursts = " and ".join(f"{burst / point.rate:.2f}" for point in plain[-1])
        setting.say(
            f"limits, round {i + 1} of {rounds}: plain {medians} ms, burst {bursts} s, limited {rates} changes/s"
        )
    return _rows(burst, plain, limited)


def _pair(setting: Setting, ours: Busy, peer: Busy) -> tuple[Point, Point]:
    return measure_busy(setting.url, ours), measure_busy(setting.url, peer)


def _rows(burst: int, plain: list[tuple[Point, Point]], limited: list[tuple[Point, Point]]) -> list[Row]:
    return [
        Row(
            key="limits_plain",
            what="plain beside limited",
            about="milliseconds from a write to a plain receiver, median at 100 writes/s, beside a receiver with "
            "concurrency=5 that works at its limit and has parked deliveries",
            peer="alone",
            unit="ms",
            pairs=[Pair(ours.p50 or 0.0, peer.p50 or 0.0) for ours, peer in plain],
            target=_TARGET,
            cpu="both sides wait for the server most of this time",
        ),
        Row(
            key="limits_limited",
            what="limited beside plain",
            about=f"changes per second of a receiver with concurrency=5 that waits 40 ms, out of {burst:,} "
            "written at once, beside a plain receiver",
            peer="alone",
            unit="/s",
            pairs=[Pair(ours.rate, peer.rate) for ours, peer in limited],
            target=_RATE,
            cpu="most of this time is waiting",
        ),
        Row(
            key="limits_burst",
            what="plain beside limited, burst",
            about=f"seconds until a plain receiver has {burst:,} changes that are written at once, while "
            "the deliveries of the limited receiver are parked",
            peer="alone",
            unit="s",
            pairs=[Pair(burst / ours.rate, burst / peer.rate) for ours, peer in plain],
            cpu="both receivers run in one process",
        ),
    ]
