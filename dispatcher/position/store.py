"""Positions: up to where everything is finished, and keeping that in MongoDB.

The position never passes a change that is not finished.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pymongo import ReturnDocument
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from dispatcher.core.events import Job, token_time
from dispatcher.core.identity import own_identity
from dispatcher.core.lease import Lease, now
from dispatcher.core.state import Group
from dispatcher.position.documents import Position, Saved
from dispatcher.position.inherited import Fact
from dispatcher.position.repartition import divided
from mongoz.connection.elections import session_of

__all__ = ["PositionStore", "Tracker", "unchanged"]


class Tracker:
    """The order of the stream, and how far it is finished. Pure.

    The position never comes to lie between a marker and its delete: who began there would see the delete alone,
    and take it for somebody else's.

    Args:
        token: everything up to it is finished.

    Attributes:
        weight: characters of all tokens behind it, of changes that are finished or not.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self._open: deque[Job] = deque()
        # Finished like all before them, but a marker among them has its delete behind them.
        self._between: list[Job] = []
        self._announced = 0
        self._mark = token
        self.weight = 0

    def add(self, job: Job) -> None:
        """Note the next change of the stream; one that is done already counts when its turn comes."""
        if job.done and not self._open:
            self.token = job.token
        else:
            self._open.append(job)
            self.weight += len(job.token)

    def mark(self, token: str) -> None:
        """Note that the stream has been read up to this token: between changes, or on an idle stream.

        It is no change, and may even be the token of the last one, so it is never among those finished ahead.
        """
        self._mark = token
        # Where a stream begins at a time it tells less at first than is finished.
        if not self._open and token > self.token:
            self.token = token

    def finished(self, job: Job) -> None:
        """Note that nothing is left to do of a change."""
        job.done, job.change, job.calls = True, None, ()
        if job.marker is not None:
            job.marker.done, job.marker.change = True, None
        jobs = self._open
        while jobs and jobs[0].done:
            self._pass(jobs.popleft())
        if not jobs and self._mark > self.token:
            self.token = self._mark

    def _pass(self, job: Job) -> None:
        """Go past a job that is finished, with everything before it."""
        self._announced += job.announces - (job.marker is not None)
        if self._announced:
            self._between.append(job)
            return
        self.token = job.token
        self.weight -= len(job.token)
        if self._between:
            self.weight -= sum(len(one.token) for one in self._between)
            self._between.clear()

    @property
    def span(self) -> int:
        """How many changes lie between the position and the newest one, finished or not."""
        return len(self._between) + len(self._open)

    @property
    def oldest(self) -> Job | None:
        """The oldest change that is not finished."""
        return self._open[0] if self._open else None

    @property
    def ahead(self) -> list[Job]:
        """Changes that are finished, behind one that is not, in their order."""
        return [*self._between, *(job for job in self._open if job.done)]


class PositionStore:
    """The positions of one group, and who may write them.

    Every write names the owner and the term that it believes in, and does nothing if it is wrong.

    Args:
        group: of dispatchers, with the database of its state.
        member: this process; empty for who only looks.
    """

    def __init__(self, group: Group, member: str = "") -> None:
        self._client = group.state.client
        self._collection = group.state.positions
        self._database = group.state.name
        self.group = self._group = group.name
        self._member = member

    async def load(self) -> Saved:
        """All that is saved, as it was at one moment.

        Raises:
            PositionError: what is saved makes no sense.
            PyMongoError: as the driver has it.
        """
        # No group's name has a colon.
        numbered = {"_id": {"$gte": f"{self._group}:", "$lt": f"{self._group};"}}
        at_once = self._collection.with_options(read_concern=ReadConcern("snapshot"))
        found = await at_once.find({"$or": [{"_id": self._group}, numbered]}).to_list()
        return Saved.read(found, self._group, self._database)

    async def begin(self, partitions: int, first: Mapping[int, tuple[str, str]], *, new: bool) -> bool:
        """Record the first positions of partitions; whoever claims them begins there.

        Args:
            partitions: how many the group has.
            first: by partition, a token up to which all counts as finished, and the fingerprint of its stream.
            new: the group is not divided yet.

        Returns:
            False if there is something already, which stays as it is.

        Raises:
            PyMongoError: as the driver has it.
        """

        async def write(session: AsyncClientSession) -> bool:
            layout = {"_id": self._group, "partitions": partitions}
            if new:
                await self._collection.insert_one({**layout, "group": self._group}, session=session)
            else:  # a write, so that nobody divides the work at the same moment
                there = await self._collection.update_one(
                    layout, {"$currentDate": {"mended_at": True}}, session=session
                )
                if not there.matched_count:
                    return False
            for partition, (token, fingerprint) in first.items():
                await self._record(partition, partitions, token, fingerprint, session)
            return True

        try:
            async with session_of(self._client) as session:
                return await session.with_transaction(write)
        except DuplicateKeyError:  # somebody else does it at the same moment
            return False

    async def want(self, saved: Saved, partitions: int) -> bool:
        """Have the work divided into another number of partitions, or as it is; False if that has changed since.

        Args:
            saved: as it was read.
            partitions: how many there should be.

        Raises:
            PyMongoError: as the driver has it.
        """
        assert saved.layout is not None  # there is something to divide
        as_read = {"_id": self._group, "partitions": saved.layout.partitions, "wanted": saved.layout.wanted}
        as_it_is = partitions == saved.layout.partitions
        change = {"$unset": {"wanted": ""}} if as_it_is else {"$set": {"wanted": partitions}}
        return bool((await self._collection.update_one(as_read, change)).matched_count)

    async def divide(self, saved: Saved) -> bool:
        """Divide the work as it is wanted. Everything happens at once, or nothing.

        Args:
            saved: as it was read. Nobody holds a partition, or nobody who could still renew it.

        Returns:
            False if something has happened since it was read.

        Raises:
            PyMongoError: as the driver has it.
        """
        layout = saved.layout
        assert layout is not None  # somebody wants another one
        assert layout.wanted is not None
        documents = divided(saved, self._group)

        async def write(session: AsyncClientSession) -> bool:
            as_read = {"_id": self._group, "partitions": layout.partitions, "wanted": layout.wanted}
            change = {"$set": {"partitions": layout.wanted}, "$unset": {"wanted": ""}}
            result = await self._collection.update_one(as_read, change, session=session)
            matched = result.matched_count
            for position in saved.positions.values():
                seen = {"_id": self._id(position.partition), **unchanged(position)}
                matched += (await self._collection.delete_one(seen, session=session)).deleted_count
            if matched == 1 + layout.partitions:
                await self._collection.insert_many(documents, session=session)
                return True
            await session.abort_transaction()
            return False

        async with session_of(self._client) as session:
            return await session.with_transaction(write)

    async def rename_application(self, before: str, application: str) -> bool:
        """Note the application that the group belongs to; False if that has changed since.

        Args:
            before: what is noted now.
            application: its name.

        Raises:
            PyMongoError: as the driver has it.
        """
        as_read = {"_id": self._group, "application": before or {"$in": ["", None]}}
        result = await self._collection.update_one(as_read, {"$set": {"application": application}})
        return bool(result.matched_count)

    async def _record(
        self, partition: int, partitions: int, token: str, fingerprint: str, session: AsyncClientSession
    ) -> None:
        values = {
            "partitions": partitions,
            "token": token,
            "cluster_time": token_time(token),
            "fingerprint": fingerprint,
            "ahead": b"",
            "until": None,
        }
        await self._collection.update_one(
            {"_id": self._id(partition), "token": {"$exists": False}},  # one with a token is a duplicate
            {
                "$set": values,
                "$currentDate": {"saved_at": True},
                "$setOnInsert": {"group": self._group, "partition": partition, "term": 0},
            },
            upsert=True,
            session=session,
        )

    async def claim(
        self, seen: Position, of: int, *, seconds: float, version: str, started: datetime
    ) -> tuple[Lease, Position] | None:
        """Become the owner of a partition, if nothing has happened to it since it was seen.

        Args:
            seen: as it was read.
            of: how many partitions there were then.
            seconds: after which the lease is over, if it is not renewed.
            version: of the application.
            started: the server's time at which a process of this version started.

        Returns:
            The lease and the position; None if somebody else was faster.

        Raises:
            PyMongoError: as the driver has it.
        """
        sent = now()
        identity = own_identity()
        values = {
            "group": self._group,
            "partition": seen.partition,
            "partitions": of,
            "owner": self._member,
            **identity._asdict(),
            "lease_seconds": seconds,
            "version": version,
            "version_started": started,
        }
        found = await self._collection.find_one_and_update(
            {"_id": self._id(seen.partition), **unchanged(seen)},
            {
                "$inc": {"term": 1, "beat": 1},
                "$set": values,
                "$currentDate": {"claimed_at": True, "renewed_at": True},
            },
            return_document=ReturnDocument.AFTER,
        )
        if found is None:
            return None
        position = Saved.read([found], self._group, self._database).positions[seen.partition]
        lease = Lease(position.partition, of, position.term, seconds=seconds, sent=sent)
        return lease, position

    async def renew(self, lease: Lease) -> bool:
        """Give a sign of life; False if another process has taken over.

        Raises:
            PyMongoError: as the driver has it.
        """
        result = await self._collection.update_one(
            self._ours(lease), {"$inc": {"beat": 1}, "$currentDate": {"renewed_at": True}}
        )
        return bool(result.matched_count)

    async def save(
        self,
        lease: Lease,
        token: str,
        fingerprint: str,
        ahead: bytes,
        until: str,
        inherited: Iterable[Fact] | None = None,
    ) -> bool:
        """Write the position; False if another process has taken over.

        Args:
            lease: of the partition.
            token: everything up to it is finished.
            fingerprint: of the stream that it belongs to.
            ahead: hashes of tokens behind it that are finished as well.
            until: what sorts behind them; empty if there are none.
            inherited: what else is finished, if that has changed.

        Raises:
            PyMongoError: as the driver has it.
        """
        values: dict[str, Any] = {
            "token": token,
            "cluster_time": token_time(token),
            "fingerprint": fingerprint,
            "ahead": ahead,
            "until": until or None,
        }
        if inherited is not None:
            values["inherited"] = [fact._asdict() for fact in inherited]
        result = await self._collection.update_one(
            self._ours(lease), {"$set": values, "$currentDate": {"saved_at": True}}
        )
        return bool(result.matched_count)

    async def release(self, lease: Lease) -> None:
        """Hand a partition over: whoever sees it may take it at once.

        Raises:
            PyMongoError: as the driver has it.
        """
        await self._collection.update_one(
            self._ours(lease), {"$set": {"owner": None}, "$currentDate": {"released_at": True}}
        )

    def _ours(self, lease: Lease) -> dict[str, Any]:
        return {"_id": self._id(lease.partition), "owner": self._member, "term": lease.term}

    def _id(self, partition: int) -> str:
        return f"{self._group}:{partition}"

    async def peek(self, partition: int = 0) -> dict[str, Any] | None:
        """A saved document as it is, without claiming it."""
        return await self._collection.find_one({"_id": self._id(partition)})


def unchanged(seen: Position) -> dict[str, Any]:
    """Who owns a position, as it was read. A field that is missing equals null."""
    return {
        "owner": seen.owner,
        "term": {"$in": [seen.term, None]} if seen.term == 0 else seen.term,
        "beat": {"$in": [seen.beat, None]} if seen.beat == 0 else seen.beat,
    }
