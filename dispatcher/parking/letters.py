"""Reads and writes the dead letters of a group, in the collection `held`: see `parking/store.py`.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from bson.raw_bson import RawBSONDocument
from pymongo import ReturnDocument

from dispatcher.core.bson_codec import RAW
from dispatcher.core.events import Calls, Change
from dispatcher.core.output.logs import log
from dispatcher.core.retry import Pause, retry
from dispatcher.core.state import Group
from dispatcher.core.stats import Stats
from dispatcher.delivery.outcome import Failure, RetriedLetter
from dispatcher.parking.files import Files
from dispatcher.parking.record import Record, failed, hash_of_key, record_of, short_id, undecodable_event
from dispatcher.parking.updates import changed, replaced
from mongoz.signals.receivers import Receiver

LETTERS: Final[Mapping[str, Any]] = {"reason": {"$exists": True}}
"""Matches dead letters, including the ones that are being retried."""

REQUESTED: Final[Mapping[str, Any]] = {"retry_requested_at": {"$exists": True}}
"""Matches dead letters with a requested retry."""

# Maximum length of the reason why a letter can't be retried, in characters.
_LONGEST_REASON: Final = 2_000


class LetterStore:
    """Reads and writes the dead letters of a group."""

    def __init__(self, group: Group, stats: Stats) -> None:
        self.group = group.name
        self.address = group.state.address
        self._stats = stats
        self._held = group.state.held
        self._raw = self._held.with_options(codec_options=RAW)
        self._files = Files(group.state)

    async def keep_delivery(
        self,
        change: Change,
        calls: Calls,
        receiver: Receiver,
        failure: Failure,
        retried: RetriedLetter | None,
        *,
        term: int,
        pause: Pause,
    ) -> None:
        """Write the dead letter of a delivery, see `DeadLetters` in `delivery/ports.py`."""
        record = record_of(change, calls, receiver, term=term, group=self.group)
        if retried is not None:  # the letter keeps its `_id`, even if its receiver has another id now
            record.fields.update(_id=retried.letter, retries=retried.retries + 1)
        await self.keep(failed(record, failure), pause)

    async def keep_event(self, event: bytes, token: str, failure: Failure, *, term: int) -> None:
        """Write the dead letter of a change event that can't be decoded."""
        await self.keep(undecodable_event(event, failure, token=token, term=term, group=self.group))

    async def keep(self, letter: Record, pause: Pause = asyncio.sleep) -> None:
        """Write a dead letter, or replace the one with the same `_id`. A written letter survives a failover.

        A failed write is repeated without a limit, because the delivery is not finished until the write succeeds.
        """
        report = partial(
            log.error,
            "a dead letter could not be written, trying again",
            action="dead_letter.not_written",
            letter=letter.id,
        )
        await retry(partial(self._keep, letter), report, pause=pause)
        self._stats.dead_letters += 1

    async def _keep(self, letter: Record) -> None:
        document = {**await self._files.write(letter), "state": "dead", "short_id": short_id(letter.id)}
        change = replaced(document, {"hash": hash_of_key(letter.parts)})
        before = await self._held.find_one_and_update(
            {"_id": letter.id},
            change,
            projection={"files": True},
            upsert=True,
            return_document=ReturnDocument.BEFORE,
        )
        await self._files.delete(before or {})

    async def drop(self, id_: str) -> None:
        """Delete a dead letter."""
        await self._files.delete(await self._held.find_one_and_delete({"_id": id_}) or {})

    async def requested_letter(self, id_: str) -> RawBSONDocument | None:
        """A dead letter with a requested retry; None if the request is gone."""
        return await self._raw.find_one({"_id": id_, **REQUESTED})

    async def parts(self, letter: Mapping[str, Any]) -> dict[str, bytes]:
        """The parts of a dead letter, see `parking/record.py`.

        Raises:
            ValueError: a part is missing.
        """
        return await self._files.read(letter)

    async def refuse(self, id_: str, reason: str) -> None:
        """Record why a dead letter can't be retried."""
        refused = {"at": "$$NOW", "text": {"$literal": reason[:_LONGEST_REASON]}}
        change = [*changed({}, retry_refused=refused), {"$unset": ["retry_requested_at"]}]
        await self._held.update_one({"_id": id_}, change)
