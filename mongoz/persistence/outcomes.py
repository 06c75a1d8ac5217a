"""What became of a write whose answer got lost.

A stamped write tells the dispatcher that its receivers ran here. So when the network or a write concern leaves its
outcome open, this process must find out, or nobody would run them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from pymongo.errors import (
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    PyMongoError,
    WriteConcernError,
)
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from mongoz.persistence.targets import Target
from mongoz.stamps import FIELD, Stamp

__all__ = ["UNKNOWN", "fence", "find_out", "is_gone", "is_ours", "written_row"]

T = TypeVar("T")

UNKNOWN: Final = (ConnectionFailure, ExecutionTimeout, WriteConcernError)
"""Errors after which a write may stand or not."""

_PATIENCE_MS: Final = 5_000
_LONGEST_PAUSE: Final = 10.0


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
    row = await _read(target, id_)
    return row if row is not None and is_ours(row, stamp, inserted=inserted) else None


async def is_gone(target: Target, id_: Any) -> bool:
    """Whether there is no such document (any more)."""
    return await _read(target, id_) is None


async def _read(target: Target, id_: Any) -> dict[str, Any] | None:
    collection = target.driver.with_options(
        read_concern=ReadConcern("linearizable"), read_preference=ReadPreference.PRIMARY
    )
    row: dict[str, Any] | None = await collection.find_one({"_id": id_}, max_time_ms=_PATIENCE_MS)
    return row


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
    return found.key == sent.key and found.token.generation_time >= sent.token.generation_time


async def find_out(look: Callable[[], Awaitable[T]]) -> T:
    """Look again and again, with growing pauses, until the server answers.

    Raises:
        InvalidOperation: the client was closed.
    """
    pause = 0.1
    while True:
        try:
            return await look()
        except InvalidOperation:
            raise
        except PyMongoError:
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)
