"""Reads the status of a group of dispatchers from its state. It changes nothing and needs no running dispatcher.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic, time
from typing import Any, Final

from bson import Timestamp
from pydantic import BaseModel
from pymongo.errors import ExecutionTimeout, PyMongoError

from dispatcher.core.driver_errors import in_short
from dispatcher.core.error_text import text_of
from dispatcher.core.oplog import Oplog, ServerTimes, clock_offset, look_at_oplog
from dispatcher.core.output.logs import log
from dispatcher.core.state import CONTROLS, GAPS, HELD, POSITIONS, RELAYS, Group, State
from dispatcher.core.state_checks import StateReader, receiver_paused
from dispatcher.core.stats import in_utc, seconds_of
from dispatcher.operate.claims import claims_of, read_books
from dispatcher.operate.health import health_of
from dispatcher.operate.member_status import checked, read_members
from dispatcher.operate.relay_status import read_readers, read_relay, show_lag
from dispatcher.operate.status_model import (
    DeadLetterCount,
    GapStatus,
    GroupStatus,
    MemberStatus,
    ParkedCount,
    PartitionStatus,
    Pause,
    SourceStatus,
)
from dispatcher.parking.letters import LETTERS
from dispatcher.parking.store import HEADS, WAITING

# Number of positions in one answer of the server: more than a group has.
_AT_ONCE: Final = 1_000

# Maximum number of gaps in a status, the newest first.
_MOST_GAPS: Final = 20

# Maximum milliseconds for counting all documents, and the number of documents that are counted if it takes longer.
_PATIENCE_MS: Final = 1_000
_COUNTED: Final = 1_000

# The fields of a position, without the resume token and the hashes of finished changes: these can be long.
_OWNED: Final = dict.fromkeys(
    ("partition", "partitions", "owner", "term", "host", "pid", "cluster_time", "saved_at", "topic", "log"), True
)

# Maximum seconds of one read, and seconds for which its result is reused.
_PATIENCE: Final = 5.0
_FRESH: Final = 1.0

_ALL: Final[Mapping[str, Any]] = {}

# Fields of a run that can hold the key of a document. `_run` removes them, and also the filter of the run, because
# the filter can hold such a key, too.
_PLACES: Final = frozenset({"progress", "token"})


async def groups_in(state: State) -> dict[str, bool]:
    """The names of the groups that have a position, sorted, and whether each is a relay."""
    found, relays = await asyncio.gather(
        state.as_on_this_node(POSITIONS).distinct("group"), state.as_on_this_node(RELAYS).distinct("_id")
    )
    return {name: name in relays for name in sorted(name for name in found if isinstance(name, str))}


async def read_status(
    group: Group, myself: MemberStatus | None = None, server: ServerTimes | None = None
) -> GroupStatus:
    """Read the status of a group.

    Args:
        myself: the current figures of this process, if it is a member. The figures in the state are older.
        server: the clock and the oplog of the server as they were a moment ago; None to ask the server.
    """
    if server is None:
        server = ServerTimes(await clock_offset(group.state.client), await look_at_oplog(group.state.client))
    offset, oplog = server
    now = time() + offset
    status = GroupStatus(group.name, datetime.fromtimestamp(now, UTC), offset, oplog and oplog.window)
    of_group, reader = {"group": group.name}, StateReader(group.state.name)
    status.members = _with_myself(await read_members(group, now, reader), myself)
    positions = await group.state.as_on_this_node(POSITIONS).find(of_group, _OWNED, batch_size=_AT_ONCE).to_list()
    layout = next((one for one in positions if one["_id"] == group.name), {})
    count = layout.get("partitions")
    status.partition_count = count if isinstance(count, int) else 1
    numbered = [one for one in positions if "partition" in one]
    status.partitions = _partitions(numbered, status.members, oplog, now, reader)
    await _read_source(status, layout, numbered, group, server, reader)
    counted = _Counted(group)
    status.dead_letters, status.parked, status.parked_deliveries, books = await asyncio.gather(
        _letters(counted, reader),
        _parked(counted, reader),
        counted.all("parked_deliveries", HELD, WAITING),
        read_books(group, status, reader),
    )
    status.claims = claims_of(status, books)
    controls = await group.state.as_on_this_node(CONTROLS).find(of_group).to_list()
    status.paused = reader.each(CONTROLS, (one for one in controls if one.get("kind") == "pause"), _paused)
    status.runs = _whole(reader.each(CONTROLS, (one for one in controls if one.get("kind") == "run"), _run))
    gaps = group.state.as_on_this_node(GAPS)
    newest = await gaps.find(of_group).sort("noted_at", -1).limit(_MOST_GAPS).to_list()
    status.gaps = reader.each(GAPS, newest, _gap)
    all_are_read = len(newest) < _MOST_GAPS
    status.gap_count = len(newest) if all_are_read else await counted.all("gap_count", GAPS)
    status.at_least = sorted({*status.at_least, *counted.at_least})
    status.misfits = reader.misfits
    if myself is not None:  # a command prints the malformed documents, and a member logs them
        reader.log()
    status.health = health_of(status)
    return status


async def source_of(group: Group) -> SourceStatus:
    """The source of a group."""
    layout = await group.state.as_on_this_node(POSITIONS).find_one({"_id": group.name}, {"topic": True})
    return _source(layout or {})


def _source(layout: Mapping[str, Any]) -> SourceStatus:
    match layout.get("topic"):
        case {"name": str(topic), "cluster_id": str(cluster)}:
            return SourceStatus(topic, cluster)
    return SourceStatus()


async def _read_source(
    status: GroupStatus,
    layout: Mapping[str, Any],
    positions: Iterable[Mapping[str, Any]],
    group: Group,
    server: ServerTimes,
    reader: StateReader,
) -> None:
    """Add the source of the group, and the relay of the topic that the group reads from or publishes to."""
    status.source = _source(layout)
    found = await read_relay(group.state, status.source.topic or group.name, server, reader)
    if found is None or status.source.cluster not in (None, found[0].cluster):
        return
    status.relay, log_of_relay = found
    status.is_relay = status.source.topic is None
    if status.is_relay:
        status.relay.readers = await read_readers(group.state, *found, server, reader)
        return
    saved = {one["partition"]: one.get("log") for one in positions}
    for one in status.partitions:
        show_lag(one, log_of_relay, saved.get(one.number))


def _with_myself(members: list[MemberStatus], myself: MemberStatus | None) -> list[MemberStatus]:
    """The members, with the present figures of this process."""
    if myself is None:
        return members
    mine = [one for one in members if (one.host, one.pid) == (myself.host, myself.pid)]
    if not mine:
        return [*members, myself]
    fresh = {one.id: replace(one, stats=myself.stats, seen_seconds=0.0) for one in mine if one.alive}
    return [fresh.get(one.id, one) for one in members]


class StatusCache:
    """The status of the group of a process. All calls within a second share one read.

    Args:
        server: returns the clock and the oplog of the server as they were a moment ago; None if they are unknown.

    Attributes:
        last: the last status; None before the first read.
        error: the error of the last read; empty if it succeeded.
    """

    def __init__(
        self, name: str, myself: Callable[[], MemberStatus], server: Callable[[], ServerTimes | None]
    ) -> None:
        self.last: GroupStatus | None = None
        self.error = "the dispatcher is not connected yet"
        self._name = name
        self._myself = myself
        self._server = server
        self._lock = asyncio.Lock()
        self._read_at = -_FRESH

    async def get(self, group: Group | None) -> GroupStatus:
        """The status. After an error it contains only this process, and `error` is set.

        Args:
            group: the group; None before its state is connected.
        """
        async with self._lock:
            if group is not None and monotonic() - self._read_at >= _FRESH:
                await self._read(group)
            if self.last is not None and not self.error:
                return self.last
        server = self._server()
        offset = server.offset if server is not None else 0.0
        alone = GroupStatus(self._name, datetime.fromtimestamp(time() + offset, UTC), offset, None)
        if self.last is not None:
            alone.source, alone.is_relay = self.last.source, self.last.is_relay
        alone.members = [self._myself()]
        alone.health = health_of(alone, unreadable=self.error)
        return alone

    def forget(self) -> None:
        """Discard the cached status: an action changed the state."""
        self._read_at = -_FRESH

    async def _read(self, group: Group) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                self.last = await read_status(group, self._myself(), self._server())
            self.error = ""
        except (PyMongoError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)
            self._fail(f"no answer within {_PATIENCE:.0f} s" if late else in_short(error))
            log.debug("the state of the group can't be read", action="group.not_seen", error=self.error)
        except Exception as error:  # for example, a document of the state was edited by hand
            self._fail(text_of(error))
            log.warning("the state of the group is malformed", action="state.not_understood", exc_info=error)
        self._read_at = monotonic()

    def _fail(self, error: str) -> None:
        """Record an error, also in the health of the last status, because the metrics still show this status."""
        self.error = error
        if self.last is not None:
            self.last.health = health_of(self.last, unreadable=error)


def _partitions(
    positions: Iterable[dict[str, Any]],
    members: list[MemberStatus],
    oplog: Oplog | None,
    now: float,
    reader: StateReader,
) -> list[PartitionStatus]:
    by_id = {one.id: one for one in members}

    def make(found: dict[str, Any]) -> PartitionStatus:
        return _partition(found, by_id.get(str(found.get("owner"))), oplog, now)

    return sorted(reader.each(POSITIONS, positions, make), key=lambda one: one.number)


def _partition(
    found: dict[str, Any], owner: MemberStatus | None, oplog: Oplog | None, now: float
) -> PartitionStatus:
    number = found["partition"]
    cluster_time = found.get("cluster_time")
    at = float(cluster_time.time) if isinstance(cluster_time, Timestamp) else None
    saved = seconds_of(found.get("saved_at"))
    stats = owner.stats.get("partitions", {}).get(str(number), {}) if owner is not None and owner.alive else {}
    host, pid = (owner.host, owner.pid) if owner is not None else (found.get("host"), found.get("pid"))
    partition = PartitionStatus(
        number=number,
        owner=found.get("owner"),
        where=f"{host}, pid {pid}" if found.get("owner") and host is not None else None,
        term=found.get("term", 0),
        position_at=None if at is None else datetime.fromtimestamp(at, UTC),
        position_age_seconds=None if at is None else max(0.0, now - at),
        lag_seconds=stats.get("lag_seconds"),
        lag_changes=stats.get("lag_changes"),
        delivery_lag_seconds=stats.get("delivery_lag_seconds"),
        broker_lag=stats.get("broker_lag"),
        saved_seconds=None if saved is None else max(0.0, now - saved),
        headroom_seconds=None if oplog is None or at is None else oplog.headroom(at),
    )
    return checked(partition)


class _Counted:
    """Counts documents of a group: all of them if counting is fast, otherwise a part.

    Attributes:
        at_least: names of the figures that count only a part.
    """

    def __init__(self, group: Group) -> None:
        self._state = group.state
        self._group = group.name
        self.at_least: set[str] = set()

    async def all(self, figure: str, collection: str, only: Mapping[str, Any] = _ALL) -> int:
        """The number of documents of a collection."""
        found = await self.by(figure, collection, {"_id": None, "count": {"$sum": 1}}, only)
        return int(found[0]["count"]) if found else 0

    async def by(
        self,
        figure: str,
        collection: str,
        grouping: dict[str, Any],
        only: Mapping[str, Any] = _ALL,
        order: Mapping[str, int] | None = None,
    ) -> list[dict[str, Any]]:
        """Group documents of a collection with `$group`, the largest count first.

        Args:
            order: the first keys, after `group`, of the partial index that contains exactly the matching
                documents. A sort by these keys makes the server use this index.
        """
        local = self._state.as_on_this_node(collection)
        match: list[dict[str, Any]] = [{"$match": {"group": self._group, **only}}]
        if order is not None:
            match.append({"$sort": {"group": 1, **order}})
        grouped = [{"$group": grouping}, {"$sort": {"count": -1, "_id": 1}}]
        try:
            cursor = await local.aggregate([*match, *grouped], maxTimeMS=_PATIENCE_MS)
            return await cursor.to_list()
        except ExecutionTimeout:
            self.at_least.add(figure)
            cursor = await local.aggregate([*match, {"$limit": _COUNTED}, *grouped])
            return await cursor.to_list()


async def _letters(counted: _Counted, reader: StateReader) -> list[DeadLetterCount]:
    by_receiver = {
        "_id": {"receiver": "$receiver", "signal": "$signal"},
        "count": {"$sum": 1},
        "newest_at": {"$max": "$last_attempt_at"},
    }
    found = await counted.by("dead_letters", HELD, by_receiver, LETTERS, {"last_attempt_at": 1})
    return reader.each(HELD, found, _letters_of)


async def _parked(counted: _Counted, reader: StateReader) -> list[ParkedCount]:
    by_receiver = {
        "_id": {"receiver": "$receiver", "reason": "$state"},
        "count": {"$sum": 1},
        "due_at": {"$min": "$due_at"},
        "oldest_at": {"$min": "$wall_time"},
    }
    found = await counted.by("parked", HELD, by_receiver, HEADS, {"receiver": 1, "due_at": 1})
    return reader.each(HELD, found, _parked_of)


def _letters_of(found: dict[str, Any]) -> DeadLetterCount:
    key = found["_id"]
    return checked(
        DeadLetterCount(key.get("receiver"), key.get("signal"), found["count"], in_utc(found["newest_at"]))
    )


def _parked_of(found: dict[str, Any]) -> ParkedCount:
    key, times = found["_id"], (in_utc(found["due_at"]), in_utc(found["oldest_at"]))
    return checked(ParkedCount(key.get("receiver"), key.get("reason"), found["count"], *times))


def _paused(found: dict[str, Any]) -> Pause:
    return checked(Pause(receiver_paused(found), in_utc(found.get("since")), found.get("by")))


def _run(found: dict[str, Any]) -> dict[str, Any]:
    """Remove the position and the filter of a run: they can contain values of documents.

    Every client may read the status.
    """
    _RunTypes.model_validate(found)
    asked = {name: value for name, value in found["asked"].items() if name != "where"}
    return {name: value for name, value in found.items() if name not in _PLACES} | {"asked": asked}


def _whole(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the parts of runs. Add the counts of each part to its run."""
    whole = {one["run"]: one for one in runs if one.get("of") is None}
    for part in runs:
        of = whole.get(str(part.get("of")))
        if of is not None:
            of["delivered"] += part["delivered"]
            of["failed"] += part["failed"]
    return [*whole.values()]


class _RunTypes(BaseModel):
    """The types of the fields of a run."""

    run: str
    what: str
    asked: dict[str, Any]
    delivered: int
    failed: int
    status: str


def _gap(found: dict[str, Any]) -> GapStatus:
    namespace = found.get("namespace") or {}
    name = ".".join(part for part in (namespace.get("db"), namespace.get("coll")) if part)
    return checked(GapStatus(found["kind"], name or None, in_utc(found.get("noted_at")), found.get("text", "")))
