"""The change stream: batches of undecoded events, for ever.

It speaks the two commands of a change stream itself instead of iterating over PyMongo's: one await per batch
instead of one per event, the events stay BSON until their turn comes (one that can't be decoded does not
take its batch with it), and the token behind an empty batch can be saved.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final, NamedTuple

from bson import json_util
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError

from dispatcher.codec import RAW
from dispatcher.events import Batch, Namespace, Start
from dispatcher.failures import fatal, in_short
from dispatcher.observe import Stats, get_logger

__all__ = ["ChangeStreamSource", "Scope"]

log = get_logger()

_DOCUMENT_OPERATIONS: Final = ["insert", "update", "replace", "delete"]

# Wait this long on the server for the next event; after it an empty batch brings a fresh token.
_AWAIT_MS: Final = 1_000

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0


class Scope(NamedTuple):
    """What a stream watches.

    Attributes:
        database: a single database, or None for the whole deployment.
        namespaces: the collections, sorted.
    """

    database: str | None
    namespaces: tuple[Namespace, ...]

    @classmethod
    def of(cls, namespaces: Iterable[Namespace]) -> "Scope":
        """The narrowest scope that holds these collections."""
        ordered = tuple(sorted(set(namespaces)))
        databases = {database for database, _ in ordered}
        return cls(databases.pop() if len(databases) == 1 else None, ordered)

    def pipeline(self) -> list[dict[str, Any]]:
        """What the server filters by, behind the `$changeStream` stage."""
        watched = [{"ns.db": db, "ns.coll": coll} for db, coll in self.namespaces]
        targets = [{"to.db": db, "to.coll": coll} for db, coll in self.namespaces]
        databases = sorted({db for db, _ in self.namespaces})
        return [
            {
                "$match": {
                    "$or": [
                        {"operationType": {"$in": [*_DOCUMENT_OPERATIONS, "drop", "rename"]}, "$or": watched},
                        {"operationType": "rename", "$or": targets},
                        {"operationType": "dropDatabase", "ns.db": {"$in": databases}},
                        {"operationType": "invalidate"},
                    ]
                }
            }
        ]

    @property
    def fingerprint(self) -> str:
        """A token is valid for the same scope and pipeline only; this tells whether they are the same."""
        text = json_util.dumps({"database": self.database, "pipeline": self.pipeline(), "version": 1})
        return sha256(text.encode()).hexdigest()[:16]


class ChangeStreamSource:
    """Reads a change stream; opens it again whenever it breaks, behind the last batch that was handed out.

    Args:
        client: opened for the running loop.
        scope: what to watch.
        batch_size: events per round trip, at most.
        address: of the server, for messages.
        stats: where reconnects are counted.
    """

    def __init__(
        self, client: AsyncMongoClient[Any], scope: Scope, *, batch_size: int, address: str, stats: Stats
    ) -> None:
        self._client = client
        self._scope = scope
        self._database = client[scope.database or "admin"]
        self._batch_size = batch_size
        self._address = address
        self._stats = stats
        self.connected = False

    async def now(self) -> str:
        """A token that stands for this moment: everything after it can be read later.

        Raises:
            PyMongoError: as the driver has it.
        """
        async with self._client.start_session() as session:
            reply = await self._aggregate(session, Start())
            await self._kill(session, reply["id"])
            return str(reply["postBatchResumeToken"]["_data"])

    async def batches(self, start: Start) -> AsyncIterator[Batch]:
        """The stream from `start` on, without an end.

        Yields:
            Batches, empty ones on an idle stream about once a second.

        Raises:
            DispatcherError: what no repetition can mend.
        """
        failures = 0
        while True:
            try:
                async with self._client.start_session() as session:
                    async for batch in self._one_cursor(session, start):
                        if failures:
                            log.info("reading again", action="stream.resumed", after_failures=failures)
                        failures = 0
                        start = Start(token=batch.token)
                        yield batch
                log.warning("the server closed the stream", action="stream.invalidated")
            except PyMongoError as error:
                self.connected = False
                verdict = fatal(error, self._address)
                if verdict is not None:
                    raise verdict from error
                failures += 1
                log.warning(
                    "the stream broke, opening it again",
                    action="stream.broken",
                    error=in_short(error),
                    failures=failures,
                )
            self._stats.reconnects += 1
            await asyncio.sleep(_pause(failures))

    async def _one_cursor(self, session: AsyncClientSession, start: Start) -> AsyncIterator[Batch]:
        reply = await self._aggregate(session, start)
        self.connected = True
        cursor = reply["id"]
        more = {
            "getMore": cursor,
            "collection": "$cmd.aggregate",
            "batchSize": self._batch_size,
            "maxTimeMS": _AWAIT_MS,
        }
        try:
            while cursor:
                answer = await self._database.command(more, session=session, codec_options=RAW)
                reply = answer["cursor"]
                cursor = reply["id"]
                yield Batch(reply["nextBatch"], str(reply["postBatchResumeToken"]["_data"]))
        except (GeneratorExit, asyncio.CancelledError):
            # Only when it is us who end: after an error the server may be gone, and waiting for it costs time.
            await self._kill(session, cursor)
            raise

    async def _aggregate(self, session: AsyncClientSession, start: Start) -> Any:
        stage: dict[str, Any] = {
            "fullDocument": "whenAvailable",
            "fullDocumentBeforeChange": "whenAvailable",
        }
        if self._scope.database is None:
            stage["allChangesForCluster"] = True
        if start.token is not None:
            # startAfter does what resumeAfter does, and accepts the token of an invalidate as well.
            stage["startAfter"] = {"_data": start.token}
        elif start.cluster_time is not None:
            stage["startAtOperationTime"] = start.cluster_time
        command = {
            "aggregate": 1,
            "pipeline": [{"$changeStream": stage}, *self._scope.pipeline()],
            # Empty at first: it answers at once, however far the server must read to the first event.
            "cursor": {"batchSize": 0},
            "comment": "mongoz dispatcher",
        }
        answer = await self._database.command(command, session=session, codec_options=RAW)
        return answer["cursor"]

    async def _kill(self, session: AsyncClientSession, cursor: int) -> None:
        """Free the cursor on the server. Where that fails it times out there by itself."""
        with suppress(PyMongoError, asyncio.CancelledError):
            command = {"killCursors": "$cmd.aggregate", "cursors": [cursor]}
            await self._database.command(command, session=session)


def _pause(failures: int) -> float:
    """Seconds to wait before opening again: doubling, with jitter, since others lost the same server."""
    if failures == 0:
        return 0.0
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)
