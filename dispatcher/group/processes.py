"""Computes how many processes `--processes` means, and how many partitions a new group gets for them."""

import os
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Final

from dispatcher.exceptions import TooManyProcesses
from dispatcher.settings import AUTO, MOST_PROCESSES

MOST_BY_AUTO: Final = 2
"""Maximum number of processes of `auto` on change streams: for each process the server reads the whole oplog."""


# Maximum number of partitions that a new group gets without `--partitions`.
_MOST_UNASKED: Final = 4


def process_count(wanted: str, *, streams: bool = True) -> int:
    """The number of processes.

    Args:
        wanted: as for `--processes`: a number, or `"auto"`.
        streams: whether the processes read change streams, not a topic.
    """
    if wanted != AUTO:
        return int(wanted)
    return min(usable_cores(), MOST_BY_AUTO if streams else MOST_PROCESSES)


def partitions_for(processes: int, group: str) -> int:
    """The number of partitions that a new group gets for this number of processes.

    Raises:
        TooManyProcesses: the operator must choose the number of partitions.
    """
    if processes > _MOST_UNASKED:
        raise TooManyProcesses(
            f"--processes is {processes}, and the new group {group!r} would get {processes} partitions. For "
            "each partition, the server reads the whole oplog.",
            remedy=f"Choose the number of partitions with --partitions, for example --partitions {_MOST_UNASKED}. "
            "Processes without a partition are hot standbys.",
        )
    return processes


def usable_cores() -> int:
    """The number of cores that this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, cpu_limit())))


def cpu_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """The lowest CPU limit of the control groups (version 2) of this process, in cores; `inf` without any."""
    limit = inf
    with suppress(OSError):
        entries = [line.removeprefix("0::/") for line in own.read_text().splitlines() if line.startswith("0::/")]
        for group in (root / path for entry in map(Path, entries) for path in (entry, *entry.parents)):
            with suppress(OSError, ValueError):  # there is no limit: no such file, or the word "max"
                quota, period = (group / "cpu.max").read_text().split()
                limit = min(limit, int(quota) / int(period))
    return limit
