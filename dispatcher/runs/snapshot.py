"""The documents that there are in a collection, and what receivers are told of them.

A collection is read in the order of its `_id`s, slice by slice, so that nothing has to stay open on the server
however slow receivers are, and whoever stopped goes on where it was.

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
from pymongo.read_concern import ReadConcern

from dispatcher.core.bson_codec import RAW
from dispatcher.core.bson_elements import DOCUMENT, Element, elements, field, joined, keyed
from dispatcher.core.events import Change, Namespace
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.runs.store import Run
from dispatcher.stream.decode import decode
from mongoz.connection.elections import session_of
from mongoz.keys import canonical_of

# Documents read at once: at most, and before their size is known; and the bytes to aim for.
_MOST: Final = 500
_FIRST: Final = 32
_BYTES: Final = 4_000_000

_LAST: Final = bson.encode({"": MaxKey()})


class Found(NamedTuple):
    """A document as it was read.

    Attributes:
        time: cluster time of the reading.
        wall: the same, roughly, as a date.
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
) -> AsyncIterator[list[Found]]:
    """The documents of a collection in the order of their `_id`s, whatever types these have.

    Args:
        client: opened for the running loop.
        last: begin after this `_id`, as BSON: {"": _id}.
        fields: what is read of them; all by default.
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
            yield [Found(row, time, wall) for row in rows]
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
    """Documents from an `_id` on, one more than `size` if there are more; and the time at which they were so."""
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
        # A comparison would only find `_id`s of the same type. Cursors would encode this one anew.
        command["min"] = RawBSONDocument(_filter(last))
    async with session_of(client) as session:
        # The first answer is decoded with these options, the further ones with the database's.
        cursor = await database.cursor_command(command, codec_options=RAW, session=session)
        rows: list[RawBSONDocument] = await cursor.to_list(None)
        if last not in (None, _LAST) and len(rows) <= size:
            # What begins somewhere ends before the very last key that there can be.
            last_of_all = database.get_collection(namespace[1], read_concern=ReadConcern("majority"))
            rows += await last_of_all.find({"_id": MaxKey(), **wanted}, fields, session=session).to_list(None)
        return rows, session.operation_time or Timestamp(1, 1)


async def document(client: AsyncMongoClient[Any], namespace: Namespace, key: bytes) -> Found | None:
    """One document, as it is now.

    Args:
        key: its `_id`, as BSON: {"": _id}.
    """
    collection = client[namespace[0]].get_collection(
        namespace[1], codec_options=RAW, read_concern=ReadConcern("majority")
    )
    async with session_of(client) as session:
        row = await collection.find_one(RawBSONDocument(_filter(key)), session=session)
        time = session.operation_time or Timestamp(1, 1)
    return None if row is None else Found(row, time, datetime.fromtimestamp(time.time, UTC))


def key_of(row: RawBSONDocument) -> bytes:
    """The `_id` of a document, as BSON: {"": _id}."""
    found = field(bytes(row.raw), "_id")
    assert found is not None  # no document is without one
    return keyed(found)


def change_of(found: Found, namespace: Namespace, run: Run, codec_options: CodecOptions[Any]) -> Change:
    """What receivers are told of an existing document.

    Where it can't be decoded, it says so in `fault`.
    """
    return decode(RawBSONDocument(_event_of(found, namespace, run)), codec_options)._replace(image="current")


def _event_of(found: Found, namespace: Namespace, run: Run) -> bytes:
    """A document, as if it had been replaced when it was read.

    What stands for a token is the same whenever the run comes to it.
    """
    digest = blake2b(".".join(namespace).encode() + b"\0" + key_of(found.row), digest_size=12).hexdigest().upper()
    token = f"82{run.at.time:08X}{run.at.inc:08X}FF{digest}"
    said = bson.encode(
        {
            "_id": {"_data": token},
            "operationType": "replace",
            "clusterTime": found.time,
            "wallTime": found.wall,
            "ns": {"db": namespace[0], "coll": namespace[1]},
        }
    )
    document_key = Element(b"documentKey", DOCUMENT, keyed(next(elements(key_of(found.row))), "_id"))
    return joined(*elements(said), document_key, Element(b"fullDocument", DOCUMENT, bytes(found.row.raw)))


def _filter(key: bytes) -> bytes:
    """{"_id": _id}, of {"": _id}: canonical, as the index has it."""
    return keyed(next(elements(canonical_of(key))), "_id")
