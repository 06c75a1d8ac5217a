"""Reads and fences the books of writing processes: the collection `claims`, see `mongoz/claims/document.py`.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Collection
from typing import Any, Final

from bson import Timestamp
from pymongo.errors import OperationFailure

from dispatcher.core.state import Group
from mongoz.claims.document import BookState
from mongoz.connection.elections import session_of

_ID: Final = "_id"
_INVALID_OPTIONS: Final = 72


class ClaimStore:
    """The books of the processes of a group."""

    def __init__(self, group: Group) -> None:
        self._group = group.name
        self._client = group.state.client
        self._claims = group.state.claims
        self._positions = group.state.positions
        self.address = group.state.address

    async def announce(self) -> bool:
        """Tell writing processes that this group takes over claims.

        Returns:
            False if the group has no layout, because none of its dispatchers ever ran.
        """
        result = await self._positions.update_one({_ID: self._group}, {"$set": {"claims": True}})
        return bool(result.matched_count)

    async def read(
        self, incarnations: Collection[bytes], since: Timestamp | None = None
    ) -> dict[bytes, BookState | None]:
        """The books of some incarnations; None for a missing or malformed document.

        Args:
            incarnations: the ids of the books; each writing process has a book.
            since: a time of the server. The read sees all beats that were acknowledged before this time. Without
                `since`, a read soon after an election may miss beats: the majority snapshot of the new primary
                may be older than these beats.
        """
        try:
            return await self._read(incarnations, since)
        except OperationFailure as error:
            if since is None or error.code != _INVALID_OPTIONS:
                raise
            # `since` can be later than the server's present time, if a topic has changes of an earlier deployment.
            return await self._read(incarnations, None)

    async def _read(
        self, incarnations: Collection[bytes], since: Timestamp | None
    ) -> dict[bytes, BookState | None]:
        states: dict[bytes, BookState | None] = dict.fromkeys(incarnations)
        ids = {incarnation.hex(): incarnation for incarnation in incarnations}
        async with session_of(self._client) as session:
            if since is not None:
                session.advance_operation_time(since)
            wanted = {_ID: {"$in": list(ids)}, "group": self._group}
            async for document in self._claims.find(wanted, session=session):
                states[ids[document[_ID]]] = BookState.read(document)
        return states

    async def fence(self, incarnation: bytes, beat: int, by: str = "dispatcher") -> BookState | None:
        """End a book, if its document still has this beat. Later beats of its process change nothing.

        Args:
            incarnation: the id of the book.
            beat: the field `beat` of the document when it was read.
            by: the new value of the field `fenced_by`.

        Returns:
            The fenced book; None if its document was changed or fenced before.
        """
        condition: dict[str, Any] = {_ID: incarnation.hex(), "beat": beat, "fenced_at": {"$exists": False}}
        change = {"$set": {"fenced_by": by}, "$currentDate": {"fenced_at": True}}
        if not (await self._claims.update_one(condition, change)).matched_count:
            return None
        return (await self.read([incarnation]))[incarnation]
