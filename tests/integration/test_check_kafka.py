"""`check` and `setup` of an application that reads from a topic, and `check` of a relay."""

import time
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from structlog.testing import capture_logs

import mongoz
from dispatcher.core.oplog import Oplog
from dispatcher.core.state import State
from dispatcher.embedded.broker import EmbeddedBroker
from dispatcher.exceptions import ExitCode
from dispatcher.kafka.config import load_config
from dispatcher.kafka.topics import read_topic
from dispatcher.operate import check as check_module
from dispatcher.operate.check import check
from dispatcher.operate.findings import Finding
from dispatcher.operate.setup import set_up
from dispatcher.relay.check import check_relay
from mongoz.core.signals import post_save
from tests.acceptance.test_run import run as command
from tests.integration.deliveries import make_account
from tests.integration.relaying import last_token, relaying
from tests.kafka.publisher import Publisher
from tests.kafka.server import KafkaServer
from tests.support import dispatching, eventually, settings_for

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")


APPS = ["shop:registry"]  # the default of `apps` in `relaying`


@pytest.fixture
def account(dispatched: mongoz.Registry, database: str) -> Any:
    made = make_account(dispatched, database)

    @post_save(made, name="saved")
    async def saved(sender: Any, **kwargs: Any) -> None:
        """Does nothing."""

    return made


def settings_of(registry: mongoz.Registry, address: str, name: str, **changes: Any) -> Any:
    return settings_for(registry, kafka=address, kafka_topic=f"mongoz.{name}", connect_timeout=30.0, **changes)


async def looked(registry: mongoz.Registry, settings: Any) -> list[Finding]:
    return [one async for one in check(registry, settings)]


def texts(found: list[Finding], topic: str, level: str = "ok") -> list[str]:
    return [one.text for one in found if (one.topic, one.level) == (topic, level)]


async def test_setup_creates_the_topic_and_then_waits_for_the_relay(
    account, dispatched, database, foreign, broker: EmbeddedBroker, name
) -> None:
    settings = settings_of(dispatched, broker.address, name, partitions=3)
    first = await set_up(dispatched, settings)
    assert first.topic == "created with 3 partitions"
    assert "first start of dispatcher relay" in first.position
    facts = await read_topic(load_config(broker.address).admin(), f"mongoz.{name}")
    assert facts is not None
    assert facts.layout.partitions == 3
    assert (await set_up(dispatched, settings)).topic == "created already"
    async with relaying(dispatched, broker.address, name, partitions=None):
        after = await set_up(dispatched, settings)
        assert (after.topic, after.position) == ("created already", "recorded")
        assert (await set_up(dispatched, settings)).position == "recorded already"


async def test_the_embedded_broker_is_for_development_only(
    account, dispatched, broker: EmbeddedBroker, name
) -> None:
    settings = settings_of(dispatched, broker.address, name)
    async with relaying(dispatched, broker.address, name):
        found = await looked(dispatched, settings)
        relay = [one async for one in check_relay([dispatched], settings, APPS)]
    for one in (found, relay):
        (warned,) = texts(one, "topic", "warning")
        assert "for development only" in warned
        assert [each for each in one if each.level == "error"] == []
    assert texts(found, "position") == []  # the embedded broker does not know the ends of its logs


async def test_a_healthy_topic_is_described(
    account, dispatched, database, foreign, client, kafka_server: KafkaServer, name
) -> None:
    settings = settings_of(dispatched, kafka_server.address, name)
    async with relaying(dispatched, kafka_server.address, name) as relay:
        foreign["accounts"].insert_one({"name": "Ada", "amount": 1, "tags": []})
        await relay.published(await last_token(foreign, client, database))
        found = await looked(dispatched, settings)
        of_relay = [one async for one in check_relay([dispatched], settings, APPS)]
    assert [one for one in [*found, *of_relay] if one.level == "error"] == []
    assert texts(found, "kafka") == [
        f"1 broker of the cluster {kafka_server.cluster_id!r} at {kafka_server.address}"
    ]
    assert f"The topic 'mongoz.{name}' has 4 partitions" in texts(found, "topic")
    assert any("are those of the relay" in text for text in texts(found, "topic"))
    assert f"It publishes {database}.accounts" in texts(found, "relay")
    assert any(text.startswith("The process ") for text in texts(found, "relay"))
    assert texts(found, "source") == [
        f"The group {database!r} reads from the topic 'mongoz.{name}' of the Kafka cluster "
        f"{kafka_server.cluster_id!r}"
    ]
    assert any(text.startswith("The process ") for text in texts(of_relay, "relay"))
    assert texts(of_relay, "position")
    stopped = await looked(dispatched, settings)
    (warned,) = texts(stopped, "relay", "warning")
    assert warned.startswith(f"No relay publishes to 'mongoz.{name}' now. Changes wait in the oplog")


@pytest.mark.parametrize(
    ("begins", "level", "text"),
    [(0.0, "warning", "does not hold all records"), (4e9, "error", "does not hold all records")],
)
async def test_lost_records_are_an_error_only_if_the_oplog_has_lost_the_changes_too(
    account, dispatched, database, client: AsyncMongoClient[Any], kafka_server, monkeypatch, begins, level, text
) -> None:
    publisher = Publisher(kafka_server.address, f"{database}.accounts")
    publisher.create(**{"message.timestamp.type": "LogAppendTime"})
    await publisher.begin(State(client, f"{database}_state"))
    settings = settings_for(dispatched, kafka=publisher.address, kafka_topic=publisher.topic, connect_timeout=30.0)
    async with dispatching(dispatched, **settings.model_dump(exclude_unset=True)):
        pass
    assert len(texts(await looked(dispatched, settings), "position")) == 1
    for number in range(3):
        publisher.insert(number)
    publisher.forget_before(0, 2)
    await publisher.save()

    async def oplog(_client: Any) -> Oplog:
        return Oplog(begins, max(begins, time.time()) + 1, 0.0)

    monkeypatch.setattr(check_module, "look_at_oplog", oplog)
    (lost,) = texts(await looked(dispatched, settings), "position", level)
    assert text in lost


async def test_a_group_that_reads_from_change_streams_is_named(
    account, dispatched, broker: EmbeddedBroker, name
) -> None:
    async with dispatching(dispatched):
        pass
    async with relaying(dispatched, broker.address, name):
        (other,) = texts(
            await looked(dispatched, settings_of(dispatched, broker.address, name)), "source", "error"
        )
    assert "reads from change streams" in other


async def test_a_relay_warns_of_another_producer(
    account, dispatched, database, foreign, client, broker: EmbeddedBroker, name
) -> None:
    publisher = Publisher(broker.address, f"{database}.accounts", 1, f"mongoz.{name}")
    with capture_logs() as lines:
        async with relaying(dispatched, broker.address, name, partitions=1) as relay:
            for number in range(2):
                foreign["accounts"].insert_one({"name": "Ada", "amount": number, "tags": []})
                await relay.published(await last_token(foreign, client, database))
                publisher.send(b"hello")
            line = await eventually(
                lambda: next((one for one in lines if one["action"] == "topic.mixed"), None),
                what="the relay warns",
            )
    assert line["partitions"] == [0]
    assert "another state" in line["remedy"]


@pytest.mark.slow
def test_several_apps_need_the_flag_relay_and_relay_needs_the_flag_kafka(tmp_path: Any) -> None:
    two = command("check", "a:b", "c:d", cwd=tmp_path)
    assert (two.returncode, "--relay" in two.stderr) == (ExitCode.USAGE, True)
    alone = command("check", "a:b", "--relay", cwd=tmp_path)
    assert (alone.returncode, "--kafka" in alone.stderr) == (ExitCode.USAGE, True)
