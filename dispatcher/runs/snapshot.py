"""Reads the existing documents of a collection, and converts each document to a change for the receivers.

A collection is read in the order of its `_id`s, slice by slice. So no cursor stays open on the server while
receivers are slow, and an interrupted run continues after its last `_id`.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import bson
from bson.codec_options import CodecOptions
from bson.max_key import MaxKey
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from dispatcher.core.bson_codec import RAW, RawEvent
from dispatcher.core.bson_elements import DOCUMENT, Element, elements, field, joined, keyed
from dispatcher.core.events import Change, Namespace
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.runs.store import Run
from dispatcher.stream.decode import decode
from mongoz.connection.elections import session_of
from mongoz.keys import canonical_of

# Maximum number of documents in a slice.
_MOST: Final = 500
# Number of documents in the first slice, before the size of documents is known.
_FIRST: Final = 32
# Desired number of bytes in a slice.
_BYTES: Final = 4_000_000

_LAST: Final = bson.encode({"": MaxKey()})


# The server's error codes for a read at a past time. The first one: the server does not remember that time any
# more. The others: it can't read this collection at that time.
_TOO_OLD: Final = 239
_NO_SNAPSHOTS: Final = frozenset({72, 246})


class SnapshotTooOld(Exception):
    """The server does not remember the state of the documents at the requested time any more."""


class StoredDocument(NamedTuple):
    """A document, with the time at which it was read.

    Attributes:
        time: cluster time of the read.
        wall: `time` as a date, in whole seconds.
    """

    row: RawBSONDocument
    time: Timestamp
    wall: datetime


async def documents(
    client: AsyncMongoClient[Any],
    namespace: Namespace,
    last: bytes | None,
    address: str,
    only: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> AsyncIterator[list[StoredDocument]]:
    """Yield the documents of a collection in the order of their `_id`s, which may have any type.

    Args:
        client: a client that is open for the running loop.
        last: begin after this `_id`, as BSON: {"": _id}; None to begin with the first document.
        only: a filter; by default all documents.
        fields: a projection; by default all fields.
    """
    report = partial(
        log.warning,
        "documents can't be read now, trying again",
        action="backfill.not_read",
        namespace=".".join(namespace),
    )
    size = _FIRST
    while True:
        read = partial(_read, client, namespace, last, size, only or {}, fields)
        rows, time = await retry(read, report, address=address)
        ended = len(rows) <= size or last == _LAST
        if rows and last is not None and key_of(rows[0]) == last:
            rows = rows[1:]
        rows = rows if ended else rows[:size]
        if rows:
            wall = datetime.fromtimestamp(time.time, UTC)
            yield [StoredDocument(row, time, wall) for row in rows]
            last = key_of(rows[-1])
            size = max(1, min(_MOST, _BYTES * len(rows) // max(1, sum(len(row.raw) for row in rows))))
        if ended:
            return


async def _read(
    client: AsyncMongoClient[Any],
    namespace: Namespace,
    last: bytes | None,
    size: int,
    wanted: Mapping[str, Any],
    fields: Mapping[str, Any] | None,
) -> tuple[list[RawBSONDocument], Timestamp]:
    """Read `size + 1` documents from an `_id` on, if there are so many. Returns them with the time of the read."""
    database = client.get_database(namespace[0], codec_options=RAW)
    command: dict[str, Any] = {
        "find": namespace[1],
        "filter": wanted,
        "sort": {"_id": 1},
        "hint": {"_id": 1},
        "limit": size + 1,
        "readConcern": {"level": "majority"},
    }
    if fields is not None:
        command["projection"] = fields
    if last is not None:
        # `min` is used, because a comparison would find only `_id`s of the same type as `last`. A command is used,
        # because a cursor of PyMongo would decode this `_id` and encode it again, and so change rare types.
        command["min"] = RawBSONDocument(_filter(last))
    async with session_of(client) as session:
        # The first batch is decoded with these options, later batches with the options of the database.
        cursor = await database.cursor_command(command, codec_options=RAW, session=session)
        rows: list[RawBSONDocument] = await cursor.to_list(None)
        if last not in (None, _LAST) and len(rows) <= size:
            # A scan with `min` ends before the key MaxKey, so a document with this key is read separately.
            last_of_all = database.get_collection(namespace[1], read_concern=ReadConcern("majority"))
            rows += await last_of_all.find({"_id": MaxKey(), **wanted}, fields, session=session).to_list(None)
        return rows, session.operation_time or Timestamp(1, 1)


async def document(
    client: AsyncMongoClient[Any],
    namespace: Namespace,
    key: bytes,
    time: Timestamp,
    only: Mapping[str, Any] | None = None,
) -> StoredDocument | None:
    """Read one document as it was at a time; None if it did not exist.

    Args:
        key: its `_id`, as BSON: {"": _id}.
        time: cluster time of the read.
        only: a filter. If the document did not match it at that time, the result is None.

    Raises:
        SnapshotTooOld: the server does not remember that time any more.
    """
    command: dict[str, Any] = {
        "find": namespace[1],
        "filter": {"$and": [RawBSONDocument(_filter(key)), only or {}]},
        "limit": 1,
        "readConcern": {"level": "snapshot", "atClusterTime": time},
    }
    database = client.get_database(namespace[0], codec_options=RAW)
    try:
        cursor = await database.cursor_command(command, codec_options=RAW)
    except OperationFailure as error:
        if error.code == _TOO_OLD:
            raise SnapshotTooOld from error
        if error.code not in _NO_SNAPSHOTS:
            raise
        # A capped collection, or a collection that was created or renamed after that time.
        command["readConcern"] = {"level": "majority"}
        cursor = await database.cursor_command(command, codec_options=RAW)
    found: list[RawBSONDocument] = await cursor.to_list(None)
    wall = datetime.fromtimestamp(time.time, UTC)
    return StoredDocument(found[0], time, wall) if found else None


def key_of(row: RawBSONDocument) -> bytes:
    """The `_id` of a document, as BSON: {"": _id}."""
    found = field(bytes(row.raw), "_id")
    assert found is not None  # every document has an `_id`
    return keyed(found)


def change_of(found: StoredDocument, namespace: Namespace, run: Run, codec_options: CodecOptions[Any]) -> Change:
    """Make the change that receivers get for an existing document.

    If the document can't be decoded, `fault` of the change has the reason.
    """
    return decode(RawEvent(_event_of(found, namespace, run)), codec_options)._replace(image="current")


def _event_of(found: StoredDocument, namespace: Namespace, run: Run) -> bytes:
    """Make the event of a replacement at the time of the read.

    The token depends only on the run and the document, so a repeated delivery has the same id.
    """
    digest = blake2b(".".join(namespace).encode() + b"\0" + key_of(found.row), digest_size=12).hexdigest().upper()
    token = f"82{run.at.time:08X}{run.at.inc:08X}FF{digest}"
    head = bson.encode(
        {
            "_id": {"_data": token},
            "operationType": "replace",
            "clusterTime": found.time,
            "wallTime": found.wall,
            "ns": {"db": namespace[0], "coll": namespace[1]},
        }
    )
    document_key = Element(b"documentKey", DOCUMENT, keyed(next(elements(key_of(found.row))), "_id"))
    return joined(*elements(head), document_key, Element(b"fullDocument", DOCUMENT, bytes(found.row.raw)))


def _filter(key: bytes) -> bytes:
    """Convert {"": _id} to {"_id": _id}, in the canonical form that the index uses."""
    return keyed(next(elements(canonical_of(key))), "_id")
