"""Creates topics, reads their properties, and checks them.

The functions raise `KafkaError`, or its subclass `TopicError`, with a remedy.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from dispatcher.core.output.logs import log
from dispatcher.core.stats import duration
from dispatcher.exceptions import HistoryLost, KafkaError, TopicError
from dispatcher.kafka.admin import RIGHTS, Admin, code_of
from dispatcher.kafka.config import KafkaConfig

PARTITIONS: Final = 32
"""The number of partitions of a new topic."""

# Attempts at reading a topic that was just created, and seconds between two attempts. One attempt may not be
# enough, because some brokers know the topic later than others.
_ATTEMPTS: Final = 50
_BETWEEN: Final = 0.1

# Seconds between two looks for weaknesses.
_LOOK: Final = 60.0

# Minimum of `max.message.bytes`, and the default of Kafka.
_LEAST_LARGEST: Final = 20_000
_USUAL_LARGEST: Final = 1_048_588

# With fewer replicas, or with fewer replicas in sync, changes can be lost if a broker fails.
_REPLICAS: Final = 3
_IN_SYNC: Final = 2

_APPEND_TIME: Final = "LogAppendTime"

_MS: Final = 1_000


class TopicLayout(NamedTuple):
    """A topic as the state knows it. Another topic with the same name has another cluster or id.

    Attributes:
        cluster: the id of the Kafka cluster.
        id: the id of the topic.
    """

    cluster: str
    topic: str
    id: str
    partitions: int


class TopicFacts(NamedTuple):
    """The properties of a topic at one moment. A value is None if the broker does not report it.

    Attributes:
        replicas: the lowest number of replicas of a partition.
        brokers: the number of brokers of the cluster.
        cleanup: the cleanup policy: `"delete"`, `"compact"` or both.
        retention: seconds that records are kept; infinite for `-1`.
        retention_bytes: bytes that a partition may have; infinite for `-1`.
        in_sync: `min.insync.replicas`.
        timestamps: `"LogAppendTime"` or `"CreateTime"`.
        largest: maximum bytes of a batch of records.
        operations: what the user may do with the topic, for example `"READ"`.
    """

    layout: TopicLayout
    replicas: int
    brokers: int
    cleanup: str | None
    retention: float | None
    retention_bytes: float | None
    in_sync: int | None
    timestamps: str | None
    largest: int | None
    operations: frozenset[str] | None = None

    @property
    def retention_limit(self) -> float | None:
        """Seconds that records are kept; None if this is unknown, or if they are kept for ever."""
        return None if self.retention == float("inf") else self.retention

    @property
    def is_of_development_broker(self) -> bool:
        """Returns whether the broker is the embedded one: it does not know the retention of its topics."""
        return self.retention is None


class Weakness(NamedTuple):
    """A property of a topic that can cause the loss of changes.

    Attributes:
        name: the name of the property.
    """

    name: str
    text: str
    remedy: str


def topic_name(name: str, prefix: str = "mongoz") -> str:
    """The topic of a relay."""
    return f"{prefix}.{name}"


async def _cluster(admin: Admin) -> Any:
    return await admin.ask("the cluster", lambda client, within: client.describe_cluster(request_timeout=within))


async def create_topic(admin: Admin, name: str, partitions: int) -> bool:
    """Create a topic with three replicas, or with as many as there are brokers.

    Returns:
        False if the topic exists already. Then it stays unchanged.
    """
    from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]  # noqa: PLC0415 - an extra

    cluster = await _cluster(admin)
    replicas = min(len(cluster.nodes), _REPLICAS)
    config = {
        "cleanup.policy": "delete",
        "message.timestamp.type": _APPEND_TIME,
        "min.insync.replicas": str(_IN_SYNC if replicas >= _REPLICAS else 1),
    }
    new = NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=config)
    try:
        await admin.ask(
            f"the topic {name!r}",
            lambda client, within: client.create_topics([new], operation_timeout=within, request_timeout=within)[
                name
            ],
        )
    except KafkaError as error:
        if code_of(error) != "TOPIC_ALREADY_EXISTS":
            raise
        return False
    return True


async def read_topic(admin: Admin, name: str) -> TopicFacts | None:
    """Read the properties of a topic. Returns None if it does not exist."""
    from confluent_kafka import TopicCollection  # noqa: PLC0415 - an extra
    from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]  # noqa: PLC0415

    place = f"the topic {name!r}"
    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    try:
        cluster = await _cluster(admin)
        topic = await admin.ask(
            place,
            lambda client, within: client.describe_topics(
                TopicCollection([name]), include_authorized_operations=True, request_timeout=within
            )[name],
        )
        settings = await admin.ask(
            place,
            lambda client, within: client.describe_configs([resource], request_timeout=within)[resource],
        )
    except KafkaError as error:
        if code_of(error) != "UNKNOWN_TOPIC_OR_PART":
            raise
        return None
    values = {key: one.value for key, one in settings.items()}
    retention = _limit(values, "retention.ms")
    largest, in_sync = _limit(values, "max.message.bytes"), _limit(values, "min.insync.replicas")
    operations = topic.authorized_operations
    return TopicFacts(
        TopicLayout(cluster.cluster_id, name, str(topic.topic_id), len(topic.partitions)),
        replicas=min((len(one.replicas) for one in topic.partitions), default=0),
        brokers=len(cluster.nodes),
        cleanup=values.get("cleanup.policy"),
        retention=None if retention is None else retention / _MS,
        retention_bytes=_limit(values, "retention.bytes"),
        in_sync=None if in_sync is None else int(in_sync),
        timestamps=values.get("message.timestamp.type"),
        largest=None if largest is None else int(largest),
        operations=None if operations is None else frozenset(one.name for one in operations),
    )


async def read_offsets(
    admin: Admin, name: str, partitions: Sequence[int], *, since: float | None = None, end: bool = False
) -> list[int]:
    """The first offsets of partitions of a topic.

    Args:
        since: a time, in seconds since 1970. The result has the offset of the first record that was appended at
            this time or later, or -1 if there is no such record. With None, the time does not matter.
        end: return the offsets after the last records instead.

    Raises:
        KafkaError: no broker answers, or it refuses the request.
    """
    from confluent_kafka import TopicPartition  # noqa: PLC0415 - an extra
    from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined] # noqa: PLC0415

    spec: Any = OffsetSpec
    kind = spec.latest() if end else spec.earliest()
    if since is not None:
        kind = spec.for_timestamp(max(0, round(since * 1_000)))
    wanted = {TopicPartition(name, number): kind for number in partitions}
    answers = await admin.ask_all(
        f"the offsets of the topic {name!r}",
        lambda client, within: client.list_offsets(wanted, request_timeout=within).values(),
    )
    return [int(one.offset) for one in answers]


async def created_topic(admin: Admin, name: str, partitions: int) -> TopicFacts:
    """Create a topic, and wait until the brokers know it.

    Raises:
        TopicError: the topic can't be created.
        KafkaError: no broker answers, or the user may not create it.
    """
    await create_topic(admin, name, partitions)
    log.info("created the topic", action="topic.created", topic=name, partitions=partitions)
    for _ in range(_ATTEMPTS):
        facts = await read_topic(admin, name)
        if facts is not None:
            return facts
        await asyncio.sleep(_BETWEEN)
    raise TopicError(
        f"The topic {name!r} was created, but the brokers do not know it.",
        remedy="Look at the logs of the brokers.",
    )


async def prepared_topic(
    config: KafkaConfig, name: str, partitions: int | None, known: TopicLayout | None, *, continues: bool
) -> TopicFacts:
    """Create a topic if it is missing, and check it: the relay must be able to write to it.

    Args:
        partitions: the requested number. With None, an existing topic keeps its number. A missing topic gets
            the number of the known one, or `PARTITIONS` if none is known.
        known: the topic that the state knows; None before the first start.
        continues: whether to continue with a new topic if the known one was deleted.

    Raises:
        TopicError: the topic can't be used.
        HistoryLost: the known topic was deleted, and `continues` is not set.
        KafkaError: no broker answers, or the user lacks a right.
    """
    admin = config.admin()
    facts = await read_topic(admin, name)
    if facts is None:
        if known is not None and not continues:
            raise deleted(name)
        wanted = partitions or (PARTITIONS if known is None else known.partitions)
        if known is not None and wanted != known.partitions:
            raise _another_number(f"The new topic {name!r}", wanted, known)
        facts = await created_topic(admin, name, wanted)
    try:
        require_prepared(facts, partitions, known)
    except HistoryLost as lost:
        if not continues:
            raise
        log.warning(lost.message, action="topic.replaced", topic=name, id=facts.layout.id)
    return facts


def deleted(name: str) -> HistoryLost:
    """The error about a topic that the state knows, but that the brokers do not know."""
    return HistoryLost(
        f"The topic {name!r} was deleted. Its records are lost.",
        remedy="With --on-history-lost resume, the relay creates a new topic, and records a gap.",
    )


def require_prepared(facts: TopicFacts, partitions: int | None, known: TopicLayout | None) -> None:
    """Require that a relay can publish to a topic. The arguments are those of `prepared_topic`.

    Raises:
        TopicError: the topic can't be used.
        KafkaError: the user may not write.
        HistoryLost: the known topic was deleted, and created again.
    """
    require_usable(facts, "WRITE")
    there = facts.layout.partitions
    if partitions is not None and there != partitions:
        raise TopicError(
            f"--partitions is {partitions}, and the topic {facts.layout.topic!r} has {there} partitions.",
            remedy="Leave --partitions out, or choose another --name. With another number of partitions, a topic "
            "would break the order of a document's changes.",
        )
    if known is not None:
        require_layout(facts, known)


def require_layout(facts: TopicFacts, known: TopicLayout) -> None:
    """Require that a topic is the one that the state knows.

    Raises:
        TopicError: it is in another cluster, or has another number of partitions.
        HistoryLost: it was deleted, and created again.
    """
    found = facts.layout
    name = f"The topic {found.topic!r}"
    if found.cluster != known.cluster:
        raise TopicError(
            f"{name} is in the Kafka cluster {found.cluster}, and the state knows it in {known.cluster}.",
            remedy="Set --kafka to the brokers of the earlier cluster. To move to another one, choose another "
            "--name.",
        )
    if found.partitions != known.partitions:
        raise _another_number(name, found.partitions, known)
    if found.id != known.id:
        raise HistoryLost(
            f"{name} has the id {found.id}, and the state knows it as {known.id}: it was deleted, and created "
            "again. Its earlier records are lost.",
            remedy="With --on-history-lost resume, the process continues with the new topic, and records a gap.",
        )


def _another_number(name: str, partitions: int, known: TopicLayout) -> TopicError:
    return TopicError(
        f"{name} has {partitions} partitions, and the state knows {known.partitions}: documents would change "
        "their partition, and their order would break.",
        remedy=f"Create the topic with {known.partitions} partitions, or choose another --name.",
    )


def require_usable(facts: TopicFacts, operation: Literal["READ", "WRITE"]) -> None:
    """Require that a topic can hold the records of a relay, and that the user may use the topic.

    Args:
        operation: the operation that the user needs.

    Raises:
        TopicError: the topic is compacted, or its limit for the size of records is too low.
        KafkaError: the user lacks the right.
    """
    name = facts.layout.topic
    if facts.operations is not None and operation not in facts.operations:
        raise KafkaError(
            f"The user may not {operation.lower()} the topic {name!r} of Kafka. The operation "
            f"{operation.capitalize()} is not granted to this user.",
            remedy=RIGHTS,
        )
    if operation == "WRITE" and facts.largest is not None and facts.largest < _LEAST_LARGEST:
        raise TopicError(
            f"max.message.bytes of the topic {name!r} is {facts.largest}: that is too small even "
            "for the short record that stands for a large event.",
            remedy=f"kafka-configs.sh --alter --entity-type topics --entity-name {name} "
            f"--add-config max.message.bytes={_USUAL_LARGEST}",
        )
    if facts.cleanup is not None and "compact" in facts.cleanup:
        raise TopicError(
            f"The topic {name!r} is compacted (cleanup.policy is {facts.cleanup}): the broker keeps "
            "only the last change of each document.",
            remedy=f"kafka-configs.sh --alter --entity-type topics --entity-name {name} "
            "--add-config cleanup.policy=delete",
        )


def weaknesses(facts: TopicFacts, oplog_seconds: float | None = None) -> Iterator[Weakness]:
    """The weaknesses of a topic.

    Args:
        oplog_seconds: how far the oplog reaches back; None if it is unknown.
    """
    name = facts.layout.topic
    change = f"kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config"
    if facts.is_of_development_broker:
        yield Weakness(
            "broker",
            f"the topic {name!r} is on the embedded broker, which is for development only: it loses all records "
            "when it ends",
            "Use Apache Kafka outside of development.",
        )
        return
    if facts.replicas < _REPLICAS:
        yield Weakness(
            "replicas",
            f"the topic {name!r} has {_counted(facts.replicas, 'replica')}: changes can be lost if a broker fails",
            f"Use {_REPLICAS} brokers, and kafka-reassign-partitions.sh to add replicas.",
        )
    elif facts.in_sync is not None and facts.in_sync < _IN_SYNC:
        yield Weakness(
            "min.insync.replicas",
            f"min.insync.replicas of the topic {name!r} is {facts.in_sync}: an acknowledged change can be lost "
            "if a broker fails",
            f"{change} min.insync.replicas={_IN_SYNC}",
        )
    if facts.timestamps not in (None, _APPEND_TIME):
        yield Weakness(
            "message.timestamp.type",
            f"message.timestamp.type of the topic {name!r} is {facts.timestamps}: a replay by time depends on the "
            "clock of the relay",
            f"{change} message.timestamp.type={_APPEND_TIME}",
        )
    if facts.retention is not None and oplog_seconds is not None and facts.retention < oplog_seconds:
        yield Weakness(
            "retention.ms",
            f"the topic {name!r} keeps records for {duration(facts.retention)}, and the oplog reaches back "
            f"{duration(oplog_seconds)}: a dispatcher that is stopped for longer than the retention can lose "
            "changes",
            f"{change} retention.ms={round(oplog_seconds * _MS)}",
        )
    if facts.retention_bytes not in (None, float("inf")):
        yield Weakness(
            "retention.bytes",
            f"the topic {name!r} keeps at most {facts.retention_bytes:.0f} bytes in each partition: with many "
            "changes, it keeps records for a shorter time",
            f"{change} retention.bytes=-1",
        )


class WeaknessLog:
    """Logs each weakness of a topic once. A weakness that goes away and comes back is logged again."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def note(self, facts: TopicFacts, oplog_seconds: float | None) -> None:
        """Log the weaknesses that are new."""
        found = list(weaknesses(facts, oplog_seconds))
        for one in found:
            if one.name not in self._logged:
                log.warning(one.text, action="topic.weak", topic=facts.layout.topic, remedy=one.remedy)
        self._logged = {one.name for one in found}

    async def watch(
        self, facts: Callable[[], TopicFacts], oplog_seconds: Callable[[], Awaitable[float | None]]
    ) -> None:
        """Look for weaknesses now, and then regularly. Runs for ever."""
        while True:
            self.note(facts(), await oplog_seconds())
            await asyncio.sleep(_LOOK)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _limit(values: Mapping[str, str | None], name: str) -> float | None:
    """A number in the configuration of a topic; -1 means that there is no limit."""
    value = values.get(name)
    if value is None:
        return None
    return float("inf") if value == "-1" else float(value)
