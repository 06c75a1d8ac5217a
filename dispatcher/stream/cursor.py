"""Runs the two commands of a change stream: aggregate opens it, and getMore reads the next batch.

A getMore waits a second for the next event. But if the server first has to read hours of changes of other
collections, the server does not answer during this time, and the connection looks dead.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from time import monotonic
from typing import Any, Final, NamedTuple

from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import NetworkTimeout, PyMongoError

from dispatcher.core.bson_codec import RAW, events_of
from dispatcher.core.driver_errors import Kind, kind_of
from dispatcher.core.events import EventBatch, Start
from dispatcher.core.resume_tokens import as_sent, token_of
from mongoz.connection.elections import session_of

# Milliseconds for which the server waits for the next event. Then it sends an empty batch with a new token.
_AWAIT_MS: Final = 1_000

# Maximum number of events of the first round trip, and of each round trip after a batch that was not full. Each
# full batch multiplies this number by four. The server answers when it has that many events, or at the end of the
# oplog. If clients write about as fast as the server reads, the server does not reach the end of the oplog. Then,
# with a large number, receivers would wait until the server has read a thousand events.
_FEW: Final = 100
_FACTOR: Final = 4

# Seconds without an answer after which a command fails. This time doubles after each such failure, because the
# server may have a long part of the oplog to read. The second number is the maximum.
_PATIENCE: Final = 15.0
_LONGEST_PATIENCE: Final = 3_600.0

# Seconds without an answer after which the stream counts as not connected.
_SILENCE: Final = 10.0

# Time limit in seconds for freeing a cursor.
_FREEING: Final = 2.0


class EventShape(NamedTuple):
    """The form in which the server sends events.

    Attributes:
        options: the options of the `$changeStream` stage; they select the images.
        stages: pipeline stages after the filter.
        size: maximum number of events per round trip; None for the default.
        await_ms: milliseconds for which the server waits for the first event.
    """

    options: Mapping[str, Any]
    stages: tuple[Mapping[str, Any], ...] = ()
    size: int | None = None
    await_ms: int = _AWAIT_MS


def _ignore() -> None:
    """Do nothing."""


class Cursors:
    """Opens cursors of one change stream, and reads them.

    Args:
        client: opened for the running loop, without a socket timeout.
        database: the watched database; None for the whole deployment.
        pipeline: the stages by which the server filters.
        batch_size: maximum number of events per round trip, after full batches.

    Attributes:
        batch_size: the present value of the argument; it may be changed.
    """

    def __init__(
        self, client: AsyncMongoClient[Any], database: str | None, pipeline: list[dict[str, Any]], batch_size: int
    ) -> None:
        self._client = client
        self._everywhere = database is None
        self._database = client[database or "admin"]
        self._pipeline = pipeline
        self.batch_size = batch_size
        self._patience = _PATIENCE
        self._asked_at: float | None = None

    @property
    def is_silent(self) -> bool:
        """Returns whether the server has not answered for a while."""
        return self._asked_at is not None and monotonic() - self._asked_at > _SILENCE

    async def now(self) -> str:
        """A token of this moment."""
        async with session_of(self._client) as session:
            reply = await self._open(session, Start(), EventShape({}))
            await self._kill(session, reply["id"])
            return token_of(reply["postBatchResumeToken"])

    async def read(
        self, start: Start, shape: EventShape, opened: Callable[[], None] = _ignore
    ) -> AsyncGenerator[EventBatch]:
        """Read the batches of one cursor, until the server closes it.

        Args:
            opened: called when the server has opened the cursor.
        """
        async with session_of(self._client) as session:
            reply = await self._open(session, start, shape)
            opened()
            cursor = reply["id"]
            more = {
                "getMore": cursor,
                "collection": "$cmd.aggregate",
                "maxTimeMS": shape.await_ms,
            }
            size = _FEW
            batch: EventBatch | None
            try:
                while cursor:
                    more["batchSize"] = asked = shape.size or min(size, self.batch_size)
                    batch, cursor = await self._more(more, session)
                    size = asked * _FACTOR if len(batch.events) >= asked else _FEW
                    yield batch
            except (GeneratorExit, asyncio.CancelledError):
                # A later error would keep this frame and its batch in memory, see `driver_errors.drop_traceback`.
                batch = None
                # The caller ends the stream, so free the cursor. After an error of the server or the network the
                # cursor is not freed, because the server may not answer.
                await self._kill(session, cursor)
                raise

    async def reaches_back_to(self, time: Timestamp) -> bool:
        """Returns whether the oplog still holds the changes since a cluster time."""
        glance = EventShape({}, ({"$project": {"_id": 1}},), size=1, await_ms=1)  # a single small event, or none
        try:
            async with aclosing(self.read(Start(cluster_time=time), glance)) as batches:
                await anext(batches, None)
        except PyMongoError as error:
            if kind_of(error) is not Kind.HISTORY_LOST:
                raise
            return False
        return True

    async def _more(self, command: dict[str, Any], session: AsyncClientSession) -> tuple[EventBatch, int]:
        """Read the next batch. Returns the batch and the cursor id, which is 0 after the last batch."""
        events, rest = events_of((await self._ask(command, session))["cursor"])
        return EventBatch(events, token_of(rest["postBatchResumeToken"])), rest["id"]

    async def _open(self, session: AsyncClientSession, start: Start, shape: EventShape) -> Any:
        stage = dict(shape.options)
        if self._everywhere:
            stage["allChangesForCluster"] = True
        if start.token is not None:
            # Like resumeAfter, but it accepts the token of an invalidate event too.
            stage["startAfter"] = as_sent(start.token)
        elif start.cluster_time is not None:
            stage["startAtOperationTime"] = start.cluster_time
        command = {
            "aggregate": 1,
            "pipeline": [{"$changeStream": stage}, *self._pipeline, *shape.stages],
            # The first batch is empty, so the server answers immediately, however far away the first event is.
            "cursor": {"batchSize": 0},
            "comment": "mongoz dispatcher",
        }
        return (await self._ask(command, session))["cursor"]

    async def _ask(self, command: dict[str, Any], session: AsyncClientSession) -> Any:
        """Run a command, and return the answer. Without an answer in time, the connection counts as broken."""
        self._asked_at = monotonic()
        try:
            async with asyncio.timeout(self._patience):
                answer = await self._database.command(command, session=session, codec_options=RAW)
        except TimeoutError as error:
            waited, self._patience = self._patience, min(_LONGEST_PATIENCE, self._patience * 2)
            raise NetworkTimeout(f"no answer within {waited:g} s") from error
        finally:
            self._asked_at = None
        if "getMore" in command:
            self._patience = _PATIENCE
        return answer

    async def _kill(self, session: AsyncClientSession, cursor: int) -> None:
        """Free the cursor on the server. If this fails, the cursor times out there."""
        with suppress(PyMongoError, asyncio.CancelledError, TimeoutError):
            async with asyncio.timeout(_FREEING):
                command = {"killCursors": "$cmd.aggregate", "cursors": [cursor]}
                await self._database.command(command, session=session)
