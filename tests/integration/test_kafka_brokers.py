"""The brokers that tests run on keep all produced messages, in order."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from dispatcher.embedded.broker import EmbeddedBroker
from dispatcher.exceptions import EmbeddedError
from tests.kafka import server as kafka
from tests.kafka.security import secured
from tests.kafka.server import KafkaServer
from tests.support import PATIENCE, eventually_sync

confluent_kafka = pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
admin = pytest.importorskip("confluent_kafka.admin")

_topics = itertools.count()
PARTITIONS = 4


@pytest.fixture(params=["broker", "kafka_server"])
def address(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param).address


def topic_at(address: str, **config: str) -> str:
    """The name of a new topic."""
    name = f"test.{next(_topics)}"
    client = admin.AdminClient({"bootstrap.servers": address, "log_level": 0})
    new = admin.NewTopic(name, num_partitions=PARTITIONS, replication_factor=1, config=config)
    client.create_topics([new], operation_timeout=PATIENCE)[name].result(PATIENCE)
    return name


def produced(address: str, topic: str, partition: int, messages: list[dict[str, Any]]) -> list[int]:
    """Produce messages; return the offsets of the acknowledged messages, in the order of the reports."""
    offsets: list[int] = []

    def on_delivery(error: Any, message: Any) -> None:
        assert error is None, error
        assert message.partition() == partition
        offsets.append(message.offset())

    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": address,
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": "lz4",
            "allow.auto.create.topics": False,
            "log_level": 0,
        }
    )
    # The partition is an argument: `produce_batch` silently ignores the "partition" of a message.
    assert producer.produce_batch(topic, messages, partition, on_delivery=on_delivery) == len(messages)
    assert producer.flush(PATIENCE) == 0
    return offsets


def consumed(address: str, topic: str, count: int) -> list[Any]:
    """The messages of all partitions from the beginning."""
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": address, "group.id": "test", "enable.auto.commit": False}
    )
    consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    messages: list[Any] = []
    try:
        while len(messages) < count:
            batch = consumer.consume(count, timeout=PATIENCE)
            assert batch, f"{len(messages)} of {count} messages came"
            assert not any(each.error() for each in batch)
            messages += batch
    finally:
        consumer.close()
    return messages


def test_messages_are_kept_in_the_order_of_their_partition(address: str) -> None:
    topic = topic_at(address)
    values = [b"%06d" % number + b"x" * 294 for number in range(1000)]
    parts = [values[partition::PARTITIONS] for partition in range(PARTITIONS)]

    for partition, part in enumerate(parts):
        batch = [{"value": value, "key": value[:6]} for value in part]
        assert produced(address, topic, partition, batch) == list(range(len(part)))
    read = consumed(address, topic, len(values))

    for partition, part in enumerate(parts):
        of_partition = [(each.offset(), each.value()) for each in read if each.partition() == partition]
        assert of_partition == list(enumerate(part))


def test_apache_kafka_creates_no_topic_by_itself(kafka_server: KafkaServer) -> None:
    client = admin.AdminClient({"bootstrap.servers": kafka_server.address, "allow.auto.create.topics": True})
    topic = client.list_topics("no.such.topic", timeout=PATIENCE).topics["no.such.topic"]
    assert topic.error.code() == confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART


def test_apache_kafka_knows_times_sizes_and_watermarks(kafka_server: KafkaServer) -> None:
    config = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": "1000"}
    topic = topic_at(kafka_server.address, **config)
    produced(kafka_server.address, topic, 0, [{"value": b"x" * 300}])

    [message] = consumed(kafka_server.address, topic, 1)
    assert message.timestamp()[0] == confluent_kafka.TIMESTAMP_LOG_APPEND_TIME

    with pytest.raises(AssertionError, match="MSG_SIZE_TOO_LARGE"):
        produced(kafka_server.address, topic, 0, [{"value": os.urandom(5000)}])

    consumer = confluent_kafka.Consumer({"bootstrap.servers": kafka_server.address, "group.id": "test"})
    try:
        partition = confluent_kafka.TopicPartition(topic, 0)
        assert consumer.get_watermark_offsets(partition, timeout=PATIENCE) == (0, 1)
    finally:
        consumer.close()


@pytest.mark.slow
def test_properties_reach_a_separate_apache_kafka(kafka_server: KafkaServer) -> None:
    with kafka.running({"auto.create.topics.enable": True, "num.partitions": PARTITIONS}) as own:
        assert own.cluster_id != kafka_server.cluster_id
        produced_to_a_new_topic = confluent_kafka.Producer({"bootstrap.servers": own.address})
        produced_to_a_new_topic.produce("new", b"value", partition=0)
        assert produced_to_a_new_topic.flush(PATIENCE) == 0
        assert len(consumed(own.address, "new", 1)) == 1


@pytest.mark.slow
def test_the_error_quotes_an_apache_kafka_that_ends_immediately(kafka_server: KafkaServer) -> None:
    with (
        pytest.raises(EmbeddedError, match=r"kafka ended .*no\.such"),
        kafka.running({"process.roles": "no.such"}),
    ):
        pass


@pytest.mark.slow
def test_apache_kafka_takes_another_port_after_a_race(
    kafka_server: KafkaServer, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_port = kafka.free_port
    ports = [broker.port]
    monkeypatch.setattr("dispatcher.embedded.guardian.free_port", lambda: ports.pop() if ports else free_port())
    with kafka.running() as own:
        assert own.address != broker.address


@pytest.mark.slow
def test_a_secured_apache_kafka_refuses_a_wrong_password(kafka_server: KafkaServer, tmp_path: Path) -> None:
    with secured(tmp_path) as (server, client):
        connect = {"bootstrap.servers": server.address, "log_level": 0}
        assert (
            admin.AdminClient({**connect, **client}).list_topics(timeout=PATIENCE).cluster_id == server.cluster_id
        )

        refusals: list[str] = []
        wrong = {**client, "sasl.password": "wrong", "error_cb": lambda error: refusals.append(error.name())}
        other = admin.AdminClient({**connect, **wrong})
        eventually_sync(lambda: other.poll(0.1) or "_AUTHENTICATION" in refusals)
