"""Topics are created, and described as the broker knows them."""

import itertools

import pytest

from dispatcher.embedded.broker import EmbeddedBroker
from dispatcher.exceptions import KafkaError, TopicError
from dispatcher.kafka.config import load_config
from dispatcher.kafka.topics import create_topic, read_topic, require_usable, weaknesses
from tests.kafka.server import KafkaServer

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")

_names = itertools.count()


def fresh_name() -> str:
    return f"mongoz.topics.{next(_names)}"


@pytest.fixture(params=["broker", "kafka_server"])
def address(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param).address


async def test_a_topic_is_created_once(address: str) -> None:
    admin, name = load_config(address).admin(), fresh_name()
    assert await read_topic(admin, name) is None
    assert await create_topic(admin, name, 4)
    assert not await create_topic(admin, name, 8)
    facts = await read_topic(admin, name)
    assert facts is not None
    assert (facts.layout.topic, facts.layout.partitions, facts.replicas, facts.brokers) == (name, 4, 1, 1)
    assert facts.layout.id
    assert facts.timestamps == "LogAppendTime"
    require_usable(facts, "READ")


async def test_a_topic_of_apache_kafka_is_described_completely(kafka_server: KafkaServer) -> None:
    admin, name = load_config(kafka_server.address).admin(), fresh_name()
    await create_topic(admin, name, 2)
    facts = await read_topic(admin, name)
    assert facts is not None
    assert facts.layout.cluster == kafka_server.cluster_id
    assert (facts.cleanup, facts.retention, facts.retention_bytes) == ("delete", 7 * 86_400.0, float("inf"))
    assert (facts.in_sync, facts.largest) == (1, 1_048_588)
    assert [one.text for one in weaknesses(facts)] == [
        f"the topic {name!r} has 1 replica: changes can be lost if a broker fails"
    ]


async def test_the_embedded_broker_is_named_as_a_weakness(broker: EmbeddedBroker) -> None:
    admin, name = load_config(broker.address).admin(), fresh_name()
    await create_topic(admin, name, 2)
    facts = await read_topic(admin, name)
    assert facts is not None
    [warned] = weaknesses(facts, oplog_seconds=1e9)
    assert "embedded broker" in warned.text


async def test_a_refused_name_is_an_error_with_a_remedy(kafka_server: KafkaServer) -> None:
    admin = load_config(kafka_server.address).admin()
    with pytest.raises(TopicError, match="does not accept the name") as error:
        await create_topic(admin, "a/b", 1)
    assert "--name" in error.value.remedy


async def test_a_missing_broker_is_named() -> None:
    admin = load_config("127.0.0.1:1", patience=1.0).admin()
    with pytest.raises(KafkaError, match="No broker of Kafka answers") as error:
        await create_topic(admin, "a", 1)
    assert "--kafka" in error.value.remedy
