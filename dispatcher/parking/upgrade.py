"""Takes over the deliveries that dispatchers of an earlier version held.

The earlier version has five collections:

    parked            one document per delivery that waits: "<lane>:<token>", or "<lane>:<token>~<run>"; with
                      `again` {letter, retries} if it is a retry
    parked_lanes      one document per lane (the deliveries of one receiver for one document): why its
                      first delivery waits
    dead_letters      one document per dead letter, even while it is retried
    parked_chunks, dead_letter_chunks     "<_id>:<part>:<number>": pieces of the parts that are too large for
                      their document; the document's field `chunked` counts the pieces

A process that gets the lease of a partition moves the documents of the partition into `held` before its first
delivery. It searches again later, because a run or a command of an earlier version may still write. The lease
ensures that no other process works on the partition. First, each document is written to `held`, unless it is there
already. Afterwards, the old document is deleted in any case. After a crash in between, the next process continues.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne

from dispatcher.core.bson_codec import RAW
from dispatcher.core.bson_elements import elements, joined, keyed, readable
from dispatcher.core.output.logs import log
from dispatcher.core.partitions import belongs, hash_of
from dispatcher.core.state import CODEC_OPTIONS, Collection, Group
from dispatcher.parking.files import Files
from dispatcher.parking.record import hash_of_key, record_id, short_id

# Maximum number of documents in one command, and maximum bytes of these documents.
_MOST: Final = 1_000
_BYTES: Final = 16_000_000

# The fields of a dead letter that stay while it is retried.
_OF_LETTER: Final = frozenset(
    {"reason", "error", "fault", "last_attempt_at", "retries", "retrying_since", "retry_requested_at"}
)

_ALWAYS: Final = datetime(1970, 1, 1)


class EarlierDocument(NamedTuple):
    """A document of an earlier version: its BSON, and the fields of it that can be decoded."""

    raw: bytes
    fields: dict[str, Any]


async def take_over(group: Group, partition: tuple[int, int]) -> None:
    """Move the deliveries of a partition out of the collections of earlier versions.

    Args:
        partition: its number, and the number of partitions.
    """
    upgrade = _Upgrade(group, partition)
    moved = await upgrade.take_parked() + await upgrade.take_letters()
    if moved:
        log.info(
            "the deliveries of an earlier version were moved into one collection",
            action="held.upgraded",
            partition=partition[0],
            deliveries=moved,
        )


class _Upgrade:
    """Moves the documents of one partition."""

    def __init__(self, group: Group, partition: tuple[int, int]) -> None:
        state = group.state
        self._held = state.held
        self._files = Files(state)
        self._group = group.name
        self._partition = partition
        self._parked, self._lanes = state.newest("parked"), state.newest("parked_lanes")
        self._letters = state.newest("dead_letters")
        self._parked_chunks, self._letter_chunks = (
            state.newest("parked_chunks"),
            state.newest("dead_letter_chunks"),
        )

    async def take_parked(self) -> int:
        """Move the deliveries that wait. Returns their number."""
        lane = {"from": self._lanes.name, "localField": "lane", "foreignField": "_id", "as": "lane_document"}
        hashed = {"$ifNull": [{"$first": "$lane_document.hash"}, hash_of("$key")]}
        stages: list[dict[str, Any]] = [{"$sort": {"_id": 1}}, {"$lookup": lane}, {"$set": {"hash": hashed}}]
        moved, before = 0, None
        async for rows in _batches(await self._ours(self._parked, stages)):
            documents, letters = [], []
            for row in rows:
                letter = await self._letter_of(row.fields)
                files = await self._copy(self._parked_chunks, row.fields)
                documents.append(waiting_delivery(row, letter, files, head=row.fields.get("lane") != before))
                before = row.fields.get("lane")
                if letter is not None:
                    letters.append(letter)
            await self._move(documents, rows, self._parked, self._parked_chunks)
            await self._delete(letters, self._letters, self._letter_chunks)
            moved += len(rows)
        async for lanes in _batches(await self._ours(self._lanes, [])):
            await self._delete(lanes, self._lanes, self._parked_chunks)
        return moved

    async def take_letters(self) -> int:
        """Move the dead letters. Returns their number."""
        moved = 0
        async for letters in _batches(await self._ours(self._letters, [{"$set": {"hash": hash_of("$key")}}])):
            files = [await self._copy(self._letter_chunks, letter.fields) for letter in letters]
            documents = [dead_letter(*one) for one in zip(letters, files, strict=True)]
            await self._move(documents, letters, self._letters, self._letter_chunks)
            moved += len(letters)
        return moved

    async def _ours(self, collection: Collection, stages: list[dict[str, Any]]) -> AsyncIterable[RawBSONDocument]:
        """The documents of the partition."""
        number, of = self._partition
        ours = [{"$match": {"$expr": belongs("$hash", number, of)}}] if of > 1 else []
        pipeline = [{"$match": {"group": self._group}}, *stages, *ours]
        found: Any = await collection.with_options(codec_options=RAW).aggregate(pipeline)
        return found  # type: ignore[no-any-return]

    async def _letter_of(self, fields: Mapping[str, Any]) -> EarlierDocument | None:
        match fields.get("again"):
            case {"letter": str(id_)}:
                found = await self._letters.with_options(codec_options=RAW).find_one({"_id": id_})
                return None if found is None else EarlierDocument(bytes(found.raw), readable(found))
        return None

    async def _copy(self, chunks: Collection, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Copy large parts to files, and return the file ids. If a chunk is missing, the delivery fails later."""
        files = {}
        for part in fields.get("chunked") or ():
            begins = f"{fields['_id']}:{part}:"
            found = chunks.find({"_id": {"$gte": begins, "$lt": f"{begins[:-1]};"}}).sort("_id", 1)
            data = b"".join([bytes(chunk["data"]) async for chunk in found])
            files[part] = await self._files.add(str(fields["_id"]), data)
        return files

    async def _move(
        self, documents: list[bytes], rows: list[EarlierDocument], collection: Collection, chunks: Collection
    ) -> None:
        writes = [_insert_if_missing(*one) for one in zip(documents, rows, strict=True)]
        await self._held.bulk_write(writes, ordered=False)
        await self._delete(rows, collection, chunks)

    async def _delete(self, rows: list[EarlierDocument], collection: Collection, chunks: Collection) -> None:
        found = [row.fields for row in rows]
        await collection.delete_many({"_id": {"$in": [one["_id"] for one in found]}})
        for one in found:
            if one.get("chunked"):  # ";" is the character after ":"
                await chunks.delete_many({"_id": {"$gte": f"{one['_id']}:", "$lt": f"{one['_id']};"}})


async def _batches(found: AsyncIterable[RawBSONDocument]) -> AsyncIterator[list[EarlierDocument]]:
    batch: list[EarlierDocument] = []
    size = 0
    async for one in found:
        batch.append(EarlierDocument(bytes(one.raw), readable(one)))
        size += len(batch[-1].raw)
        if len(batch) >= _MOST or size > _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def waiting_delivery(
    row: EarlierDocument, letter: EarlierDocument | None, files: Mapping[str, Any], *, head: bool
) -> bytes:
    """A waiting delivery in the present format. No I/O.

    Args:
        row: the document of the earlier version, with its lane in `lane_document`.
        letter: the dead letter, if the delivery is a retry.
        head: whether it is the first delivery of its lane.
    """
    fields = row.fields
    lane: dict[str, Any] = next(iter(fields.get("lane_document") or ()), {})
    id_ = str(fields["_id"])
    if letter is not None:
        id_ = fields["again"]["letter"]
    elif all(isinstance(fields.get(name), str) for name in ("delivery_id", "receiver_id", "document")):
        id_ = record_id(fields)
    reason = lane.get("reason")
    values: dict[str, Any] = {
        "_id": id_,
        "lane": fields.get("lane", str(fields["_id"]).partition(":")[0]),
        "receiver": lane.get("receiver", fields.get("receiver")),
        "state": "following",
        "parked_at": lane.get("parked_at"),
    }
    if head:
        due_at = lane.get("due_at")
        values["state"] = reason if isinstance(reason, str) else "retrying"
        values["due_at"] = due_at if isinstance(due_at, datetime) else _ALWAYS
    if lane.get("attempts") and lane.get("token") == fields.get("token"):
        values |= {name: lane.get(name) for name in ("attempts", "first_attempt_at", "error")}
    if letter is not None:
        kept = joined(*(one for one in elements(letter.raw) if one.name.decode("utf-8", "replace") in _OF_LETTER))
        values = {**readable(kept), "short_id": short_id(id_), **values}
    return _changed(row, values, files, apart_from=("again", "lane_document"))


def dead_letter(letter: EarlierDocument, files: Mapping[str, Any]) -> bytes:
    """A dead letter in the present format. No I/O."""
    fields = letter.fields
    values = {"_id": fields["_id"], "state": "dead", "reason": fields.get("reason")}
    if isinstance(fields["_id"], str):
        values["short_id"] = short_id(fields["_id"])
    return _changed(letter, values, files, apart_from=("retrying_since",))


def _changed(
    row: EarlierDocument, values: dict[str, Any], files: Mapping[str, Any], apart_from: tuple[str, ...]
) -> bytes:
    """A document with new values for some fields. The other fields stay, even if they can't be decoded."""
    if files:
        values = {**values, "files": dict(files)}
    gone = {*values, *apart_from, "chunked", "hash"}
    kept = (one for one in elements(row.raw) if one.name.decode("utf-8", "replace") not in gone)
    return joined(*elements(bson.encode(values, codec_options=CODEC_OPTIONS)), *kept)


def _insert_if_missing(document: bytes, row: EarlierDocument) -> UpdateOne:
    id_ = readable(keyed(next(elements(document))))[""]
    new = {"$cond": [{"$eq": [{"$type": "$group"}, "missing"]}, {"$literal": RawBSONDocument(document)}, "$$ROOT"]}
    hashed = {"$ifNull": ["$hash", hash_of_key(row.fields.get("parts"))]}
    return UpdateOne({"_id": id_}, [{"$replaceWith": new}, {"$set": {"hash": hashed}}], upsert=True)
