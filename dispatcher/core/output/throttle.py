"""Log lines that many deliveries would write alike: one for each name and minute, which counts the others."""

from collections import Counter
from collections.abc import Hashable
from time import monotonic
from typing import Final

__all__ = ["Throttle"]

# Seconds for which a name is not logged again.
_BETWEEN: Final = 60.0


class Throttle:
    """Decides which lines are written.

    Example:
        further = throttle.due(delivery.receiver)
        if further is not None:
            log.warning("a receiver is slow", receiver=delivery.receiver, further=further)
    """

    def __init__(self) -> None:
        self._logged: dict[Hashable, float] = {}
        self._kept_back: Counter[Hashable] = Counter()

    def due(self, name: Hashable) -> int | None:
        """How many lines of this name were kept back since the last one; None if this one is kept back, too."""
        now = monotonic()
        if now - self._logged.get(name, -_BETWEEN) < _BETWEEN:
            self._kept_back[name] += 1
            return None
        self._logged[name] = now
        return self._kept_back.pop(name, 0)
