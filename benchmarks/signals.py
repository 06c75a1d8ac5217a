"""The cost of sending a signal to one async receiver that does nothing."""

from math import ceil

from benchmarks.figures import Row, Target
from benchmarks.setting import Setting
from benchmarks.turns import Comparison, Side, measured_rows

__all__ = ["measure_signals"]

_PORTION = 5_000

_SEND = Side("mongoz_signals", "send")


def measure_signals(setting: Setting) -> list[Row]:
    """Measure the rows.

    Raises:
        BenchmarkFailed: a side did not do what it should.
    """
    count = min(_PORTION, setting.plan.sends)
    return measured_rows(setting, _COMPARISONS, portions=ceil(setting.plan.sends / count), count=count)


_COMPARISONS = (
    Comparison(
        "send",
        "send",
        "microseconds for Signal.send with one receiver, against awaiting this receiver with the same keywords",
        "a bare await",
        _SEND,
        Side("mongoz_signals", "await"),
        "us",
        Target(limit=4.0, tolerated=8.0, better="lower"),
        Target.cost(4.0),
    ),
    Comparison(
        "send_django",
        "send",
        "signals per second, against Signal.asend",
        "Django",
        _SEND,
        Side("django_signals", "send", "django"),
        "/s",
        Target(limit=25.0, tolerated=10.0, better="higher"),
        Target.cost(0.04),
    ),
    Comparison(
        "send_blinker",
        "send",
        "signals per second, against Signal.send_async",
        "blinker",
        _SEND,
        Side("blinker_signals", "send", "blinker"),
        "/s",
        Target(limit=2.0, tolerated=1.0, better="higher"),
        Target.cost(0.5),
    ),
)
