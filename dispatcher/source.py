"""The change stream: batches of undecoded events, for ever.

It speaks the two commands of a change stream itself instead of iterating over PyMongo's: one await per batch
instead of one per event, the events stay BSON until their turn comes (one that can't be decoded does not
take its batch with it), and the token behind an empty batch can be saved.
"""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, suppress
from hashlib import sha256
from typing import Any, Final, NamedTuple

from bson import Regex, Timestamp, json_util
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError

from dispatcher.codec import RAW
from dispatcher.events import Batch, Namespace, Start, token_time
from dispatcher.failures import fatal, in_short, kind_of
from dispatcher.observe import Stats, get_logger
from dispatcher.partitions import belongs, hash_of
from mongoz.connection.watching import NamespacePattern
from mongoz.stamps import FIELD

__all__ = ["ChangeStreamSource", "Scope", "pause_after"]

log = get_logger()

_DOCUMENT_OPERATIONS: Final = ["insert", "update", "replace", "delete"]

# Wait this long on the server for the next event; after it an empty batch brings a fresh token.
_AWAIT_MS: Final = 1_000

# The same for a look into the past, which has nothing to wait for.
_GLANCE_MS: Final = 1

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0


class Scope(NamedTuple):
    """What a stream watches.

    Attributes:
        database: a single database, or None for the whole deployment.
        namespaces: the collections, sorted.
        patterns: what the names of further ones look like, sorted.
        apart_from: a database that patterns do not mean, though it may look alike.
        partition: which part of the documents.
        partitions: how many parts there are.
    """

    database: str | None
    namespaces: tuple[Namespace, ...]
    patterns: tuple[NamespacePattern, ...] = ()
    apart_from: str = ""
    partition: int = 0
    partitions: int = 1

    @classmethod
    def of(
        cls, namespaces: Iterable[Namespace], patterns: Iterable[NamespacePattern] = (), apart_from: str = ""
    ) -> "Scope":
        """The narrowest scope that holds these collections.

        Args:
            namespaces: named collections.
            patterns: of further ones.
            apart_from: the dispatcher's own database. Its state is no application's document, and who watched it
                would be told of every save of the position.
        """
        ordered, alike = tuple(sorted(set(namespaces))), tuple(sorted(set(patterns)))
        databases = {database for database, _ in ordered} | {pattern.database for pattern in alike}
        single = databases.pop() if len(databases) == 1 else None
        return cls(single if single and "*" not in single else None, ordered, alike, apart_from)

    def part(self, partition: int, partitions: int) -> "Scope":
        """One part of it, by the hash of the document's key."""
        return self._replace(partition=partition, partitions=partitions)

    def pipeline(self) -> list[dict[str, Any]]:
        """What the server filters by, behind the `$changeStream` stage."""
        return [self._watched(), *self._partitioned()]

    def _partitioned(self) -> list[dict[str, Any]]:
        """All changes of a document are in one part. What is no change of a document is in the first one.

        But every stream must be told of its own end.
        """
        if self.partitions == 1:
            return []
        elsewhere: dict[str, Any] = {"operationType": "invalidate"}
        if self.partition == 0:
            elsewhere = {"operationType": {"$nin": _DOCUMENT_OPERATIONS}}
        here = belongs(hash_of("$documentKey._id"), self.partition, self.partitions)
        ours = {"operationType": {"$in": _DOCUMENT_OPERATIONS}, "$expr": here}
        return [{"$match": {"$or": [elsewhere, ours]}}]

    def _watched(self) -> dict[str, Any]:
        named = [*self.namespaces, *(self._as_filter(pattern) for pattern in self.patterns)]
        watched = [{"ns.db": db, "ns.coll": coll} for db, coll in named]
        targets = [{"to.db": db, "to.coll": coll} for db, coll in named]
        names = {db for db, _ in named if isinstance(db, str)}
        expressions = {db.pattern for db, _ in named if isinstance(db, Regex)}
        databases = [*sorted(names), *map(Regex, sorted(expressions))]
        return {
            "$match": {
                "$or": [
                    {"operationType": {"$in": [*_DOCUMENT_OPERATIONS, "drop", "rename"]}, "$or": watched},
                    {"operationType": "rename", "$or": targets},
                    {"operationType": "dropDatabase", "ns.db": {"$in": databases}},
                    {"operationType": "invalidate"},
                ]
            }
        }

    def _as_filter(self, pattern: NamespacePattern) -> tuple[Any, Any]:
        """What the server compares the names of a change with."""
        database, collection = pattern.database, pattern.collection
        return (
            Regex(pattern.database_regex((self.apart_from,))) if "*" in database else database,
            Regex(pattern.collection_regex, re.DOTALL) if "*" in collection else collection,
        )

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

    Attributes:
        batch_size: as it is now.
        connected: whether the stream is open at this moment.
    """

    def __init__(
        self, client: AsyncMongoClient[Any], scope: Scope, *, batch_size: int, address: str, stats: Stats
    ) -> None:
        self._client = client
        self._scope = scope
        self._database = client[scope.database or "admin"]
        self.batch_size = batch_size
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
                self.connected = False
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
                    kind=kind_of(error),
                    failures=failures,
                )
            self._stats.reconnects += 1
            await asyncio.sleep(pause_after(failures))

    async def stamped(self, since: Timestamp, until: str) -> AsyncIterator[RawBSONDocument]:
        """The changes of the past that brought a stamp, reduced to `_id`, `wallTime` and `stamp`.

        It takes one round trip more than opening the stream if there is nothing to read.

        Args:
            since: where to begin.
            until: the token of the last change to look at.

        Raises:
            PyMongoError: as the driver has it; some may have been handed out.
        """
        start, before = Start(cluster_time=since), ""
        while before < until:
            async with (
                self._client.start_session() as session,
                aclosing(self._one_cursor(session, start, _stamped_until(until), _GLANCE_MS)) as batches,
            ):
                async for batch in batches:
                    for event in batch.events:
                        if event["_id"]["_data"] > until:
                            return
                        if "stamp" in event:
                            yield event
                    if batch.token >= until or (not batch.events and _is_at_the_end(batch.token, before, until)):
                        return
                    before, start = batch.token, Start(token=batch.token)
            # The server closed it, for example because the database was dropped then; it goes on behind that.

    async def _one_cursor(
        self,
        session: AsyncClientSession,
        start: Start,
        glance: list[dict[str, Any]] | None = None,
        await_ms: int = _AWAIT_MS,
    ) -> AsyncGenerator[Batch]:
        reply = await self._aggregate(session, start, glance)
        self.connected = self.connected or glance is None
        cursor = reply["id"]
        more = {
            "getMore": cursor,
            "collection": "$cmd.aggregate",
            "maxTimeMS": await_ms,
        }
        try:
            while cursor:
                more["batchSize"] = self.batch_size
                answer = await self._database.command(more, session=session, codec_options=RAW)
                reply = answer["cursor"]
                cursor = reply["id"]
                yield Batch(reply["nextBatch"], str(reply["postBatchResumeToken"]["_data"]))
        except (GeneratorExit, asyncio.CancelledError):
            # Only when it is us who end: after an error the server may be gone, and waiting for it costs time.
            await self._kill(session, cursor)
            raise

    async def _aggregate(
        self, session: AsyncClientSession, start: Start, glance: list[dict[str, Any]] | None = None
    ) -> Any:
        stage: dict[str, Any] = {}
        if glance is None:
            stage = {"fullDocument": "whenAvailable", "fullDocumentBeforeChange": "whenAvailable"}
        if self._scope.database is None:
            stage["allChangesForCluster"] = True
        if start.token is not None:
            # startAfter does what resumeAfter does, and accepts the token of an invalidate as well.
            stage["startAfter"] = {"_data": start.token}
        elif start.cluster_time is not None:
            stage["startAtOperationTime"] = start.cluster_time
        command = {
            "aggregate": 1,
            "pipeline": [{"$changeStream": stage}, *self._scope.pipeline(), *(glance or ())],
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


def pause_after(failures: int) -> float:
    """Seconds to wait before opening a stream again: doubling, with jitter, since others lost the same server."""
    if failures == 0:
        return 0.0
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)


def _stamped_until(token: str) -> list[dict[str, Any]]:
    """What the server filters by in a look into the past.

    The first change behind the token is let through whatever it is, so that the server stops reading there; and an
    invalidate, since whoever goes on needs its token.
    """
    inserted, updated = f"fullDocument.{FIELD}", f"updateDescription.updatedFields.{FIELD}"
    wanted = [
        {"operationType": "insert", inserted: {"$type": "binData"}},
        {"operationType": "update", updated: {"$type": "binData"}},
        {"operationType": "invalidate"},
        {"clusterTime": {"$gt": token_time(token)}},
    ]
    stamp = {"$ifNull": [f"${updated}", f"${inserted}", "$$REMOVE"]}
    return [{"$match": {"$or": wanted}}, {"$project": {"wallTime": 1, "stamp": stamp}}]


def _is_at_the_end(token: str, before: str, until: str) -> bool:
    """Whether nothing more comes before `until`, judged by the tokens behind an empty batch and the one before.

    The token behind an empty batch may be a mere time, and sorts before those of the changes of that time.
    """
    return token == before or token_time(token) > token_time(until)
