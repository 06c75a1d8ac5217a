"""One producer of Kafka, for one term of the relay."""

from collections.abc import Sequence
from typing import Any, Final

from dispatcher.kafka.config import KafkaConfig
from dispatcher.relay.ledger import Report
from dispatcher.relay.records import Packed

# Maximum bytes of a batch of records. If the topic has a lower limit, that limit applies.
_BATCH: Final = 1_000_000

# The client has a limit of its own for the bytes of a record. The limit must be between these two numbers.
_LEAST, _MOST = 1_000, 1_000_000_000

# The ledger limits the records that are on their way, so the client needs no limits of its own.
_UNBOUNDED: Final[dict[str, Any]] = {
    "queue_buffering_max_messages": 0,
    "queue_buffering_max_kbytes": 2_147_483_647,
}

# Milliseconds for which the client collects records of a partition. A short time is enough, because `send`
# passes all records of a batch in one call per partition.
_LINGER_MS: Final = 1


class TermProducer:
    """Sends records. It never blocks: answers come with `poll`.

    Args:
        largest: maximum bytes of a batch of records, as the topic demands.

    Raises:
        KafkaError: a property of the configuration is wrong.
    """

    def __init__(self, config: KafkaConfig, topic: str, largest: int) -> None:
        self._topic = topic
        size = {"batch_size": min(largest, _BATCH), "message_max_bytes": min(max(largest, _LEAST), _MOST)}
        self._producer = config.producer(linger_ms=_LINGER_MS, **_UNBOUNDED, **size)

    def send(self, packed: Packed, reports: Sequence[Report]) -> str:
        """Send the records of a batch.

        Args:
            reports: for each part of the batch, the report that gets the answers to its records.

        Returns:
            The text of an error; empty if all records are on their way.
        """
        for part, report in zip(packed.parts, reports, strict=True):
            records = packed.records[part.partition]
            if (
                self._producer.produce_batch(self._topic, records, part.partition, on_delivery=report.__call__)
                != part.records
            ):
                failed = next((one["_error"] for one in records if "_error" in one), None)
                return f"the client does not accept a record: {failed}"
        self._producer.poll(0)
        return ""

    def poll(self) -> None:
        """Receive answers."""
        self._producer.poll(0)

    def close(self) -> None:
        """Stop immediately. Unsent records are dropped; records on their way may still reach the brokers."""
        self._producer.purge()
        self._producer.poll(0)
        self._producer.close()
