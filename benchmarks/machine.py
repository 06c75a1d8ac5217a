"""Describes the machine."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pymongo import MongoClient

__all__ = ["describe_machine"]

_PACKAGES = ("mongoz-dispatcher", "pymongo", "pydantic", "pydantic-core", "uvloop")


def describe_machine(url: str) -> dict[str, Any]:
    """The machine, its load at this moment, and the measured versions."""
    with MongoClient[dict[str, Any]](url) as client:
        server = str(client.server_info()["version"])
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(terse=True),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "mongodb": server,
        **{name: version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
