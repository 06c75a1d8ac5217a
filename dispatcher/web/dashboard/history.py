"""How a group did in the last hour: rates and percentiles out of what its members count. Pure.

Members count since their start, and say so every few seconds. A rate is the difference of two such reports by the
seconds between them; the group's is the sum over its members.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import accumulate, islice
from typing import Any, Final, NamedTuple

from dispatcher.core.stats import BOUNDS

__all__ = ["History", "Point", "quantile"]

# Seconds over which rates are averaged, at least: members report every few seconds.
_WINDOW: Final = 10.0

# An hour, at a point every two seconds.
_POINTS: Final = 1_800

_BUCKETS: Final = len(BOUNDS) + 1


class Point(NamedTuple):
    """The group at one moment.

    Attributes:
        at: in seconds since 1970.
        read: changes per second.
        delivered: deliveries per second.
        failed: given up, per second.
        retried: attempts beyond the first, per second.
        lag_seconds: of the partition that is furthest behind; None if none says.
        p50_seconds: from commit to receiver; None if nothing was delivered lately.
        p99_seconds: likewise.
        in_flight: deliveries.
    """

    at: float
    read: float
    delivered: float
    failed: float
    retried: float
    lag_seconds: float | None
    p50_seconds: float | None
    p99_seconds: float | None
    in_flight: int


class _Report(NamedTuple):
    at: float
    stats: Mapping[str, Any]


class History:
    """What was seen of a group, and since when."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque(maxlen=_POINTS)
        self._numbered = 0
        self._reports: dict[str, deque[_Report]] = {}

    @property
    def last(self) -> Point | None:
        """The newest point."""
        return self._points[-1] if self._points else None

    def note(self, at: float, reports: Mapping[str, tuple[float, Mapping[str, Any]]]) -> Point:
        """Add a point.

        Args:
            at: now, in seconds since 1970.
            reports: of each member that is alive: when it said so, and its stats.
        """
        self._reports = {member: self._reports.get(member, deque()) for member in reports}
        for member, (said_at, stats) in reports.items():
            _append(self._reports[member], _Report(said_at, stats))
        latency = self._counted("latency")
        current = [stats for _, stats in reports.values()]
        point = Point(
            at,
            self._rate("read"),
            self._rate("delivered"),
            self._rate("failed"),
            self._rate("retried"),
            _longest_lag(current),
            quantile(0.5, latency),
            quantile(0.99, latency),
            sum(int(_number(stats.get("in_flight"))) for stats in current),
        )
        self._points.append(point)
        self._numbered += 1
        return point

    def since(self, number: int) -> tuple[list[Point], int]:
        """The points behind the first `number` ones, and how many there were ever."""
        fresh = self._numbered - number if 0 <= number <= self._numbered else self._numbered
        count = min(fresh, len(self._points))
        return list(islice(self._points, len(self._points) - count, None)), self._numbered

    def receivers(self) -> dict[tuple[str, str], dict[str, Any]]:
        """By receiver and signal: per second, in all, and how long an attempt takes on average."""
        result: dict[tuple[str, str], dict[str, Any]] = {}
        for reports in self._reports.values():
            first, last = reports[0], reports[-1]
            seconds = last.at - first.at
            before = _receivers_of(first.stats)
            for key, now in _receivers_of(last.stats).items():
                earlier = before.get(key, {})
                sums = result.setdefault(key, dict.fromkeys(_RECEIVER_FIGURES, 0.0))
                for name in ("delivered", "failed", "retried"):
                    sums[name] += _number(now.get(name))
                    if seconds > 0:
                        sums[f"{name}_rate"] += (_number(now.get(name)) - _number(earlier.get(name))) / seconds
                for name in ("duration_sum", "duration_count"):
                    sums[name] += _number(now.get(name)) - _number(earlier.get(name))
        return result

    def _rate(self, name: str) -> float:
        total = 0.0
        for reports in self._reports.values():
            first, last = reports[0], reports[-1]
            if last.at > first.at:
                total += (_number(last.stats.get(name)) - _number(first.stats.get(name))) / (last.at - first.at)
        return max(0.0, total)

    def _counted(self, name: str) -> list[float]:
        """What was observed lately, by bucket."""
        counts = [0.0] * _BUCKETS
        for reports in self._reports.values():
            last, first = (_buckets(one.stats.get(name)) for one in (reports[-1], reports[0]))
            counts = [sum_ + max(0.0, a - b) for sum_, a, b in zip(counts, last, first, strict=True)]
        return counts


_RECEIVER_FIGURES: Final = (
    "delivered",
    "failed",
    "retried",
    "delivered_rate",
    "failed_rate",
    "retried_rate",
    "duration_sum",
    "duration_count",
)


def _append(reports: deque[_Report], report: _Report) -> None:
    """Keep just as many as the window needs: the first one is the newest of those that are older than it."""
    if not reports or report.at > reports[-1].at:
        reports.append(report)
    while len(reports) > 2 and reports[1].at <= report.at - _WINDOW:
        reports.popleft()


def quantile(share: float, counts: Sequence[float]) -> float | None:
    """A percentile of what was counted in the buckets of BOUNDS, as Prometheus computes it.

    Args:
        share: 0.99 for the 99th percentile.
        counts: by bucket, not accumulated.
    """
    total = sum(counts)
    if not total:
        return None
    wanted = share * total
    sums = list(accumulate(counts))
    bucket = next(number for number, below in enumerate(sums) if below >= wanted)
    if bucket >= len(BOUNDS):
        return BOUNDS[-1]  # beyond it nothing is known
    lower = BOUNDS[bucket - 1] if bucket else 0.0
    inside = wanted - (sums[bucket - 1] if bucket else 0.0)
    return lower + (BOUNDS[bucket] - lower) * inside / counts[bucket]


def _longest_lag(stats: Sequence[Mapping[str, Any]]) -> float | None:
    lags = [
        _number(one.get("lag_seconds"))
        for each in stats
        for one in dict(each.get("partitions") or {}).values()
        if isinstance(one, Mapping)
    ]
    return max(lags, default=None)


def _receivers_of(stats: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    found = [one for one in stats.get("receivers") or () if isinstance(one, Mapping) and "receiver" in one]
    return {(str(one.get("receiver")), str(one.get("signal"))): one for one in found}


def _buckets(value: Any) -> list[float]:
    """Counts that another version of this program may have written."""
    if not isinstance(value, Sequence) or len(value) != _BUCKETS:
        return [0.0] * _BUCKETS
    return [_number(one) for one in value]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
