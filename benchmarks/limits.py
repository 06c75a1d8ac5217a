"""A receiver with `concurrency=5` beside a plain receiver: neither slows the other down.

Both receivers get all changes. The plain one does nothing. The one with the limit waits 100 ms, so it makes 50
deliveries a second at most. First many changes come at once, and then single ones at 100 a second. So most
deliveries of the receiver with the limit are parked, also while the single changes are timed.
"""

from benchmarks.busy import Busy, Point, measure_busy
from benchmarks.figures import Pair, Row, Target
from benchmarks.setting import Setting
from benchmarks.workloads.shape import Shape

__all__ = ["measure_limits"]

_P50 = Target(limit=1.1, tolerated=3.0, better="lower")
_ALONE = Target(limit=0.9, tolerated=0.4, better="higher")
_WAIT_MS = 100.0
_CHANGES, _LIMITED_CHANGES = 1_000, 300
_PLAIN, _BOTH = Shape(), Shape(limited_ms=_WAIT_MS)
_LIMITED = Shape(receivers=0, limited_ms=_WAIT_MS, is_limited_measured=True)
_LIMITED_OF_BOTH = Shape(limited_ms=_WAIT_MS, is_limited_measured=True)


def measure_limits(setting: Setting) -> list[Row]:
    """Measure the three rows.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    plain: list[tuple[Point, Point]] = []
    limited: list[Pair] = []
    for i in range(setting.plan.rounds):
        both, alone = (measure_busy(setting.url, Busy(one, changes=_CHANGES)) for one in (_BOTH, _PLAIN))
        plain.append((both, alone))
        rates = [
            measure_busy(setting.url, Busy(one, changes=_LIMITED_CHANGES, timed=False)).rate
            for one in (_LIMITED_OF_BOTH, _LIMITED)
        ]
        limited.append(Pair(*rates))
        setting.say(
            f"limits, round {i + 1} of {setting.plan.rounds}: median {both.p50:.2f} and {alone.p50:.2f} ms, "
            f"{both.rate:.0f} and {alone.rate:.0f} changes/s; limited {rates[0]:.0f} and {rates[1]:.0f} changes/s"
        )
    return [
        Row(
            key="limits_p50",
            what="plain beside concurrency=5, median",
            about="milliseconds from a write to the plain receiver, at 100 writes/s, while the other one parks",
            peer="the plain receiver alone",
            unit="ms",
            pairs=[Pair(both.p50 or 0.0, alone.p50 or 1.0) for both, alone in plain],
            target=_P50,
        ),
        Row(
            key="limits_rate",
            what="plain beside concurrency=5, rate",
            about=f"changes per second of the plain receiver, {_CHANGES:,} at once, most parked for the other one",
            peer="the plain receiver alone",
            unit="changes/s",
            pairs=[Pair(both.rate, alone.rate) for both, alone in plain],
            target=None,
        ),
        Row(
            key="limited_rate",
            what="concurrency=5 beside plain, rate",
            about=f"changes per second of a receiver with concurrency=5 that waits {_WAIT_MS:g} ms",
            peer="the receiver with the limit alone",
            unit="changes/s",
            pairs=limited,
            target=_ALONE,
        ),
    ]
