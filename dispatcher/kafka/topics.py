"""Creates topics, reads their facts, and checks them.

The commands raise `KafkaError`, or its subclass `TopicError`, with a remedy.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dispatcher.exceptions import HistoryLost, KafkaError, TopicError

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

# Seconds for each command.
_PATIENCE: Final = 15.0

# Fewer replicas than this, or fewer of them in sync, lose changes together with a broker.
_REPLICAS: Final = 3
_IN_SYNC: Final = 2

_APPEND_TIME: Final = "LogAppendTime"

_MS: Final = 1_000


class TopicLayout(NamedTuple):
    """A topic as the state knows it: another one with the same name has other values.

    Attributes:
        cluster: the id of the Kafka cluster.
        id: of the topic.
    """

    cluster: str
    topic: str
    id: str
    partitions: int


class TopicFacts(NamedTuple):
    """A topic at one moment. A value is None if the broker does not tell it.

    Attributes:
        replicas: the lowest number of replicas of a partition.
        brokers: the number of brokers of the cluster.
        cleanup: the cleanup policy: `"delete"`, `"compact"` or both.
        retention: seconds that records are kept; infinite for `-1`.
        retention_bytes: bytes that a partition may have; infinite for `-1`.
        in_sync: `min.insync.replicas`.
        timestamps: `"LogAppendTime"` or `"CreateTime"`.
        largest: maximum bytes of a batch of records.
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

    @property
    def is_of_development_broker(self) -> bool:
        """Returns whether the broker is the embedded one: it does not know the retention of its topics."""
        return self.retention is None


class Warned(NamedTuple):
    """A weakness of a topic."""

    text: str
    remedy: str


def topic_name(name: str, prefix: str = "mongoz") -> str:
    """The topic of a relay."""
    return f"{prefix}.{name}"


async def create_topic(admin: "AdminClient", name: str, partitions: int) -> bool:
    """Create a topic with three replicas, or with as many as there are brokers.

    Returns:
        False if it exists already. It stays unchanged.
    """
    from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]  # noqa: PLC0415 - an extra

    cluster = await _answer(admin.describe_cluster(request_timeout=_PATIENCE), "the brokers")
    replicas = min(len(cluster.nodes), _REPLICAS)
    config = {
        "cleanup.policy": "delete",
        "message.timestamp.type": _APPEND_TIME,
        "min.insync.replicas": str(_IN_SYNC if replicas >= _REPLICAS else 1),
    }
    new = NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=config)
    creating = admin.create_topics([new], operation_timeout=_PATIENCE, request_timeout=_PATIENCE)[name]
    try:
        await _answer(creating, f"the topic {name!r}")
    except KafkaError as error:
        if _code_of(error) != "TOPIC_ALREADY_EXISTS":
            raise
        return False
    return True


async def read_topic(admin: "AdminClient", name: str) -> TopicFacts | None:
    """Read the facts of a topic. Returns None if it does not exist."""
    from confluent_kafka import TopicCollection  # noqa: PLC0415 - an extra
    from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]  # noqa: PLC0415

    place = f"the topic {name!r}"
    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    try:
        cluster = await _answer(admin.describe_cluster(request_timeout=_PATIENCE), "the brokers")
        asked = admin.describe_topics(TopicCollection([name]), request_timeout=_PATIENCE)[name]
        topic = await _answer(asked, place)
        settings = await _answer(admin.describe_configs([resource], request_timeout=_PATIENCE)[resource], place)
    except KafkaError as error:
        if _code_of(error) != "UNKNOWN_TOPIC_OR_PART":
            raise
        return None
    values = {key: one.value for key, one in settings.items()}
    retention = _limit(values, "retention.ms")
    largest, in_sync = _limit(values, "max.message.bytes"), _limit(values, "min.insync.replicas")
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
    )


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
            remedy="Let --kafka name the brokers of the earlier cluster. To move to another one, choose another "
            "--name.",
        )
    if found.id != known.id:
        raise HistoryLost(
            f"{name} has the id {found.id}, and the state knows it as {known.id}: it was deleted, and created "
            "again. Its earlier records are lost.",
            remedy="Choose with --on-history-lost: resume continues with the new topic, and records a gap.",
        )
    if found.partitions != known.partitions:
        raise TopicError(
            f"{name} has {found.partitions} partitions, and the state knows {known.partitions}: documents would "
            "change their partition, and their order would break.",
            remedy="Choose another --name: a topic with another number of partitions is another topic.",
        )


def require_usable(facts: TopicFacts) -> None:
    """Require that a topic keeps all its records for a time.

    Raises:
        TopicError: it is compacted.
    """
    if facts.cleanup is not None and "compact" in facts.cleanup:
        name = facts.layout.topic
        raise TopicError(
            f"The topic {name!r} is compacted (cleanup.policy is {facts.cleanup}): the broker removes all "
            "but the last change of each document.",
            remedy=f"kafka-configs.sh --alter --entity-type topics --entity-name {name} "
            "--add-config cleanup.policy=delete",
        )


def warnings(facts: TopicFacts, oplog_seconds: float | None = None) -> Iterator[Warned]:
    """The weaknesses of a topic.

    Args:
        oplog_seconds: how far the oplog reaches back; None if it is unknown.
    """
    name = facts.layout.topic
    change = f"kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config"
    if facts.is_of_development_broker:
        yield Warned(
            f"the topic {name!r} is on the embedded broker, which loses all records when it ends",
            "Use Apache Kafka outside of development.",
        )
        return
    if facts.replicas < _REPLICAS:
        yield Warned(
            f"the topic {name!r} has {_counted(facts.replicas, 'replica')}: changes can be lost with a broker",
            f"Use {_REPLICAS} brokers, and kafka-reassign-partitions.sh to add replicas.",
        )
    elif facts.in_sync is not None and facts.in_sync < _IN_SYNC:
        yield Warned(
            f"min.insync.replicas of the topic {name!r} is {facts.in_sync}: an acknowledged change can be lost "
            "with a broker",
            f"{change} min.insync.replicas={_IN_SYNC}",
        )
    if facts.timestamps not in (None, _APPEND_TIME):
        yield Warned(
            f"message.timestamp.type of the topic {name!r} is {facts.timestamps}: a replay by time depends on the "
            "clock of the relay",
            f"{change} message.timestamp.type={_APPEND_TIME}",
        )
    if facts.retention is not None and oplog_seconds is not None and facts.retention < oplog_seconds:
        yield Warned(
            f"the topic {name!r} keeps records for {facts.retention / 3600:.1f} h, and the oplog reaches back "
            f"{oplog_seconds / 3600:.1f} h: a dispatcher that is stopped in between loses changes",
            f"{change} retention.ms={round(oplog_seconds * _MS)}",
        )
    if facts.retention_bytes not in (None, float("inf")):
        yield Warned(
            f"the topic {name!r} keeps at most {facts.retention_bytes:.0f} bytes in each partition: many changes "
            "shorten the time that it holds",
            f"{change} retention.bytes=-1",
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _limit(values: Mapping[str, str | None], name: str) -> float | None:
    """A number in the configuration of a topic; -1 means that there is no limit."""
    value = values.get(name)
    if value is None:
        return None
    return float("inf") if value == "-1" else float(value)


async def _answer(asked: Any, place: str) -> Any:
    """Wait for the answer of a broker.

    Args:
        asked: the future of a request.
        place: the object of the request, for errors.

    Raises:
        KafkaError: the broker refuses the request, or no broker answers.
    """
    from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

    try:
        return await asyncio.wrap_future(asked)
    except KafkaException as error:
        cause = error.args[0]
        raise _ERRORS.get(cause.name(), _Refusal())(cause, place) from error


def _code_of(error: KafkaError) -> str:
    """The name of the broker's error."""
    cause: Any = error.__cause__
    return "" if cause is None else str(cause.args[0].name())


class _Refusal(NamedTuple):
    """Makes an error for the operator from an error of a broker."""

    text: str = "Kafka refuses a request about {place}"
    remedy: str = "If this lasts, look at the log of the broker."
    kind: type[KafkaError] = TopicError

    def __call__(self, cause: Any, place: str) -> KafkaError:
        text = str(cause.str()).rstrip(".")
        return self.kind(f"{self.text.format(place=place)}: {text} ({cause.name()}).", remedy=self.remedy)


_UNREACHABLE: Final = _Refusal(
    "No broker of Kafka answers about {place}",
    "Are they running, are the addresses of --kafka right, may this machine reach them? With TLS or passwords, "
    "are the properties of --kafka-config right?",
    KafkaError,
)
_FORBIDDEN: Final = _Refusal(
    "Kafka does not allow this user a request about {place}",
    "Grant the user Describe, DescribeConfigs, Create and Write on the topic: kafka-acls.sh --add.",
    KafkaError,
)
_ERRORS: Final[Mapping[str, _Refusal]] = {
    **dict.fromkeys(("_TIMED_OUT", "_TRANSPORT", "_ALL_BROKERS_DOWN", "_RESOLVE"), _UNREACHABLE),
    **dict.fromkeys(
        ("TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED"), _FORBIDDEN
    ),
    **dict.fromkeys(
        ("_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED"),
        _Refusal(
            "Kafka refuses the user, asked about {place}",
            "Correct sasl.username, sasl.password and sasl.mechanisms in --kafka-config.",
            KafkaError,
        ),
    ),
    "TOPIC_EXCEPTION": _Refusal(
        "Kafka does not accept the name of {place}", "Choose a --name of letters, digits, '.', '_' and '-'."
    ),
}
