"""Positions: up to where everything is finished, and keeping that in MongoDB.

The position never passes a change that is not finished.
"""

import os
import secrets
import socket
from collections import deque
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient, ReturnDocument
from pymongo.errors import DuplicateKeyError

from dispatcher.events import Job, Start, token_time
from dispatcher.exceptions import PositionTaken
from dispatcher.state import positions

__all__ = ["Position", "PositionStore", "Tracker", "token_time"]


class Tracker:
    """The order of the stream, and how far it is finished. Pure.

    The position never comes to lie between a marker and its delete: who began there would see the delete alone,
    and take it for somebody else's.

    Args:
        token: everything up to it is finished.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self._open: deque[Job] = deque()
        # Finished like all before them, but a marker among them has its delete behind them.
        self._between: list[str] = []
        self._announced = 0
        self._mark = token

    def add(self, job: Job) -> None:
        """Note the next change of the stream; one that is done already counts when its turn comes."""
        if job.done and not self._open:
            self.token = job.token
        else:
            self._open.append(job)

    def mark(self, token: str) -> None:
        """Note that the stream has been read up to this token: between changes, or on an idle stream.

        It is no change, and may even be the token of the last one, so it is never among those finished ahead.
        """
        self._mark = token
        if not self._open:
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
            self._between.append(job.token)
        else:
            self.token = job.token
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
    def ahead(self) -> list[str]:
        """Tokens of changes that are finished, behind one that is not."""
        return [*self._between, *(job.token for job in self._open if job.done)]


class Position(NamedTuple):
    """A saved position, as it is found at the start.

    Attributes:
        term: of the ownership that was just claimed.
        token: everything up to it is finished; None if nothing was ever saved.
        fingerprint: of the stream that the token belongs to.
        ahead: tokens behind `token` that are finished as well.
    """

    term: int
    token: str | None
    fingerprint: str | None
    ahead: frozenset[str]

    def start(self, fingerprint: str) -> Start:
        """Where to read on with a stream of this fingerprint.

        After another stream's token only its time can be used; whoever reads must then skip what is not
        behind the token.
        """
        assert self.token is not None
        if fingerprint == self.fingerprint:
            return Start(token=self.token)
        return Start(cluster_time=token_time(self.token))


class PositionStore:
    """The position of one group, owned by this process until another claims it.

    Args:
        client: opened for the running loop.
        database: of the dispatcher's state.
        group: of dispatchers.
    """

    def __init__(self, client: AsyncMongoClient[Any], database: str, group: str) -> None:
        self._collection = positions(client, database)
        self._id = f"{group}:0"
        self._group = group
        self._owner = secrets.token_hex(8)
        self._term = 0

    async def claim(self) -> Position:
        """Become the owner. Whoever was it before notices at its next save.

        Raises:
            PyMongoError: as the driver has it.
            PositionError: what is saved makes no sense.
        """
        found = await self._collection.find_one_and_update(
            {"_id": self._id},
            {
                "$inc": {"term": 1},
                "$set": {"owner": self._owner, "host": socket.gethostname(), "pid": os.getpid()},
                "$currentDate": {"claimed_at": True},
                "$setOnInsert": {"group": self._group, "partition": 0},
            },
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        assert found is not None  # an upsert returns what it wrote
        self._term = int(found["term"])
        token = found.get("token")
        if token is not None:
            token_time(token)  # say so now if it is none
        return Position(self._term, token, found.get("fingerprint"), frozenset(found.get("ahead") or ()))

    async def save(self, token: str, fingerprint: str, ahead: list[str]) -> None:
        """Write the position, if it is still ours.

        Args:
            token: everything up to it is finished.
            fingerprint: of the stream that it belongs to.
            ahead: tokens behind it that are finished as well.

        Raises:
            PositionTaken: another process claimed it since.
            PyMongoError: as the driver has it.
        """
        values = {
            "token": token,
            "cluster_time": token_time(token),
            "fingerprint": fingerprint,
            "ahead": ahead,
        }
        result = await self._collection.update_one(
            {"_id": self._id, "owner": self._owner, "term": self._term},
            {"$set": values, "$currentDate": {"saved_at": True}},
        )
        if not result.matched_count:
            raise PositionTaken(
                f"Another dispatcher of group {self._group!r} has taken over.",
                remedy="Run one dispatcher per group, or give each application a group of its own.",
            )

    async def begin(self, token: str, fingerprint: str) -> bool:
        """Record a first position; whoever claims it begins there.

        Returns:
            False if there is one already, which stays as it is.

        Raises:
            PyMongoError: as the driver has it.
        """
        values = {"token": token, "cluster_time": token_time(token), "fingerprint": fingerprint, "ahead": []}
        try:
            result = await self._collection.update_one(
                {"_id": self._id, "token": {"$exists": False}},
                {
                    "$set": values,
                    "$currentDate": {"saved_at": True},
                    "$setOnInsert": {"group": self._group, "partition": 0, "term": 0},
                },
                upsert=True,
            )
        except DuplicateKeyError:  # it has a token, so the filter did not find it
            return False
        return bool(result.matched_count or result.upserted_id)

    async def peek(self) -> dict[str, Any] | None:
        """The saved document as it is, without claiming it."""
        return await self._collection.find_one({"_id": self._id})
