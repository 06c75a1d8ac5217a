"""What became of a write whose answer got lost.

A stamped write tells the dispatcher that its receivers ran here. So when the network or a write concern leaves its
outcome open, this process must find out, or nobody would run them.
"""

from collections.abc import Iterable
from typing import Any, Final

import bson
from pymongo.errors import ConnectionFailure, ExecutionTimeout, PyMongoError, WriteConcernError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from mongoz.connection.elections import as_passing, is_of_connection
from mongoz.persistence.outcome.reported import PATIENCE_MS, Unreadable, changes_since
from mongoz.persistence.target import Target
from mongoz.stamps import FIELD, Stamp

__all__ = [
    "fence",
    "is_commit_open",
    "is_ours",
    "is_unknown",
    "is_without",
    "surely_read",
    "those_written",
    "written_row",
]

_UNKNOWN: Final = (ConnectionFailure, ExecutionTimeout, WriteConcernError)
_UNKNOWN_COMMIT: Final = "UnknownTransactionCommitResult"
_LABELS: Final = ("RetryableWriteError", _UNKNOWN_COMMIT)


def is_unknown(error: PyMongoError) -> bool:
    """Whether a write may stand or not, after its answer was this error."""
    open_ = isinstance(error, _UNKNOWN) or is_of_connection(error)
    return open_ or any(map(error.has_error_label, _LABELS))


def is_commit_open(error: PyMongoError) -> bool:
    """Whether a transaction may stand or not, after this was the answer to its commit."""
    return error.has_error_label(_UNKNOWN_COMMIT)


async def fence(target: Target, session: Any, id_: Any) -> None:
    """Make sure that what was sent in this session has happened by now, or never will.

    A command may still be on its way when its connection is lost. The next retryable write of the session waits
    until the server is done with it, and has a higher number: the server refuses lower ones from then on. This
    one changes nothing.

    Args:
        target: where the write went.
        session: in which it was sent.
        id_: the document's `_id`.
    """
    collection = target.driver.with_options(write_concern=WriteConcern(w=1))
    nowhere = {"_id": id_, FIELD: {"$type": "minKey"}}
    try:
        await collection.update_one(nowhere, {"$unset": {FIELD: ""}}, session=session)
    except PyMongoError as error:
        raise await as_passing(error, target.client)  # noqa: B904 - it has its cause


async def written_row(target: Target, id_: Any, stamp: bytes, *, inserted: bool) -> dict[str, Any] | None:
    """The document of a write, if the write stands, as the write made it; None if it does not stand.

    Args:
        target: where the write went.
        id_: the document's `_id`.
        stamp: what it was sent with.
        inserted: it was an insert.

    Raises:
        PyMongoError: the server gives no answer now.
    """
    row = target.read(await surely_read(target).find_one({"_id": id_}, max_time_ms=PATIENCE_MS))
    return (await those_written(target, {stamp: row}, inserted=inserted)).get(stamp)


async def those_written(
    target: Target, rows: dict[bytes, dict[str, Any] | None], *, inserted: bool
) -> dict[bytes, dict[str, Any]]:
    """The documents of those writes that stand, by their stamps.

    One that has its stamp was written. Of any other the server is asked: since then another client may have
    replaced it, deleted it, or put an older stamp back. Where it does not tell, see `is_ours`.

    Args:
        target: where the writes went.
        rows: their documents as they are now, by stamp; None is one that is not there.
        inserted: they were inserts.

    Raises:
        PyMongoError: the server gives no answer now.
    """
    written = {stamp: row for stamp, row in rows.items() if row is not None and row.get(FIELD) == stamp}
    open_ = [stamp for stamp in rows if stamp not in written]
    if not open_:
        return written
    try:
        reported = await _reported(target, open_)
    except Unreadable:
        found = {stamp: row for stamp in open_ if (row := rows[stamp]) is not None}
        return written | {stamp: row for stamp, row in found.items() if is_ours(row, stamp, inserted=inserted)}
    return written | {stamp: {**(rows[stamp] or {}), **values} for stamp, values in reported.items()}


async def _reported(target: Target, stamps: Iterable[bytes]) -> dict[bytes, dict[str, Any]]:
    """What the server reports of the writes that have these stamps: what they set, by stamp."""
    by_stamp = {bytes(stamp): stamp for stamp in stamps}
    minted = min(int.from_bytes(_token_of(stamp)[:4], "big") for stamp in by_stamp)
    ours = {"$in": list(by_stamp.values())}
    places = ({f"fullDocument.{FIELD}": ours}, {f"updateDescription.updatedFields.{FIELD}": ours})
    match = {"operationType": {"$in": ["insert", "update"]}, "$or": list(places)}
    reported: dict[bytes, dict[str, Any]] = {}
    for event in await changes_since(target, minted, match):
        inserted = event["operationType"] == "insert"
        values = event["fullDocument"] if inserted else event["updateDescription"]["updatedFields"]
        stamp = by_stamp[bytes(values[FIELD])]
        reported.setdefault(stamp, {name: value for name, value in values.items() if "." not in name})
    return reported


def _token_of(stamp: bytes) -> bytes:
    found = Stamp.unpack(stamp)
    assert found is not None  # it is ours
    return found.token.binary


async def is_without(target: Target, id_: Any, since: float) -> bool:
    """Whether there is no such document, or was none for a moment.

    Args:
        target: where it was.
        id_: its `_id`.
        since: seconds since 1970, by the server's clock.
    """
    if await surely_read(target).find_one({"_id": id_}, {"_id": 1}, max_time_ms=PATIENCE_MS) is None:
        return True
    try:
        return bool(await changes_since(target, since, {"operationType": "delete", "documentKey._id": id_}))
    except Unreadable:
        return False


def surely_read(target: Target) -> Any:
    """`Target.lenient`, for reading what will not be rolled back, from a primary that is one."""
    return target.lenient.with_options(
        read_concern=ReadConcern("linearizable"), read_preference=ReadPreference.PRIMARY
    )


def is_ours(row: dict[str, Any], stamp: bytes, *, inserted: bool) -> bool:
    """Whether a document has gone through the write of this stamp.

    A later write of this ODM has put its own stamp in the place of ours, and another client may have removed what
    was inserted with it. Whether ours came before is open then: in doubt it did, so that nothing is lost.

    Args:
        row: as it is now.
        stamp: what was sent.
        inserted: by an insert.
    """
    value = row.get(FIELD)
    if value == stamp:
        return True
    found, sent = Stamp.unpack(value), Stamp.unpack(stamp)
    if found is None or sent is None:
        return inserted and value is None
    return found.key == sent.key and _is_later(found.token, sent.token)


def _is_later(found: bson.ObjectId, sent: bson.ObjectId) -> bool:
    """Whether one token may have been minted after another.

    Those of one process are counted. So the stamp of the write right before ours, in the same second, is not
    taken for a later one.
    """
    if found.binary[4:9] == sent.binary[4:9]:
        ahead = int.from_bytes(found.binary[9:], "big") - int.from_bytes(sent.binary[9:], "big")
        return ahead % _COUNTED < _COUNTED // 2
    return found.generation_time >= sent.generation_time


_COUNTED: Final = 1 << 24  # where the counter of ObjectIds starts again
