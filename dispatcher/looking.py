"""Looking at a group of dispatchers: reads its state, changes nothing, and needs no dispatcher that runs."""

from collections.abc import Iterable
from datetime import UTC, datetime
from time import time
from typing import Any, Final

from bson import Timestamp
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection

from dispatcher.deployment import Oplog, clock_offset, look_at_oplog
from dispatcher.health import health_of
from dispatcher.identity import Identity
from dispatcher.measuring import seconds_of
from dispatcher.overview import Counts, Gap, Letters, Member, Overview, Parked, Partition, Paused
from dispatcher.state import CODEC_OPTIONS, CONTROLS, DEAD_LETTERS, GAPS, MEMBERS, PARKED, PARKED_LANES, POSITIONS

__all__ = ["count", "counts_of", "groups_in", "look", "members_of"]

# A member that was silent for so many times its lease is gone.
_SILENCE: Final = 1.5
_LEASE: Final = 10.0

# Gaps that are shown: the newest ones.
_MOST_GAPS: Final = 20

# Milliseconds that counting may take: a state with millions of letters must not hold up who asks.
_PATIENCE_MS: Final = 5_000

# Of a position, all but where it is: that may be the long key of a document.
_OWNED: Final = {"partition": True, "partitions": True, "owner": True}

# What a run says of where it is.
_PLACES: Final = frozenset({"progress", "token"})

_Collection = AsyncCollection[dict[str, Any]]


async def counts_of(client: AsyncMongoClient[Any], database: str, group: str) -> Counts:
    """Count what there is of a group; less work than a look at it.

    Raises:
        PyMongoError: as the driver has it.
    """
    now = time() + await clock_offset(client)
    members = await members_of(client, database, group, now)
    found = [one async for one in _collection(client, database, POSITIONS).find({"group": group}, _OWNED)]
    layout = next((one for one in found if one["_id"] == group), {})
    partitions = _partitions([one for one in found if "partition" in one], members, None, now)
    controls = _collection(client, database, CONTROLS).find({"group": group, "kind": "pause"})
    paused = [_paused(one) async for one in controls]
    parked = await _parked(_collection(client, database, PARKED_LANES), group)
    return Counts(
        partitions=int(layout.get("partitions", 1)),
        members=sum(one.alive for one in members),
        dead_letters=await count(client, database, DEAD_LETTERS, group),
        parked=await count(client, database, PARKED, group),
        paused=tuple(one.receiver or "*" for one in paused),
        health=health_of(members, partitions, parked, paused, datetime.fromtimestamp(now, UTC)),
    )


async def groups_in(client: AsyncMongoClient[Any], database: str) -> list[str]:
    """The groups that have a position, sorted.

    Raises:
        PyMongoError: as the driver has it.
    """
    found = await _collection(client, database, POSITIONS).distinct("group")
    return sorted(name for name in found if isinstance(name, str))


async def look(client: AsyncMongoClient[Any], database: str, group: str) -> Overview:
    """Look at a group.

    Args:
        client: opened for the running loop.
        database: of the dispatcher's state.
        group: of dispatchers.

    Raises:
        PyMongoError: as the driver has it.
    """
    offset = await clock_offset(client)
    oplog = await look_at_oplog(client)
    now = time() + offset
    overview = Overview(group, datetime.fromtimestamp(now, UTC), offset, oplog and oplog.window)
    of_group = {"group": group}
    overview.members = await members_of(client, database, group, now)
    positions = _collection(client, database, POSITIONS).find({**of_group, "partition": {"$exists": True}})
    overview.partitions = _partitions([one async for one in positions], overview.members, oplog, now)
    overview.dead_letters = await _letters(_collection(client, database, DEAD_LETTERS), group)
    overview.parked = await _parked(_collection(client, database, PARKED_LANES), group)
    overview.parked_deliveries = await count(client, database, PARKED, group)
    async for control in _collection(client, database, CONTROLS).find(of_group):
        if control.get("kind") == "pause":
            overview.paused.append(_paused(control))
        elif control.get("kind") == "run":
            # Not where it is: that may be the key of somebody's document, and everybody may see figures.
            overview.runs.append({name: value for name, value in control.items() if name not in _PLACES})
    gaps = _collection(client, database, GAPS)
    overview.gap_count = await count(client, database, GAPS, group)
    overview.gaps = [_gap(one) async for one in gaps.find(of_group).sort("noted_at", -1).limit(_MOST_GAPS)]
    return overview


async def count(client: AsyncMongoClient[Any], database: str, collection: str, group: str) -> int:
    """How many documents of a collection of the state belong to a group.

    Raises:
        PyMongoError: as the driver has it.
    """
    counted = _collection(client, database, collection)
    return await counted.count_documents({"group": group}, maxTimeMS=_PATIENCE_MS)


async def members_of(
    client: AsyncMongoClient[Any], database: str, group: str, now: float | None = None
) -> list[Member]:
    """The processes of a group, dead or alive, the longest-serving first.

    Args:
        client: opened for the running loop.
        database: of the dispatcher's state.
        group: of dispatchers.
        now: on the server's clock, in seconds since 1970; the server is asked if it is None.

    Raises:
        PyMongoError: as the driver has it.
    """
    if now is None:
        now = time() + await clock_offset(client)
    found = _collection(client, database, MEMBERS).find({"group": group}).sort("_id", 1)
    return [_member(one, now) async for one in found]


def _collection(client: AsyncMongoClient[Any], database: str, name: str) -> _Collection:
    """Read as it is on this node: who only looks waits for no majority."""
    return client[database].get_collection(name, codec_options=CODEC_OPTIONS)


def _member(found: dict[str, Any], now: float) -> Member:
    seen = seconds_of(found.get("seen_at"))
    silence = now - seen if seen is not None else float("inf")
    silent = silence >= _SILENCE * float(found.get("lease_seconds") or _LEASE)
    return Member(
        id=str(found["_id"]),
        host=str(found.get("host")),
        pid=int(found.get("pid", 0)),
        version=str(found.get("version")),
        application=found.get("application"),
        started_at=_aware(found.get("started_at")),
        seen_seconds=max(0.0, silence),
        alive=not silent and not Identity.read(found).is_dead,
        partitions=sorted(found.get("partitions") or ()),
        receivers=list(found.get("receivers") or ()),
        stats=dict(found.get("stats") or {}),
        http=found.get("http"),
    )


def _partitions(
    positions: Iterable[dict[str, Any]], members: list[Member], oplog: Oplog | None, now: float
) -> list[Partition]:
    by_id = {one.id: one for one in members}
    return [
        _partition(found, by_id.get(str(found.get("owner"))), oplog, now)
        for found in sorted(positions, key=lambda one: int(one["partition"]))
    ]


def _partition(found: dict[str, Any], owner: Member | None, oplog: Oplog | None, now: float) -> Partition:
    number = int(found["partition"])
    cluster_time = found.get("cluster_time")
    at = float(cluster_time.time) if isinstance(cluster_time, Timestamp) else None
    saved = seconds_of(found.get("saved_at"))
    told = owner.stats.get("partitions", {}).get(str(number), {}) if owner is not None and owner.alive else {}
    host, pid = (owner.host, owner.pid) if owner is not None else (found.get("host"), found.get("pid"))
    return Partition(
        number=number,
        owner=found.get("owner"),
        where=f"{host}, pid {pid}" if found.get("owner") and host is not None else None,
        term=int(found.get("term", 0)),
        position_at=None if at is None else datetime.fromtimestamp(at, UTC),
        position_age_seconds=None if at is None else max(0.0, now - at),
        lag_seconds=told.get("lag_seconds"),
        lag_changes=told.get("lag_changes"),
        saved_seconds=None if saved is None else max(0.0, now - saved),
        headroom_seconds=None if oplog is None or at is None else oplog.headroom(at),
    )


async def _letters(collection: _Collection, group: str) -> list[Letters]:
    by_receiver = {
        "_id": {"receiver": "$receiver", "signal": "$signal"},
        "count": {"$sum": 1},
        "newest_at": {"$max": "$last_attempt_at"},
    }
    cursor = await collection.aggregate(
        [{"$match": {"group": group}}, {"$group": by_receiver}, {"$sort": {"count": -1, "_id": 1}}],
        maxTimeMS=_PATIENCE_MS,
    )
    return [
        Letters(one["_id"].get("receiver"), one["_id"].get("signal"), one["count"], _aware(one["newest_at"]))
        async for one in cursor
    ]


async def _parked(collection: _Collection, group: str) -> list[Parked]:
    by_receiver = {
        "_id": {"receiver": "$receiver", "reason": "$reason"},
        "documents": {"$sum": 1},
        "due_at": {"$min": "$due_at"},
    }
    cursor = await collection.aggregate(
        [{"$match": {"group": group}}, {"$group": by_receiver}, {"$sort": {"documents": -1, "_id": 1}}],
        maxTimeMS=_PATIENCE_MS,
    )
    return [
        Parked(one["_id"].get("receiver"), one["_id"].get("reason"), one["documents"], _aware(one["due_at"]))
        async for one in cursor
    ]


def _paused(found: dict[str, Any]) -> Paused:
    return Paused(found.get("receiver_name"), _aware(found.get("since")), found.get("by"))


def _gap(found: dict[str, Any]) -> Gap:
    namespace = found.get("namespace") or {}
    name = ".".join(part for part in (namespace.get("db"), namespace.get("coll")) if part)
    return Gap(str(found.get("kind")), name or None, _aware(found.get("noted_at")), str(found.get("text", "")))


def _aware(moment: Any) -> datetime | None:
    """A date of the state, which is UTC; None for anything else."""
    return moment.replace(tzinfo=UTC) if isinstance(moment, datetime) else None
