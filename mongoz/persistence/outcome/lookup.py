"""The outcome of a write whose answer got lost.

A stamp tells dispatchers that the writing process runs the receivers. The network or a write concern can leave the
outcome of a stamped write unknown. Then this process must find out the outcome, because no other process runs the
receivers that are not claimed.
"""

from collections.abc import Iterable
from typing import Any, Final

import bson
from pymongo.errors import ConnectionFailure, ExecutionTimeout, PyMongoError, WriteConcernError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from mongoz.connection.elections import as_transient, is_connection_error
from mongoz.persistence.outcome.reported import TIMEOUT_MS, NoChangeStream, read_changes_since
from mongoz.persistence.target import WriteTarget
from mongoz.stamps import FIELD, Stamp

__all__ = [
    "durable_collection",
    "fence_session",
    "find_written_row",
    "find_written_rows",
    "is_commit_unknown",
    "is_outcome_unknown",
    "was_absent",
    "was_probably_written",
]

_UNKNOWN: Final = (ConnectionFailure, ExecutionTimeout, WriteConcernError)
_UNKNOWN_COMMIT: Final = "UnknownTransactionCommitResult"
_LABELS: Final = ("RetryableWriteError", _UNKNOWN_COMMIT)
_COUNTER_SIZE: Final = 1 << 24  # the counter in ObjectIds starts again at 0 when it reaches this number


def is_outcome_unknown(error: PyMongoError) -> bool:
    """Whether the outcome of a write is unknown after this error."""
    unknown = isinstance(error, _UNKNOWN) or is_connection_error(error)
    return unknown or any(map(error.has_error_label, _LABELS))


def is_commit_unknown(error: PyMongoError) -> bool:
    """Whether the outcome of a transaction is unknown after this error of its commit."""
    return error.has_error_label(_UNKNOWN_COMMIT)


async def fence_session(target: WriteTarget, session: Any, id_: Any) -> None:
    """Wait until the server is done with the commands of a session. After that, it refuses late commands.

    A command may still run when its connection is lost. The next retryable write of the session waits until the
    server is done with that command. This next write has a higher transaction number, and afterwards the server
    refuses lower numbers. The function sends such a write, which changes no document.

    Args:
        target: the target of the command.
        session: the session of the command.
        id_: the document's `_id`.
    """
    collection = target.driver_collection.with_options(write_concern=WriteConcern(w=1))
    no_match = {"_id": id_, FIELD: {"$type": "minKey"}}
    try:
        await collection.update_one(no_match, {"$unset": {FIELD: ""}}, session=session)
    except PyMongoError as error:
        raise await as_transient(error, target.client)  # noqa: B904 - its cause is set


async def find_written_row(
    target: WriteTarget, id_: Any, stamp: bytes, *, inserted: bool
) -> dict[str, Any] | None:
    """The document as a stamped write made it; None if the write did not take effect.

    Args:
        target: the target of the write.
        id_: the document's `_id`.
        stamp: the stamp of the write.
        inserted: the write was an insert.

    Raises:
        PyMongoError: the server does not answer at present.
    """
    row = target.decode(await durable_collection(target).find_one({"_id": id_}, max_time_ms=TIMEOUT_MS))
    return (await find_written_rows(target, {stamp: row}, inserted=inserted)).get(stamp)


async def find_written_rows(
    target: WriteTarget, rows: dict[bytes, dict[str, Any] | None], *, inserted: bool
) -> dict[bytes, dict[str, Any]]:
    """The documents of the stamped writes that took effect, by their stamps.

    If a document has the stamp now, its write took effect. The other writes are looked up in the change stream,
    because another client may have replaced the document, deleted it, or restored an older stamp since the write.
    If there is no change stream, `was_probably_written` decides.

    Args:
        target: the target of the writes.
        rows: stamp -> the document as it is now; None if it does not exist.
        inserted: the writes were inserts.

    Raises:
        PyMongoError: the server does not answer at present.
    """
    written = {stamp: row for stamp, row in rows.items() if row is not None and row.get(FIELD) == stamp}
    unknown = [stamp for stamp in rows if stamp not in written]
    if not unknown:
        return written
    try:
        reported = await _reported_values(target, unknown)
    except NoChangeStream:
        found = {stamp: row for stamp in unknown if (row := rows[stamp]) is not None}
        return written | {
            stamp: row for stamp, row in found.items() if was_probably_written(row, stamp, inserted=inserted)
        }
    return written | {stamp: {**(rows[stamp] or {}), **values} for stamp, values in reported.items()}


async def _reported_values(target: WriteTarget, stamps: Iterable[bytes]) -> dict[bytes, dict[str, Any]]:
    """Stamp -> the values that the write with this stamp has set, according to the change stream."""
    by_stamp = {bytes(stamp): stamp for stamp in stamps}
    earliest = min(int.from_bytes(_token_of(stamp)[:4], "big") for stamp in by_stamp)
    any_stamp = {"$in": list(by_stamp.values())}
    places = ({f"fullDocument.{FIELD}": any_stamp}, {f"updateDescription.updatedFields.{FIELD}": any_stamp})
    match = {"operationType": {"$in": ["insert", "update"]}, "$or": list(places)}
    reported: dict[bytes, dict[str, Any]] = {}
    for event in await read_changes_since(target, earliest, match):
        inserted = event["operationType"] == "insert"
        values = event["fullDocument"] if inserted else event["updateDescription"]["updatedFields"]
        stamp = by_stamp[bytes(values[FIELD])]
        reported.setdefault(stamp, {name: value for name, value in values.items() if "." not in name})
    return reported


def _token_of(stamp: bytes) -> bytes:
    found = Stamp.unpack(stamp)
    assert found is not None  # this process made it
    return found.token.binary


async def was_absent(target: WriteTarget, id_: Any, since: float) -> bool:
    """Whether a document does not exist, or did not exist at some moment since a given time.

    Args:
        target: the target of the delete.
        id_: the document's `_id`.
        since: seconds since 1970, by the server's clock.
    """
    found = await durable_collection(target).find_one({"_id": id_}, {"_id": 1}, max_time_ms=TIMEOUT_MS)
    if found is None:
        return True
    try:
        return bool(await read_changes_since(target, since, {"operationType": "delete", "documentKey._id": id_}))
    except NoChangeStream:
        return False


def durable_collection(target: WriteTarget) -> Any:
    """`raw_collection` that reads from the current primary. It returns no data that a rollback could undo."""
    return target.raw_collection.with_options(
        read_concern=ReadConcern("linearizable"), read_preference=ReadPreference.PRIMARY
    )


def was_probably_written(row: dict[str, Any], stamp: bytes, *, inserted: bool) -> bool:
    """Whether a document was written by the write with this stamp, judged by the document alone.

    A later write of this ODM may have replaced the stamp, and another client may have removed it from an inserted
    document. In both cases the function returns True, so that no delivery is lost.

    Args:
        row: the document as it is now.
        stamp: the stamp of the write.
        inserted: the write was an insert.
    """
    value = row.get(FIELD)
    if value == stamp:
        return True
    found, sent = Stamp.unpack(value), Stamp.unpack(stamp)
    if found is None or sent is None:
        return inserted and value is None
    return found.key == sent.key and _may_be_later(found.token, sent.token)


def _may_be_later(found: bson.ObjectId, sent: bson.ObjectId) -> bool:
    """Whether one token may be newer than another.

    Tokens of one process contain a counter, so the token of an earlier write in the same second does not count as
    newer.
    """
    if found.binary[4:9] == sent.binary[4:9]:
        ahead = int.from_bytes(found.binary[9:], "big") - int.from_bytes(sent.binary[9:], "big")
        return ahead % _COUNTER_SIZE < _COUNTER_SIZE // 2
    return found.generation_time >= sent.generation_time
