"""The collection `held`: one document per delivery that waits or has failed permanently.

docs/reference/state.md lists the fields. The `state` of a dead letter is "dead": it waits for an operator. The
`state` of a follower is "following": this delivery waits for earlier deliveries of its lane. The first
delivery of a lane is its head. The `state` of a head is the reason why the head waits.

Transitions: a delivery is written as head or as follower of a lane (`put`), or as dead letter (`keep` in
`parking/letters.py`). After an attempt the delivery is finished (`settle` deletes it), or it must wait (`settle`
sets `due_at`), or it becomes a dead letter (`keep` replaces it). A retry turns a dead letter into a waiting
delivery of its lane (`retry`).

There is no document of a lane. A lane exists while one of its deliveries waits, and `due_at` marks its head. `due`
finds marked deliveries by (group, receiver, due_at), and the first delivery of each lane by (group, lane, token,
run). The first delivery gets the next attempt. If another delivery has the mark, for example after a crash, `due`
moves the mark. A look-up of a lane costs one seek in the index, however many deliveries wait.

The cases, and why no delivery is lost or overtaken:

- A process works on one change or errand of a document at a time. Only this work, and the upgrade in `recover`,
  adds deliveries to the document's lanes. Only this work deletes deliveries from them. So no delivery joins a lane
  while the lane ends; `recover` marks the lanes to which the upgrade has added deliveries.
- A crash between two writes: `settle` marks the next delivery before it deletes the finished ones. After a crash
  in between, two deliveries have the mark, and the first one is delivered again. If the next delivery was not
  known yet, or the head became a dead letter, no delivery has the mark after the crash. Therefore `recover` marks
  the first delivery of each lane without a mark. `recover` runs when a process gets the lease of a partition, a
  minute later, and then every hour.
- A crash between a delete and its commit: the server would keep the transaction open for a minute, and the new
  owner would wait for it. The session of the transaction is registered, so the members of the group end it.
- Two processes while a partition changes its owner: the former owner may delete the head after the new owner
  wrote a follower, or write a follower after the new owner deleted the head. Before a delivery joins a lane,
  `is_headed` finds out whether the first delivery has the mark. A delivery that joins a lane without a mark gets
  the mark, and `due` moves the mark to the first delivery. If no further delivery joins such a lane, `recover`
  marks the first delivery.
- The same change is read again after a crash: `put` replaces the delivery. The mark and the number of attempts
  stay, and `by` names the new process. Before this `put`, the new process makes no attempt at the delivery: such
  an early attempt could break the order.
- 10,000 followers, or 100,000 lanes of a paused receiver: no query reads more than it returns; writes are batched.
- A retry of a dead letter whose lane has deliveries already: the retry takes over the mark. By its token the
  dead letter usually sorts before these deliveries; otherwise `due` moves the mark.
- All reads go to the primary and see all acknowledged writes. All writes are acknowledged by a majority, so an
  election undoes none.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple

from bson import MinKey
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne

from dispatcher.core.batching import Batcher, update_all
from dispatcher.core.bson_codec import RAW
from dispatcher.core.bson_elements import readable
from dispatcher.core.error_text import text_of
from dispatcher.core.partitions import belongs
from dispatcher.core.state import HELD, Group
from dispatcher.core.state_checks import StateReader
from dispatcher.delivery.outcome import Waiting
from dispatcher.delivery.ports import SessionRegister
from dispatcher.parking.files import Files
from dispatcher.parking.lane import Lane, is_head, lane_of, lane_of_head
from dispatcher.parking.letters import REQUESTED
from dispatcher.parking.record import Record, hash_of_key
from dispatcher.parking.updates import after, changed, replaced
from dispatcher.parking.upgrade import take_over
from mongoz.connection.elections import session_of

WAITING: Final[Mapping[str, Any]] = {"lane": {"$gt": ""}}
"""Matches deliveries that wait."""

HEADS: Final[Mapping[str, Any]] = {"due_at": {"$gt": MinKey()}}
"""Matches the deliveries that wait at the head of their lanes."""

_ALL: Final[Mapping[str, Any]] = {}

# The update that makes a delivery a follower.
_FOLLOWS: Final = {"$unset": {"due_at": ""}, "$set": {"state": "following"}}

_ORDER: Final = {"group": 1, "lane": 1, "token": 1, "run": 1}

UNDELIVERABLE: Final = 300.0
"""Seconds until the next try of a delivery that is malformed, or whose receiver the application does not have."""

# Maximum length of a recorded error, in characters.
_LONGEST_MESSAGE: Final = 1_000

# Maximum number of deliveries that one command makes due.
_MOST_DUE: Final = 10_000

# Limits for the deliveries of one lane in one read: their number, and the sum of their recorded sizes.
_FOLLOWING: Final = 20
_BYTES: Final = 4_000_000


class DueRows(NamedTuple):
    """Lanes that are due.

    Attributes:
        lanes: each with its first deliveries, in order.
        seconds: seconds until another lane is due; None if there is no other lane.
        is_odd: whether a lane was left out, because its first delivery has no mark or is malformed. `due` corrects
            such lanes.
    """

    lanes: list[tuple[Lane, list[RawBSONDocument]]]
    seconds: float | None
    is_odd: bool


class Settlement(NamedTuple):
    """The result of some deliveries of a lane, see `HeldStore.settle`."""

    lane: Lane
    finished: Sequence[Mapping[str, Any]]
    next: str | None
    waiting: Waiting | None


class _SettledLane(NamedTuple):
    """The finished deliveries of a lane, and its new head.

    Attributes:
        finished: the finished deliveries. They are the first ones of the lane.
        head: the update that marks the next delivery; None if the next delivery is not known.
    """

    lane: Lane
    finished: Sequence[Mapping[str, Any]]
    head: UpdateOne | None


class HeldStore:
    """Reads and writes the held deliveries of one partition.

    Args:
        partition: its number, and the number of partitions.
        sessions: the register for sessions of this process; None if no other process takes over its work.
    """

    def __init__(
        self, group: Group, partition: tuple[int, int] = (0, 1), sessions: SessionRegister | None = None
    ) -> None:
        self.group = group.name
        self.database = group.state.name
        self.address = group.state.address
        self._group = group
        self._sessions = sessions
        self._partition = partition
        number, of = partition
        self._ours: dict[str, Any] = {"$expr": belongs("$hash", number, of)} if of > 1 else {}
        self._held = group.state.held
        self._raw = self._held.with_options(codec_options=RAW)
        self._files = Files(group.state)
        self._puts: Batcher[UpdateOne, None] = Batcher(self._put)
        self._asked: Batcher[str, bool | None] = Batcher(self._are_headed)
        self._settled: Batcher[_SettledLane, bool] = Batcher(self._settle)

    # -- lanes -----------------------------------------------------------------------------------------------

    async def receivers(self) -> set[str]:
        """The names of all receivers with deliveries that wait."""
        found = await self._held.distinct("receiver", {"group": self.group, **HEADS})
        return {one for one in found if isinstance(one, str)}

    async def existing(self, lanes: Sequence[str]) -> set[str]:
        """Filters a list of lanes: returns the lanes that exist."""
        return set(await self._held.distinct("lane", {"group": self.group, "lane": {"$in": list(lanes)}}))

    async def is_headed(self, lane: str) -> bool | None:
        """Returns whether the first delivery of a lane is marked as its head; None if the lane does not exist."""
        return await self._asked.add(lane)

    async def _are_headed(self, lanes: list[str]) -> list[bool | None]:
        found = {one["_id"]: one.get("due_at") is not None async for one in await self._firsts({"$in": lanes})}
        return [found.get(lane) for lane in lanes]

    async def _firsts(self, lanes: Mapping[str, Any], only: Mapping[str, Any] = _ALL) -> Any:
        """The first delivery of each of these lanes: `_id` is the lane, `first` is the `_id` of the delivery."""
        first = {"_id": "$lane", "first": {"$first": "$_id"}, "due_at": {"$first": "$due_at"}}
        there = {"$match": {"group": self.group, "lane": lanes}}
        return await self._held.aggregate([there, {"$sort": _ORDER}, {"$group": first}, {"$match": only}])

    async def recover(self) -> None:
        """Move the deliveries of earlier versions into `held`, and delete unused files.

        Also mark the first delivery of each lane, if it has no mark.
        """
        await take_over(self._group, self._partition)
        await self._files.sweep()
        marks = [
            _mark(one["first"], one["_id"], "retrying", "$$NOW")
            async for one in await self._firsts(WAITING["lane"], {"due_at": None})
        ]
        if marks:
            await self._held.bulk_write(marks, ordered=False)

    async def make_claimed_due(self) -> None:
        """Make all claimed deliveries of the partition due now."""
        waiting = {"group": self.group, "state": "claimed", **HEADS, **self._ours}
        await self.make_due([row["_id"] async for row in self._held.find(waiting, {"_id": True})])

    async def make_due(self, ids: Sequence[str]) -> None:
        """Make these deliveries due now, except those that are no longer claimed."""
        change = [{"$set": {"due_at": {"$min": ["$due_at", "$$NOW"]}}}]
        for start in range(0, len(ids), _MOST_DUE):
            several = {"$in": list(ids[start : start + _MOST_DUE])}
            await self._held.update_many({"_id": several, "state": "claimed", **HEADS}, change)

    # -- writing ---------------------------------------------------------------------------------------------

    async def put(self, record: Record, lane: str, waiting: Waiting | None) -> None:
        """Write a delivery that waits, or replace the one with the same `_id`. Afterwards it survives a failover.

        Args:
            waiting: why it waits; None for a follower. Also None for a delivery that is in the lane already: its
                state and its mark stay.
        """
        document = {**await self._files.write(record), "lane": lane}
        computed: dict[str, Any] = {"hash": hash_of_key(record.parts), "parked_at": "$$NOW"}
        if waiting is None:
            stays = {"$eq": ["$lane", lane]}
            kept = {"$cond": [stays, "$$ROOT", {"state": "$state"}]}
            files = {"$literal": document["files"]} if "files" in document else "$$REMOVE"
            change: list[dict[str, Any]] = [
                {"$set": {"state": {"$cond": [stays, "$state", "following"]}}},
                {"$replaceWith": {"$mergeObjects": [kept, {"$literal": document}]}},
                {"$set": {**computed, "files": files}},
            ]
        else:
            change = replaced({**document, **_waits(waiting)}, {**computed, "due_at": after(waiting.seconds)})
        await self._puts.add(UpdateOne({"_id": record.id}, change, upsert=True))

    async def _put(self, puts: list[UpdateOne]) -> Sequence[Exception | None]:
        return (await update_all(self._held, puts)).errors

    async def retry(self, id_: str, lane: str, fields: Mapping[str, Any]) -> bool:
        """Make a dead letter wait in a lane, and make it due now.

        Returns False if its retry is no longer requested.
        """
        values = {**fields, "lane": lane, "state": "retry", "attempts": 0, "first_attempt_at": None}
        now = dict.fromkeys(("due_at", "parked_at", "retrying_since"), "$$NOW")
        change = [*changed(values, **now), {"$unset": ["retry_requested_at", "retry_refused"]}]
        if not (await self._held.update_one({"_id": id_, **REQUESTED}, change)).matched_count:
            return False
        others = {"group": self.group, "lane": lane, "_id": {"$ne": id_}, **HEADS}
        await self._held.update_many(others, _FOLLOWS)
        return True

    # -- deliveries that are due -----------------------------------------------------------------------------

    async def due(self, receiver: str, most: int, apart_from: Sequence[str]) -> tuple[list[Lane], float | None]:
        """Lanes that are due, the longest-waiting first.

        Returns:
            The lanes, and the seconds until another lane is due; None if there is no other lane.
        """
        apart = {"lane": {"$nin": list(apart_from)}}
        pipeline: list[dict[str, Any]] = [
            {"$match": {"group": self.group, "receiver": receiver, **HEADS, **apart, **self._ours}},
            {"$sort": {"due_at": 1}},
            {"$limit": most + 1},
            {"$project": {"lane": True, "state": True, "due_at": True, "milliseconds": _MILLISECONDS}},
            self._first,
        ]
        lanes: dict[str, Lane] = {}
        moved: list[UpdateOne] = []
        seconds, again = None, False
        async for raw in await self._raw.aggregate(pipeline):
            row = readable(raw)
            if row["milliseconds"] > 0 or len(lanes) == most:
                seconds = max(0.0, row["milliseconds"] / 1000)
                break
            if not row["first"] and isinstance(row.get("lane"), str):  # the lane has just ended
                again = True
                continue
            try:
                lane = lane_of(row)
            except (ValueError, KeyError, TypeError) as error:  # the document was edited by hand
                again |= await self.skip(row["_id"], error)
                continue
            if lane.first == row["_id"]:
                lanes.setdefault(lane.id, lane)
            else:  # move the mark to the first delivery
                moved.append(_mark(lane.first, lane.id, lane.state, lane.due_at))
                moved.append(UpdateOne({"_id": row["_id"], "lane": lane.id}, _FOLLOWS))
        if moved:
            await self._held.bulk_write(moved, ordered=True)
        if moved or again:  # the query had a limit: further lanes may be due
            seconds = 0.0
        return list(lanes.values()), seconds

    @property
    def _first(self) -> dict[str, Any]:
        pipeline = [
            {"$match": {"group": self.group}},
            {"$sort": _ORDER},
            {"$limit": 1},
            {"$project": {"size": True}},
        ]
        joined = {"from": HELD, "localField": "lane", "foreignField": "lane", "pipeline": pipeline, "as": "first"}
        return {"$lookup": joined}

    async def due_rows(self, receiver: str, most: int, most_bytes: int, apart_from: Sequence[str]) -> DueRows:
        """Lanes that are due, each with its first deliveries. It takes two queries, however many lanes there are.

        Args:
            receiver: the name of the receiver in the lanes.
            most: the maximum number of deliveries.
            most_bytes: the maximum number of bytes of the deliveries. A single larger delivery is read alone.
            apart_from: lanes that are left out.
        """
        apart = {"lane": {"$nin": list(apart_from)}}
        pipeline: list[dict[str, Any]] = [
            {"$match": {"group": self.group, "receiver": receiver, **HEADS, **apart, **self._ours}},
            {"$sort": {"due_at": 1}},
            {"$limit": most + 1},
            {"$project": {"lane": True, "milliseconds": _MILLISECONDS}},
        ]
        lanes: list[str] = []
        seconds = None
        async for head in await self._held.aggregate(pipeline):
            if head["milliseconds"] > 0 or len(lanes) == most:
                seconds = max(0.0, head["milliseconds"] / 1000)
                break
            lanes.append(head["lane"])
        if not lanes:
            return DueRows([], seconds, is_odd=False)
        found = self._raw.find({"group": self.group, "lane": {"$in": lanes}}, batch_size=most)
        rows: dict[str, list[RawBSONDocument]] = {}
        size, is_odd = 0, False
        async for row in found.sort(_ORDER).limit(most):
            size += len(row.raw)
            if rows and size > most_bytes:
                seconds = 0.0
                break
            try:
                rows.setdefault(row["lane"], []).append(row)
            except InvalidBSON:  # the document was edited by hand
                is_odd = True
        read = {lane: several for lane, several in rows.items() if is_head(several[0])}
        due = [(lane_of_head(several[0]), several) for several in read.values()]
        return DueRows(due, seconds, is_odd or len(read) < len(rows) or not rows)

    async def skip(self, id_: Any, error: Exception) -> bool:
        """Log a malformed delivery. If it is a head, its lane waits, so that an operator can fix the document.

        Returns:
            Whether it is a head.
        """
        reader = StateReader(self.database)
        reader.skip(HELD, id_, error)
        reader.log()
        waits = changed({"state": "malformed"}, due_at=after(UNDELIVERABLE))
        return (await self._held.update_one({"_id": id_, **HEADS}, waits)).matched_count > 0

    async def read(self, ids: Sequence[str]) -> dict[str, RawBSONDocument]:
        """Deliveries by their `_id`s, without the deleted and the malformed ones."""
        rows = {}
        async for row in self._raw.find({"_id": {"$in": list(ids)}}):
            try:
                rows[row["_id"]] = row
            except InvalidBSON as error:  # the document was edited by hand
                await self.skip(readable(row)["_id"], error)
        return rows

    async def following(self, lane: str) -> tuple[list[RawBSONDocument], str | None]:
        """The first deliveries of a lane, in order, up to a deleted or malformed one.

        Also returns the `_id` of the first delivery beyond the limits of one read; None if there is none.
        """
        found = self._held.find({"group": self.group, "lane": lane}, {"size": True})
        wanted: list[str] = []
        next_id, total = None, 0
        async for row in found.sort(_ORDER).limit(_FOLLOWING + 1):
            size = size if isinstance(size := row.get("size"), int) else 0
            if len(wanted) == _FOLLOWING or (wanted and total + size > _BYTES):
                next_id = row["_id"]
                break
            wanted.append(row["_id"])
            total += size
        rows = await self.read(wanted)
        return [rows[id_] for id_ in takewhile(rows.__contains__, wanted)], next_id

    async def parts(self, row: Mapping[str, Any]) -> dict[str, bytes]:
        """The parts of a delivery, see `parking/record.py`.

        Raises:
            ValueError: a part is missing.
        """
        return await self._files.read(row)

    async def settle(
        self, lane: Lane, finished: Sequence[Mapping[str, Any]], next_: str | None, waiting: Waiting | None
    ) -> bool:
        """Delete the finished deliveries of a lane, and mark the next one as its head.

        Args:
            lane: the lane. No delivery may be added to it meanwhile.
            finished: the finished deliveries, from the first one on.
            next_: `_id` of the delivery after them; None if it is not known.
            waiting: why the next delivery waits; None if it may be tried immediately.

        Returns:
            Whether the lane still has a delivery.
        """
        settled = self._settled_of(Settlement(lane, finished, next_, waiting))
        return True if settled is None else await self._settled.add(settled)

    def _settled_of(self, settlement: Settlement) -> _SettledLane | None:
        lane, finished, next_, waiting = settlement
        head = None
        if next_ is not None and waiting is not None:
            change = changed(_waits(waiting), due_at=after(waiting.seconds))
            head = UpdateOne({"_id": next_, "lane": lane.id}, change)
        elif next_ is not None and finished:
            head = _mark(next_, lane.id, lane.state, lane.due_at)
        return None if head is None and not finished else _SettledLane(lane, finished, head)

    async def settle_all(self, several: Sequence[Settlement]) -> None:
        """Like `settle`, for many lanes in a few commands."""
        found = [self._settled_of(one) for one in several]
        await self._settle([one for one in found if one is not None])

    async def _settle(self, all_: list[_SettledLane]) -> list[bool]:
        heads = [one.head for one in all_ if one.head is not None]
        if heads:
            await self._held.bulk_write(heads, ordered=False)
        done = [row for one in all_ for row in one.finished]
        if done:  # deliveries that have become dead letters meanwhile stay
            await self._delete([row["_id"] for row in done])
            for row in done:
                await self._delete_files(row)
        left = await self._mark_next({one.lane.id: one.lane for one in all_ if one.head is None})
        return [one.head is not None or one.lane.id in left for one in all_]

    async def _delete(self, ids: Sequence[str]) -> None:
        """Delete deliveries.

        In a transaction, all these deletes are one entry of the oplog. Each change stream reads all entries of the
        oplog, so one entry costs less than many.
        A failed transaction is not repeated here. After the loss of the partition, a late repetition could delete
        the head of a lane of the new owner. So only the callers repeat it, while they have the lease.
        """
        async with session_of(self._group.state.client) as session:
            if self._sessions is not None:
                await self._sessions.announce(session)
            async with await session.start_transaction(write_concern=self._held.write_concern):
                await self._held.delete_many({"_id": {"$in": ids}, **WAITING}, session=session)

    async def _mark_next(self, lanes: Mapping[str, Lane]) -> set[str]:
        """Mark the first deliveries of these lanes. Returns the lanes that have a delivery."""
        if not lanes:
            return set()
        firsts = [one async for one in await self._firsts({"$in": list(lanes)})]
        if firsts:
            found = [(one["first"], lanes[one["_id"]]) for one in firsts]
            marks = [_mark(first, lane.id, lane.state, lane.due_at) for first, lane in found]
            await self._held.bulk_write(marks, ordered=False)
        return {one["_id"] for one in firsts}

    async def _delete_files(self, row: Mapping[str, Any]) -> None:
        if "files" in row and await self._held.find_one({"_id": row["_id"]}, {"_id": True}) is None:
            await self._files.delete(row)


# A head whose `due_at` is no date is due.
_MILLISECONDS: Final = {"$cond": [{"$eq": [{"$type": "$due_at"}, "date"]}, {"$subtract": ["$due_at", "$$NOW"]}, 0]}


def _mark(id_: str, lane: str, state: str, due_at: Any) -> UpdateOne:
    """The update that marks a delivery as the head of its lane. An earlier `due_at` stays."""
    own = {"$cond": [{"$in": ["$state", ["following", None]]}, state, "$state"]}
    change = [{"$set": {"due_at": {"$min": ["$due_at", due_at]}, "state": own}}]
    return UpdateOne({"_id": id_, "lane": lane}, change)


def _waits(waiting: Waiting) -> dict[str, Any]:
    """The fields of a head that waits."""
    if waiting.reason == "limited":  # there was no new attempt, so the error of the last attempt stays
        return {"state": "limited", "attempts": waiting.attempts, "first_attempt_at": waiting.began}
    error = None
    if waiting.error is not None:
        kind = type(waiting.error)
        message = text_of(waiting.error, _LONGEST_MESSAGE)
        error = {"type": f"{kind.__module__}.{kind.__qualname__}", "message": message}
    return {
        "state": waiting.reason,
        "attempts": waiting.attempts,
        "first_attempt_at": waiting.began,
        "error": error,
    }
