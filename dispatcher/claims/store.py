"""Reads and fences the books of writing processes: the collection `claims`, see `mongoz/claims/document.py`.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Collection
from typing import Any, Final

from dispatcher.core.state import Group
from mongoz.claims.document import BookState

_ID: Final = "_id"


class ClaimStore:
    """The books of the processes of a group."""

    def __init__(self, group: Group) -> None:
        self._group = group.name
        self._claims = group.state.claims
        self._positions = group.state.positions
        self.address = group.state.address

    async def announce(self) -> bool:
        """Tell writing processes that this group takes claims over. Returns False if the group has no layout."""
        result = await self._positions.update_one({_ID: self._group}, {"$set": {"claims": True}})
        return bool(result.matched_count)

    async def read(self, incarnations: Collection[bytes]) -> dict[bytes, BookState | None]:
        """The books of some incarnations; None for a missing or malformed document."""
        states: dict[bytes, BookState | None] = dict.fromkeys(incarnations)
        ids = {incarnation.hex(): incarnation for incarnation in incarnations}
        async for document in self._claims.find({_ID: {"$in": list(ids)}, "group": self._group}):
            states[ids[document[_ID]]] = BookState.read(document)
        return states

    async def fence(self, incarnation: bytes, beat: int, by: str = "dispatcher") -> BookState | None:
        """End a book, if its document still has this beat. No beat changes it afterwards.

        Returns:
            The fenced book; None if the process was quicker.
        """
        condition: dict[str, Any] = {_ID: incarnation.hex(), "beat": beat, "fenced_at": {"$exists": False}}
        change = {"$set": {"fenced_by": by}, "$currentDate": {"fenced_at": True}}
        if not (await self._claims.update_one(condition, change)).matched_count:
            return None
        return (await self.read([incarnation]))[incarnation]
