"""One partition of a topic, for its readers: the source, and the search for a position. See `kafka/log.py`."""

from typing import Protocol

from dispatcher.core.stats import TopicGauges
from dispatcher.kafka.log import TopicRecord
from dispatcher.kafka.looks import Look


class RecordLog(Protocol):
    """One partition of a topic."""

    @property
    def connected(self) -> bool:
        """Returns whether the brokers and the server answer."""

    @property
    def name(self) -> str:
        """The partition and its topic, as text for logs and errors."""

    def gauges(self, topic_id: str, offset: int | None) -> TopicGauges:
        """The current gauges of the partition, for metrics.

        Args:
            offset: the offset of the next record to read, in the topic with this id; None before the first record.
        """

    async def seek(self, offset: int) -> None:
        """Continue at an offset."""

    async def leave(self) -> None:
        """Stop reading."""

    async def read(self, most: int) -> list[TopicRecord]:
        """The next records, at most `most`. If none comes within a second, the list is empty."""

    def newest(self) -> Look:
        """The last look at the topic and at the relay's position."""

    async def look(self) -> Look:
        """Wait for a look that begins after this call, and return it."""

    async def offset_at(self, seconds: float) -> int:
        """The offset of the first record at or after a time, in seconds since 1970; -1 if there is none."""

    async def end(self) -> int:
        """The offset after the last record."""

    def commit(self, offset: int) -> None:
        """Commit an offset, so that tools of Kafka show the lag. Nothing else depends on it."""
