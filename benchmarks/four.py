"""Four dispatchers against one: a receiver that waits 50 ms, as for a service, 100 deliveries at once in each.

Each has one partition. The writes begin when all have theirs, and are faster than any of them. While they go on
the server has its hands full, and the four get their first changes up to a quarter of a second late; so there are
enough of them for five seconds of four dispatchers.
"""

from benchmarks.busy import Busy, measure_busy
from benchmarks.figures import Pair, Row, Target
from benchmarks.setting import Setting
from benchmarks.workloads.shape import Shape

__all__ = ["measure_four"]

_TARGET = Target(limit=3.6, tolerated=1.5, better="higher")
_MOST_ROUNDS = 3


def measure_four(setting: Setting) -> list[Row]:
    """Measure the row.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    changes, pairs = setting.plan.waits, []
    rounds = min(_MOST_ROUNDS, setting.plan.rounds)
    for i in range(rounds):
        four, one = (
            measure_busy(
                setting.url, Busy(Shape(wait_ms=50), changes=changes, dispatchers=dispatchers, timed=False)
            ).rate
            for dispatchers in (4, 1)
        )
        pairs.append(Pair(four, one))
        setting.say(f"dispatchers, round {i + 1} of {rounds}: {four:,.0f} and {one:,.0f} changes/s")
    return [
        Row(
            key="four_dispatchers",
            what="four dispatchers",
            about=f"changes per second of {changes:,}, a receiver that waits 50 ms, concurrency 100 each",
            peer="one dispatcher",
            unit="/s",
            pairs=pairs,
            target=_TARGET,
        )
    ]
