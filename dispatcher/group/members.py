"""The members of a group: its processes, each with a heartbeat, so that they can share the partitions.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from bson import ObjectId
from pymongo import ReturnDocument

from dispatcher.core.identity import Identity, own_identity
from dispatcher.core.state import MEMBERS, Group
from dispatcher.group.sessions import GroupSessions

FORMAT: Final = 2
"""The format of waiting deliveries and dead letters in the state: 1 has five collections, see
`parking/upgrade.py`; 2 has one."""


class Member(NamedTuple):
    """One process of a group.

    Attributes:
        id: new at every start. Ids of later processes sort later, if the clocks of their machines agree.
        beat: grows with every heartbeat.
        lease: seconds without a heartbeat after which the member counts as dead.
        leaving: whether the member hands over its partitions, and ends.
        format: the format of the state that the member reads and writes.
        started: the server's time at which the member started.
    """

    id: str
    beat: int
    lease: float
    leaving: bool
    version: str
    started: datetime
    identity: Identity
    format: int = FORMAT

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Member":
        """Read a document.

        Raises:
            ValueError: the document is malformed. The caller ignores the member.
        """
        match document:
            case {
                "_id": str(id_),
                "beat": int(beat),
                "lease_seconds": int() | float() as lease,
                "version": str(version),
                "started_at": datetime() as started,
            }:
                leaving = document.get("leaving") is True
                format_ = document.get("format")
                identity = Identity.read(document)
                known = format_ if isinstance(format_, int) else 1
                return cls(id_, beat, float(lease), leaving, version, started, identity, known)
        raise ValueError(
            "a member has text in _id and version, numbers in beat and lease_seconds, a date in started_at"
        )


async def take_backfills(group: Group, receivers: Collection[str]) -> bool:
    """Returns whether a living dispatcher has all these receivers.

    If so, the dispatchers run the backfills of these receivers.

    Args:
        receivers: their names.
    """
    wanted: list[dict[str, Any]] = [
        {"$match": {"group": group.name, "backfills": True}},
        {"$set": {"now": "$$NOW"}},
    ]
    async for found in await group.state.newest(MEMBERS).aggregate(wanted):
        try:
            member = Member.read(found)
        except ValueError:
            continue
        seen, listed = found.get("seen_at"), found.get("receivers")
        if not isinstance(seen, datetime) or (found["now"] - seen).total_seconds() > member.lease:
            continue
        named = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
        if {one.get("name") for one in named} >= {*receivers} and not member.identity.is_dead:
            return True
    return False


class Members:
    """The processes of one group, this one included.

    Args:
        facts: fields of this process that never change.
        status: returns the fields that change.
    """

    def __init__(
        self,
        group: Group,
        facts: Mapping[str, Any],
        status: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.group = group
        self._collection = group.state.members
        identity = own_identity()
        self._facts = {"group": group.name, **identity._asdict(), **facts}
        self._status = status
        self.id = str(ObjectId())
        self.sessions = GroupSessions(group, self.id)
        self.started: datetime | None = None
        self._beats = 0

    async def join(self) -> datetime:
        """Register this process. Returns the server's time of the registration."""
        found = await self._collection.find_one_and_update(
            {"_id": self.id},
            {
                "$set": {**self._facts, **self._status(), "beat": 0, "leaving": False},
                "$currentDate": {"started_at": True, "seen_at": True},
            },
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        assert found is not None  # an upsert returns what it wrote
        started: datetime = found["started_at"]
        self.started = started
        return started

    async def beat(self, *, leaving: bool = False) -> None:
        """Write a heartbeat. If this process was removed as dead, it becomes a member again.

        Each heartbeat has a new number, even after a removal. The process that removed this process would not
        notice a heartbeat with an earlier number.
        """
        self._beats += 1
        values = {**self._facts, "started_at": self.started, "leaving": leaving, "beat": self._beats}
        await self._collection.update_one(
            {"_id": self.id},
            {"$set": {**values, **self._status()}, "$currentDate": {"seen_at": True}},
            upsert=True,
        )

    async def leave(self) -> None:
        """Remove this process from the members."""
        await self.sessions.forget()
        await self._collection.delete_one({"_id": self.id})

    async def remove_dead(self, dead: Member) -> None:
        """Remove a dead member, unless it has written a heartbeat after `dead` was read."""
        await self._collection.delete_one({"_id": dead.id, "beat": dead.beat})
