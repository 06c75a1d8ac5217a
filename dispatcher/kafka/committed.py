"""Commits the offsets of a group, so that tools of Kafka show its lag. Nothing else depends on these offsets."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from dispatcher.core.output.logs import log
from dispatcher.exceptions import KafkaError
from dispatcher.kafka.admin import Admin

if TYPE_CHECKING:
    from concurrent.futures import Future

    from confluent_kafka.admin import AdminClient

# Seconds between two commits, and for the last one.
_EVERY: Final = 1.0


class CommittedOffsets:
    """The offsets that the dispatchers of a group commit.

    The client for administration commits them, not the consumer. A commit may wait for the broker that coordinates
    the group. librdkafka delays new assignments of a consumer, and its end, until all commits of the consumer have
    ended: see `rd_kafka_assignment_serve`. So a commit by the consumer could delay deliveries.

    Args:
        topic: the name of the topic.
        group: the consumer group.
    """

    def __init__(self, admin: Admin, topic: str, group: str) -> None:
        self._admin = admin
        self._topic = topic
        self._group = group
        self._waiting: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._is_failing = False

    def note(self, partition: int, offset: int) -> None:
        """Commit an offset soon."""
        if self._known.get(partition) != offset:
            self._waiting[partition] = self._known[partition] = offset

    async def run(self) -> None:
        """Commit the noted offsets regularly. Runs for ever."""
        while True:
            await asyncio.sleep(_EVERY)
            await self._commit()

    async def finish(self) -> None:
        """Commit the last offsets, if the brokers answer within a second."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_EVERY):
                await self._commit()

    async def _commit(self) -> None:
        if not self._waiting:
            return
        offsets, self._waiting = self._waiting, {}
        try:
            await self._admin.ask(f"the consumer group {self._group!r}", lambda *how: self._request(offsets, *how))
        except KafkaError as error:
            self._waiting = offsets | self._waiting
            if not self._is_failing:
                log.warning(
                    "the offsets can't be committed, so tools of Kafka do not show the lag of the group",
                    action="kafka.not_committed",
                    error=error.message,
                    remedy=error.remedy,
                )
            self._is_failing = True
        else:
            self._is_failing = False

    def _request(self, offsets: dict[int, int], client: "AdminClient", within: float) -> "Future[Any]":
        from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition  # noqa: PLC0415 - an extra

        places = [TopicPartition(self._topic, number, offset) for number, offset in offsets.items()]
        request = ConsumerGroupTopicPartitions(self._group, places)
        (answer,) = client.alter_consumer_group_offsets([request], request_timeout=within).values()
        return answer
