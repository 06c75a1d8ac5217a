"""Meters: called once per change by the user's code of either side, which is all that code does.

They report as a line of JSON on stdout, `{"measured": {...}}`, when the last expected change is in. Times are
`time.monotonic_ns()`, which is one clock for all processes of a machine.
"""

import json
import resource
import sys
from time import monotonic_ns, process_time_ns
from typing import Any, Protocol

from benchmarks.workloads.environment import Assignment

__all__ = ["Meter", "make_meter", "say"]


class Meter(Protocol):
    """Counts or times changes."""

    def event(self, number: int) -> None:
        """The change with this number has reached the user's code."""


class Pace:
    """From the first change to the last one: how long, and how much work."""

    def __init__(self, expected: int) -> None:
        self._left = self._expected = expected
        self._began = self._began_cpu = 0

    def event(self, _number: int) -> None:
        if self._left == self._expected:
            self._began, self._began_cpu = monotonic_ns(), process_time_ns()
        self._left -= 1
        if not self._left:
            seconds, cpu = (monotonic_ns() - self._began) / 1e9, (process_time_ns() - self._began_cpu) / 1e9
            say({"measured": {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": _peak_mb()}})


class Arrivals:
    """When each change arrived, by its number."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._arrived: dict[int, int] = {}

    def event(self, number: int) -> None:
        self._arrived.setdefault(number, monotonic_ns())
        if len(self._arrived) == self._expected:
            say({"measured": {"arrived": [self._arrived[n] for n in range(self._expected)]}})


def make_meter(assignment: Assignment) -> Meter:
    """The meter of an assignment."""
    return Pace(assignment.expected) if assignment.meter == "pace" else Arrivals(assignment.expected)


def say(line: dict[str, Any]) -> None:
    """Tell the process that started us."""
    print(json.dumps(line), flush=True)


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
