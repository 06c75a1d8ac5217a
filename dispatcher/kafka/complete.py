"""Completes a topic: changes that the topic has lost are read from the oplog, if the oplog still has them.

A topic loses changes by its retention, or when it is deleted. Then a change stream reads the changes up to the
relay's position, and the topic is read from this position on.

A dispatcher's position has a token, and a place in the topic. While the change stream is read, the token moves,
but the place stays. If the process restarts meanwhile, the topic does not have the record at this place any more.
So a change stream is read again, from the token on.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from bson.timestamp import Timestamp

from dispatcher.core.bson_codec import RawEvent, StampedDelete
from dispatcher.core.events import EventBatch, Start
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import token_of, token_time
from dispatcher.core.stats import TopicGauges
from dispatcher.exceptions import DispatcherError, HistoryLost
from dispatcher.kafka.delete_stamps import DeleteStamps
from dispatcher.stream.bounded import until
from dispatcher.stream.source import RememberStamp, Source

# Seconds between two checks whether another change stream may be opened.
_BETWEEN: Final = 1.0


class CompletedTopic:
    """A topic, completed with the changes that it has lost.

    Args:
        topic: the source that may lose changes.
        oplog: a change stream of the same documents.
        streams: limits the number of change streams that are open at the same time.
    """

    pairs_deletes = True

    def __init__(self, topic: Source, oplog: Source, streams: asyncio.Semaphore) -> None:
        self._topic = topic
        self._oplog = oplog
        self._streams = streams

    @property
    def batch_size(self) -> int:
        """Maximum number of events per batch, from the next batch on."""
        return self._topic.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._topic.batch_size = self._oplog.batch_size = size

    @property
    def connected(self) -> bool:
        """Returns whether the brokers and the server answer."""
        return self._topic.connected

    @property
    def name(self) -> str:
        """The name of the source, for messages."""
        return self._topic.name

    def topic_gauges(self) -> TopicGauges | None:
        """The current gauges of the topic."""
        return self._topic.topic_gauges()

    async def now(self) -> Start:
        """The position after the changes that the topic has lost; if it has lost none, the relay's position."""
        return await self._topic.now()

    def time_of(self, position: str) -> Timestamp:
        """The cluster time of a token."""
        return self._topic.time_of(position)

    async def batches(self, start: Start) -> AsyncGenerator[EventBatch]:
        """Read the topic from `start` on, without an end.

        Raises:
            HistoryLost: neither the topic nor the oplog holds the changes. `now` returns the position after them.
        """
        after = start.after
        while True:
            try:
                async with aclosing(self._topic.batches(start)) as batches:
                    async for batch in batches:
                        after = batch.token
                        yield batch
            except HistoryLost as error:
                lost = error
            start = await self._topic.now()
            assert start.token is not None  # the result of `now` has a token
            try:
                async with aclosing(self._missing(after, start.token)) as batches:
                    async for batch in batches:
                        after = batch.token
                        yield batch
            except DispatcherError as error:
                raise _lost_in_both(lost, error) from error
            log.info("the oplog had all changes that the topic has lost", action="topic.completed", of=self.name)

    async def _missing(self, after: str, end: str) -> AsyncGenerator[EventBatch]:
        """Read the changes between two tokens from the oplog."""
        begins, ends = (token_time(one).as_datetime().isoformat() for one in (after, end))
        log.warning(
            "the topic has lost changes; they are read from the oplog",
            action="topic.incomplete",
            of=self.name,
            since=begins,
            until=ends,
        )
        while self._streams.locked():
            yield EventBatch([], after)
            await asyncio.sleep(_BETWEEN)
        # The token may belong to another stream, or lie between a delete marker and its delete. So the change
        # stream begins at the time of the token: before all changes of the token's transaction.
        stamps, start = DeleteStamps(), Start(cluster_time=token_time(after))
        async with (
            self._streams,
            aclosing(self._oplog.batches(start)) as batches,
            aclosing(until(batches, end)) as bounded,
        ):
            async for batch in bounded:
                yield _relayed(batch, stamps, after)

    async def recall(self, before: str, remember: RememberStamp) -> float:
        """Read the stamps of the last writes before a position, see `Source.recall`."""
        try:
            return await self._topic.recall(before, remember)
        except HistoryLost:
            return await self._oplog.recall(before, remember)


def _lost_in_both(lost: HistoryLost, error: DispatcherError) -> HistoryLost:
    """The error about changes that neither the topic nor the oplog holds."""
    why = (
        "The oplog does not hold them either." if isinstance(error, HistoryLost) else f"The oplog: {error.message}"
    )
    return HistoryLost(f"{lost.message} {why}", remedy=lost.remedy)


def _relayed(batch: EventBatch, stamps: DeleteStamps, after: str) -> EventBatch:
    """A batch of a change stream, as it would come from a topic. The changes up to `after` are left out."""
    events: list[RawEvent] = []
    for event in batch.events:
        stamp = stamps.take(event)
        if stamp is not None and token_of(event["_id"]) > after:
            events.append(StampedDelete(event.raw, stamp) if stamp else event)
    if not batch.events:
        stamps.give_up()
    if batch.token <= after:
        return EventBatch([], after)
    return batch._replace(events=events)
