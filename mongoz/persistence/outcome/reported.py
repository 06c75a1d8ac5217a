"""Reads the recent changes of a collection from the server, with a short change stream.

A document alone does not always show whether a write took effect: after the write, another client may have
replaced or deleted the document. The change stream contains each committed write.
"""

import asyncio
from contextlib import suppress
from time import monotonic
from typing import Any, Final
from weakref import WeakKeyDictionary

from bson import Timestamp
from pymongo.errors import NetworkTimeout, OperationFailure, PyMongoError

from mongoz.connection.namespaces import exact_match, is_misread
from mongoz.persistence.target import WriteTarget

__all__ = ["TIMEOUT_MS", "NoChangeStream", "read_changes_since"]

TIMEOUT_MS: Final = 5_000
"""The time limit of a read that looks up an outcome."""

_MARGIN: Final = 5  # seconds by which the given time may be wrong
_FUTURE_MARGIN: Final = 120  # the same, if the given time is later than the server's time
_PAUSE_MS: Final = 250  # the server waits this long for more changes before it reports its position
_MAX_STREAMS: Final = 4  # open at the same time in an event loop: each reads the whole recent oplog

_PERMITS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


class NoChangeStream(Exception):
    """No change stream is available: no replica set, no privilege, or the oplog is too short."""


async def read_changes_since(target: WriteTarget, seconds: float, match: dict[str, Any]) -> list[dict[str, Any]]:
    """The changes of a collection that were committed since a time, up to now.

    Args:
        target: the target with the collection.
        seconds: the time since 1970, by the server's clock.
        match: the filter of the events.

    Returns:
        The events, in order.

    Raises:
        NoChangeStream: the changes can't be read, now or later.
        PyMongoError: the server does not answer at present.
    """
    loop = asyncio.get_running_loop()
    async with _PERMITS.setdefault(loop, asyncio.Semaphore(_MAX_STREAMS)):
        try:
            return await _RecentChanges(target).read(seconds, match)
        except OperationFailure as error:
            if error.timeout or error.has_error_label("RetryableWriteError"):
                raise
            raise NoChangeStream(str(error)) from error


class _RecentChanges:
    """A change stream that ends at the present. It sends plain commands, which work the same in both drivers."""

    def __init__(self, target: WriteTarget) -> None:
        self._collection = target.driver_collection
        self._database = target.driver_collection.database
        self._deadline = monotonic() + TIMEOUT_MS / 1000

    async def read(self, seconds: float, match: dict[str, Any]) -> list[dict[str, Any]]:
        until = (await self._send({"ping": 1})).get("operationTime")
        if until is None:
            raise NoChangeStream("the server is no replica set")
        margin = _FUTURE_MARGIN if seconds > until.time + 1 else 0
        since = min(int(seconds) - _MARGIN, until.time - margin)
        cursor = await self._open(Timestamp(max(since, 1), 0), match)
        name = cursor["ns"].partition(".")[2]
        events: list[dict[str, Any]] = []
        try:
            while _time_of(cursor["postBatchResumeToken"]) < until:
                if monotonic() > self._deadline:
                    raise NetworkTimeout(
                        f"the change stream of {self._collection.name} did not reach {until} in {TIMEOUT_MS} ms"
                    )
                if not cursor["id"]:  # the collection was dropped, which ends its stream
                    break
                more = {"getMore": cursor["id"], "collection": name, "maxTimeMS": _PAUSE_MS}
                cursor = (await self._send(more))["cursor"]
                events += cursor["nextBatch"]
        finally:
            if cursor["id"]:
                with suppress(PyMongoError):
                    await self._send({"killCursors": name, "cursors": [cursor["id"]]})
        return events

    async def _open(self, since: Timestamp, match: dict[str, Any]) -> dict[str, Any]:
        """Open the narrowest stream that has all changes of the collection.

        If the server misreads the name of the collection, only the stream of the database has them. If it
        misreads the name of the database, only the stream of the deployment has them. See `is_misread`.
        """
        database, name = self._collection.database, self._collection.name
        aggregate: str | int = name
        stage: dict[str, Any] = {"startAtOperationTime": since}
        if is_misread(name) or is_misread(database.name):
            aggregate, match = 1, {"ns.db": exact_match(database.name), "ns.coll": exact_match(name), **match}
        if is_misread(database.name):
            stage["allChangesForCluster"] = True
            self._database = database.client.admin
        pipeline = [{"$changeStream": stage}, {"$match": match}]
        command = {"aggregate": aggregate, "pipeline": pipeline, "cursor": {"batchSize": 0}}
        cursor: dict[str, Any] = (await self._send(command))["cursor"]
        return cursor

    async def _send(self, command: dict[str, Any]) -> dict[str, Any]:
        options = self._collection.codec_options
        answer: dict[str, Any] = await self._database.command(command, codec_options=options)
        return answer


def _time_of(token: dict[str, Any]) -> Timestamp:
    """The time of a resume token: its first bytes after the type byte."""
    data = bytes.fromhex(str(token["_data"])[2:18])
    return Timestamp(int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big"))
