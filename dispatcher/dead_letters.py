"""Dead letters: deliveries that failed for good, with all that is needed to try them again.

dead_letters: one document per letter.

    _id               "<delivery id>:<receiver id>:<document>"; "<delivery id>:event" for an unreadable event
    group             of dispatchers
    receiver          its name; None for an unreadable event
    receiver_id       what it goes by in origin stamps, hexadecimal; None likewise
    document          `module.qualname` of the document class; None likewise
    signal            `"post_save"`, `"post_update"` or `"post_delete"`; None likewise
    created           what a post_save receiver is told
    hops              of the change
    delivery_id       `delivery.id`
    term              of the process that gave it up
    attempts          how many there were; 0 if the receiver was never called
    reason            `"failed"`, `"invalid"` (the document does not fit its model), `"undecodable"`,
                      `"too_many_hops"`
    error             {type, message, traceback}
    first_attempt_at  when the first attempt began
    last_attempt_at   when the last one ended
    token             resume token of the change (its `_data`)
    operation         `"insert"`, `"update"`, `"replace"` or `"delete"`; None for an unreadable event
    namespace         {db, coll}
    key               `_id` of the document that changed
    cluster_time      of the change
    wall_time         likewise
    image             what `document` below is: `"post"`, `"current"` or `"key"`
    update_fields     stored names that an update changed or removed
    parts             BSON in binary: `document` (after the change), `before` (the pre image), `event` (only of an
                      unreadable one: the whole change event)
    chunked           {part: number of chunks}: those that would not fit are in `dead_letter_chunks`

`key` and `update_fields` are parts, too, where they are very long: as {"": value}.
"""

import asyncio
import traceback
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient, ReturnDocument
from pymongo.errors import PyMongoError

from dispatcher.events import Calls, Change
from dispatcher.failures import in_short
from dispatcher.instances import originals_of
from dispatcher.observe import Stats, get_logger
from dispatcher.retrying import Pause, pause_after
from dispatcher.state import CODEC_OPTIONS, dead_letter_chunks, dead_letters
from mongoz.signals.options import Retry
from mongoz.signals.receivers import Receiver, importable_name

__all__ = ["DeadLetters", "Failure", "Letter", "Reason", "letter_of", "text_of", "unreadable_letter"]

log = get_logger()

Reason = Literal["failed", "invalid", "undecodable", "too_many_hops"]

# Bytes of parts that a letter holds itself; the server's limit is 16 MB.
_INLINE: Final = 8_000_000
_CHUNK: Final = 8_000_000

# Bytes of a value that is good for finding letters; above, it becomes a part.
_FINDABLE: Final = 100_000

# Characters of an error that are kept: ValidationErrors quote what they object to.
_LONGEST_MESSAGE: Final = 10_000
_LONGEST_TRACEBACK: Final = 50_000

# Pauses after writes that failed. There is no last attempt.
_RETRY: Final = Retry(base=0.1, cap=10.0)


class Failure(NamedTuple):
    """Why a delivery is given up.

    Attributes:
        error: what was raised last.
        began: when the first attempt did.
        attempts: how many there were.
        reason: in a word.
    """

    error: BaseException
    began: datetime
    attempts: int
    reason: Reason = "failed"


class Letter(NamedTuple):
    """A dead letter on its way to the database.

    Attributes:
        fields: the document, but for its parts.
        parts: BSON by name.
    """

    fields: dict[str, Any]
    parts: dict[str, bytes]

    @property
    def id(self) -> str:
        """The same for the same delivery, whenever it fails."""
        return str(self.fields["_id"])


def letter_of(
    change: Change, calls: Calls, receiver: Receiver, failure: Failure, *, delivery_id: str, term: int, group: str
) -> Letter:
    """The letter of one delivery to one receiver."""
    document = importable_name(calls.document)
    fields = {
        "_id": f"{delivery_id}:{receiver.id.hex()}:{document}",
        "group": group,
        "receiver": receiver.name,
        "receiver_id": receiver.id.hex(),
        "document": document,
        "signal": calls.signal,
        "created": calls.created,
        "hops": calls.hops,
        "delivery_id": delivery_id,
        "term": term,
        **_described(failure),
        "token": change.token,
        "operation": change.operation,
        "namespace": {"db": change.namespace[0], "coll": change.namespace[1]},
        "cluster_time": change.cluster_time,
        "wall_time": change.wall_time,
        "image": change.image,
    }
    originals = originals_of(change)
    parts = {name: raw for name, raw in originals._asdict().items() if raw is not None}
    for name, value in (("key", change.id), ("update_fields", sorted(change.names))):
        encoded = bson.encode({"": value}, codec_options=CODEC_OPTIONS)
        if len(encoded) > _FINDABLE:
            parts[name] = encoded
        else:
            fields[name] = value
    return Letter(fields, parts)


def unreadable_letter(
    event: bytes, failure: Failure, *, token: str, delivery_id: str, term: int, group: str
) -> Letter:
    """The letter of a change event that nobody here can read, and so of all its deliveries."""
    nobody = dict.fromkeys(("receiver", "receiver_id", "document", "signal", "operation"))
    fields = {"_id": f"{delivery_id}:event", "group": group, **nobody, "delivery_id": delivery_id, "term": term}
    return Letter({**fields, **_described(failure), "token": token}, {"event": event})


def _described(failure: Failure) -> dict[str, Any]:
    kind = type(failure.error)
    return {
        "attempts": failure.attempts,
        "reason": failure.reason,
        "error": {
            "type": f"{kind.__module__}.{kind.__qualname__}",
            "message": _storable(text_of(failure.error), _LONGEST_MESSAGE),
            "traceback": _storable(_trace(failure.error), _LONGEST_TRACEBACK),
        },
        "first_attempt_at": failure.began,
        "last_attempt_at": datetime.now(UTC),
    }


def text_of(error: BaseException) -> str:
    """Type and message of an error."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # of an application's class, whose __str__ has a bug
        return type(error).__name__


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # the same class
        return "".join(traceback.format_tb(error.__traceback__))


def _storable(text: str, limit: int) -> str:
    """The text as BSON takes it; of one that is too long, its end: there it says what happened."""
    return text[-limit:].encode("utf-8", "replace").decode()


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
        self._chunks = dead_letter_chunks(client, database)
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
        inline, chunked = _divided(letter.parts)
        counts = {}
        for name, data in chunked.items():  # before the letter, which says that they are there
            counts[name] = await self._write_chunks(letter.id, name, data)
        before = await self._letters.find_one_and_replace(
            {"_id": letter.id},
            {**letter.fields, "parts": inline, "chunked": counts},
            projection={"chunked": True},
            upsert=True,
            return_document=ReturnDocument.BEFORE,
        )
        if before is not None and before.get("chunked", {}) != counts:
            kept = [f"{letter.id}:{name}:{n:04}" for name, count in counts.items() for n in range(count)]
            # ";" is the character after ":", so this is the range of all ids that begin with the letter's.
            await self._chunks.delete_many(
                {"_id": {"$gte": f"{letter.id}:", "$lt": f"{letter.id};", "$nin": kept}}
            )

    async def _write_chunks(self, letter: str, part: str, data: bytes) -> int:
        starts = range(0, len(data), _CHUNK)
        for n, start in enumerate(starts):
            id_ = f"{letter}:{part}:{n:04}"
            await self._chunks.replace_one({"_id": id_}, {"data": data[start : start + _CHUNK]}, upsert=True)
        return len(starts)

    async def parts(self, letter: dict[str, Any]) -> dict[str, RawBSONDocument]:
        """The parts of a letter that was read from the database.

        Raises:
            PyMongoError: as the driver has it.
        """
        parts = {name: bytes(data) for name, data in letter["parts"].items()}
        for name, count in letter["chunked"].items():
            ids = [f"{letter['_id']}:{name}:{n:04}" for n in range(count)]
            chunks = {chunk["_id"]: chunk["data"] async for chunk in self._chunks.find({"_id": {"$in": ids}})}
            parts[name] = b"".join(chunks[id_] for id_ in ids)
        return {name: RawBSONDocument(data) for name, data in parts.items()}


def _divided(parts: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Parts that a letter can hold, the small ones first, and those that it can't."""
    inline: dict[str, bytes] = {}
    chunked: dict[str, bytes] = {}
    room = _INLINE
    for name, data in sorted(parts.items(), key=lambda part: len(part[1])):
        if len(data) <= room:
            inline[name] = data
            room -= len(data)
        else:
            chunked[name] = data
    return inline, chunked
