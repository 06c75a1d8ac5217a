"""Limits repeated log lines to one per minute for each name, e.g. of a receiver.

Each written line has the number of lines that were omitted since the last written line.
"""

from collections import Counter
from collections.abc import Hashable
from time import monotonic
from typing import Final

# Seconds for which a name is not logged again.
_BETWEEN: Final = 60.0


class Throttle:
    """Decides whether a line is written.

    Example:
        further = throttle.due(delivery.receiver)
        if further is not None:
            log.warning("a receiver is slow", receiver=delivery.receiver, further=further)
    """

    def __init__(self) -> None:
        self._logged: dict[Hashable, float] = {}
        self._kept_back: Counter[Hashable] = Counter()

    def due(self, name: Hashable) -> int | None:
        """Return None if this line must be omitted.

        Otherwise return the number of lines of this name that were omitted since the last written one.
        """
        now = monotonic()
        if now - self._logged.get(name, -_BETWEEN) < _BETWEEN:
            self._kept_back[name] += 1
            return None
        self._logged[name] = now
        return self._kept_back.pop(name, 0)
