"""The status of a relay, and of a group that reads from its topic."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient
from structlog.testing import capture_logs

import mongoz
from dispatcher.core.state import RELAYS, State
from dispatcher.embedded.broker import embedded_broker
from dispatcher.kafka.envelope import encode
from dispatcher.operate.metrics import Metrics
from dispatcher.operate.status import read_status
from dispatcher.operate.status_model import GroupStatus
from mongoz.core.signals import post_save
from tests.integration.deliveries import make_account
from tests.integration.relaying import last_token
from tests.kafka.server import KafkaServer
from tests.support import dispatching, eventually, group_of

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.integration.relaying import relay_name, relaying
from tests.kafka.publisher import Publisher


@pytest.fixture
def gate(dispatched: mongoz.Registry, database: str) -> asyncio.Event:
    """The receiver waits for this event."""
    account, opened = make_account(dispatched, database), asyncio.Event()

    @post_save(account, name="saved", timeout=100)
    async def saved(sender, **kwargs):
        await opened.wait()

    return opened


class Seeing:
    """Reads the status of groups, as operators do."""

    def __init__(self, client: AsyncMongoClient[Any], database: str) -> None:
        self._client = client
        self._database = database

    async def of(self, group: str | None = None) -> GroupStatus:
        return await read_status(group_of(self._client, self._database, group))

    async def until(self, condition: Callable[[GroupStatus], Any], group: str | None = None) -> GroupStatus:
        async with asyncio.timeout(90):
            while not condition(seen := await self.of(group)):
                await asyncio.sleep(0.05)
            return seen


@pytest.fixture
def seeing(client: AsyncMongoClient[Any], database: str) -> Seeing:
    return Seeing(client, database)


async def test_the_lags_of_the_relay_the_broker_and_the_deliveries_are_separate(
    gate, dispatched, foreign, client, database, broker, seeing
):
    name = relay_name()
    topic = f"mongoz.{name}"
    async with relaying(dispatched, broker.address, name) as relay:
        async with dispatching(dispatched, kafka=broker.address, kafka_topic=topic, grace=0.1):
            foreign["accounts"].insert_many([{"name": str(number)} for number in range(7)])
            seen = await seeing.until(
                lambda one: (one.delivery_lag_seconds or 0) > 1 and one.relay and one.relay.lag_seconds is not None
            )
            assert (seen.source.topic, seen.source.cluster) == (topic, broker.cluster_id)
            assert (seen.is_relay, seen.broker_lag, seen.broker_troubles) == (False, 0, [])
            assert seen.relay is not None
            assert (seen.relay.lag_seconds, seen.relay.records_in_flight, len(seen.relay.alive)) == (0, 0, 1)
            assert seen.relay.publishes[0].name == f"{foreign.name}.accounts"
            assert seen.relay.readers == []
        # No dispatcher reads, so the lag is computed from the saved positions.
        foreign["accounts"].insert_many([{"name": str(number)} for number in range(5)])
        await relay.published(await last_token(foreign, client, database))
        seen = await seeing.until(lambda one: one.broker_lag == 12)
        assert seen.delivery_lag_seconds is None
        assert seen.health.health == "down"
        of_relay = await seeing.until(lambda one: one.relay.readers[0].alive == 0, topic)
        assert (of_relay.is_relay, of_relay.source.topic) == (True, None)
        assert [(one.group, one.broker_lag) for one in of_relay.relay.readers] == [(foreign.name, 12)]
        assert of_relay.health.health in ("delivering", "idle")
        assert relay.stats.relay.records == 12
        assert relay.stats.relay.bytes > 12 * 100
        assert relay.stats.relay.terms == {"lease": 1, "error": 0, "topic": 0, "replaced": 0}
        assert of_relay.relay.term == relay.stats.relay.term
    # Neither a dispatcher nor a relay lives.
    seen = await seeing.until(lambda one: not one.relay.alive)
    assert (seen.relay.lag_seconds, seen.broker_lag) == (None, 12)
    assert (await seeing.of(topic)).health.why == "no relay is alive"


async def test_the_health_of_a_group_without_a_relay_is_behind(gate, dispatched, foreign, broker, seeing):
    gate.set()
    name = relay_name()
    reading = {"kafka": broker.address, "kafka_topic": f"mongoz.{name}"}
    async with relaying(dispatched, broker.address, name), dispatching(dispatched, **reading):
        await seeing.until(lambda one: one.health.health in ("idle", "delivering"))
    async with dispatching(dispatched, **reading):
        seen = await seeing.until(lambda one: one.health.health == "behind")
        assert "no relay is alive" in seen.health.why


async def test_a_failed_record_begins_a_new_term_that_is_counted_as_an_error(
    gate, dispatched, foreign, client, database, broker
):
    async with relaying(dispatched, broker.address, relay_name()) as relay:
        (held,) = relay.service._coordinator.held.values()
        held.work._term.ledger.fail("the broker has not acknowledged it")
        await eventually(lambda: relay.stats.relay.terms["error"] == 1, what="a new term begins")
        foreign["accounts"].insert_one({"name": "a"})
        await relay.published(await last_token(foreign, client, database))
        await eventually(lambda: not relay.service.observer.not_ready(), what="the relay is ready")


async def test_dropped_records_are_counted(gate, dispatched, client, database, broker):
    gate.set()
    publisher = Publisher(broker.address, f"{database}.accounts")
    publisher.create()
    await publisher.begin(State(client, f"{database}_state"))
    publisher.insert(ObjectId())
    await publisher.save()
    reading = {"kafka": broker.address, "kafka_topic": publisher.topic}
    async with dispatching(dispatched, **reading) as running:
        id_ = ObjectId()
        made = publisher.made("insert", id_, fullDocument={"_id": id_, "name": "b"})
        publisher.publish(made)
        before = publisher.term
        await publisher.take_term()
        publisher.publish(made)  # the new term begins with an event that the old term has published
        publisher.send(encode(before, 2, made))  # a zombie sends with the earlier term
        publisher.send(encode(publisher.term, 5, made))  # the records before this record are missing
        publisher.insert(ObjectId())
        figures = running.service.stats.topic
        await eventually(lambda: running.service.stats.read == 2, what="both events are read")
        assert figures.dropped == {"duplicate": 1, "stale": 1, "ahead": 1}
        assert figures.records == 5
        (gauges,) = running.service.gauges().values()
        assert (gauges.topic.trouble, gauges.topic.buffered_bytes) == ("", 0)


async def test_a_malformed_relay_is_named_and_hides_nothing_else(client, database, seeing):
    state = State(client, f"{database}_state")
    await state.positions.insert_one(
        {"_id": "g", "group": "g", "partitions": 1, "topic": {"name": "mongoz.changes", "cluster_id": "c"}}
    )
    await state.relays.insert_one({"_id": "mongoz.changes", "cluster": "c"})
    seen = await seeing.of("g")
    assert (seen.source.topic, seen.relay) == ("mongoz.changes", None)
    assert [one.collection for one in seen.misfits] == [f"{state.name}.{RELAYS}"]


@pytest.mark.slow
async def test_brokers_that_do_not_answer_are_named(gate, dispatched, foreign, client, database, seeing):
    gate.set()
    name = relay_name()
    with embedded_broker() as own, capture_logs() as lines:
        async with (
            relaying(dispatched, own.address, name, grace=0.1) as relay,
            dispatching(dispatched, kafka=own.address, kafka_topic=f"mongoz.{name}") as running,
        ):
            await seeing.until(lambda one: one.health.health in ("idle", "delivering"))
            os.kill(own.pid, signal.SIGSTOP)
            try:
                foreign["accounts"].insert_one({"name": "a"})
                await seeing.until(
                    lambda one: any("acknowledged no record" in text for text in one.broker_troubles)
                )
                await seeing.until(lambda one: len(one.broker_troubles) == 2)
                of_relay = await seeing.until(lambda one: one.health.health == "failing", f"mongoz.{name}")
                assert (of_relay.relay.records_in_flight, of_relay.relay.lag_seconds > 5) == (1, True)
                assert any("of the topic can't be read" in one for one in running.service.observer.not_ready())
                assert any("acknowledged no record" in one for one in relay.service.observer.not_ready())
                lag = running.service.gauges()[0].lag_seconds
                assert lag > 5  # there may be changes in the topic that can't be read
                assert running.service.observer.must_restart() == relay.service.observer.must_restart() == []
            finally:
                os.kill(own.pid, signal.SIGCONT)
            await eventually(lambda: not running.service.observer.not_ready(), what="the dispatcher is ready")
            await eventually(lambda: not relay.service.observer.not_ready(), what="the relay is ready again")
            waits = [one for one in lines if one["action"].endswith("acknowledged")]
            assert [one["action"] for one in waits] == ["kafka.not_acknowledged", "kafka.acknowledged"]
            assert 10 <= waits[0]["seconds"] < waits[1]["seconds"]
            await seeing.until(lambda one: not one.broker_troubles and one.health.health != "behind")


@pytest.mark.slow
async def test_the_headroom_of_a_group_that_reads_from_a_topic_is_the_retention_of_the_topic(
    gate, dispatched, foreign, client, database, kafka_server: KafkaServer, seeing
):
    gate.set()
    name, week = relay_name(), 7 * 86_400
    async with (
        relaying(dispatched, kafka_server.address, name) as relay,
        dispatching(dispatched, kafka=kafka_server.address, kafka_topic=f"mongoz.{name}") as running,
    ):
        seen = await seeing.until(lambda one: one.headroom_seconds)
        assert week - 300 < seen.headroom_seconds <= week
        assert seen.relay.retention_seconds == week
        (reader,) = (await seeing.of(f"mongoz.{name}")).relay.readers
        assert week - 300 < reader.headroom_seconds <= week
        text = Metrics(running.service.observer.snapshot).text().decode()
        assert f'topic_retention_seconds{{group="{database}"}} {float(week)}' in text
        assert f'topic_headroom_seconds{{group="{database}",partition="3"}}' in text
        assert "oplog_headroom" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
        of_relay = Metrics(relay.service.observer.snapshot).text().decode()
        assert f'relay_terms_total{{cause="lease",group="mongoz.{name}"}} 1.0' in of_relay
