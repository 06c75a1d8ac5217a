"""Reads the partitions of a topic: one consumer for all partitions of a process.

A thread polls the consumer, and hands the messages to the event loop. The loop sorts them into the queues of the
partitions. When all messages are sorted, and a queue has room, the thread polls again. So memory is bounded even
if a receiver blocks the loop. If a queue is full while another queue has room, the partition of the full queue is
paused. If all queues are full for some seconds, all partitions are paused.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import groupby
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Final, Self

from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.core.state import Group
from dispatcher.core.stats import TopicGauges
from dispatcher.core.tasks import end
from dispatcher.exceptions import KafkaError
from dispatcher.kafka.committed import CommittedOffsets
from dispatcher.kafka.config import KafkaConfig, config_of
from dispatcher.kafka.foreign import place_of
from dispatcher.kafka.looks import Look, TopicWatch
from dispatcher.kafka.polling import Polling
from dispatcher.kafka.relay_state import RelayStore
from dispatcher.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

# librdkafka may use a quarter of `--max-queued-mb`, and the queues of the partitions another quarter.
_FETCHED: Final = 4
_QUEUED: Final = 4

# Maximum number of messages that one poll takes. If messages are large, a poll takes fewer: about an eighth of
# the bytes that the queues may hold. So the queues do not grow far beyond their bounds.
_AT_ONCE: Final = 1_000
_BATCHES: Final = 8

# The answers of brokers are compressed. Some become twenty times as large when librdkafka decompresses them. So
# librdkafka stops fetching when it has half of its share. An answer has at most a 25th of the share, or
# `_SMALLEST_ANSWER` bytes if that is more. A record that is larger than this comes in an answer of its own.
_ANSWER: Final = 25
_SMALLEST_ANSWER: Final = 64_000

# Milliseconds until librdkafka fetches again after its queue was full. The default is a second. During a second,
# the queue would become empty.
_BACKOFF_MS: Final = 10

# Milliseconds between two reports of librdkafka about its queue.
_REPORTS_MS: Final = 2_000

# Maximum number of change streams that are open at the same time to read changes that the topic has lost. For
# each of them, the server reads the whole oplog.
_STREAMS: Final = 2

# Seconds for which a reader waits for a record.
_EVERY: Final = 1.0

# Maximum milliseconds between two calls of `poll`. Slow receivers delay the calls, so this is the largest value
# that the client accepts.
_DAY_MS: Final = 86_400_000


TopicRecord = tuple[int, bytes | None]
"""The offset and the value of a message. A class would take too long, because there are many messages."""


_PARTITION: Final = methodcaller("partition")


class OutOfRange(Exception):
    """The log does not hold the offset that a reader needs."""


class TopicLog:
    """One topic.

    Args:
        config: the configuration of the clients.
        topic: its name.
        group: the group of dispatchers. The consumer group is `mongoz.<group>`, for tools of Kafka.
        relay: the state of the relay.
        megabytes: the value of `--max-queued-mb`.
        address: the address of the server with the state, for logs and errors.

    Attributes:
        watch: looks at the topic.
        prefetched: bytes of the records that librdkafka holds, by its last report.
        streams: limits the number of change streams that read changes which the topic has lost.
    """

    def __init__(
        self,
        config: KafkaConfig,
        topic: str,
        group: str,
        relay: RelayStore,
        *,
        megabytes: int,
        address: str,
    ) -> None:
        self._config = config
        self.topic = topic
        self._group = group
        self._megabytes = megabytes
        self._queued_bytes = megabytes * 1_000_000 // _QUEUED
        self.watch = TopicWatch(config, topic, relay, address=address, on_failure=self._wake)
        self.streams = asyncio.Semaphore(_STREAMS)
        self.prefetched = 0
        self._polling: Polling | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._open: dict[int, PartitionLog] = {}
        self._committed: CommittedOffsets | None = None

    # -- beginning and end ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read. The caller has opened `watch`."""
        group = f"mongoz.{self._group}"
        share = self._megabytes * 1_000_000 // _FETCHED
        answer = max(_SMALLEST_ANSWER, share // _ANSWER)
        consumer = self._config.consumer(
            group,
            enable_auto_offset_store=False,
            queued_max_messages_kbytes=max(1, share // 2_000),
            fetch_max_bytes=answer,
            message_max_bytes=answer,  # librdkafka raises fetch.max.bytes to this value at least
            fetch_message_max_bytes=max(_SMALLEST_ANSWER, answer // 4),
            fetch_queue_backoff_ms=_BACKOFF_MS,
            fetch_wait_max_ms=500,
            statistics_interval_ms=_REPORTS_MS,
            stats_cb=self._note_report,
            max_poll_interval_ms=_DAY_MS,
        )
        self._polling = Polling(consumer, asyncio.get_running_loop(), self._distribute)
        self._polling.start()
        self._committed = CommittedOffsets(partial(self._committing, group), self.topic)
        self._tasks = [
            asyncio.create_task(self.watch.run(), name="watch-topic"),
            asyncio.create_task(self._committed.run(), name="commit-offsets"),
        ]

    def _committing(self, group: str, on_end: Callable[..., None]) -> "Consumer":
        return self._config.consumer(group, on_commit=on_end)

    async def close(self) -> None:
        """Stop reading."""
        await end(self._tasks)
        self._tasks = []
        committed, self._committed = self._committed, None
        if committed is not None:
            await committed.close()
        # No command may follow: after the end of the thread, a command would wait for ever.
        polling, self._polling = self._polling, None
        if polling is not None:
            polling.stop()
            await asyncio.to_thread(polling.join)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """Read during a `with` block.

        Raises:
            KafkaError: no broker answers, or it refuses the user.
            TopicError: the topic or the relay can't be used.
        """
        await self.watch.open()
        self.start()
        try:
            yield self
        finally:
            await self.close()

    # -- reading -------------------------------------------------------------------------------------------

    def partition(self, number: int) -> "PartitionLog":
        """One partition of the topic."""
        return PartitionLog(self, number)

    async def seek(self, feed: "PartitionLog", offset: int) -> None:
        """Let a partition continue at an offset."""
        from confluent_kafka import TopicPartition  # noqa: PLC0415 - an extra

        polling = self._polling
        assert polling is not None  # it has started
        here = TopicPartition(self.topic, feed.number, offset)

        def assign(consumer: "Consumer") -> None:
            if feed.assigned:
                consumer.incremental_unassign([TopicPartition(self.topic, feed.number)])
                feed.assigned = False
            consumer.incremental_assign([here])
            consumer.resume([here])  # librdkafka keeps the pause of an earlier assignment
            feed.assigned = True
            polling.paused.discard(feed.number)

        def begin() -> None:
            # Now the queue has all messages that were read from the former offset, and none from the new offset.
            feed.clear()
            self._open[feed.number] = feed
            self._share()

        await polling.run(assign, begin)

    async def leave(self, feed: "PartitionLog") -> None:
        """Stop reading a partition."""
        from confluent_kafka import TopicPartition  # noqa: PLC0415 - an extra

        if self._polling is None:
            return

        def unassign(consumer: "Consumer") -> None:
            if feed.assigned:
                consumer.incremental_unassign([TopicPartition(self.topic, feed.number)])
                feed.assigned = False

        def forget() -> None:
            if self._open.get(feed.number) is feed:
                del self._open[feed.number]
                self._share()

        # The commands run in their order. So this command also undoes a cancelled `seek` that has not run yet.
        await self._polling.run(unassign, forget)

    def commit(self, partition: int, offset: int) -> None:
        """Commit an offset, so that tools of Kafka show the lag. Nothing else depends on it."""
        if self._committed is not None:
            self._committed.note(partition, offset)

    def _wake(self) -> None:
        for feed in self._open.values():
            feed.wake()

    def _share(self) -> None:
        """Divide the maximum of queued bytes among the partitions."""
        for feed in self._open.values():
            feed.most = self._queued_bytes // len(self._open)
        self.on_room()

    def _distribute(self, messages: "Sequence[Message]") -> None:
        """Sort messages into the queues of their partitions."""
        touched, size = set(), 0
        for number, some in groupby(messages, _PARTITION):  # messages of a partition follow each other
            feed = self._open.get(number)
            if feed is not None:
                touched.add(feed)
                size += feed.extend(self._records(feed, some))
        for feed in touched:
            feed.wake()
        if size and self._polling is not None:
            most = self._queued_bytes // _BATCHES * len(messages) // size
            self._polling.at_once = max(1, min(_AT_ONCE, most))
        self.on_room()

    def _records(self, feed: "PartitionLog", messages: "Iterable[Message]") -> list[TopicRecord]:
        """The records of some messages of a partition."""
        records = []
        message: Any  # its type says that the offset may be None; only a producer's messages have no offset
        for message in messages:
            if message.error() is None:
                records.append((message.offset(), message.value()))
            else:
                self._on_error(feed, message.error())
        return records

    def on_room(self) -> None:
        """Poll again if a queue has room. Pause the full partitions, so that they do not stop the others."""
        polling = self._polling
        if polling is None:
            return
        hungry = any(feed.hungry for feed in self._open.values())
        for feed in self._open.values():
            if feed.paused:
                if feed.hungry:
                    self._pause(polling, feed, paused=False)
            elif hungry and feed.full:
                self._pause(polling, feed, paused=True)
        if hungry:
            polling.go_on()

    def _pause(self, polling: "Polling", feed: "PartitionLog", *, paused: bool) -> None:
        from confluent_kafka import TopicPartition  # noqa: PLC0415 - an extra

        feed.paused = paused
        which = [TopicPartition(self.topic, feed.number)]

        def change(consumer: "Consumer") -> None:
            if feed.assigned:
                (consumer.pause if paused else consumer.resume)(which)
                (polling.paused.add if paused else polling.paused.discard)(feed.number)

        polling.order(change)

    def _note_report(self, report: str) -> None:
        """Note the size of librdkafka's queue. All partitions share the queue, and each reports the whole size."""
        topic = json.loads(report)["topics"].get(self.topic)
        partitions = topic["partitions"].values() if topic is not None else ()
        self.prefetched = max((one["fetchq_size"] for one in partitions), default=0)

    @property
    def is_suspended(self) -> bool:
        """Returns whether all partitions are paused, because all queues are full."""
        return self._polling is not None and self._polling.is_suspended

    def share_of_prefetched(self) -> int:
        """The part of the prefetched bytes that counts for one partition."""
        return self.prefetched // max(1, len(self._open))

    def _on_error(self, feed: "PartitionLog", error: Any) -> None:
        name = error.name()
        if name in {"_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE"}:
            feed.is_out_of_range = True
            return
        log.warning(
            "a partition of the topic can't be read now, trying again",
            action="topic.not_read",
            topic=self.topic,
            partition=feed.number,
            error=f"{name}: {error.str()}",
        )


def topic_of(group: Group, settings: Settings) -> TopicLog | None:
    """The topic that the settings name; None without --kafka."""
    if settings.kafka is None:
        return None
    return TopicLog(
        config_of(settings),
        settings.kafka_topic,
        group.name,
        RelayStore(group.state, settings.kafka_topic),
        megabytes=settings.max_queued_mb,
        address=group.state.address,
    )


class PartitionLog:
    """One partition of a topic: a queue of its records.

    Attributes:
        number: the number of the partition.
        most: if the queue has this number of bytes, no further records are fetched. The messages of the last poll
            may exceed the number.
        assigned: whether the consumer reads the partition. Only the thread of the consumer changes it.
        paused: whether the last order to the consumer was to pause the partition. Only the loop changes it.
        is_out_of_range: whether the log does not hold the next offset.
    """

    def __init__(self, topic: TopicLog, number: int) -> None:
        self._topic = topic
        self.number = number
        self.most = 0
        self.assigned = self.paused = self.is_out_of_range = False
        self._queue: deque[TopicRecord] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Returns whether the brokers and the server answer."""
        return self._topic.watch.connected

    @property
    def name(self) -> str:
        """The partition and its topic, as text for logs and errors."""
        return place_of(self._topic.topic, self.number)

    def gauges(self, topic_id: str, offset: int | None) -> TopicGauges:
        """The current gauges.

        Args:
            offset: the offset of the next record to read, in the topic with this id; None before the first one.
        """
        watch = self._topic.watch
        return TopicGauges(
            trouble=watch.trouble,
            lag_records=None if offset is None else watch.lag(self.number, topic_id, offset),
            retention_seconds=watch.retention,
            buffered_bytes=self._bytes + self._topic.share_of_prefetched(),
            is_paused=self.paused or self._topic.is_suspended,
        )

    @property
    def hungry(self) -> bool:
        """Returns whether the queue should be filled."""
        return self._bytes * 2 < self.most

    @property
    def full(self) -> bool:
        """Returns whether the queue has no room for further records."""
        return self._bytes >= self.most

    def extend(self, records: Sequence[TopicRecord]) -> int:
        """Add records to the queue. Returns their bytes."""
        size = _size_of(records)
        self._queue.extend(records)
        self._bytes += size
        return size

    def clear(self) -> None:
        """Empty the queue."""
        self._queue.clear()
        self._bytes = 0
        self.is_out_of_range = False

    def wake(self) -> None:
        """Let the reader look at the queue."""
        self._arrived.set()

    async def seek(self, offset: int) -> None:
        """Continue at an offset."""
        await self._topic.seek(self, offset)

    async def leave(self) -> None:
        """Stop reading."""
        await self._topic.leave(self)

    async def read(self, most: int) -> list[TopicRecord]:
        """The next records, at most this number. If none comes within a second, the list is empty.

        Raises:
            OutOfRange: the log does not hold the next record.
            DispatcherError: the topic can't be used any more.
        """
        if not self._queue:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY):
                    await self._arrived.wait()
        queue = self._queue
        if not queue:
            self._topic.watch.require_usable()
            if self.is_out_of_range:
                raise OutOfRange
            return []
        if len(queue) <= most:
            records = list(queue)
            queue.clear()
            self._bytes = 0
        else:
            records = [queue.popleft() for _ in range(most)]
            self._bytes -= _size_of(records)
        self._topic.on_room()
        return records

    def newest(self) -> Look:
        """The last look at this partition."""
        return self._topic.watch.newest(self.number)

    async def look(self) -> Look:
        """Wait for a look that begins after this call, and return it."""
        return await self._topic.watch.look(self.number)

    async def offset_at(self, seconds: float) -> int:
        """The offset of the first record at or after a time (in seconds since 1970); -1 if there is none."""
        return await self._offset(since=seconds)

    async def end(self) -> int:
        """The offset after the last record."""
        return await self._offset(end=True)

    async def _offset(self, **which: Any) -> int:
        report = partial(
            log.warning,
            "the offsets of the topic can't be read now, trying again",
            action="topic.not_seen",
            partition=self.number,
        )
        (offset,) = await retry(partial(self._topic.watch.offsets, [self.number], **which), report, on=KafkaError)
        return offset

    def commit(self, offset: int) -> None:
        """Commit an offset, so that tools of Kafka show the lag. Nothing else depends on it."""
        self._topic.commit(self.number, offset)


def _size_of(records: Sequence[TopicRecord]) -> int:
    """The bytes of all values."""
    return sum([len(value) for _, value in records if value])
