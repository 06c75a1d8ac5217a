"""Detects receivers that are triggered by their own writes, and slows them down.

A write of the ODM inside a receiver carries a hop count. A raw write (`bulk_write`, PyMongo itself) carries none,
and looks like a write of any other client. Only the time of its commit differs: at this time, the receiver runs
for the same document. If a document is written often, a change of another client may be committed during a
delivery by chance. So a delivery waits only after many changes of its document in a row, each committed during the
delivery of the change before. The first waits are short, and later ones are longer. No delivery of the document
runs during a wait. A change of another client that is committed during a wait ends this row of changes,
and is delivered without a delay. The log names the receiver. No delivery is lost, and each document has its own
delay.
"""

from collections.abc import Iterable
from datetime import datetime
from time import time
from typing import Any, Final, NamedTuple

from dispatcher.core.lease import now
from dispatcher.core.output.logs import log
from dispatcher.core.stats import seconds_of

# Number of changes in a row that are delivered without a delay. Each of these changes was committed during the
# delivery of the change before it.
_FREE: Final = 16

# Number of delayed deliveries before the log names the receiver.
_UNNAMED: Final = 4

# Seconds that the first delayed delivery waits, and the maximum for later ones.
_FIRST: Final = 0.1
_LONGEST: Final = 5.0

# Tolerance for commit times in seconds: they are whole milliseconds of another clock.
_INEXACT: Final = 0.002

# Minimum number of seconds for which a delivery is remembered.
_KEPT: Final = 2.0


class _Delivered(NamedTuple):
    began: float
    ended: float
    echoes: int


class Echoes:
    """Remembers the latest delivery of each document, for a short time."""

    def __init__(self) -> None:
        self._young: dict[Any, _Delivered] = {}
        self._old: dict[Any, _Delivered] = {}
        self._turn = now() + _KEPT
        self._named: set[str] = set()

    def count(self, key: Any, wall_time: datetime | None, clock_offset: float) -> int:
        """Count the changes of a document in a row, up to the present change. Usually 0.

        A change counts if it was committed during the delivery of the change before it.

        Args:
            wall_time: the time of the commit, by the server's clock.
            clock_offset: seconds by which the server's clock is ahead of ours.
        """
        before = self._young.get(key) or self._old.get(key)
        if before is None or wall_time is None:
            return 0
        committed = (seconds_of(wall_time) or 0.0) - clock_offset - (time() - now())
        inside = before.began - _INEXACT <= committed <= before.ended + _INEXACT
        return before.echoes + 1 if inside else 0

    def delivered(self, key: Any, began: float, echoes: int) -> None:
        """Remember a delivery that has ended.

        Args:
            began: the time of its beginning, on the clock `now`.
            echoes: the result of `count` for its change.
        """
        ended = now()
        if ended > self._turn:
            self._old, self._young, self._turn = self._young, {}, ended + _KEPT
        self._young[key] = _Delivered(began, ended, echoes)

    def pause(self, echoes: int, receivers: Iterable[str], namespace: str, id_: Any) -> float:
        """Compute the seconds that a delivery waits before it begins. Logs each receiver once.

        Args:
            echoes: the result of `count` for the change.
        """
        if echoes < _FREE:
            return 0.0
        seconds = float(min(_LONGEST, _FIRST * 2.0 ** min(echoes - _FREE, 10)))
        unnamed = [name for name in receivers if name not in self._named]
        if echoes >= _FREE + _UNNAMED and unnamed:
            self._named.update(unnamed)
            log.warning(
                "the writes of a receiver seem to trigger the same receiver again, without end; the deliveries "
                "that these writes trigger are slowed down",
                action="delivery.echo",
                receivers=unnamed,
                namespace=namespace,
                id=repr(id_),
                in_a_row=echoes,
                remedy="write only if a value changes, and through the ODM, which adds a hop count",
            )
        return seconds
