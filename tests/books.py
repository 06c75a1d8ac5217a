"""Documents of the collection `claims`, without the processes that write them."""

from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["book"]


def book(group: str, number: int = 1, *, silent: float = 0.0, **changes: Any) -> dict[str, Any]:
    """The book of a process that is alive, with two open claims.

    Args:
        number: makes the id and the process id.
        silent: seconds since the last beat.
    """
    now = datetime.now(UTC)
    return {
        "_id": f"{number:016x}",
        "group": group,
        "beat": 5,
        "beat_at": now - timedelta(seconds=silent),
        "seconds": 600.0,
        "high": 9,
        "open": [3, 4],
        "released": [],
        "receivers": [],
        "host": f"web{number}",
        "pid": number,
        "started_at": now - timedelta(hours=1),
        **changes,
    }
