"""The sessions of transactional receivers, so that others can end what a dead process has left open.

A server keeps a transaction of a process that was killed for a minute, with all that it has locked. Who repeats
its deliveries would wait for that. So each process writes down its sessions before it uses them, and whoever takes
over from it ends them: nothing more can be written in them, and their locks are free.
"""

from collections.abc import Iterable
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import UUID

from dispatcher.core.output.logs import get_logger
from dispatcher.core.state import CODEC_OPTIONS, SESSIONS, Group
from dispatcher.core.state_checks import Sound

__all__ = ["GroupSessions", "OpenSession"]

log = get_logger()

# Seconds after which a session is written down again; what was not used for twice as long is forgotten. The driver
# makes new ones now and then, and does not tell which are gone. A transaction takes a minute at most.
_FRESH: Final = 600.0

# Seconds after which nothing more of a dead process arrives.
_LATE: Final = 5.0

# GroupSessions that the server is asked to end at once, at most.
_AT_ONCE: Final = 1_000


class OpenSession(NamedTuple):
    """One that a member has written down.

    Attributes:
        id: the server's name for it.
        owner: the member.
    """

    id: UUID
    owner: str


class GroupSessions:
    """The sessions of one process, and those of the other members of its group.

    Args:
        group: of dispatchers, with the database of its state.
        owner: the member that this process is.
    """

    def __init__(self, group: Group, owner: str) -> None:
        self._admin = group.state.client.admin
        self._collection = group.state.sessions
        self._group = group.name
        self._owner = owner
        self._announced: dict[bytes, float] = {}
        self._ended: dict[UUID, float] = {}

    async def announce(self, session: Any) -> None:
        """Write down that this process uses a session; once in a while, for each of them.

        Args:
            session: the driver's, in which nothing was sent yet.

        Raises:
            PyMongoError: as the driver has it.
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

    async def all(self) -> list[OpenSession]:
        """Those of all members.

        Raises:
            PyMongoError: as the driver has it.
        """
        rows = self._collection.find({"group": self._group}, {"owner": True})
        sound = Sound(self._collection.database.name)
        found = sound.each(SESSIONS, await rows.to_list(), _open_session)
        sound.log()
        return found

    async def end(self, left_open: Iterable[OpenSession]) -> None:
        """End the sessions of members that are dead; forget them, after some seconds.

        Until then it is to be done again, as something that they had sent may arrive only now.

        Args:
            left_open: as they were found.

        Raises:
            PyMongoError: as the driver has it.
        """
        ids, now = [one.id for one in left_open], monotonic()
        for start in range(0, len(ids), _AT_ONCE):
            some = [{"id": id_} for id_ in ids[start : start + _AT_ONCE]]
            await self._admin.command("killSessions", some, codec_options=CODEC_OPTIONS)
        new = [id_ for id_ in ids if id_ not in self._ended]
        if new:
            log.info("ended transactions of members that are dead", action="sessions.ended", sessions=len(new))
        self._ended = {id_: self._ended.get(id_, now) for id_ in ids}
        old = [id_ for id_, since in self._ended.items() if since < now - _LATE]
        if old:
            await self._collection.delete_many({"_id": {"$in": old}})

    async def forget(self) -> None:
        """Forget those of this process, which uses them no more.

        Raises:
            PyMongoError: as the driver has it.
        """
        await self._collection.delete_many({"owner": self._owner})


def _open_session(row: Any) -> OpenSession:
    if not isinstance(row["_id"], UUID) or not isinstance(row["owner"], str):
        raise TypeError("a session has a UUID in _id, and text in owner")
    return OpenSession(row["_id"], row["owner"])
