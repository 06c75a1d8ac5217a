"""Meters: the user's code of both sides calls them once for each change, and does nothing else.

`Pace` and `Arrivals` report with a line of JSON on stdout, `{"measured": {...}}`, after the last expected change.
`Spread` reports regularly. Times are `time.monotonic_ns()`, the same clock for all processes of a machine.
"""

import asyncio
import json
import os
import resource
import sys
from pathlib import Path
from time import monotonic_ns, process_time_ns
from typing import Any, Protocol

from benchmarks.workloads.environment import Assignment

__all__ = ["Meter", "Spread", "make_meter", "rss_mb", "say"]

_WHILE_SECONDS = 0.1


class Meter(Protocol):
    """Counts or times changes."""

    def event(self, number: int) -> None:
        """The change with this number has reached the user's code."""


class Pace:
    """Measures seconds and processor time from the first change to the last, and the memory after each tenth."""

    def __init__(self, expected: int) -> None:
        self._left = self._expected = expected
        self._began = self._began_cpu = 0
        self._tenth = max(1, expected // 10)
        self._memory: list[float] = []

    def event(self, _number: int) -> None:
        if self._left == self._expected:
            self._began, self._began_cpu = monotonic_ns(), process_time_ns()
        self._left -= 1
        if not self._left % self._tenth:
            self._memory.append(round(rss_mb(), 1))
        if not self._left:
            seconds, cpu = (monotonic_ns() - self._began) / 1e9, (process_time_ns() - self._began_cpu) / 1e9
            say(
                {
                    "measured": {
                        "seconds": seconds,
                        "cpu_seconds": cpu,
                        "peak_mb": _peak_mb(),
                        "memory_mb": self._memory,
                    }
                }
            )


class Arrivals:
    """Notes the time of each change, by its number. The report has the processor time of the process, too."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._arrived: dict[int, int] = {}

    def event(self, number: int) -> None:
        self._arrived.setdefault(number, monotonic_ns())
        if len(self._arrived) == self._expected:
            arrived = [self._arrived[n] for n in range(self._expected)]
            say({"measured": {"arrived": arrived, "cpu_seconds": process_time_ns() / 1e9}})


class Spread:
    """Counts the changes of this process, and notes their times, and the processor time since the first change.

    This meter is for several processes that share the changes, because none of them knows when all changes have
    arrived. It needs a running event loop.
    """

    def __init__(self) -> None:
        self._count = 0
        self._first = self._last = self._began_cpu = 0
        self._arrived: dict[int, int] = {}
        self._is_waiting = False

    def begin(self) -> None:
        """A change reaches the user's code."""
        if not self._first:
            self._first, self._began_cpu = monotonic_ns(), process_time_ns()

    def event(self, number: int) -> None:
        """The user's code has handled the change with this number."""
        self._last = monotonic_ns()
        self._count += 1
        self._arrived[number] = self._last
        if not self._is_waiting:
            self._is_waiting = True
            asyncio.get_running_loop().call_later(_WHILE_SECONDS, self._say)

    def _say(self) -> None:
        self._is_waiting = False
        numbers = {
            "pid": os.getpid(),
            "count": self._count,
            "first": self._first,
            "last": self._last,
            "cpu_seconds": (process_time_ns() - self._began_cpu) / 1e9,
            "rss_mb": rss_mb(),
        }
        latest = {number: at for number, at in self._arrived.items() if number < 0}
        self._arrived.clear()
        say({"spread": numbers, "arrived": latest})


def make_meter(assignment: Assignment) -> Meter:
    """The meter of an assignment."""
    return Pace(assignment.expected) if assignment.meter == "pace" else Arrivals(assignment.expected)


def say(line: dict[str, Any]) -> None:
    """Report to the parent process."""
    print(json.dumps(line), flush=True)


def rss_mb() -> float:
    """Megabytes of memory of this process; its maximum if the system does not report the present value."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return _peak_mb()
    return pages * resource.getpagesize() / 1e6


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
