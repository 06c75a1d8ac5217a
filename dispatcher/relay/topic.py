"""Prepares the topic of a relay: creates it, and requires that it is the one that the state knows."""

import asyncio
from typing import Final

from dispatcher.core.output.logs import log
from dispatcher.exceptions import HistoryLost, TopicError
from dispatcher.kafka.config import KafkaConfig
from dispatcher.kafka.topics import (
    TopicFacts,
    TopicLayout,
    create_topic,
    read_topic,
    require_layout,
    require_usable,
    warnings,
)

PARTITIONS: Final = 32
"""The number of partitions of a new topic."""

LARGEST: Final = 1_000_000
"""Maximum bytes of a batch of records, if the broker does not tell it."""

# Attempts at reading a topic that was just created, and seconds between them: not all brokers know it at once.
_ATTEMPTS: Final = 50
_BETWEEN: Final = 0.1


async def prepared_topic(
    config: KafkaConfig, name: str, partitions: int | None, known: TopicLayout | None, *, continues: bool
) -> TopicFacts:
    """Create a topic if it is missing, and check it.

    Args:
        partitions: the requested number; None for the present one, or for the default.
        known: the topic that the state knows; None before the first start.
        continues: whether to continue with a new topic if the known one was deleted.

    Raises:
        TopicError: the topic can't be used.
        HistoryLost: the known topic was deleted.
        KafkaError: no broker answers.
    """
    admin = config.admin()
    facts = await read_topic(admin, name)
    if facts is None:
        if known is not None and not continues:
            raise HistoryLost(
                f"The topic {name!r} was deleted. Its records are lost.",
                remedy="Choose with --on-history-lost: resume creates a new topic, and records a gap.",
            )
        wanted = partitions or (PARTITIONS if known is None else known.partitions)
        await create_topic(admin, name, wanted)
        log.info("created the topic", action="topic.created", topic=name, partitions=wanted)
        for _ in range(_ATTEMPTS):
            facts = await read_topic(admin, name)
            if facts is not None:
                break
            await asyncio.sleep(_BETWEEN)
        else:
            raise TopicError(
                f"The topic {name!r} was created, but the brokers do not know it.", remedy="Look at their logs."
            )
    require_usable(facts)
    if partitions is not None and facts.layout.partitions != partitions:
        raise TopicError(
            f"--partitions is {partitions}, and the topic {name!r} has {facts.layout.partitions} partitions.",
            remedy="Leave --partitions out, or choose another --name: the number of a topic can't be changed "
            "without breaking the order of documents.",
        )
    if known is not None:
        _require_known(facts, known, continues=continues)
    return facts


def _require_known(facts: TopicFacts, known: TopicLayout, *, continues: bool) -> None:
    try:
        require_layout(facts, known)
    except HistoryLost as lost:
        if not continues:
            raise
        log.warning(lost.message, action="topic.replaced", topic=known.topic, id=facts.layout.id)


def log_warnings(facts: TopicFacts, oplog_seconds: float | None) -> None:
    """Log the weaknesses of a topic."""
    for one in warnings(facts, oplog_seconds):
        log.warning(one.text, action="topic.weak", topic=facts.layout.topic, remedy=one.remedy)
