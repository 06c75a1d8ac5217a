"""Reads and writes the positions of a group in the state database. All writes of positions are here.

The filter of each write has the values that this process expects, such as owner and term. So if another process
has taken over or was faster, the write changes no document.
A process sends the writes of its partitions together: one command renews the leases, another saves the positions.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pymongo import DeleteOne, ReturnDocument, UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.read_concern import ReadConcern

from dispatcher.core.batching import Batcher, update_all
from dispatcher.core.events import LogPlace
from dispatcher.core.identity import own_identity
from dispatcher.core.lease import Lease, now
from dispatcher.core.state import POSITIONS, Group
from dispatcher.position.documents import (
    NEVER,
    Ownership,
    Position,
    SavedPositions,
    Topic,
    moved,
    owned_as,
    recorded,
)
from dispatcher.position.inherited import Fact
from dispatcher.position.repartition import divided, switched
from dispatcher.settings import MOST_PARTITIONS
from mongoz.connection.elections import session_of

_RENEWAL: Final[Mapping[str, Any]] = {"$inc": {"beat": 1}, "$currentDate": {"renewed_at": True}}

_DUPLICATE_KEY: Final = 11000


def documents_of(group: str) -> dict[str, Any]:
    """A filter for the layout and the positions of a group."""
    # The name of a group never contains a colon.
    return {"$or": [{"_id": group}, {"_id": {"$gte": f"{group}:", "$lt": f"{group};"}}]}


class FirstPosition(NamedTuple):
    """The position at which the first owner of a partition begins.

    Attributes:
        token: all changes up to it count as finished.
        fingerprint: the fingerprint of the stream that the token belongs to.
        place: for a topic, the place that belongs to the token; None if it is unknown.
    """

    token: str
    fingerprint: str = ""
    place: LogPlace | None = None


class _PositionUpdate(NamedTuple):
    """An update of the position of a partition that this process holds."""

    lease: Lease
    change: Mapping[str, Any]


class PositionStore:
    """The positions of one group.

    Args:
        member: the id of this process; empty if it claims no partition.
    """

    def __init__(self, group: Group, member: str = "") -> None:
        self._client = group.state.client
        self._collection = group.state.positions
        self._newest = group.state.newest(POSITIONS)
        self._database = group.state.name
        self.address = group.state.address
        self.group = self._group = group.name
        self._member = member
        # One batch at a time: no save overtakes an earlier one of the same partition. A batch has room for all
        # partitions: at the end of a process the last saves wait for one earlier batch at most.
        self._updates: Batcher[_PositionUpdate, bool] = Batcher(self._update, most=MOST_PARTITIONS, at_once=1)

    # -- reading ---------------------------------------------------------------------------------------------

    async def load(self) -> SavedPositions:
        """All documents of the group, from one snapshot."""
        at_once = self._collection.with_options(read_concern=ReadConcern("snapshot"))
        found = await at_once.find(documents_of(self._group)).to_list()
        return SavedPositions.read(found, self._group, self._database)

    async def newest_term(self) -> int:
        """The highest term of the group; 0 if it has no position."""
        newest = await self._collection.find_one({"group": self._group}, {"term": True}, sort=[("term", -1)])
        return int((newest or {}).get("term", 0))

    # -- the layout ------------------------------------------------------------------------------------------

    async def begin(
        self, partitions: int, first: Mapping[int, FirstPosition], *, new: bool, topic: Topic | None = None
    ) -> bool:
        """Record the first positions of partitions: the first owner of each partition begins there.

        Args:
            first: the first positions by partition.
            new: the group has no layout yet.
            topic: the source of a new group; None for change streams.

        Returns:
            False if another process has recorded positions or a layout meanwhile. Then nothing is written.
        """
        positions = [
            # The filter does not match a position with a token: the insert then fails as a duplicate.
            UpdateOne(
                {"_id": self._id(partition), "token": None},
                {
                    "$set": {"partitions": partitions, **recorded(token, fingerprint, place=place)},
                    "$currentDate": {"saved_at": True},
                    "$setOnInsert": {"group": self._group, "partition": partition, "term": 0},
                },
                upsert=True,
            )
            for partition, (token, fingerprint, place) in first.items()
        ]

        async def write(session: AsyncClientSession) -> bool:
            if new:
                layout: dict[str, Any] = {"_id": self._group, "partitions": partitions, "group": self._group}
                if topic is not None:
                    layout["topic"] = topic._asdict()
                await self._collection.insert_one(layout, session=session)
            elif not await self._touch_layout(partitions, session):
                return False
            if positions:
                await self._collection.bulk_write(positions, session=session)
            return True

        try:
            return await self._in_transaction(write)
        except DuplicateKeyError:  # another process recorded the layout at the same time
            return False
        except BulkWriteError as error:
            if any(one["code"] != _DUPLICATE_KEY for one in error.details["writeErrors"]):
                raise
            return False  # another process recorded the positions

    async def request(self, saved: SavedPositions, partitions: int) -> bool:
        """Request another number of partitions. A request for the present number withdraws the earlier request.

        Returns:
            False if the layout has changed since it was read.
        """
        assert saved.layout is not None  # the callers check it
        as_read = {"_id": self._group, "partitions": saved.layout.partitions, "wanted": saved.layout.wanted}
        as_it_is = partitions == saved.layout.partitions
        change = {"$unset": {"wanted": ""}} if as_it_is else {"$set": {"wanted": partitions}}
        return bool((await self._collection.update_one(as_read, change)).matched_count)

    async def divide(self, saved: SavedPositions) -> bool:
        """Divide the work into the requested number of partitions, in one transaction.

        Args:
            saved: the positions as read. No process may hold a partition with a valid lease.

        Returns:
            False if the positions have changed since they were read.
        """
        layout = saved.layout
        assert layout is not None  # it has a requested number
        assert layout.wanted is not None
        as_read = {"partitions": layout.partitions, "wanted": layout.wanted}
        change = {"$set": {"partitions": layout.wanted}, "$unset": {"wanted": ""}}
        return await self._replace(saved, as_read, change, divided(saved, self._group))

    async def switch(self, saved: SavedPositions, topic: Topic | None, partitions: int) -> bool:
        """Let a group read from another source, in one transaction.

        Args:
            saved: the positions as read. No process may hold a partition with a valid lease. See `switched`.
            topic: None for change streams.

        Returns:
            False if the positions have changed since they were read.
        """
        assert saved.layout is not None  # the callers check it
        before = saved.layout.topic
        as_read = {
            "partitions": saved.layout.partitions,
            "wanted": None,
            "topic": None if before is None else before._asdict(),
        }
        values: dict[str, Any] = {"partitions": partitions}
        change: dict[str, Any] = {"$set": values}
        if topic is None:
            change["$unset"] = {"topic": ""}
        else:
            values["topic"] = topic._asdict()
        return await self._replace(saved, as_read, change, switched(saved, self._group, partitions))

    async def _replace(
        self,
        saved: SavedPositions,
        as_read: Mapping[str, Any],
        change: Mapping[str, Any],
        documents: Sequence[dict[str, Any]],
    ) -> bool:
        """Change the layout, and replace all positions, in one transaction.

        Args:
            as_read: a filter for the layout.
            change: the update of the layout.

        Returns:
            False if the layout or the positions have changed since they were read.
        """

        async def write(session: AsyncClientSession) -> bool:
            layout = {"_id": self._group, **as_read}
            matched = (await self._collection.update_one(layout, change, session=session)).matched_count
            as_read_too = [DeleteOne(self._as_read(position)) for position in saved.positions.values()]
            if as_read_too:
                matched += (await self._collection.bulk_write(as_read_too, session=session)).deleted_count
            if matched != 1 + len(saved.positions):
                return False
            await self._collection.insert_many(documents, session=session)
            return True

        return await self._in_transaction(write)

    async def rename_application(self, before: str, application: str) -> bool:
        """Record the application of the group. Returns False if another process has recorded one meanwhile."""
        as_read = {"_id": self._group, "application": before or {"$in": ["", None]}}
        result = await self._collection.update_one(as_read, {"$set": {"application": application}})
        return bool(result.matched_count)

    # -- moves by an operator --------------------------------------------------------------------------------

    async def move(
        self,
        saved: SavedPositions,
        token: str | None,
        *,
        force: bool,
        also: Callable[[AsyncClientSession], Awaitable[None]],
        places: Mapping[int, LogPlace] = MappingProxyType({}),
    ) -> bool:
        """Make all partitions continue after a token, or begin again, in one transaction.

        Args:
            token: everything up to it counts as finished, everything after it as unfinished. None removes
                the positions, as if no dispatcher had ever run.
            force: move the positions even while processes hold partitions.
            also: further writes of the same transaction.
            places: for a topic, the known places of the token, by partition.

        Returns:
            False if the positions have changed since they were read.
        """
        layout = saved.layout
        assert layout is not None  # the callers check it

        moves = [
            UpdateOne(self._as_read(one), moved(one, token, force=force, place=places.get(one.partition)))
            for one in saved.positions.values()
        ]

        async def write(session: AsyncClientSession) -> bool:
            matched = int(await self._touch_layout(layout.partitions, session))
            if moves:
                matched += (await self._collection.bulk_write(moves, session=session)).matched_count
            if matched != 1 + len(saved.positions):
                return False
            await also(session)
            return True

        return await self._in_transaction(write)

    # -- leases ----------------------------------------------------------------------------------------------

    async def claim(
        self, seen: Ownership | Position, of: int, *, seconds: float, version: str, started: datetime
    ) -> tuple[Lease, Position] | None:
        """Become the owner of a partition, if its position is unchanged since it was read.

        Args:
            of: the number of partitions when the position was read.
            seconds: time after which the lease is over, if it is not renewed.
            started: the server's time at which a process of this version started.

        Returns:
            The lease and the position; None if another process was faster.
        """
        sent = now()
        values = {
            "group": self._group,
            "partition": seen.partition,
            "partitions": of,
            "owner": self._member,
            **own_identity()._asdict(),
            "lease_seconds": seconds,
            "version": version,
            "version_since": started,
            "version_started": NEVER,
        }
        found = await self._collection.find_one_and_update(
            self._as_read(seen),
            {
                "$inc": {"term": 1, "beat": 1},
                "$set": values,
                "$currentDate": {"claimed_at": True, "renewed_at": True},
            },
            return_document=ReturnDocument.AFTER,
        )
        if found is None:
            return None
        position = Position.read(found, self._group, self._database)
        return Lease(position.partition, of, position.term, seconds=seconds, sent=sent), position

    async def renew(self, leases: Sequence[Lease]) -> Sequence[bool | Exception]:
        """Renew leases with one command.

        Returns:
            For each lease True, or False if another process has taken over, or an error.
        """
        return await self._update([_PositionUpdate(lease, _RENEWAL) for lease in leases])

    async def save(
        self,
        lease: Lease,
        token: str,
        fingerprint: str,
        ahead: bytes,
        until: str,
        inherited: Iterable[Fact] | None = None,
        place: LogPlace | None = None,
    ) -> bool:
        """Write the position. Returns False if another process has taken over.

        One command writes the positions that are saved at the same moment.

        Args:
            inherited: the facts about finished changes of earlier layouts; None if they have not changed.
            place: for a topic, a place up to which all accepted records are finished.
        """
        values = recorded(token, fingerprint, ahead, until, place)
        if inherited is not None:
            values["inherited"] = [fact._asdict() for fact in inherited]
        return await self._updates.add(
            _PositionUpdate(lease, {"$set": values, "$currentDate": {"saved_at": True}})
        )

    async def release(self, lease: Lease) -> None:
        """Hand a partition over: another member may claim it immediately."""
        change = {"$set": {"owner": None}, "$currentDate": {"released_at": True}}
        await self._updates.add(_PositionUpdate(lease, change))

    # -- shared ----------------------------------------------------------------------------------------------

    async def _update(self, updates: Sequence[_PositionUpdate]) -> list[bool | Exception]:
        """Update positions that this process holds, with one command.

        Returns:
            For each update True, or False if this process does not hold the partition any more, or an error.
        """
        fenced = [
            UpdateOne({"_id": self._id(lease.partition), "owner": self._member, "term": lease.term}, change)
            for lease, change in updates
        ]
        matched, errors = await update_all(self._collection, fenced)
        answers: list[bool | Exception] = [error is None or error for error in errors]
        if matched == answers.count(True):
            return answers
        # The answer does not tell which updates matched no position. A term is never given twice: a partition that
        # is ours now, under the same term, was ours at the time of the update.
        ours = await self._terms([lease for lease, _ in updates])
        for place, (lease, _) in enumerate(updates):
            if answers[place] is True:
                answers[place] = ours.get(lease.partition) == lease.term
        return answers

    async def _terms(self, leases: Sequence[Lease]) -> dict[int, Any]:
        """The present terms of the partitions of these leases, except partitions that this process has lost."""
        partitions = {self._id(lease.partition): lease.partition for lease in leases}
        ours = {"_id": {"$in": list(partitions)}, "owner": self._member}
        found = self._newest.find(ours, {"term": True})
        # A document that was edited by hand may lack its term.
        return {partitions[one["_id"]]: one.get("term") async for one in found}

    async def _touch_layout(self, partitions: int, session: AsyncClientSession) -> bool:
        """Write to the layout, so that a concurrent division fails. Returns False if the layout has changed."""
        layout = {"_id": self._group, "partitions": partitions}
        change = {"$currentDate": {"mended_at": True}}
        return bool((await self._collection.update_one(layout, change, session=session)).matched_count)

    async def _in_transaction(self, write: Callable[[AsyncClientSession], Awaitable[bool]]) -> bool:
        """Run `write` in a transaction. The transaction is aborted if `write` returns False."""

        async def attempt(session: AsyncClientSession) -> bool:
            done = await write(session)
            if not done:
                await session.abort_transaction()
            return done

        async with session_of(self._client) as session:
            return await session.with_transaction(attempt)

    def _as_read(self, position: Ownership | Position) -> dict[str, Any]:
        """A filter that matches a position as long as its owner, term and beat are unchanged since it was read."""
        return {"_id": self._id(position.partition), **owned_as(position)}

    def _id(self, partition: int) -> str:
        return f"{self._group}:{partition}"
