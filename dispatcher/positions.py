"""Positions: up to where everything is finished, and keeping that in MongoDB.

The position never passes a change that is not finished.
"""

import os
import secrets
import socket
from collections import deque
from typing import Any, Final, NamedTuple

from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient, ReturnDocument

from dispatcher.events import Job, Start
from dispatcher.exceptions import PositionError, PositionTaken
from dispatcher.state import positions

__all__ = ["Position", "PositionStore", "Tracker", "token_time"]

_TIMESTAMP_TAG: Final = "82"


def token_time(token: str) -> Timestamp:
    """The cluster time inside a resume token.

    A token is a sortable encoding of the event's coordinates; it starts with the tag of a timestamp and its
    eight bytes. Post-batch tokens have a time of their own, which no event tells.

    Raises:
        PositionError: it does not look like a token.
    """
    try:
        if not token.startswith(_TIMESTAMP_TAG):
            raise ValueError(token)
        return Timestamp(int(token[2:10], 16), int(token[10:18], 16))
    except ValueError as error:
        raise PositionError(
            f"The saved position has the token {token!r}, which is none.",
            remedy="Was it edited by hand? Delete the position to begin now.",
        ) from error


class Tracker:
    """The order of the stream, and how far it is finished. Pure.

    Args:
        token: everything up to it is finished.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self._open: deque[Job] = deque()
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
        jobs = self._open
        while jobs and jobs[0].done:
            self.token = jobs.popleft().token
        if not jobs and self._mark > self.token:
            self.token = self._mark

    @property
    def span(self) -> int:
        """How many changes lie between the position and the newest one, finished or not."""
        return len(self._open)

    @property
    def ahead(self) -> list[str]:
        """Tokens of changes that are finished, behind one that is not."""
        return [job.token for job in self._open if job.done]


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

    async def peek(self) -> dict[str, Any] | None:
        """The saved document as it is, without claiming it."""
        return await self._collection.find_one({"_id": self._id})
