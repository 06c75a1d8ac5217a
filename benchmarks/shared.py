"""Transactional receivers that write shared documents, against plain receivers with the same writes.

Changes wait in a backlog. For each change, the receiver adds 1 to one of a few documents. A hundred deliveries run
at the same time. The time is measured from the first delivery to the last.
"""

from dataclasses import replace

from benchmarks.busy import Busy, cpu_of, measure_busy
from benchmarks.figures import Pair, Row, Target
from benchmarks.setting import Setting
from benchmarks.workloads.shape import Shape

__all__ = ["measure_shared"]

_TARGET = Target(limit=2.0, tolerated=5.0, better="lower")
_CPU = Target.cost(2.5)
_CHANGES, _COUNTERS = 300, 20


def measure_shared(setting: Setting) -> list[Row]:
    """Measure the row.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    plain = Busy(Shape(counters=_COUNTERS), changes=_CHANGES, timed=False, backlog=True)
    transactional = replace(plain, shape=Shape(counters=_COUNTERS, transactional=True))
    points = []
    for i in range(setting.plan.long_rounds):
        ours, peer = (measure_busy(setting.url, one) for one in (transactional, plain))
        points.append((ours, peer))
        seconds = " and ".join(f"{_CHANGES / point.rate:.2f}" for point in points[-1])
        setting.say(f"shared documents, round {i + 1} of {setting.plan.long_rounds}: {seconds} s")
    return [
        Row(
            key="shared_documents",
            what="transactional, shared documents",
            about=f"seconds for {_CHANGES} deliveries, 100 at once, that change counters in {_COUNTERS} documents",
            peer="a plain receiver with the same writes",
            unit="s",
            pairs=[Pair(_CHANGES / ours.rate, _CHANGES / peer.rate) for ours, peer in points],
            target=_TARGET,
            cpu=cpu_of(points, _CPU),
        )
    ]
