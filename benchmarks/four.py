"""Four dispatchers against one, with a receiver that waits 50 ms, as if it called a service.

Each dispatcher has one partition, and makes 100 deliveries at the same time. All changes are written while the
group is paused, because a writer needs as much of a small machine as a dispatcher. Then the group is resumed, and
the time is measured from the first delivery to the last. The processes notice the end of the pause up to a second
apart. So there are enough changes to keep four processes busy for some seconds.
"""

from dataclasses import replace

from benchmarks.busy import Busy, cpu_of, measure_busy
from benchmarks.figures import Pair, Row, Target
from benchmarks.setting import Setting
from benchmarks.workloads.shape import Shape

__all__ = ["measure_four"]

_TARGET = Target(limit=3.6, tolerated=None, better="higher")


def measure_four(setting: Setting) -> list[Row]:
    """Measure the row.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    changes, points = setting.plan.waits, []
    rounds = setting.plan.long_rounds
    for i in range(rounds):
        busy = Busy(Shape(wait_ms=50), changes=changes, timed=False, backlog=True)
        four, one = (measure_busy(setting.url, replace(busy, dispatchers=n)) for n in (4, 1))
        points.append((four, one))
        setting.say(f"dispatchers, round {i + 1} of {rounds}: {four.rate:,.0f} and {one.rate:,.0f} changes/s")
    return [
        Row(
            key="four_dispatchers",
            what="four dispatchers",
            about=f"changes delivered per second, out of {changes:,} that wait, with a receiver that takes 50 ms "
            "and 100 deliveries at once in each dispatcher",
            peer="one dispatcher",
            unit="/s",
            pairs=[Pair(four.rate, one.rate) for four, one in points],
            target=_TARGET,
            cpu=cpu_of(points),
        )
    ]
