"""Forgetting dead letters."""

from collections.abc import Sequence
from typing import Any

from pymongo import AsyncMongoClient

from dispatcher.letters import Parts
from dispatcher.state import dead_letter_chunks, dead_letters

__all__ = ["drop"]


async def drop(
    client: AsyncMongoClient[Any], database: str, group: str, ids: Sequence[str] | None, receiver: str | None
) -> int:
    """Forget letters; how many.

    Args:
        client: opened for the running loop.
        database: of the dispatcher's state.
        group: of dispatchers.
        ids: which; None for all.
        receiver: only those of this one; None for any.

    Raises:
        PyMongoError: as the driver has it.
    """
    meant: dict[str, Any] = {"group": group}
    if ids is not None:
        meant["_id"] = {"$in": list(ids)}
    if receiver is not None:
        meant["receiver"] = receiver
    letters, parts = dead_letters(client, database), Parts(dead_letter_chunks(client, database))
    dropped = 0
    async for letter in letters.find(meant, {"chunked": True}):
        dropped += (await letters.delete_one({"_id": letter["_id"]})).deleted_count
        if letter.get("chunked"):
            await parts.drop(letter["_id"])
    return dropped
