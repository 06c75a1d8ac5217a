"""Receivers that answer their own writes: what can be known of them, and what slows them down.

A write of the ODM inside a receiver carries a hop count. A raw one (`bulk_write`, the driver itself) carries none,
and comes back like anybody's. But its change is committed while the delivery of that document is at work, time
after time. By chance that happens too, where a document is written often. So its next delivery waits a little, and
each time for longer. Changes of others don't wait for it: they are committed outside of it. Those of
the receiver itself go on following it, and it is named. No delivery is lost, and each document has its own pace.
"""

from collections.abc import Iterable
from datetime import datetime
from time import time
from typing import Any, Final, NamedTuple

from dispatcher.core.lease import now
from dispatcher.core.output.logs import get_logger
from dispatcher.core.stats import seconds_of

__all__ = ["Echoes"]

log = get_logger()

# Deliveries in a row that may follow each other like this, at full speed, and those that are slowed down unnamed.
_FREE: Final = 16
_UNNAMED: Final = 4

# Seconds to wait before the first one that is slowed down, and at most.
_FIRST: Final = 0.1
_LONGEST: Final = 5.0

# Seconds that commit times may be wrong by: they are whole milliseconds, of another clock.
_INEXACT: Final = 0.002

# Seconds for which a delivery is remembered, at least.
_KEPT: Final = 2.0


class _Delivered(NamedTuple):
    began: float
    ended: float
    echoes: int


class Echoes:
    """Knows the latest delivery of each document, for a short time."""

    def __init__(self) -> None:
        self._young: dict[Any, _Delivered] = {}
        self._old: dict[Any, _Delivered] = {}
        self._turn = now() + _KEPT
        self._named: set[str] = set()

    def count(self, key: Any, wall_time: datetime | None, clock_offset: float) -> int:
        """How many deliveries of a document in a row were each committed during the one before; 0 for most.

        Args:
            key: of the document.
            wall_time: at which the change was committed, by the server's clock.
            clock_offset: seconds that it is ahead of ours.
        """
        before = self._young.get(key) or self._old.get(key)
        if before is None or wall_time is None:
            return 0
        committed = (seconds_of(wall_time) or 0.0) - clock_offset - (time() - now())
        inside = before.began - _INEXACT <= committed <= before.ended + _INEXACT
        return before.echoes + 1 if inside else 0

    def delivered(self, key: Any, began: float, echoes: int) -> None:
        """A delivery of a document is over.

        Args:
            key: of the document.
            began: when it did.
            echoes: what `count` said of it.
        """
        ended = now()
        if ended > self._turn:
            self._old, self._young, self._turn = self._young, {}, ended + _KEPT
        self._young[key] = _Delivered(began, ended, echoes)

    def pause(self, echoes: int, receivers: Iterable[str], namespace: str, id_: Any) -> float:
        """Seconds that a delivery waits before it begins; names its receivers once, if they answer themselves.

        Args:
            echoes: what `count` said of it.
            receivers: their names.
            namespace: of the document.
            id_: likewise.
        """
        if echoes < _FREE:
            return 0.0
        seconds = float(min(_LONGEST, _FIRST * 2.0 ** min(echoes - _FREE, 10)))
        unnamed = [name for name in receivers if name not in self._named]
        if echoes >= _FREE + _UNNAMED and unnamed:
            self._named.update(unnamed)
            log.warning(
                "a receiver seems to answer its own writes without an end; its deliveries of such documents are "
                "slowed down",
                action="delivery.echo",
                receivers=unnamed,
                namespace=namespace,
                id=repr(id_),
                in_a_row=echoes,
                remedy="write with the ODM's own calls, which carry a hop count, or not at all where nothing is "
                "left to change",
            )
        return seconds
