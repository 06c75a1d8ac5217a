"""Estimates how much the change streams of all groups load the server: each stream reads the whole oplog.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from typing import Any, Final, NamedTuple

from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from dispatcher.core.oplog import Oplog
from dispatcher.core.state import POSITIONS, Group

# The cost of a stream for the server, in seconds of CPU: for each change in the oplog; and for each second, even
# without changes.
# Measured: 40,000 inserts cost 1.4 s with one stream, 6.2 s with 4, 32 s with 16 and 227 s with 64.
_PER_CHANGE: Final = 50e-6
_AT_REST: Final = 0.005

# The load is too high in two cases: the number of streams reaches the first fraction of the limit, or the streams
# keep the second fraction of the cores busy.
_NEAR: Final = 0.8
_BUSY: Final = 0.5

# The assumed number of cores of a server that does not report it.
_FEW_CORES: Final = 2

# Atlas allows 100 open streams in a cluster of the size M10, fewer in smaller clusters, 1,000 from M30 on.
_ATLAS: Final = ".mongodb.net"
_ATLAS_STREAMS: Final = 100

REMEDY: Final = (
    "Let `dispatcher relay` publish the changes to Kafka, and let the groups read them with "
    "`dispatcher run --kafka`: this takes one stream. Or lower --partitions."
)
"""The remedy for too many streams."""

_CONNECTIONS: Final = {
    "serverStatus": 1,
    **dict.fromkeys(("indexStats", "locks", "metrics", "repl", "tcmalloc", "transactions", "wiredTiger"), 0),
}


class StreamLoad(NamedTuple):
    """The change streams of all groups, and the limits of the server.

    Attributes:
        streams: number of streams of each group.
        allowed: maximum number of streams; None if it is unknown.
        rate: changes a second in the oplog, on average; None if it is unknown.
        cores: number of cores of the server; None if it is unknown.
    """

    streams: dict[str, int]
    allowed: int | None
    rate: float | None
    cores: int | None

    @property
    def total(self) -> int:
        """The number of streams."""
        return sum(self.streams.values())

    @property
    def cost(self) -> float:
        """The estimated number of cores of the server that the streams keep busy."""
        return self.total * (_AT_REST + (self.rate or 0.0) * _PER_CHANGE)

    @property
    def is_near_limit(self) -> bool:
        """Returns whether the server may soon refuse a stream."""
        return self.allowed is not None and self.total >= self.allowed * _NEAR

    @property
    def is_high(self) -> bool:
        """Returns whether a relay would relieve the server."""
        return self.total > 1 and (self.is_near_limit or self.cost >= (self.cores or _FEW_CORES) * _BUSY)

    def __str__(self) -> str:
        streams = f"{self.total} change stream{'' if self.total == 1 else 's'}"
        groups = f"{len(self.streams)} group{'' if len(self.streams) == 1 else 's'}"
        text = f"{streams} of {groups}"
        if self.is_near_limit:
            text += f", and the deployment allows about {self.allowed}"
        if self.rate is None:
            return text
        cores = "cores of the server" if self.cores is None else f"of the server's {self.cores} cores"
        return (
            f"{text}. Each stream reads the whole oplog: at {self.rate:.0f} changes a second, the average of "
            f"the oplog, they take about {self.cost:.2f} {cores}"
        )


async def stream_load(group: Group, oplog: Oplog | None, partitions: int | None = None) -> StreamLoad:
    """Estimate the load by all groups in a state.

    Args:
        group: the group that is about to run; all its streams count.
        partitions: the number of its partitions; None to read this number from the state.
    """
    client = group.state.client
    streams = await _streams(group, partitions)
    allowed = await _connections(client)
    if _ATLAS in group.state.address:
        allowed = min(_ATLAS_STREAMS, allowed or _ATLAS_STREAMS)
    return StreamLoad(streams, allowed, await _rate(client, oplog), await _cores(client))


async def _streams(group: Group, partitions: int | None) -> dict[str, int]:
    """The number of streams by group: one for each partition that a process holds.

    Of the given group, all partitions count. Other groups that read a topic have no streams.
    """
    per_group = {
        "_id": "$group",
        "held": {"$sum": {"$cond": [{"$gt": ["$owner", None]}, 1, 0]}},
        "layout": {"$max": {"$ifNull": ["$wanted", "$partitions"]}},
        "topic": {"$max": {"$cond": [{"$gt": ["$topic", None]}, 1, 0]}},
    }
    cursor = await group.state.as_on_this_node(POSITIONS).aggregate([{"$group": per_group}])
    found = {one["_id"]: one for one in await cursor.to_list()}
    streams = {name: one["held"] for name, one in found.items() if one["held"] and not one["topic"]}
    layout = found.get(group.name, {}).get("layout")
    streams[group.name] = partitions or (layout if isinstance(layout, int) else 1)
    return streams


async def _connections(client: AsyncMongoClient[Any]) -> int | None:
    """The number of connections that the server allows; None if it is unknown. Each stream needs one."""
    try:
        status = await client.admin.command(dict(_CONNECTIONS))
    except OperationFailure:  # not allowed
        return None
    connections = status.get("connections") or {}
    limit = int(connections.get("current", 0)) + int(connections.get("available", 0))
    return limit or None


async def _rate(client: AsyncMongoClient[Any], oplog: Oplog | None) -> float | None:
    """The average number of entries that the oplog gets per second; None if it is unknown."""
    if oplog is None or not oplog.window:
        return None
    try:
        cursor = await client["local"]["oplog.rs"].aggregate([{"$collStats": {"count": {}}}])
        (stats,) = await cursor.to_list(1)
    except OperationFailure:
        return None
    return float(stats["count"]) / oplog.window


async def _cores(client: AsyncMongoClient[Any]) -> int | None:
    """The number of cores of the server; None if it is unknown."""
    try:
        info = await client.admin.command("hostInfo")
    except OperationFailure:  # not allowed
        return None
    cores = (info.get("system") or {}).get("numCores")
    return cores if isinstance(cores, int) and cores > 0 else None
