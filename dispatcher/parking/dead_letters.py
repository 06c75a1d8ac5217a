"""Dead letters: deliveries that failed for good, with all that is needed to try them again.

dead_letters: one document per letter. What `parking/record.py` lists, and:

    _id               "<delivery id>:<receiver id>:<document>"; "<delivery id>:event" for an unreadable event
    short_id          what people call it: twelve hexadecimal digits, a hash of `_id`; absent in letters of earlier
                      versions
    attempts          how many there were; 0 if the receiver was never called
    reason            `"failed"`, `"invalid"` (the document does not fit its model), `"undecodable"`,
                      `"too_many_hops"`
    error             {type, message, traceback}
    fault             of an undecodable one: {where, path, type, why, remedy}; absent otherwise
    first_attempt_at  when the first attempt began
    last_attempt_at   when the last one ended
    retries           how often it was tried again since, and failed; absent if never

    retry_requested_at    the server's time at which somebody asked for it to be tried again; absent if nobody did
    retrying_since        the server's time at which it was parked for that; absent if it is not tried now
    retry_refused         {at, text}: why it could not be; absent if it could
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from bson.raw_bson import RawBSONDocument
from pymongo import ReturnDocument

from dispatcher.core.bson_codec import RAW
from dispatcher.core.bson_elements import elements, keyed
from dispatcher.core.events import Calls, Change
from dispatcher.core.output.logs import Stats, get_logger
from dispatcher.core.partitions import belongs, hash_of
from dispatcher.core.retry import Pause, retry
from dispatcher.core.state import Group
from dispatcher.delivery.outcome import Again, Failure
from dispatcher.parking.record import Letter, Parts, letter_of, short_id, unreadable_letter
from mongoz.signals.receivers import Receiver

__all__ = ["DeadLetters"]

log = get_logger()

# Characters of a reason that is kept.
_LONGEST_REASON: Final = 2_000


class DeadLetters:
    """Keeps letters.

    Args:
        group: of dispatchers, with the database of its state.
        stats: counters.
        partition: which one, of how many: whose letters are ours to be tried again.
    """

    def __init__(
        self,
        group: Group,
        stats: Stats,
        partition: tuple[int, int] = (0, 1),
    ) -> None:
        self.group = group.name
        self._partition = partition
        self._letters = group.state.dead_letters
        self._parts = Parts(group.state.dead_letter_chunks)
        self._stats = stats

    async def keep(self, letter: Letter, pause: Pause = asyncio.sleep) -> None:
        """Write a letter; when this returns it survives a failover. One with the same id is replaced.

        What can't be written now is tried again, for ever: until then the delivery is not finished.

        Args:
            letter: to be written.
            pause: waits between attempts.
        """
        await retry(partial(self._write, letter), _reporting(letter.id), pause=pause)
        self._stats.dead_letters += 1

    async def keep_delivery(
        self,
        change: Change,
        calls: Calls,
        receiver: Receiver,
        failure: Failure,
        again: Again | None,
        *,
        term: int,
        pause: Pause,
    ) -> None:
        """Write the letter of a delivery, as `DeadLetters` in `delivery/ports.py` says."""
        letter = letter_of(change, calls, receiver, failure, term=term, group=self.group)
        if again is not None:  # the letter stays the same, also if its receiver has another id now
            letter.fields.update(_id=again.letter, retries=again.retries + 1)
        await self.keep(letter, pause)

    async def keep_event(self, event: bytes, token: str, failure: Failure, *, term: int) -> None:
        """Write the letter of a change event that can't be decoded, likewise."""
        await self.keep(unreadable_letter(event, failure, token=token, term=term, group=self.group))

    async def _write(self, letter: Letter) -> None:
        document = {**await self._parts.write(letter), "short_id": short_id(letter.id)}
        before = await self._letters.find_one_and_replace(
            {"_id": letter.id},
            document,
            projection={"chunked": True},
            upsert=True,
            return_document=ReturnDocument.BEFORE,
        )
        if before is not None and before.get("chunked", {}) != document["chunked"]:
            await self._parts.drop(letter.id, but=document["chunked"])

    async def requested(self, most: int) -> list[str]:
        """`_id`s of letters that are to be tried again; those that were asked for first come first.

        A letter whose key is too long to be found by it may be another partition's, see `is_ours`.

        Raises:
            PyMongoError: as the driver has it.
        """
        wanted: dict[str, Any] = {"group": self.group, "retry_requested_at": {"$exists": True}}
        number, of = self._partition
        if of > 1:
            long = {"key": {"$exists": False}, "receiver": {"$ne": None}}
            wanted["$or"] = [{"$expr": belongs(hash_of("$key"), number, of)}, long]
        found = self._letters.find(wanted, {"_id": True}).sort("retry_requested_at", 1).limit(most)
        return [letter["_id"] async for letter in found]

    async def is_ours(self, key: bytes) -> bool:
        """Whether a document belongs to this partition.

        Args:
            key: its `_id`, as BSON: {"": _id}.

        Raises:
            PyMongoError: as the driver has it.
        """
        number, of = self._partition
        if of == 1:
            return True
        pipeline: list[dict[str, Any]] = [
            {"$documents": {"$literal": [RawBSONDocument(keyed(next(elements(key)), "key"))]}},
            {"$match": {"$expr": belongs(hash_of("$key"), number, of)}},
        ]
        pipeline.append({"$project": {"_id": True}})
        return bool(await (await self._letters.database.aggregate(pipeline)).to_list(None))

    async def read(self, letter: str) -> RawBSONDocument | None:
        """A letter that is to be tried again, as it is stored; None if it is not any more.

        Raises:
            PyMongoError: as the driver has it.
        """
        wanted = {"_id": letter, "retry_requested_at": {"$exists": True}}
        return await self._letters.with_options(codec_options=RAW).find_one(wanted)

    async def is_requested(self, letter: str) -> bool:
        """Whether a letter is still there, and to be tried again.

        Raises:
            PyMongoError: as the driver has it.
        """
        wanted = {"_id": letter, "retry_requested_at": {"$exists": True}}
        return await self._letters.find_one(wanted, {"_id": True}) is not None

    async def taken(self, letter: str) -> None:
        """Note that a letter is being tried again.

        Raises:
            PyMongoError: as the driver has it.
        """
        await self._letters.update_one(
            {"_id": letter},
            [{"$set": {"retrying_since": "$$NOW"}}, {"$unset": ["retry_requested_at", "retry_refused"]}],
        )

    async def refuse(self, letter: str, reason: str) -> None:
        """Note that a letter can't be tried again.

        Raises:
            PyMongoError: as the driver has it.
        """
        text = {"$literal": reason[:_LONGEST_REASON]}
        await self._letters.update_one(
            {"_id": letter},
            [{"$set": {"retry_refused": {"at": "$$NOW", "text": text}}}, {"$unset": ["retry_requested_at"]}],
        )

    async def forget(self, letter: str, pause: Pause = asyncio.sleep) -> None:
        """Remove a letter; when this returns it is gone for good. What can't be done now is tried again, for ever.

        Args:
            letter: its `_id`.
            pause: waits between attempts.
        """
        await retry(partial(self._remove, letter), _reporting(letter), pause=pause)

    async def _remove(self, letter: str) -> None:
        gone = await self._letters.find_one_and_delete({"_id": letter}, projection={"chunked": True})
        if gone is None or gone.get("chunked"):
            await self._parts.drop(letter)

    async def parts_of(self, letter: Mapping[str, Any]) -> dict[str, bytes]:
        """The parts of a letter, as bytes.

        Raises:
            PyMongoError: as the driver has it.
        """
        return await self._parts.read(letter)

    async def parts(self, letter: dict[str, Any]) -> dict[str, RawBSONDocument]:
        """The parts of a letter that was read from the database.

        Raises:
            PyMongoError: as the driver has it.
        """
        return {name: RawBSONDocument(data) for name, data in (await self._parts.read(letter)).items()}


def _reporting(letter: str) -> Callable[..., object]:
    return partial(
        log.error,
        "a dead letter could not be written, trying again",
        action="dead_letter.not_written",
        letter=letter,
    )
