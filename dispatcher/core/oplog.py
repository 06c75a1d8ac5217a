"""Reads the clock of the server, and the times of its oplog.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from math import isfinite
from time import monotonic, time
from typing import Any, Final, NamedTuple

from bson import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from dispatcher.core.stats import seconds_of

MOST_SKEW: Final = 1.0
"""Seconds that the clocks of the server and of this machine may differ without a warning."""

# Number of requests in a row when the clock is first read. Later, one request is enough, because earlier answers
# count too.
_REQUESTS: Final = 3

# Resolution of the server's time, in seconds.
_RESOLUTION: Final = 0.001

# Two clocks drift apart by at most this many seconds in a second.
_DRIFT: Final = 1e-4

# The command for the times of the oplog, without the long sections of the answer.
_OPLOG_TIMES: Final = {
    "serverStatus": 1,
    "oplog": 1,
    **dict.fromkeys(("indexStats", "locks", "metrics", "tcmalloc", "transactions", "wiredTiger"), 0),
}

# Above this fraction of its maximum size, the oplog may remove its oldest entries at any time.
_FULL: Final = 0.95


class Oplog(NamedTuple):
    """The part of the past that the oplog holds.

    Attributes:
        begins: cluster time of the oldest entry, in seconds since 1970.
        ends: cluster time of the newest entry.
        spare: estimated seconds until the oplog is full; 0 if it is full, or if this time is unknown.
    """

    begins: float
    ends: float
    spare: float

    @property
    def window(self) -> float:
        """Seconds of the past that the oplog holds."""
        return self.ends - self.begins

    def headroom(self, position: float) -> float:
        """Estimated seconds until the oplog no longer reaches back to a position.

        Args:
            position: its cluster time, in seconds since 1970.
        """
        return position - self.begins + self.spare


class ServerTimes(NamedTuple):
    """The clock and the oplog of the server.

    Attributes:
        offset: seconds by which the server's clock is ahead of ours.
        oplog: the times of the oplog; None if the user lacks the privilege, or if the server is a mongos.
    """

    offset: float
    oplog: Oplog | None


async def look_at_oplog(client: AsyncMongoClient[Any]) -> Oplog | None:
    """Read the times of the oplog; None if the user lacks the privilege, or if the server is a mongos.

    The command serverStatus reports the times. The oplog itself is not read: that would need a privilege that
    exposes the writes of every database.
    """
    try:
        status = await client.admin.command(dict(_OPLOG_TIMES))  # a copy: the driver adds to it
    except OperationFailure:  # not allowed
        return None
    oplog = status.get("oplog") or {}
    times = (oplog.get("earliestOptime"), oplog.get("latestOptime"))
    begins, ends = (float(one.time) if isinstance(one, Timestamp) else 0.0 for one in times)
    if not begins or not ends:  # a mongos has no oplog, and an empty oplog has no times
        return None
    return Oplog(begins, ends, await _spare(client, ends - begins))


async def oplog_window(client: AsyncMongoClient[Any]) -> float | None:
    """Seconds of the past that the oplog holds; None if this is unknown now.

    The function raises no error of the driver.
    """
    try:
        oplog = await look_at_oplog(client)
    except PyMongoError:
        return None
    return None if oplog is None else oplog.window


async def _spare(client: AsyncMongoClient[Any], window: float) -> float:
    """Estimate `Oplog.spare`. This needs only the privilege collStats, which exposes the size but no entries."""
    try:
        cursor = await client["local"]["oplog.rs"].aggregate([{"$collStats": {"storageStats": {}}}])
        (stats,) = await cursor.to_list(1)
    except OperationFailure:
        return 0.0
    size, limit = float(stats["storageStats"]["size"]), float(stats["storageStats"]["maxSize"])
    if size >= limit * _FULL or not size:
        return 0.0
    return (limit - size) / size * max(window, 1.0)  # times are whole seconds, so the window may be 0


class ClockOffset:
    """The number of seconds by which the clock of the server is ahead of ours.

    The server reads its clock between our question and its answer, and reports whole milliseconds. So each answer
    bounds the offset from both sides. All answers together bound it closely, even if each takes long.
    """

    def __init__(self) -> None:
        self._low, self._high = float("-inf"), float("inf")
        self._noted = monotonic()

    async def ask(self, client: AsyncMongoClient[Any]) -> float:
        """Ask the server, and return the middle of the bounds."""
        for _ in range(1 if isfinite(self._low) else _REQUESTS):
            began, asked = monotonic(), time()
            answer = await client.admin.command("hello")
            ended = monotonic()
            server_time = seconds_of(answer["localTime"])
            assert server_time is not None
            self.note(server_time - asked - (ended - began), server_time + _RESOLUTION - asked, ended)
        return (self._low + self._high) / 2

    def note(self, low: float, high: float, at: float) -> None:
        """Add the bounds of one answer. It came at the time `at` of the monotonic clock."""
        drift = _DRIFT * (at - self._noted)
        self._noted = at
        tight_low, tight_high = max(low, self._low - drift), min(high, self._high + drift)
        # If no offset is within all bounds, one of the clocks was set: only the newest answer counts.
        self._low, self._high = (tight_low, tight_high) if tight_low <= tight_high else (low, high)


async def clock_offset(client: AsyncMongoClient[Any]) -> float:
    """Seconds by which the clock of the server is ahead of ours.

    The error is at most half of the shortest round trip, plus half a millisecond.
    """
    return await ClockOffset().ask(client)


async def time_of_newest_write(client: AsyncMongoClient[Any]) -> Timestamp:
    """The cluster time of the newest write on the server."""
    answer = await client.admin.command("ping")
    time: Timestamp = answer["operationTime"]
    return time
