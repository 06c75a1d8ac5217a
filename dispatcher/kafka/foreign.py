"""Finds records that another program, or a relay with another state, has written to a topic."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import closing
from time import monotonic
from typing import Any, Final

from dispatcher.exceptions import TopicError
from dispatcher.kafka.config import KafkaConfig
from dispatcher.kafka.envelope import Envelope, MalformedRecord, decode, token_in

# Seconds for reading the last records of all partitions. One call of the consumer returns at most `_AT_ONCE`
# messages, and waits at most `_WAIT` seconds for them.
_PATIENCE: Final = 5.0
_AT_ONCE: Final = 1_000
_WAIT: Final = 0.1


def place_of(topic: str, partition: int) -> str:
    """A partition of a topic, for messages."""
    return f"partition {partition} of the topic {topic!r}"


def opened(place: str, record: tuple[int, bytes | None]) -> tuple[Envelope, str]:
    """Decode a record. Returns its envelope and its token.

    Args:
        place: the place of the partition, for the message.
        record: the offset and the value of the record.

    Raises:
        TopicError: no relay has written the record.
    """
    offset, value = record
    try:
        envelope = decode(value)
        return envelope, token_in(envelope)
    except MalformedRecord as error:
        raise TopicError(
            f"{place}, offset {offset}: {error}.",
            remedy="Let only `dispatcher relay` write to this topic. It must not have a later version than the "
            "dispatchers. Find the program that wrote the record, then begin with a new topic.",
        ) from error


def foreign_term(place: str, term: int, highest: int) -> TopicError:
    """The error about records of a relay that the state does not know."""
    return TopicError(
        f"{place} has records of the term {term}, but the highest term of a relay in the state is {highest}: "
        "another program, or a relay with another state, writes to this topic.",
        remedy="Give each relay a topic of its own.",
    )


async def last_records(
    config: KafkaConfig, topic: str, offsets: Mapping[int, int]
) -> dict[int, tuple[int, bytes]]:
    """Read one record of each partition. If a partition does not answer in time, the result lacks it.

    Args:
        offsets: the offsets of the records, by partition.

    Returns:
        The offset and the value of each record, by partition.
    """
    return await asyncio.to_thread(_read, config, topic, offsets) if offsets else {}


def _read(config: KafkaConfig, topic: str, offsets: Mapping[int, int]) -> dict[int, tuple[int, bytes]]:
    from confluent_kafka import TopicPartition  # noqa: PLC0415 - an extra

    found: dict[int, tuple[int, bytes]] = {}
    deadline = monotonic() + _PATIENCE
    with closing(config.consumer(f"{topic}.check")) as consumer:
        consumer.assign([TopicPartition(topic, number, offset) for number, offset in offsets.items()])
        while len(found) < len(offsets) and monotonic() < deadline:
            message: Any
            for message in consumer.consume(_AT_ONCE, _WAIT):
                if message.error() is None:
                    found.setdefault(message.partition(), (message.offset(), message.value() or b""))
    return found


def foreign_among(topic: str, records: Mapping[int, tuple[int, bytes]], highest: int) -> Iterator[TopicError]:
    """The errors about foreign records.

    Args:
        records: the records by partition, with their offsets.
        highest: the highest term of a relay in the state. It must be read after the records.
    """
    for partition, record in sorted(records.items()):
        place = place_of(topic, partition)
        try:
            envelope, _ = opened(place, record)
        except TopicError as error:
            yield error
        else:
            if envelope.term > highest:
                yield foreign_term(place, envelope.term, highest)
