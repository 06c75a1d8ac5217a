"""Reads a change stream: endless batches of undecoded events.

This module replaces PyMongo's change stream, for three reasons. This module awaits once per batch, not once per
event. Its events stay BSON until they are decoded, so a batch can be used even if one of its events can't be
decoded. And an empty batch has a token, which can be saved.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final

from bson import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.driver_errors import Kind, drop_traceback, fatal, in_short, kind_of, raise_if_fatal
from dispatcher.core.events import EventBatch, Start
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import token_of, token_time
from dispatcher.core.retry import pause_after
from dispatcher.core.stats import Stats
from dispatcher.stream.cursor import Cursors, EventShape
from dispatcher.stream.large_events import SINGLY, SMALLER, SPLIT, WHOLE, WITHOUT, joined
from dispatcher.stream.origins import HORIZON
from dispatcher.stream.scope import Scope
from dispatcher.stream.source import RememberStamp
from mongoz.stamps import FIELD, Stamp

# The reading of stamps begins this many seconds before a position. The shorter times are for a short oplog.
_HORIZONS: Final = (HORIZON, 15, 3)

# When past events are read, the server waits only this number of milliseconds for further ones.
_GLANCE_MS: Final = 1

# After these errors, the server may still be able to send the event in another shape.
_WRONG_SHAPE: Final = frozenset({Kind.TOO_LARGE, Kind.NOT_SUPPORTED, Kind.BAD_TOKEN})

# The server's code for an unknown aggregation stage.
_NOT_SUPPORTED: Final = 40324

# Maximum characters of a token in the log: a token contains the document's key, which may have megabytes.
_LONGEST_TOKEN: Final = 200


class ChangeStreamSource:
    """Reads a change stream. If the stream breaks, it is opened again at the position after the last batch.

    Args:
        client: opened for the running loop, without a socket timeout. With a timeout, the connection to a server
            that first reads a long part of the oplog would count as dead.
        batch_size: maximum number of events per round trip.
        await_ms: milliseconds that the server waits for the next event; None for the default.
        only: a further filter of the events; it must match invalidate events. None for no filter.
    """

    name = "the oplog"
    pairs_deletes = False

    def __init__(
        self,
        client: AsyncMongoClient[Any],
        scope: Scope,
        *,
        batch_size: int,
        address: str,
        stats: Stats,
        await_ms: int | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> None:
        self._whole = WHOLE if await_ms is None else WHOLE._replace(await_ms=await_ms)
        selected = [] if only is None else [{"$match": only}]
        self._cursors = Cursors(client, scope.database, [*scope.pipeline(), *selected], batch_size)
        self._address = address
        self._stats = stats
        self._open = False
        self._splits = True

    @property
    def batch_size(self) -> int:
        """Maximum number of events per round trip, from the next round trip on."""
        return self._cursors.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._cursors.batch_size = size

    @property
    def connected(self) -> bool:
        """Returns whether the stream is open, and the server answers."""
        return self._open and not self._cursors.is_silent

    def topic_gauges(self) -> None:
        """Return None: there is no topic."""

    async def now(self) -> Start:
        """The present position: all later changes can be read from it."""
        return Start(token=await self.token_now())

    async def token_now(self) -> str:
        """A token of this moment: all later changes can be read from it."""
        return await self._cursors.now()

    def time_of(self, position: str) -> Timestamp:
        """The cluster time of a token."""
        return token_time(position)

    async def batches(self, start: Start) -> AsyncGenerator[EventBatch]:
        """Read the stream from `start` on, without an end.

        Yields:
            Batches. An idle stream yields an empty batch about once a second.
        """
        failures, too_large = 0, False
        while True:
            try:
                reading = (
                    self._read_around(start) if too_large else self._cursors.read(start, self._whole, self._opened)
                )
                async with aclosing(reading) as batches:
                    async for batch in batches:
                        if failures:
                            log.info("reading again", action="stream.resumed", after_failures=failures)
                        failures = 0
                        start = Start(token=batch.token)
                        yield batch
                if too_large:
                    too_large = False
                    continue
                self._open = False
                log.warning("the server closed the stream", action="stream.invalidated")
            except PyMongoError as error:
                if kind_of(error) is Kind.TOO_LARGE and not too_large:
                    too_large = True
                    drop_traceback(error)
                    continue
                self._open = False
                raise_if_fatal(error, self._address)
                failures += 1
                log.warning(
                    "the stream broke, opening it again",
                    action="stream.broken",
                    error=in_short(error),
                    kind=kind_of(error),
                    failures=failures,
                )
                drop_traceback(error)
            self._stats.reconnects += 1
            await asyncio.sleep(pause_after(failures))

    def _opened(self) -> None:
        self._open = True

    async def _read_around(self, start: Start) -> AsyncGenerator[EventBatch]:
        """Read the events before the event that is too large, then this event in a shape that can be sent.

        Raises:
            PyMongoError: a command fails. Its kind is `TOO_LARGE` if the event can neither be sent nor skipped.
        """
        for read in (self._one_by_one, self._in_fragments, self._in_part):
            try:
                async with aclosing(read(start)) as batches:
                    async for batch in batches:
                        start = Start(token=batch.token)
                        yield batch
            except PyMongoError as error:
                if kind_of(error) is Kind.NOT_SUPPORTED:
                    self._splits = False
                if kind_of(error) not in _WRONG_SHAPE or read == self._in_part:
                    raise
                drop_traceback(error)
            else:
                return

    async def _one_by_one(self, start: Start) -> AsyncGenerator[EventBatch]:
        """Read the events before the event that is too large.

        The large event itself raises an error, unless the server can send it alone. Without an error, the reading
        ends at an empty batch, or after more events than a batch may have. Then the stream is read as usual again.
        """
        count = 0
        async with aclosing(self._cursors.read(start, SINGLY)) as batches:
            async for batch in batches:
                yield batch
                count += len(batch.events)
                if not batch.events or count > self.batch_size:
                    return

    async def _in_fragments(self, start: Start) -> AsyncGenerator[EventBatch]:
        """Read the large event in fragments. Continue with the next events, as long as they are also too large."""
        if not self._splits:
            raise OperationFailure("the server does not split events", _NOT_SUPPORTED)
        async with aclosing(joined(self._cursors.read(start, SPLIT))) as batches:
            async for batch in batches:
                yield batch

    async def _in_part(self, start: Start) -> AsyncGenerator[EventBatch]:
        """Read the large event with fewer images. If no shape of it can be sent, read the events after it."""
        for how, shape in SMALLER.items():
            batch = await self._next(start, shape)
            if batch is not None:
                log.warning(
                    f"the server can't send an event whole; it is delivered {how}",
                    action="event.too_large",
                    token=batch.token[:_LONGEST_TOKEN],
                    how=how,
                )
                yield batch
                return
        async with aclosing(self._cursors.read(start, WITHOUT)) as batches:
            async for batch in batches:
                yield batch._replace(lost_after=start.after)
                return

    async def _next(self, start: Start, shape: EventShape) -> EventBatch | None:
        """Read the next event in another shape. Returns None if it is too large in this shape too."""
        try:
            async with aclosing(self._cursors.read(start, shape)) as batches:
                async for batch in batches:
                    if batch.events:
                        event = batch.events[0]
                        return EventBatch([event], token_of(event["_id"]))
        except PyMongoError as error:
            if kind_of(error) not in _WRONG_SHAPE:
                raise
            drop_traceback(error)
        return None

    async def recall(self, before: str, remember: RememberStamp) -> float:
        """Read the stamps of the last writes before a position, and pass them to `remember`.

        If the oplog is short, this reads fewer stamps. If the server refuses the command, this reads none.

        Args:
            before: the token of the position. The change with this token is read, too.
            remember: called with each stamp.

        Returns:
            A time in seconds since 1970. All stamps from this time on were read.
        """
        position, failures, horizons = token_time(before).time, 0, [*_HORIZONS]
        while horizons:
            since = Timestamp(max(1, position - horizons[0]), 1)
            try:
                async for event in self._stamped(since, before):
                    remember(Stamp.unpack(event["stamp"]), event.get("wallTime"))
            except PyMongoError as error:
                failures += 1
                if fatal(error, self._address) is not None:
                    horizons.pop(0)
                log.warning(
                    "the stamps of earlier writes could not be read; if a client has copied a document with its "
                    "stamp, receivers may miss the copy",
                    action="stamps.not_read",
                    error=in_short(error),
                    trying_again=bool(horizons),
                )
            else:
                return float(since.time)
            await asyncio.sleep(pause_after(failures) if horizons else 0)
        return float(position)

    async def _stamped(self, since: Timestamp, until: str) -> AsyncIterator[RawEvent]:
        """Read the past changes with a stamp, reduced to `_id`, `wallTime` and `stamp`.

        If there are no such changes, this takes one round trip more than opening the stream.

        Args:
            until: the token of the last change to read.

        Raises:
            PyMongoError: a command fails; some events may have been yielded.
        """
        start, before = Start(cluster_time=since), ""
        glance = EventShape({}, tuple(_stamped_until(until)), await_ms=_GLANCE_MS)
        while before < until:
            async with aclosing(self._cursors.read(start, glance)) as batches:
                async for batch in batches:
                    for event in batch.events:
                        if token_of(event["_id"]) > until:
                            return
                        if "stamp" in event:
                            yield event
                    if batch.token >= until or (not batch.events and _is_at_the_end(batch.token, before, until)):
                        return
                    before, start = batch.token, Start(token=batch.token)
            # The server has closed the stream, for example because the database was dropped: continue after that.


async def token_of_now(client: AsyncMongoClient[Any], scope: Scope, address: str) -> str:
    """A resume token of this moment."""
    return await ChangeStreamSource(client, scope, batch_size=1, address=address, stats=Stats()).token_now()


def _stamped_until(token: str) -> list[dict[str, Any]]:
    """The pipeline stages that select past changes with stamps.

    They also select all changes with a later cluster time than the token, so that the server answers as soon as it
    finds one. They also select invalidate events. Such an event ends the stream, and its token opens the next
    stream.
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
    """Returns whether all changes up to the token `until` have been read.

    The token after an empty batch may contain only a time. It then sorts before the changes of that time, and
    these may still come.

    Args:
        token: the token after an empty batch.
        before: the token after the previous batch.
    """
    return token == before or token_time(token) > token_time(until)
