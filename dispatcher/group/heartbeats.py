"""Measures the age of other members' heartbeats by our own clock."""

from typing import Any, NamedTuple


class _Seen(NamedTuple):
    value: Any
    since: float


class Heartbeats:
    """Remembers values that other members change with each heartbeat."""

    def __init__(self) -> None:
        self._seen: dict[Any, _Seen] = {}

    def note(self, values: dict[Any, Any], *, asked: float, answered: float) -> dict[Any, float]:
        """Record the current values. Returns for each key how many seconds its value has been unchanged.

        Args:
            values: the values, by the key of the document that holds them.
            asked: the time before the values were read, by `core.lease.now`.
            answered: the time after the values were read.
        """
        seen = {}
        for key, value in values.items():
            before = self._seen.get(key)
            seen[key] = before if before is not None and before.value == value else _Seen(value, answered)
        self._seen = seen
        return {key: max(0.0, asked - each.since) for key, each in seen.items()}
