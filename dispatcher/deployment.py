"""What the server tells about itself: its clock, and how far back its oplog reaches."""

from time import monotonic, time
from typing import Any, Final, NamedTuple

from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from dispatcher.measuring import seconds_of

__all__ = ["MOST_SKEW", "Oplog", "clock_offset", "look_at_oplog"]

MOST_SKEW: Final = 1.0
"""Seconds that the clocks of the server and of this machine may differ before somebody should know."""

# How often the clock is asked for: the answer that took the least time is the best one.
_ASKED: Final = 3

# An oplog that is fuller than this forgets its oldest entries at any time.
_FULL: Final = 0.95


class Oplog(NamedTuple):
    """The past that the server still knows.

    Attributes:
        begins: cluster time of the oldest entry, in seconds since 1970.
        ends: likewise of the newest.
        spare: seconds until it is full and begins to forget, estimated by how it grew until now; 0 if it is full,
            or if that is not known.
    """

    begins: float
    ends: float
    spare: float

    @property
    def window(self) -> float:
        """Seconds of the past that it holds."""
        return self.ends - self.begins

    def headroom(self, position: float) -> float:
        """Seconds after which a position that stays where it is would be lost, estimated.

        Args:
            position: its cluster time, in seconds since 1970.
        """
        return position - self.begins + self.spare


async def look_at_oplog(client: AsyncMongoClient[Any]) -> Oplog | None:
    """How far back the oplog reaches; None if it can't be seen: it takes the right to read it, and no mongos.

    Raises:
        PyMongoError: as the driver has it.
    """
    oplog = client["local"]["oplog.rs"]
    times = []
    try:
        for direction in (1, -1):
            entry = await oplog.find_one({}, {"ts": True}, sort=[("$natural", direction)])
            if entry is None:
                return None
            times.append(float(entry["ts"].time))
    except OperationFailure:  # not allowed, or a mongos
        return None
    begins, ends = times
    return Oplog(begins, ends, await _spare(client, ends - begins))


async def _spare(client: AsyncMongoClient[Any], window: float) -> float:
    try:
        cursor = await client["local"]["oplog.rs"].aggregate([{"$collStats": {"storageStats": {}}}])
        (stats,) = await cursor.to_list(1)
    except OperationFailure:
        return 0.0
    size, limit = float(stats["storageStats"]["size"]), float(stats["storageStats"]["maxSize"])
    if size >= limit * _FULL or not size:
        return 0.0
    return (limit - size) / size * max(window, 1.0)  # times are whole seconds


async def clock_offset(client: AsyncMongoClient[Any]) -> float:
    """Seconds that the clock of the server is ahead of ours; half of a round trip is the error at most.

    Raises:
        PyMongoError: as the driver has it.
    """
    offsets = []
    for _ in range(_ASKED):
        began, asked = monotonic(), time()
        answer = await client.admin.command("hello")
        took = monotonic() - began
        server_time = seconds_of(answer["localTime"])
        assert server_time is not None
        offsets.append((took, server_time - asked - took / 2))
    return min(offsets)[1]
