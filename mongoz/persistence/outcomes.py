"""What became of a write whose answer got lost.

A stamped write tells the dispatcher that its receivers ran here. So when the network or a write concern leaves its
outcome open, this process must find out, or nobody would run them.
"""

from typing import Any, Final

import bson
from pymongo.errors import ConnectionFailure, ExecutionTimeout, PyMongoError, WriteConcernError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from mongoz.persistence.targets import Target
from mongoz.stamps import FIELD, Stamp

__all__ = [
    "PATIENCE_MS",
    "fence",
    "is_commit_open",
    "is_gone",
    "is_ours",
    "is_unknown",
    "surely_read",
    "written_row",
]

_UNKNOWN: Final = (ConnectionFailure, ExecutionTimeout, WriteConcernError)
_UNKNOWN_COMMIT: Final = "UnknownTransactionCommitResult"
_LABELS: Final = ("RetryableWriteError", _UNKNOWN_COMMIT)

PATIENCE_MS: Final = 5_000
"""That a server may take for such a read."""


def is_unknown(error: PyMongoError) -> bool:
    """Whether a write may stand or not, after its answer was this error."""
    return isinstance(error, _UNKNOWN) or any(map(error.has_error_label, _LABELS))


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
    await collection.update_one(nowhere, {"$unset": {FIELD: ""}}, session=session)


async def written_row(target: Target, id_: Any, stamp: bytes, *, inserted: bool) -> dict[str, Any] | None:
    """The document of a write, if the write stands; None if it does not.

    Read with linearizable concern: from a primary that is one, and nothing that could be rolled back.

    Args:
        target: where the write went.
        id_: the document's `_id`.
        stamp: what it was sent with.
        inserted: it was an insert.
    """
    row = await surely_read(target).find_one({"_id": id_}, max_time_ms=PATIENCE_MS)
    return row if row is not None and is_ours(row, stamp, inserted=inserted) else None


async def is_gone(target: Target, id_: Any) -> bool:
    """Whether there is no such document (any more)."""
    return await surely_read(target).find_one({"_id": id_}, {"_id": 1}, max_time_ms=PATIENCE_MS) is None


def surely_read(target: Target) -> Any:
    """The driver's collection, for reading what will not be rolled back, from a primary that is one."""
    return target.driver.with_options(
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
