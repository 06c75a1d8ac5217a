"""Creates a topic, and tells how many records the broker has written to it."""

import asyncio
import time
from typing import Any, Final

from confluent_kafka import TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from benchmarks.contestants import BenchmarkFailed
from dispatcher.exceptions import KafkaError
from dispatcher.kafka.config import load_config
from dispatcher.kafka.topics import create_topic

__all__ = ["Topic"]

_PATIENCE_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 0.02

_SPEC: Final[Any] = OffsetSpec


class Topic:
    """A topic.

    Args:
        brokers: the addresses of brokers.
        name: the name of the topic.
        partitions: the number of partitions.
    """

    def __init__(self, brokers: str, name: str, partitions: int) -> None:
        self.name = name
        self.partitions = partitions
        self._admin = load_config(brokers).admin()

    def create(self) -> None:
        """Create the topic, as a relay does, and wait until all partitions have leaders.

        With many partitions, this takes a while.
        """
        asyncio.run(create_topic(self._admin, self.name, self.partitions))
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                self._ask(_SPEC.latest())
            except KafkaError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    @property
    def records(self) -> int:
        """The number of records in the topic."""
        return sum(int(info.offset) for info in self._ask(_SPEC.latest()))

    @property
    def last_append(self) -> float:
        """When the broker wrote the last record, in seconds since 1970."""
        return max(float(info.timestamp) for info in self._ask(_SPEC.max_timestamp())) / 1e3

    def wait(self, records: int) -> None:
        """Wait until the topic has this number of records.

        Raises:
            BenchmarkFailed: the topic does not have them in time.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (found := self.records) < records:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"The topic {self.name} has {found:,} of {records:,} records.")
            time.sleep(_LOOK_SECONDS)

    def _ask(self, which: Any) -> list[Any]:
        wanted: Any = {TopicPartition(self.name, number): which for number in range(self.partitions)}
        asking = self._admin.ask_all(
            self.name, lambda client, within: client.list_offsets(wanted, request_timeout=within).values()
        )
        return asyncio.run(asking)
