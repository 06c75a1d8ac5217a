"""Dead letters: deliveries that failed for good, with all that is needed to try them again.

dead_letters: one document per letter. What `letters.py` lists, and:

    _id               "<delivery id>:<receiver id>:<document>"; "<delivery id>:event" for an unreadable event
    attempts          how many there were; 0 if the receiver was never called
    reason            `"failed"`, `"invalid"` (the document does not fit its model), `"undecodable"`,
                      `"too_many_hops"`
    error             {type, message, traceback}
    first_attempt_at  when the first attempt began
    last_attempt_at   when the last one ended
"""

import asyncio
from typing import Any, Final

from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient, ReturnDocument
from pymongo.errors import PyMongoError

from dispatcher.failures import in_short
from dispatcher.letters import Letter, Parts
from dispatcher.observe import Stats, get_logger
from dispatcher.retrying import Pause, pause_after
from dispatcher.state import dead_letter_chunks, dead_letters
from mongoz.signals.options import Retry

__all__ = ["DeadLetters"]

log = get_logger()

# Pauses after writes that failed. There is no last attempt.
_RETRY: Final = Retry(base=0.1, cap=10.0)


class DeadLetters:
    """Keeps letters.

    Args:
        client: opened for the running loop.
        database: of the dispatcher's state.
        group: of dispatchers.
        stats: counters.
    """

    def __init__(self, client: AsyncMongoClient[Any], database: str, group: str, stats: Stats) -> None:
        self.group = group
        self._letters = dead_letters(client, database)
        self._parts = Parts(dead_letter_chunks(client, database))
        self._stats = stats

    async def keep(self, letter: Letter, pause: Pause = asyncio.sleep) -> None:
        """Write a letter; when this returns it survives a failover. One with the same id is replaced.

        What can't be written now is tried again, for ever: until then the delivery is not finished.

        Args:
            letter: to be written.
            pause: waits between attempts.
        """
        attempt = 0
        while True:
            try:
                await self._write(letter)
                break
            except PyMongoError as error:
                attempt += 1
                log.error(
                    "a dead letter could not be written, trying again",
                    action="dead_letter.not_written",
                    letter=letter.id,
                    error=in_short(error),
                    attempt=attempt,
                )
            await pause(pause_after(_RETRY, attempt))
        self._stats.dead_letters += 1

    async def _write(self, letter: Letter) -> None:
        document = await self._parts.write(letter)
        before = await self._letters.find_one_and_replace(
            {"_id": letter.id},
            document,
            projection={"chunked": True},
            upsert=True,
            return_document=ReturnDocument.BEFORE,
        )
        if before is not None and before.get("chunked", {}) != document["chunked"]:
            await self._parts.drop(letter.id, but=document["chunked"])

    async def parts(self, letter: dict[str, Any]) -> dict[str, RawBSONDocument]:
        """The parts of a letter that was read from the database.

        Raises:
            PyMongoError: as the driver has it.
        """
        return {name: RawBSONDocument(data) for name, data in (await self._parts.read(letter)).items()}
