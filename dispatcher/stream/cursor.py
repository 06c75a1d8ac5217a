"""The two commands of a change stream: open it, and ask for more.

A server that is silent is told from one that works: a getMore waits a second for something to happen, but to get
there the server may have to read through hours of other people's changes, and says nothing meanwhile.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, Final, NamedTuple

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import NetworkTimeout, PyMongoError

from dispatcher.core.bson_codec import RAW, events_of
from dispatcher.core.events import Batch, Start
from dispatcher.core.resume_tokens import as_sent, token_of
from mongoz.connection.elections import session_of

__all__ = ["Cursors", "Shape"]

# Wait this long on the server for the next event; after it an empty batch brings a fresh token.
_AWAIT_MS: Final = 1_000

# Events in the first round trip, and again whenever there were fewer than asked for; four times as many after each
# full one. The server answers when it has that many, or has come to the end of the oplog: while others write about
# as fast as it reads it does not come there, and receivers would wait for a thousand events with nothing to do.
_FEW: Final = 100
_FACTOR: Final = 4

# Seconds that a command may take before its connection is given up. A connection that died half-way looks like a
# server that has far to read, so that after each time twice as long is waited: sooner or later it gets there.
_PATIENCE: Final = 15.0
_LONGEST_PATIENCE: Final = 3_600.0

# Seconds of silence after which nobody should believe any more that the stream is being read.
_SILENCE: Final = 10.0

# Seconds that freeing a cursor may take.
_FREEING: Final = 2.0


class Shape(NamedTuple):
    """How events are asked for.

    Attributes:
        options: of the `$changeStream` stage: which images.
        stages: behind the filter.
        size: events in one round trip, at most; None for the usual number.
        await_ms: how long the server waits for the first one.
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
        client: opened for the running loop. It must not give up on a silent server by itself.
        database: that is watched; None for the whole deployment.
        pipeline: what the server filters by.
        batch_size: events per round trip, at most; as many as that are asked for while we are behind.

    Attributes:
        batch_size: as it is now.
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
        """Whether the server was asked a while ago, and has not answered yet."""
        return self._asked_at is not None and monotonic() - self._asked_at > _SILENCE

    async def now(self) -> str:
        """A token that stands for this moment.

        Raises:
            PyMongoError: as the driver has it.
        """
        async with session_of(self._client) as session:
            reply = await self._open(session, Start(), Shape({}))
            await self._kill(session, reply["id"])
            return token_of(reply["postBatchResumeToken"])

    async def read(
        self, start: Start, shape: Shape, opened: Callable[[], None] = _ignore
    ) -> AsyncGenerator[Batch]:
        """What one cursor brings, until the server closes it.

        Args:
            start: where to begin.
            shape: of the events.
            opened: called when the server has accepted that.

        Raises:
            PyMongoError: as the driver has it.
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
            batch: Batch | None
            try:
                while cursor:
                    more["batchSize"] = asked = shape.size or min(size, self.batch_size)
                    batch, cursor = await self._more(more, session)
                    size = asked * _FACTOR if len(batch.events) >= asked else _FEW
                    yield batch
            except (GeneratorExit, asyncio.CancelledError):
                batch = None  # whatever goes wrong from here on would remember this frame, see `failures.let_go`
                # Only when it is us who end: after an error the server may be gone, and waiting for it costs time.
                await self._kill(session, cursor)
                raise

    async def _more(self, command: dict[str, Any], session: AsyncClientSession) -> tuple[Batch, int]:
        """The next batch, and the cursor; 0 if it was the last one."""
        events, rest = events_of((await self._ask(command, session))["cursor"])
        return Batch(events, token_of(rest["postBatchResumeToken"])), rest["id"]

    async def _open(self, session: AsyncClientSession, start: Start, shape: Shape) -> Any:
        stage = dict(shape.options)
        if self._everywhere:
            stage["allChangesForCluster"] = True
        if start.token is not None:
            # startAfter does what resumeAfter does, and accepts the token of an invalidate as well.
            stage["startAfter"] = as_sent(start.token)
        elif start.cluster_time is not None:
            stage["startAtOperationTime"] = start.cluster_time
        command = {
            "aggregate": 1,
            "pipeline": [{"$changeStream": stage}, *self._pipeline, *shape.stages],
            # Empty at first: it answers at once, however far the server must read to the first event.
            "cursor": {"batchSize": 0},
            "comment": "mongoz dispatcher",
        }
        return (await self._ask(command, session))["cursor"]

    async def _ask(self, command: dict[str, Any], session: AsyncClientSession) -> Any:
        """The answer to a command; a connection that has died unnoticed is left behind."""
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
        """Free the cursor on the server. Where that fails it times out there by itself."""
        with suppress(PyMongoError, asyncio.CancelledError, TimeoutError):
            async with asyncio.timeout(_FREEING):
                command = {"killCursors": "$cmd.aggregate", "cursors": [cursor]}
                await self._database.command(command, session=session)
