"""Reads the status of a relay, and the progress of the groups that read from its topic.

Everything is in the state: no broker is asked. So the status is quick, even while no broker answers.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Mapping, Sequence
from time import time
from typing import Any, Final, NamedTuple

from bson import Timestamp

from dispatcher.core.oplog import ServerTimes
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.state import POSITIONS, RELAYS, Group, State
from dispatcher.core.state_checks import StateReader
from dispatcher.core.stats import in_utc, seconds_of, topic_headroom
from dispatcher.operate.member_status import checked, read_members
from dispatcher.operate.status_model import (
    MemberStatus,
    PartitionStatus,
    PublishedStatus,
    ReaderStatus,
    RelayStatus,
    number,
)

_FIELDS: Final = dict.fromkeys(("group", "partition", "cluster_time", "log"), True)


class RelayLog(NamedTuple):
    """The relay's position in its topic.

    Attributes:
        topic_id: distinguishes the topic from an earlier one with the same name.
        offsets: for each partition, the offset after the last record up to the position.
        retention: seconds for which the topic keeps a record; None if they are unknown or unlimited.
    """

    topic_id: str
    offsets: Sequence[int]
    retention: float | None

    def lag_of(self, partition: int, log: Any) -> int | None:
        """The number of records that a group has not finished in a partition; None if it is unknown.

        Args:
            log: the field `log` of the group's position in this partition, see docs/reference/state.md.
        """
        match log:
            case {"topic_id": self.topic_id, "offset": int(offset)} if partition < len(self.offsets):
                return max(0, self.offsets[partition] - offset)
        return None

    def headroom_of(self, age: float | None, lag: int | None) -> float | None:
        """The seconds until the topic may delete the records after a position; None if they are unknown.

        Args:
            age: the age of the position in seconds; None if it is unknown.
            lag: the number of records after the position; None if it is unknown.
        """
        return None if age is None else topic_headroom(self.retention, age, all_read=lag == 0)


class _Read(NamedTuple):
    """The values with which the status of a relay is read.

    Attributes:
        now: the time by the server's clock, in seconds since 1970.
    """

    state: State
    now: float
    server: ServerTimes
    reader: StateReader


async def read_relay(
    state: State, topic: str, server: ServerTimes, reader: StateReader
) -> tuple[RelayStatus, RelayLog] | None:
    """Read the status of the relay of a topic; None if there is none.

    Args:
        server: the clock and the oplog of the server.
        reader: collects malformed documents.
    """
    found = await state.as_on_this_node(RELAYS).find_one({"_id": topic})
    if found is None:
        return None
    read = _Read(state, time() + server.offset, server, reader)
    members = await read_members(Group(state, topic), read.now, reader)
    owned = await state.as_on_this_node(POSITIONS).find_one({"group": topic, "partition": 0}, {"owner": True})
    owner = next(
        (one for one in members if one.alive and owned is not None and one.id == owned.get("owner")), None
    )
    return next(iter(reader.each(RELAYS, [found], lambda one: _relay(one, members, owner, read))), None)


def _relay(
    found: Mapping[str, Any], members: Sequence[MemberStatus], owner: MemberStatus | None, read: _Read
) -> tuple[RelayStatus, RelayLog]:
    at = found["cluster_time"]
    if not isinstance(at, Timestamp):
        raise TypeError("cluster_time is not a timestamp")
    saved, oplog = seconds_of(found.get("saved_at")), read.server.oplog
    stats: Mapping[str, Any] = {} if owner is None else owner.stats
    gauges = dict(stats.get("partitions") or {}).get("0", {})
    in_flight = dict(stats.get("relay") or {}).get("in_flight")
    retention = found.get("retention_seconds")
    log = RelayLog(
        str(found["topic_id"]),
        [int(mark["offset"]) for mark in found["partitions"]],
        None if retention is None else float(retention),
    )
    relay = RelayStatus(
        topic=str(found["_id"]),
        cluster=str(found["cluster"]),
        partitions=len(log.offsets),
        term=found["term"],
        alive=[f"{one.host}, pid {one.pid}" for one in members if one.alive],
        owner=None if owner is None else f"{owner.host}, pid {owner.pid}",
        position_at=in_utc(at.as_datetime().replace(tzinfo=None)),
        position_age_seconds=max(0.0, read.now - at.time),
        saved_seconds=None if saved is None else max(0.0, read.now - saved),
        lag_seconds=gauges.get("lag_seconds"),
        records_in_flight=None if in_flight is None else int(in_flight),
        changes_per_second=number(dict(stats.get("per_second") or {}).get("changes")),
        trouble=stats.get("trouble"),
        headroom_seconds=None if oplog is None else oplog.headroom(float(at.time)),
        retention_seconds=log.retention,
        publishes=[
            PublishedStatus(str(one["name"]), in_utc(token_time(one["since"]).as_datetime().replace(tzinfo=None)))
            for one in found["collections"]
        ],
    )
    return checked(relay), log


async def read_readers(
    state: State, relay: RelayStatus, log: RelayLog, server: ServerTimes, reader: StateReader
) -> list[ReaderStatus]:
    """Read the progress of the groups that read from the topic of a relay."""
    positions = state.as_on_this_node(POSITIONS)
    wanted = {"topic.name": relay.topic, "topic.cluster_id": relay.cluster}
    names = sorted(name for name in await positions.distinct("group", wanted) if isinstance(name, str))
    found = await positions.find({"group": {"$in": names}, "partition": {"$exists": True}}, _FIELDS).to_list()
    now, readers = time() + server.offset, []
    for name in names:
        members = await read_members(Group(state, name), now, reader)
        mine = [one for one in found if one.get("group") == name]
        read = reader.each(POSITIONS, mine, lambda one: _progress(one, log, now))
        lags = [lag for lag, _ in read if lag is not None]
        rooms = [room for _, room in read if room is not None]
        alive = sum(one.alive for one in members)
        readers.append(ReaderStatus(name, alive, sum(lags) if lags else None, min(rooms, default=None)))
    return readers


def _progress(found: Mapping[str, Any], log: RelayLog, now: float) -> tuple[int | None, float | None]:
    """The lag and the headroom of one partition of a reader."""
    lag, at = log.lag_of(found["partition"], found.get("log")), found.get("cluster_time")
    return lag, log.headroom_of(now - at.time if isinstance(at, Timestamp) else None, lag)


def show_lag(one: PartitionStatus, log: RelayLog, saved: Any) -> None:
    """Complete the status of a partition that reads from the topic.

    A live owner has reported the lag. Without a live owner, the lag is computed from the saved position.

    Args:
        saved: the field `log` of the saved position.
    """
    finished = log.lag_of(one.number, saved)
    if one.broker_lag is None:
        one.broker_lag = finished
    one.headroom_seconds = log.headroom_of(one.position_age_seconds, finished)
