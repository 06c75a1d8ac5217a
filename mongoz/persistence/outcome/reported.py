"""What was written, by the server's own account: its change stream of the last while.

A document alone does not always tell whether a write stands: another client may have replaced or deleted it before
anybody looked. The stream tells of each write that was committed.
"""

import asyncio
from contextlib import suppress
from time import monotonic
from typing import Any, Final
from weakref import WeakKeyDictionary

from bson import Timestamp
from pymongo.errors import NetworkTimeout, OperationFailure, PyMongoError

from mongoz.connection.namespaces import is_misread, watched_as
from mongoz.persistence.target import Target

__all__ = ["PATIENCE_MS", "Unreadable", "changes_since"]

PATIENCE_MS: Final = 5_000
"""That a server may take to answer such a question."""

_MARGIN: Final = 5  # seconds that a time may be wrong by
_WHOLE_MARGIN: Final = 120  # where it is wrong by more, which is known if it is still to come
_PAUSE_MS: Final = 250  # that the server waits for more, before it says how far it has read
_AT_ONCE: Final = 4  # streams of one process: each of them reads all that the server has written

_PERMITTED: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


class Unreadable(Exception):
    """The server has no change stream for us: it is no replica set, we have no right to it, or it is too late."""


async def changes_since(target: Target, seconds: float, match: dict[str, Any]) -> list[dict[str, Any]]:
    """The changes of a collection that were committed since then, up to now.

    Args:
        target: whose collection it is.
        seconds: since 1970, by the server's clock.
        match: which of them.

    Returns:
        The events, in order.

    Raises:
        Unreadable: nothing can be found out like this, now or later.
        PyMongoError: the server gives no answer now.
    """
    loop = asyncio.get_running_loop()
    async with _PERMITTED.setdefault(loop, asyncio.Semaphore(_AT_ONCE)):
        try:
            return await _Stream(target).read(seconds, match)
        except OperationFailure as error:
            if error.timeout or error.has_error_label("RetryableWriteError"):
                raise
            raise Unreadable(str(error)) from error


class _Stream:
    """By commands, so that both drivers do it alike."""

    def __init__(self, target: Target) -> None:
        self._collection = target.driver
        self._database = target.driver.database
        self._deadline = monotonic() + PATIENCE_MS / 1000

    async def read(self, seconds: float, match: dict[str, Any]) -> list[dict[str, Any]]:
        until = (await self._ask({"ping": 1})).get("operationTime")
        if until is None:
            raise Unreadable("the server is no replica set")
        margin = _WHOLE_MARGIN if seconds > until.time + 1 else 0
        since = min(int(seconds) - _MARGIN, until.time - margin)
        cursor = await self._open(Timestamp(max(since, 1), 0), match)
        name = cursor["ns"].partition(".")[2]
        events: list[dict[str, Any]] = []
        try:
            while _time_of(cursor["postBatchResumeToken"]) < until:
                if monotonic() > self._deadline:
                    raise NetworkTimeout(
                        f"the change stream of {self._collection.name} did not come to {until} in time"
                    )
                if not cursor["id"]:  # somebody dropped the collection; after it nothing is to be found
                    break
                more = {"getMore": cursor["id"], "collection": name, "maxTimeMS": _PAUSE_MS}
                cursor = (await self._ask(more))["cursor"]
                events += cursor["nextBatch"]
        finally:
            if cursor["id"]:
                with suppress(PyMongoError):
                    await self._ask({"killCursors": name, "cursors": [cursor["id"]]})
        return events

    async def _open(self, since: Timestamp, match: dict[str, Any]) -> dict[str, Any]:
        """Open the narrowest stream that has the changes of the collection; see `is_misread`."""
        database, name = self._collection.database, self._collection.name
        aggregate: str | int = name
        stage: dict[str, Any] = {"startAtOperationTime": since}
        if is_misread(name) or is_misread(database.name):
            aggregate, match = 1, {"ns.db": watched_as(database.name), "ns.coll": watched_as(name), **match}
        if is_misread(database.name):
            stage["allChangesForCluster"] = True
            self._database = database.client.admin
        pipeline = [{"$changeStream": stage}, {"$match": match}]
        command = {"aggregate": aggregate, "pipeline": pipeline, "cursor": {"batchSize": 0}}
        cursor: dict[str, Any] = (await self._ask(command))["cursor"]
        return cursor

    async def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        options = self._collection.codec_options
        answer: dict[str, Any] = await self._database.command(command, codec_options=options)
        return answer


def _time_of(token: dict[str, Any]) -> Timestamp:
    """Up to where a stream was read: its tokens begin with that, behind the byte that says that it is a time."""
    data = bytes.fromhex(str(token["_data"])[2:18])
    return Timestamp(int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big"))
