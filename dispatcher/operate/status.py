"""Reads the status of a group of dispatchers from its state. It changes nothing and needs no running dispatcher.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from time import monotonic, time
from typing import Any, Final, TypeVar

from bson import Timestamp
from pydantic import BaseModel, TypeAdapter
from pymongo.errors import ExecutionTimeout, PyMongoError

from dispatcher.core.driver_errors import in_short
from dispatcher.core.error_text import text_of
from dispatcher.core.identity import Identity
from dispatcher.core.oplog import Oplog, ServerTimes, clock_offset, look_at_oplog
from dispatcher.core.output.logs import log
from dispatcher.core.state import CONTROLS, GAPS, HELD, MEMBERS, POSITIONS, RELAYS, Group, State
from dispatcher.core.state_checks import StateReader, receiver_paused
from dispatcher.core.stats import in_utc, seconds_of
from dispatcher.operate.health import health_of
from dispatcher.operate.status_model import (
    DeadLetterCount,
    GapStatus,
    GroupStatus,
    MemberStatus,
    ParkedCount,
    PartitionStatus,
    Pause,
)
from dispatcher.parking.letters import LETTERS
from dispatcher.parking.store import HEADS, WAITING

# A member counts as dead if its last heartbeat is older than this number of lease times.
_SILENCE: Final = 1.5
_LEASE: Final = 10.0

# Number of positions in one answer of the server: more than a group has.
_AT_ONCE: Final = 1_000

# Maximum number of gaps in a status, the newest first.
_MOST_GAPS: Final = 20

# Maximum milliseconds for counting all documents, and the number of documents that are counted if it takes longer.
_PATIENCE_MS: Final = 1_000
_COUNTED: Final = 1_000

# The fields of a position, without the resume token and the hashes of finished changes: these can be long.
_OWNED: Final = dict.fromkeys(
    ("partition", "partitions", "owner", "term", "host", "pid", "cluster_time", "saved_at"), True
)

# Maximum seconds of one read, and seconds for which its result is reused.
_PATIENCE: Final = 5.0
_FRESH: Final = 1.0

_ALL: Final[Mapping[str, Any]] = {}

# Fields of a run that can hold the key of a document.
_PLACES: Final = frozenset({"progress", "token"})

T = TypeVar("T")


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
    status.members = _with_myself(await _members(group, now, reader), myself)
    positions = await group.state.as_on_this_node(POSITIONS).find(of_group, _OWNED, batch_size=_AT_ONCE).to_list()
    layout = next((one.get("partitions") for one in positions if one["_id"] == group.name), None)
    status.partition_count = layout if isinstance(layout, int) else 1
    numbered = [one for one in positions if "partition" in one]
    status.partitions = _partitions(numbered, status.members, oplog, now, reader)
    counted = _Counted(group)
    status.dead_letters, status.parked, status.parked_deliveries, status.gap_count = await asyncio.gather(
        _letters(counted, reader),
        _parked(counted, reader),
        counted.all("parked_deliveries", HELD, WAITING),
        counted.all("gap_count", GAPS),
    )
    status.at_least = sorted(counted.at_least)
    controls = await group.state.as_on_this_node(CONTROLS).find(of_group).to_list()
    status.paused = reader.each(CONTROLS, (one for one in controls if one.get("kind") == "pause"), _paused)
    status.runs = reader.each(CONTROLS, (one for one in controls if one.get("kind") == "run"), _run)
    gaps = group.state.as_on_this_node(GAPS)
    newest = await gaps.find(of_group).sort("noted_at", -1).limit(_MOST_GAPS).to_list()
    status.gaps = reader.each(GAPS, newest, _gap)
    status.misfits = reader.misfits
    if myself is not None:  # commands print the malformed documents instead
        reader.log()
    status.health = health_of(status)
    return status


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
        last: the last status; None before the first.
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
        alone.members = [self._myself()]
        alone.health = health_of(alone)
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
            self.error = f"no answer within {_PATIENCE:.0f} s" if late else in_short(error)
            log.debug("the state of the group can't be read", action="group.not_seen", error=self.error)
        except Exception as error:  # for example, a document of the state was edited by hand
            self.error = text_of(error)
            log.warning("the state of the group is malformed", action="state.not_understood", exc_info=error)
        self._read_at = monotonic()


async def members_of(group: Group, now: float | None = None) -> list[MemberStatus]:
    """The processes of a group, live and dead, the oldest first.

    Args:
        now: by the server's clock, in seconds since 1970; None asks the server.
    """
    if now is None:
        now = time() + await clock_offset(group.state.client)
    return await _members(group, now, StateReader(group.state.name))


async def _members(group: Group, now: float, reader: StateReader) -> list[MemberStatus]:
    found = group.state.as_on_this_node(MEMBERS).find({"group": group.name}).sort("_id", 1)
    return reader.each(MEMBERS, await found.to_list(), lambda one: _member(one, now))


def _member(found: dict[str, Any], now: float) -> MemberStatus:
    seen = seconds_of(found.get("seen_at"))
    if seen is None:
        raise ValueError("seen_at is not a date")
    silence = now - seen
    silent = silence >= _SILENCE * float(found.get("lease_seconds") or _LEASE)
    member = MemberStatus(
        id=str(found["_id"]),
        host=str(found.get("host")),
        pid=found.get("pid", 0),
        version=str(found.get("version")),
        application=found.get("application"),
        started_at=in_utc(found.get("started_at")),
        seen_seconds=max(0.0, silence),
        alive=not silent and not Identity.read(found).is_dead,
        partitions=sorted(found.get("partitions") or ()),
        receivers=list(found.get("receivers") or ()),
        stats=dict(found.get("stats") or {}),
        http=found.get("http"),
    )
    _StatsTypes.model_validate(member.stats)
    for receiver in member.receivers:
        _ReceiverTypes.model_validate(receiver)
    return _checked(member)


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
        saved_seconds=None if saved is None else max(0.0, now - saved),
        headroom_seconds=None if oplog is None or at is None else oplog.headroom(at),
    )
    return _checked(partition)


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
            order: the keys of the partial index that contains exactly these documents.
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
    }
    found = await counted.by("parked", HELD, by_receiver, HEADS, {"receiver": 1, "due_at": 1})
    return reader.each(HELD, found, _parked_of)


def _letters_of(found: dict[str, Any]) -> DeadLetterCount:
    key = found["_id"]
    return _checked(
        DeadLetterCount(key.get("receiver"), key.get("signal"), found["count"], in_utc(found["newest_at"]))
    )


def _parked_of(found: dict[str, Any]) -> ParkedCount:
    key = found["_id"]
    return _checked(ParkedCount(key.get("receiver"), key.get("reason"), found["count"], in_utc(found["due_at"])))


def _paused(found: dict[str, Any]) -> Pause:
    return _checked(Pause(receiver_paused(found), in_utc(found.get("since")), found.get("by")))


def _run(found: dict[str, Any]) -> dict[str, Any]:
    """Remove the position of a run: it can contain a document's key, and every client may read the status."""
    _RunTypes.model_validate(found)
    return {name: value for name, value in found.items() if name not in _PLACES}


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _checked(made: T) -> T:
    """Check the types of a dataclass, and return it."""
    kind: Any = type(made)
    checked: T = _adapter(kind).validate_python(asdict(made))  # type: ignore[call-overload]
    return checked


class _StatsTypes(BaseModel):
    """The types of a member's statistics."""

    per_second: dict[str, float] = {}
    partitions: dict[str, dict[str, float | None]] = {}
    receivers: list[dict[str, Any]] = []


class _ReceiverTypes(BaseModel):
    """The types of a member's entry for a receiver."""

    id: str
    name: str
    signal: str
    formerly: list[str] | None = None


class _RunTypes(BaseModel):
    """The types of a run."""

    run: str
    what: str
    asked: dict[str, Any]
    delivered: int
    failed: int
    status: str


def _gap(found: dict[str, Any]) -> GapStatus:
    namespace = found.get("namespace") or {}
    name = ".".join(part for part in (namespace.get("db"), namespace.get("coll")) if part)
    return _checked(GapStatus(found["kind"], name or None, in_utc(found.get("noted_at")), found.get("text", "")))
