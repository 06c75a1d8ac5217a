"""On Apache Kafka: the topic of a running relay is deleted or changed, or brokers do not answer or die."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import Binary, Timestamp
from structlog.testing import capture_logs

from dispatcher.core.resume_tokens import token_at
from dispatcher.core.state import State
from dispatcher.exceptions import HistoryLost, TopicError
from dispatcher.kafka import topics
from dispatcher.kafka.config import load_config
from dispatcher.kafka.large_events import LargeEvents
from dispatcher.kafka.topics import create_topic, read_topic
from dispatcher.relay import term
from tests.integration.relaying import (
    accepted,
    compact,
    configure,
    eventually_or_failed,
    last_token,
    relaying,
    saved_state,
)
from tests.kafka import server as kafka
from tests.kafka.server import KafkaServer
from tests.support import PATIENCE, dispatching, eventually

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")

pytestmark = pytest.mark.slow


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A file with properties: a producer gives up a record soon if no broker acknowledges it."""
    path = tmp_path / "kafka.properties"
    path.write_text("message.timeout.ms = 1500\n")
    return path


async def delete(servers: str, topic: str) -> None:
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": servers})
    await asyncio.wrap_future(admin.delete_topics([topic])[topic])
    looking = load_config(servers).admin()
    async with asyncio.timeout(PATIENCE):
        while await read_topic(looking, topic) is not None:
            await asyncio.sleep(0.02)


class Writes:
    """Inserts documents, each with the next number as its `_id`."""

    def __init__(self, foreign: Any) -> None:
        self._orders = foreign["orders"]
        self.count = 0

    def some(self, number: int = 20) -> None:
        self._orders.insert_many([{"_id": self.count + i} for i in range(number)])
        self.count += number


def ids(servers: str, topic: str) -> list[int]:
    """The ids of the documents whose events a reader of the topic gets."""
    return sorted(one.event["documentKey"]["_id"] for one in accepted(servers, topic))


@pytest.mark.parametrize("again", [True, False])
async def test_if_the_topic_of_a_running_relay_is_deleted_a_gap_is_recorded_and_later_changes_are_in_a_new_topic(
    order, dispatched, foreign, client, database, name, short, kafka_server: KafkaServer, again: bool
) -> None:
    servers, topic, writes = kafka_server.address, f"mongoz.{name}", Writes(foreign)
    async with relaying(dispatched, servers, name, path=short, on_history_lost="resume") as relay:
        writes.some(100)
        await relay.published(await last_token(foreign, client, database))
        before = await saved_state(client, database, name)
        await delete(servers, topic)
        if again:
            await create_topic(load_config(servers).admin(), topic, 4)
        for _ in range(20):
            writes.some(5)
            await asyncio.sleep(0.05)
        await relay.published(await last_token(foreign, client, database))
    after = await saved_state(client, database, name)
    assert (after.topic.id == before.topic.id, after.term > before.term) == (False, True)
    [gap] = foreign.client[f"{database}_state"]["gaps"].find()
    assert (gap["kind"], gap["policy"]) == ("history_lost", "resume")
    assert ids(servers, topic) == list(range(100, writes.count))


async def test_a_topic_that_is_deleted_while_a_relay_runs_ends_the_relay_by_default(
    order, dispatched, foreign, database, name, short, kafka_server: KafkaServer
) -> None:
    servers, writes = kafka_server.address, Writes(foreign)

    async def run() -> None:
        async with relaying(dispatched, servers, name, path=short) as relay:
            writes.some()
            await delete(servers, f"mongoz.{name}")
            writes.some()
            await eventually_or_failed(relay.task, lambda: False)

    with pytest.raises(HistoryLost, match="was deleted") as error:
        await run()
    assert "--on-history-lost" in error.value.remedy


async def test_a_topic_that_is_compacted_while_a_relay_runs_ends_the_relay(
    order, dispatched, foreign, name, kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(term, "_BETWEEN_CHECKS", 0.2)

    async def run() -> None:
        async with relaying(dispatched, kafka_server.address, name) as relay:
            Writes(foreign).some()
            await compact(kafka_server.address, f"mongoz.{name}")
            await eventually_or_failed(relay.task, lambda: False)

    with pytest.raises(TopicError, match="is compacted") as error:
        await run()
    assert "cleanup.policy=delete" in error.value.remedy


async def test_a_weakness_that_a_topic_gets_is_logged_by_the_running_relay_and_by_a_running_dispatcher(
    order, dispatched, name, kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(term, "_BETWEEN_CHECKS", 0.2)
    monkeypatch.setattr(topics, "_LOOK", 0.2)
    servers, topic = kafka_server.address, f"mongoz.{name}"
    with capture_logs() as lines:

        def count(text: str) -> int:
            return sum(one["action"] == "topic.weak" and text in one["event"] for one in lines)

        async with relaying(dispatched, servers, name), dispatching(dispatched, kafka=servers, kafka_topic=topic):
            await eventually(lambda: count("has 1 replica") == 2, what="both have looked at their start")
            assert count("keeps at most") == 0
            await configure(servers, topic, "retention.bytes", "1000000")
            await eventually(lambda: count("keeps at most 1000000 bytes") == 2, what="both warn")
    assert count("") == 4  # each weakness is logged once


async def test_a_relay_deletes_large_events_a_day_after_the_retention_of_its_topic(
    order, dispatched, foreign, client, database, name, kafka_server: KafkaServer
) -> None:
    state = foreign.client[f"{database}_state"]["relayed.files"]
    files = LargeEvents(State(client, f"{database}_state"), f"mongoz.{name}")
    now, week = (await client.admin.command("hello"))["localTime"], timedelta(days=7)  # the default of Kafka
    for number, age in ((1, timedelta(days=1, hours=1)), (2, timedelta(hours=23))):
        large = await files.add(token_at(Timestamp(number, 0)), b"event")
        state.update_one({"_id": Binary(large.id)}, {"$set": {"uploadDate": now - week - age}})
    async with relaying(dispatched, kafka_server.address, name):
        await eventually(lambda: state.count_documents({}) == 1, what="the older file is deleted")
    assert await files.read(large) == b"event"


@contextlib.contextmanager
def stopped(server: KafkaServer) -> Iterator[None]:
    """During a `with` block the brokers do not answer."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_brokers_that_do_not_answer_for_long_lose_nothing_and_memory_is_bounded(
    order, dispatched, foreign, client, database, name, short, kafka_server: KafkaServer
) -> None:
    servers, topic, text = kafka_server.address, f"mongoz.{name}", "x" * 10_000
    options = {"max_queued_mb": 1, "batch_size": 10, "connect_timeout": 1.0}
    async with relaying(dispatched, servers, name, path=short, **options) as relay:
        foreign["orders"].insert_one({"_id": 0})
        await relay.published(await last_token(foreign, client, database))
        largest, terms = 0, 0
        with capture_logs() as lines, stopped(kafka_server):
            foreign["orders"].insert_many([{"_id": i, "text": text} for i in range(1, 501)])
            async with asyncio.timeout(PATIENCE):
                while terms < 1 or not any(one["action"] == "kafka.not_reached" for one in lines):
                    largest = max([largest, *(one.queued_bytes for one in relay.service.gauges().values())])
                    terms = sum(one["action"] == "relay.term_failed" for one in lines)
                    assert not relay.task.done()
                    await asyncio.sleep(0.01)
        assert 900_000 < largest < 1_200_000
        reasons = [one["event"] for one in lines if one["action"] == "kafka.not_reached"]
        assert any("No broker of Kafka answers" in one for one in reasons), reasons
        await relay.published(await last_token(foreign, client, database))
    assert ids(servers, topic) == list(range(501))


async def test_the_relay_continues_when_one_of_three_brokers_dies(
    order, dispatched, foreign, client, database, name
) -> None:
    topic, writes = f"mongoz.{name}", Writes(foreign)
    with kafka.running_cluster() as brokers:
        servers = ",".join(one.address for one in brokers)
        async with relaying(dispatched, servers, name, partitions=6) as relay:
            writes.some(100)
            await relay.published(await last_token(foreign, client, database))
            facts = await read_topic(load_config(servers).admin(), topic)
            assert facts is not None
            assert (facts.replicas, facts.in_sync, facts.brokers) == (3, 2, 3)
            os.kill(brokers[2].pid, signal.SIGKILL)
            for _ in range(20):
                writes.some(5)
                await asyncio.sleep(0.05)
            await relay.published(await last_token(foreign, client, database))
        assert ids(servers, topic) == list(range(writes.count))
