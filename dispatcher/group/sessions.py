"""Registers the sessions of transactions, so that other members can end the sessions of a dead process.

The server keeps the transaction of a killed process, with its locks, for a minute. The process that repeats the
deliveries of the killed process would wait for these locks. So each process registers its sessions before it uses
them, and the living members end the sessions of a dead process: these sessions then accept no more writes, and
release their locks.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import UUID

from dispatcher.core.output.logs import log
from dispatcher.core.state import CODEC_OPTIONS, Group

# Seconds after which a session is registered again. The driver replaces sessions without a notification. So a
# registration is removed if it is older than twice this number. Its session was then unused for at least ten
# minutes. A transaction takes a minute at most, so the session has no open transaction.
_FRESH: Final = 600.0

# Seconds after which no more commands of a dead process arrive at the server.
_LATE: Final = 5.0

# Maximum number of sessions in one killSessions command.
_AT_ONCE: Final = 1_000


class OpenSession(NamedTuple):
    """A session that a member has registered."""

    id: UUID
    owner: str

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "OpenSession":
        """Read a document.

        Raises:
            TypeError: the document is malformed. The caller ignores the session.
        """
        match document:
            case {"_id": UUID() as id_, "owner": str(owner)}:
                return cls(id_, owner)
        raise TypeError("a session has a UUID in _id, and text in owner")


class GroupSessions:
    """The registered sessions of a group: a process registers its own, and ends the sessions of dead members."""

    def __init__(self, group: Group, owner: str) -> None:
        self._admin = group.state.client.admin
        self._collection = group.state.sessions
        self._group = group.name
        self._owner = owner
        self._announced: dict[bytes, float] = {}
        self._ended: dict[UUID, float] = {}

    async def announce(self, session: Any) -> None:
        """Register a session of this process, at most once in ten minutes.

        Args:
            session: a session of the driver, before its first command.
        """
        id_, now = session.session_id["id"], monotonic()
        if self._announced.get(id_, float("-inf")) > now - _FRESH:
            return
        await self._collection.replace_one({"_id": id_}, {"group": self._group, "owner": self._owner}, upsert=True)
        self._announced[id_] = now
        stale = [other for other, since in self._announced.items() if since < now - 2 * _FRESH]
        if stale:
            await self._collection.delete_many({"_id": {"$in": stale}, "owner": self._owner})
            for other in stale:
                del self._announced[other]

    async def end(self, left_open: Iterable[OpenSession]) -> None:
        """End the sessions of dead members, and remove the registrations of these sessions after some seconds.

        Until then each call ends the sessions again, because commands that the dead process had sent may still
        arrive.
        """
        ids, now = [one.id for one in left_open], monotonic()
        for start in range(0, len(ids), _AT_ONCE):
            some = [{"id": id_} for id_ in ids[start : start + _AT_ONCE]]
            await self._admin.command("killSessions", some, codec_options=CODEC_OPTIONS)
        new = [id_ for id_ in ids if id_ not in self._ended]
        if new:
            log.info("ended the sessions of dead members", action="sessions.ended", sessions=len(new))
        self._ended = {id_: self._ended.get(id_, now) for id_ in ids}
        old = [id_ for id_, since in self._ended.items() if since < now - _LATE]
        if old:
            await self._collection.delete_many({"_id": {"$in": old}})

    async def forget(self) -> None:
        """Remove the registrations of this process's sessions, which are not used any more."""
        await self._collection.delete_many({"owner": self._owner})
