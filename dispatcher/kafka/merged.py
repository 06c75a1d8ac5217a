"""Merges the events of all partitions of a topic into one source, in the order of their tokens."""

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from operator import itemgetter
from typing import Any, TypeVar

from bson.timestamp import Timestamp

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import EventBatch, LogPlace, Start
from dispatcher.core.resume_tokens import token_of, token_time
from dispatcher.core.tasks import end
from dispatcher.kafka.log import TopicLog
from dispatcher.kafka.source import KafkaSource
from dispatcher.stream.source import RememberStamp, Source

T = TypeVar("T")


class _Partition:
    """The events of one partition that were read, but are not yielded yet.

    Attributes:
        lost: for each event that can't be read, a batch that has no events, but reports the loss.
        token: all events up to this token are read.
    """

    def __init__(self, batches: AsyncGenerator[EventBatch]) -> None:
        self._batches = batches
        self._waiting: deque[tuple[str, RawEvent]] = deque()
        self.lost: list[EventBatch] = []
        self.token = ""

    async def read(self) -> None:
        """Read the next batch."""
        batch = await anext(self._batches)
        if batch.lost_after is not None:
            self.lost.append(batch._replace(events=[]))
        self._waiting.extend((token_of(event["_id"]), event) for event in batch.events)
        self.token = batch.token

    def take(self, token: str) -> list[tuple[str, RawEvent]]:
        """Take the events up to a token, with their tokens."""
        taken = []
        while self._waiting and self._waiting[0][0] <= token:
            taken.append(self._waiting.popleft())
        return taken


class MergedTopic:
    """All partitions of a topic as one source.

    An event is yielded when no partition can have an earlier event. The token of a partition without new records
    moves only with the relay's position. So the events of the other partitions may wait for some seconds.

    Args:
        partitions: the partitions of the topic.
        name: the name of the topic, for messages.
    """

    pairs_deletes = True

    def __init__(self, partitions: Sequence[Source], name: str) -> None:
        self._partitions = partitions
        self._name = name

    @property
    def batch_size(self) -> int:
        """Maximum number of events per batch of a partition."""
        return self._partitions[0].batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        for one in self._partitions:
            one.batch_size = size

    @property
    def connected(self) -> bool:
        """Returns whether the brokers and the server answer."""
        return self._partitions[0].connected

    @property
    def name(self) -> str:
        """The name of the source, for messages."""
        return self._name

    def topic_gauges(self) -> None:
        """Return None: a replay reports no gauges."""

    async def now(self) -> Start:
        """The end of lost history; if no history is lost, the relay's position."""
        ends = await together([one.now() for one in self._partitions])
        return Start(token=max(one.token or "" for one in ends))

    def time_of(self, position: str) -> Timestamp:
        """The cluster time of a token."""
        return token_time(position)

    async def batches(self, start: Start) -> AsyncGenerator[EventBatch]:
        """Read all partitions after a token or a time, without an end.

        Raises:
            HistoryLost: a partition does not hold the changes any more.
        """
        async with AsyncExitStack() as stack:
            partitions = [
                _Partition(await stack.enter_async_context(aclosing(one.batches(start))))
                for one in self._partitions
            ]
            behind = partitions
            while True:
                await together([one.read() for one in behind])
                token = min(one.token for one in partitions)
                found = sorted((pair for one in partitions for pair in one.take(token)), key=itemgetter(0))
                for lost in _lost_until(token, partitions):
                    count = bisect_right(found, lost.token, key=itemgetter(0))
                    if count:
                        yield EventBatch([event for _, event in found[:count]], found[count - 1][0])
                        del found[:count]
                    yield lost
                yield EventBatch([event for _, event in found], token)
                behind = [one for one in partitions if one.token == token]

    async def recall(self, before: str, remember: RememberStamp) -> float:
        """Read the stamps of the last writes before a position, and pass them to `remember`."""
        return max(await together([one.recall(before, remember) for one in self._partitions]))


def _lost_until(token: str, partitions: Sequence[_Partition]) -> list[EventBatch]:
    """Take the batches about lost events up to a token, in their order."""
    found = [batch for one in partitions for batch in one.lost if batch.token <= token]
    for one in partitions:
        one.lost = [batch for batch in one.lost if batch.token > token]
    return sorted(found, key=lambda batch: batch.token)


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run some coroutines at the same time. The first error ends the other coroutines."""
    tasks = [asyncio.create_task(one, name="read-partition") for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await end(tasks)


async def places_at(topic: TopicLog, token: str) -> list[LogPlace]:
    """The places of a token in all partitions of a topic.

    Raises:
        HistoryLost: a partition does not reach back to the token.
    """
    partitions = [
        KafkaSource(topic.partition(number), Start(token=token), batch_size=1)
        for number in range(topic.watch.layout.partitions)
    ]
    return await together([one.place_of(token) for one in partitions])
