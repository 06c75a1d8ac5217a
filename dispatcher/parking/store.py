"""The collections of parked deliveries: what is written there, and how it is found again.

parked_lanes: one document per lane, the deliveries of one receiver that wait for one document.

    _id               hash of group, receiver, document class, namespace and `_id`: 32 hexadecimal digits
    group             of dispatchers
    receiver          its name
    document          `module.qualname` of the document class
    namespace         {db, coll}
    key               `_id` of the document
    hash              what the server makes of it ($toHashedIndexKey), for partitions
    parked_at         the server's time at which the first one was parked
    due_at            the server's time from which on its first delivery may be tried
    reason            `"retrying"`, `"blocked"`, `"paused"`, `"retry"` (of a dead letter), `"interrupted"` (the
                      process ended when other receivers had got the change already), or `"orphaned"` (the
                      application has no such receiver any more), or `"malformed"` (its first delivery makes no
                      sense: somebody edited it)
    token             of the delivery that was tried last, or is waited for
    attempts          how often
    first_attempt_at  when that began; None if it was not tried
    error             {type, message} of the last attempt; None likewise

parked: one document per delivery. What `parking/record.py` lists, and:

    _id               "<lane>:<token>": sorted by it, the deliveries of a lane are in the order of their commits;
                      that of a replay has "~<id of the run>" behind it
    by                the process that parked it: it has read the change, and will not read it again
    again             {letter, retries}: of a dead letter that is tried again, its `_id` and how often that was
                      done before; absent otherwise

parked_chunks: what does not fit into one document, as in `dead_letter_chunks`.

The document of a lane is written before the first delivery in it, and removed after the last one. Both are read
from the primary as it is: what an election may still take back is no reason to overtake anything.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteMany, ReplaceOne, UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure

from dispatcher.core.batching import Gathering
from dispatcher.core.bson_codec import RAW
from dispatcher.core.bson_elements import field, keyed, readable
from dispatcher.core.error_text import text_of
from dispatcher.core.keys import lane_key
from dispatcher.core.state import CODEC_OPTIONS, PARKED, PARKED_LANES, Group
from dispatcher.core.state_checks import Sound
from dispatcher.core.undecodable import UndecodedKey
from dispatcher.delivery.outcome import Waiting
from dispatcher.parking.record import Letter, Parts
from mongoz.keys import canonical_of

__all__ = ["Lane", "Parked", "lane_id"]

# Characters of an error that a lane shows.
_LONGEST_MESSAGE: Final = 1_000

# Deliveries of one lane that are read at once.
_FOLLOWING: Final = 20

# Bytes of deliveries that are read at once, as far as that is known before.
_BYTES: Final = 4_000_000


class Lane(NamedTuple):
    """A lane whose time has come, with its first delivery.

    Attributes:
        id: the hash.
        fields: its document.
        key: `_id` of the document that the deliveries wait for, as BSON: {"": _id}.
        first: `_id` of the first delivery in it; None if it is empty.
        size: bytes of it.
    """

    id: str
    fields: dict[str, Any]
    key: bytes
    first: str | None
    size: int


class _Put(NamedTuple):
    """A delivery to write, and its lane, unless that is there."""

    document: dict[str, Any]
    lane: UpdateOne | None


class _Settled(NamedTuple):
    """How far a lane was worked off.

    Attributes:
        lane: which.
        up_to: `_id` of the last delivery that is finished; None if none is.
        chunked: `_id`s of those of them that did not fit into one document.
        change: of the lane's document; None if it is to be removed once it is empty.
    """

    lane: str
    up_to: str | None
    chunked: Sequence[str]
    change: list[dict[str, Any]] | None


def lane_id(group: str, receiver: str, document: str, namespace: tuple[str, str], id_: Any) -> str:
    """The `_id` of a lane.

    Args:
        group: of dispatchers.
        receiver: its name: what one function is told of one document by several signals stays in order.
        document: name of the class.
        namespace: where the document is.
        id_: its `_id`, of any type.
    """
    named = bson.encode({"": [group, receiver, document, *namespace]}) + _key_of(id_)
    return blake2b(named, digest_size=16).hexdigest()


def _key_of(id_: Any) -> bytes:
    """What stands for an `_id` in the name of a lane."""
    if not isinstance(id_, UndecodedKey):
        return lane_key(id_)
    try:
        return lane_key(bson.decode(id_.raw, codec_options=CODEC_OPTIONS)[""])
    except Exception:  # no driver decodes it
        return canonical_of(id_.raw)


class Parked:
    """Reads and writes them.

    Args:
        group: of dispatchers, with the database of its state.
        partition: what the server filters lanes by; nothing if all of them are ours.
    """

    def __init__(self, group: Group, partition: Mapping[str, Any] | None = None) -> None:
        self.group = group.name
        self.database = group.state.name
        self._misfits: list[Any] = []  # lanes that make no sense, as they were found
        self._partition = dict(partition or {})
        self._lanes = group.state.parked_lanes
        self._rows = group.state.parked
        self._parts = Parts(group.state.parked_chunks)
        self._puts: Gathering[_Put, None] = Gathering(self._put)
        self._asked: Gathering[str, bool] = Gathering(self._are_there)
        self._settled: Gathering[_Settled, bool] = Gathering(self._settle)

    async def receivers(self) -> set[str]:
        """The names of all receivers that have something parked."""
        found = await self._lanes.distinct("receiver", {"group": self.group})
        return {one for one in found if isinstance(one, str)}

    async def which(self, lanes: Sequence[str]) -> set[str]:
        """Those of these lanes that are there."""
        return {lane["_id"] async for lane in self._lanes.find({"_id": {"$in": lanes}}, {"_id": True})}

    async def is_there(self, lane: str) -> bool:
        """Whether a lane has something parked."""
        return await self._asked.add(lane)

    async def _are_there(self, lanes: list[str]) -> list[bool]:
        found = await self.which(lanes)
        return [lane in found for lane in lanes]

    async def put(self, letter: Letter, lane: str, waiting: Waiting | None) -> None:
        """Write a delivery; when this returns it survives a failover.

        Args:
            letter: its `_id` begins with that of the lane. One with the same is replaced.
            lane: where it belongs.
            waiting: what for; None if the lane is there.

        Raises:
            PyMongoError: as the driver has it.
        """
        document = await self._parts.write(letter)
        change = None
        if waiting is not None:
            fields = letter.fields
            values = {name: fields[name] for name in ("group", "receiver", "document", "namespace")}
            literals: dict[str, Any] = {name: {"$literal": value} for name, value in values.items()}
            literals["key"] = {"$literal": fields["key"]} if "key" in fields else _literal(letter.parts["key"])
            # A lane that is there keeps the name that its receiver had: who works it off goes by that.
            begun = {name: {"$ifNull": [f"${name}", literal]} for name, literal in literals.items()}
            steps = [
                *_set({}, {**begun, "parked_at": {"$ifNull": ["$parked_at", "$$NOW"]}}),
                *_set({}, {"hash": {"$toHashedIndexKey": "$key"}}),
                *(_joins if waiting.reason == "retry" else _waits)(fields["token"], waiting),
            ]
            change = UpdateOne({"_id": lane}, steps, upsert=True)
        await self._puts.add(_Put(document, change))

    async def _put(self, puts: list[_Put]) -> list[Exception | None]:
        answers: list[Exception | None] = [None] * len(puts)
        lanes = [(i, put.lane) for i, put in enumerate(puts) if put.lane is not None]
        await _write_all(self._lanes, lanes, answers)
        rows = [
            (i, ReplaceOne({"_id": put.document["_id"]}, put.document, upsert=True))
            for i, put in enumerate(puts)
            if answers[i] is None
        ]
        await _write_all(self._rows, rows, answers)
        return answers

    async def due(self, receiver: str, most: int, apart_from: Sequence[str]) -> tuple[list[Lane], float | None]:
        """Lanes whose time has come, those that have waited longest first.

        Args:
            receiver: whose.
            most: how many at most.
            apart_from: lanes that are not meant.

        Returns:
            The lanes, and the seconds until the next one is due: None if there is no other.

        Raises:
            PyMongoError: as the driver has it.
        """
        apart = [*apart_from, *self._misfits]
        mine = {"group": self.group, "receiver": receiver, "_id": {"$nin": apart}, **self._partition}
        pipeline: list[dict[str, Any]] = [
            {"$match": mine},
            {"$sort": {"due_at": 1}},
            {"$limit": most + 1},
            {"$addFields": {"milliseconds": _MILLISECONDS}},
            _FIRST,
        ]
        lanes: list[Lane] = []
        seconds = None
        async for row in await self._lanes.with_options(codec_options=RAW).aggregate(pipeline):
            fields = readable(row, tz_aware=True)
            milliseconds, first = fields.pop("milliseconds"), fields.pop("first")
            try:
                lane = _lane_of(bytes(row.raw), fields, first)
            except Exception as error:  # somebody else wrote it, or edited it
                self._misfits.append(fields["_id"])
                sound = Sound(self.database)
                sound.skip(PARKED_LANES, fields["_id"], error)
                sound.log()
                continue
            if milliseconds > 0 or len(lanes) == most:
                seconds = max(0.0, milliseconds / 1000)
                break
            lanes.append(lane)
        return lanes, seconds

    async def read(self, ids: Sequence[str]) -> dict[str, RawBSONDocument]:
        """Deliveries by their `_id`s, those of them that are there.

        Raises:
            PyMongoError: as the driver has it.
        """
        rows = self._rows.with_options(codec_options=RAW).find({"_id": {"$in": list(ids)}})
        return {row["_id"]: row async for row in rows}

    async def following(self, lane: str) -> list[RawBSONDocument]:
        """The first deliveries of a lane, in order.

        Raises:
            PyMongoError: as the driver has it.
        """
        sizes = [
            (row["_id"], size if isinstance(size := row.get("size", 0), int) else 0)
            async for row in self._rows.find(_range(lane), {"size": True}, sort=[("_id", 1)], limit=_FOLLOWING)
        ]
        wanted: list[str] = []
        total = 0
        for id_, size in sizes:
            if wanted and total + size > _BYTES:
                break
            wanted.append(id_)
            total += size
        return [row for _, row in sorted((await self.read(wanted)).items())]

    async def parts(self, row: RawBSONDocument) -> dict[str, bytes]:
        """The documents of a delivery.

        Raises:
            PyMongoError: as the driver has it.
        """
        return await self._parts.read(row)

    async def settle(
        self, lane: str, finished: Sequence[RawBSONDocument], waiting: tuple[str, Waiting] | None
    ) -> bool:
        """Note how far a lane was worked off. One that is empty then is removed.

        Args:
            lane: which. Nobody may add to it meanwhile.
            finished: deliveries, from the first one on.
            waiting: the token of the next one, and what it waits for; None if it may be tried at once.

        Returns:
            Whether something is left.

        Raises:
            PyMongoError: as the driver has it.
        """
        up_to = finished[-1]["_id"] if finished else None
        chunked = [row["_id"] for row in finished if row["chunked"]]
        change = None if waiting is None else _waits(*waiting)
        return await self._settled.add(_Settled(lane, up_to, chunked, change))

    async def _settle(self, all_: list[_Settled]) -> list[bool | Exception]:
        answers: list[Any] = [None] * len(all_)
        ended = [(i, DeleteMany(_range(one.lane, one.up_to))) for i, one in enumerate(all_) if one.up_to]
        await _write_all(self._rows, ended, answers)
        for id_ in (id_ for one in all_ for id_ in one.chunked):
            await self._parts.drop(id_)
        changes = [
            (i, UpdateOne({"_id": one.lane}, one.change))
            for i, one in enumerate(all_)
            if one.change is not None and answers[i] is None
        ]
        await _write_all(self._lanes, changes, answers)
        at_once = [one.lane for i, one in enumerate(all_) if one.change is None and answers[i] is None]
        gone = await self._empty(at_once) if at_once else set()
        if gone:
            await self._lanes.delete_many({"_id": {"$in": sorted(gone)}})
        return [one.lane not in gone if answers[i] is None else answers[i] for i, one in enumerate(all_)]

    async def _empty(self, lanes: list[str]) -> set[str]:
        pipeline: list[dict[str, Any]] = [{"$match": {"_id": {"$in": lanes}}}, {"$project": {"_id": True}}, _FIRST]
        return {lane["_id"] async for lane in await self._lanes.aggregate(pipeline) if not lane["first"]}


def _lane_of(raw: bytes, fields: dict[str, Any], first: list[dict[str, Any]]) -> Lane:
    """What the document of a lane says.

    Raises:
        ValueError: it makes no sense.
        KeyError: it lacks something.
    """
    key, namespace = field(raw, "key"), fields["namespace"]
    texts = (fields["_id"], fields["reason"], fields["token"], namespace["db"], namespace["coll"])
    if key is None or not all(isinstance(one, str) for one in texts):
        raise ValueError("a lane has a key, and text in _id, reason, token, namespace.db and namespace.coll")
    attempts, began = fields["attempts"], fields["first_attempt_at"]
    if not isinstance(attempts, int) or not isinstance(began, datetime | None):
        raise ValueError("a lane has a number in attempts, and a date or null in first_attempt_at")  # noqa: TRY004
    head = first[0] if first else {"_id": None}
    size = head.get("size", 0)
    return Lane(fields["_id"], fields, keyed(key), head["_id"], size if isinstance(size, int) else 0)


# A lane without a date is due.
_MILLISECONDS: Final = {"$cond": [{"$eq": [{"$type": "$due_at"}, "date"]}, {"$subtract": ["$due_at", "$$NOW"]}, 0]}

_FIRST: Final[dict[str, Any]] = {
    "$lookup": {
        "from": PARKED,
        "let": {"from": {"$concat": ["$_id", ":"]}, "to": {"$concat": ["$_id", ";"]}},
        "pipeline": [
            {"$match": {"$expr": {"$and": [{"$gt": ["$_id", "$$from"]}, {"$lt": ["$_id", "$$to"]}]}}},
            {"$sort": {"_id": 1}},
            {"$limit": 1},
            {"$project": {"size": True}},
        ],
        "as": "first",
    }
}


def _literal(key: bytes) -> RawBSONDocument:
    """An `_id`, given as {"": _id}, in a pipeline."""
    found = field(key, "")
    assert found is not None
    return RawBSONDocument(keyed(found, "$literal"))


def _range(lane: str, up_to: str | None = None) -> dict[str, Any]:
    """The deliveries of a lane; ";" is the character after ":"."""
    return {"_id": {"$gt": f"{lane}:", **({"$lt": f"{lane};"} if up_to is None else {"$lte": up_to})}}


def _waits(token: str, waiting: Waiting) -> list[dict[str, Any]]:
    """The update of a lane whose first delivery waits."""
    kind = type(waiting.error)
    error = None
    if waiting.error is not None:
        message = text_of(waiting.error, _LONGEST_MESSAGE)
        error = {"type": f"{kind.__module__}.{kind.__qualname__}", "message": message}
    values = {
        "reason": waiting.reason,
        "token": token,
        "attempts": waiting.attempts,
        "first_attempt_at": waiting.began,
        "error": error,
    }
    return _set(values, {"due_at": {"$add": ["$$NOW", round(waiting.seconds * 1000)]}})


def _joins(token: str, waiting: Waiting) -> list[dict[str, Any]]:
    """The update of a lane that gets a delivery which is to be tried at once, and maybe has others already."""
    new = {"reason": waiting.reason, "token": token, "attempts": 0, "first_attempt_at": None, "error": None}
    joined = {name: {"$ifNull": [f"${name}", {"$literal": value}]} for name, value in new.items()}
    return _set({}, {**joined, "due_at": "$$NOW"})


def _set(values: Mapping[str, Any], computed: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"$set": {**{name: {"$literal": value} for name, value in values.items()}, **computed}}]


async def _write_all(collection: Any, writes: Sequence[tuple[int, Any]], answers: list[Any]) -> None:
    """Write all of them; what goes wrong with one of them becomes the answer at its index.

    Raises:
        PyMongoError: with all of them.
    """
    if not writes:
        return
    try:
        await collection.bulk_write([write for _, write in writes], ordered=False)
    except BulkWriteError as error:
        details = error.details or {}
        if details.get("writeConcernErrors") or not details.get("writeErrors"):
            raise
        for one in details["writeErrors"]:
            answers[writes[one["index"]][0]] = OperationFailure(one["errmsg"], one["code"], one)
