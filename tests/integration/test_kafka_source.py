"""The dispatcher reads from a topic instead of from change streams. A small publisher stands for the relay."""

import asyncio
import os
import signal
import time
from typing import Any
from unittest.mock import AsyncMock

import bson
import pytest
from bson import Int64, ObjectId
from pymongo import AsyncMongoClient

from dispatcher.core import state as state_module
from dispatcher.core.resume_tokens import directly_after, token_time
from dispatcher.embedded.broker import embedded_broker
from dispatcher.exceptions import HistoryLost, PositionError, StillRunning, TopicError
from dispatcher.group.origin import StreamOrigin, origin_of
from dispatcher.kafka.envelope import encode
from dispatcher.kafka.log import TopicLog, topic_of
from dispatcher.operate.positions import Mover
from dispatcher.operate.setup import set_up
from dispatcher.runtime import assembly, service
from dispatcher.settings import MOST_PARTITIONS
from mongoz.core.signals import post_delete, post_save
from mongoz.stamps import Call, Stamp, key_hash
from tests.integration.deliveries import State, make_account
from tests.integration.relaying import compact
from tests.kafka.server import KafkaServer
from tests.list_source import ListSource, event
from tests.support import PATIENCE, dispatching, eventually, eventually_sync, settings_for

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.kafka.publisher import Publisher, reading

TRANSACTION = {"lsid": {"id": bson.Binary(b"1" * 16, 4), "uid": b"2"}, "txnNumber": Int64(1)}


def id_of(number: int) -> ObjectId:
    return ObjectId(f"{number:024x}")


@pytest.fixture
def got(account: Any) -> list[int]:
    """The numbers of the delivered documents, in order."""
    numbers: list[int] = []

    @post_save(account, name="saved")
    async def saved(sender, instance, **kwargs):
        numbers.append(int(str(instance.id), 16))

    return numbers


async def test_the_events_of_a_topic_are_delivered_in_order_and_the_position_follows(
    account, dispatched, foreign, publisher, got
):
    async with reading(dispatched, publisher, concurrency=1):
        for number in range(1, 8):
            publisher.insert(id_of(number))
        await eventually(lambda: len(got) == 7, what="all are delivered")
        last = publisher.insert(id_of(8))
        await eventually(lambda: State(foreign).token >= last, what="the position is saved")
    assert got == list(range(1, 9))
    got.clear()
    publisher.insert(id_of(9))
    async with reading(dispatched, publisher):
        await eventually(lambda: got, what="the dispatcher goes on after the position")
    assert got == [9]


async def test_a_second_dispatcher_takes_over_at_the_saved_position(account, dispatched, foreign, publisher, got):
    async with reading(dispatched, publisher) as first:
        publisher.insert(id_of(1))
        await eventually(lambda: got == [1], what="the first dispatcher delivers")
        async with reading(dispatched, publisher):
            await first.stop()
            publisher.insert(id_of(2))
            await eventually(lambda: got == [1, 2], what="the second dispatcher delivers")


async def test_events_that_a_second_term_repeats_are_dropped_and_events_of_an_ended_term_are_refused(
    account, dispatched, foreign, publisher, got
):
    async with reading(dispatched, publisher, concurrency=1):
        zombie = publisher.term
        first = publisher.made("insert", id_of(1), fullDocument={"_id": id_of(1), "name": "first"})
        second = publisher.made("insert", id_of(2), fullDocument={"_id": id_of(2), "name": "second"})
        third = publisher.made("insert", id_of(3), fullDocument={"_id": id_of(3), "name": "third"})
        publisher.publish(first)
        await publisher.take_term()
        publisher.publish(first)
        publisher.publish(second)
        publisher.send(encode(zombie, 1, third))
        publisher.publish(third)
        await eventually(lambda: len(got) >= 3, what="all are delivered")
        last = publisher.insert(id_of(4))
        await eventually(lambda: State(foreign).token >= last, what="the position passes all changes")
    assert got == [1, 2, 3, 4]


async def test_a_delete_with_the_stamp_of_its_marker_is_not_delivered(account, dispatched, foreign, publisher):
    got: list[int] = []

    @post_delete(account, name="deleted")
    async def deleted(sender, instance, **kwargs):
        got.append(int(str(instance.id), 16))

    oid = ObjectId(publisher.second.to_bytes(4, "big") + ObjectId().binary[4:])
    muted = Stamp(dispatched.dispatched, Call.DELETED, oid, key_hash(publisher.place, id_of(1)), muted=True)
    async with reading(dispatched, publisher):
        publisher.publish(publisher.made("delete", id_of(1), **TRANSACTION), stamp=muted.pack())
        publisher.publish(publisher.made("delete", id_of(2), **TRANSACTION))
        await eventually(lambda: got, what="the foreign delete is delivered")
        last = publisher.publish(publisher.made("delete", id_of(3)))
        await eventually(lambda: State(foreign).token >= last, what="the position passes all changes")
    assert got == [2, 3]


async def test_a_malformed_record_ends_the_dispatcher_with_an_error_that_names_its_place(
    account, dispatched, publisher, got
):
    async with reading(dispatched, publisher) as running:
        publisher.insert(id_of(1))
        await eventually(lambda: got, what="the first change is delivered")
        publisher.send(b"hello")
        with pytest.raises(TopicError, match=rf"topic '{publisher.topic}', offset 1: the record is no change"):
            await running.task


async def test_a_malformed_state_of_the_relay_ends_the_dispatcher(account, dispatched, foreign, publisher, got):
    async with reading(dispatched, publisher) as running:
        relays = State(foreign).database["relays"]
        relays.update_one({"_id": publisher.topic}, {"$set": {"token": 7}})
        with pytest.raises(PositionError, match=publisher.topic):
            await running.task


async def test_events_of_other_collections_are_not_delivered(account, dispatched, foreign, publisher, got):
    """The drop of a collection of another application is no gap."""
    async with reading(dispatched, publisher):
        place, publisher.place = publisher.place, "elsewhere.accounts"
        publisher.insert(id_of(1))
        publisher.publish(publisher.made("drop", None))
        publisher.place = place
        last = publisher.insert(id_of(2))
        await eventually(lambda: State(foreign).token >= last, what="the position passes all changes")
    assert got == [2]
    assert not list(State(foreign).database["gaps"].find())


async def test_all_partitions_of_a_topic_are_read(account, dispatched, foreign, broker, client, database, got):
    publisher = Publisher(broker.address, f"{database}.accounts", partitions=5)
    publisher.create()
    await publisher.begin(state_module.State(client, f"{database}_state"))
    async with reading(dispatched, publisher) as running:
        await eventually(lambda: len(running.service.held) == 5, what="the dispatcher holds all partitions")
        for number in range(100):
            publisher.insert(id_of(number), number % 5)
        await eventually(lambda: len(got) == 100, what="all are delivered")
    assert sorted(got) == list(range(100))
    for partition in range(5):
        assert [one for one in got if one % 5 == partition] == list(range(partition, 100, 5))


@pytest.mark.exhaustive
async def test_two_dispatchers_share_and_read_256_partitions(
    account, dispatched, kafka_server, client, database, got
):
    publisher = Publisher(kafka_server.address, f"{database}.accounts", partitions=MOST_PARTITIONS)
    publisher.create(**{"message.timestamp.type": "LogAppendTime"})
    await publisher.begin(state_module.State(client, f"{database}_state"))
    async with reading(dispatched, publisher, connect_timeout=60.0) as first:
        await eventually(
            lambda: len(first.service.held) == MOST_PARTITIONS,
            within=300.0,
            what="the first dispatcher holds all partitions",
        )
        async with reading(dispatched, publisher, connect_timeout=60.0) as second:
            half = MOST_PARTITIONS // 2
            await eventually(
                lambda: len(first.service.held) == len(second.service.held) == half,
                within=300.0,
                what="each dispatcher holds half of the partitions",
            )
            for number in range(2 * MOST_PARTITIONS):
                publisher.insert(id_of(number), number % MOST_PARTITIONS)
            await eventually(lambda: len(got) >= 2 * MOST_PARTITIONS, what="all are delivered")
    assert sorted(got) == list(range(2 * MOST_PARTITIONS))


async def test_setup_records_the_position_of_the_relay(account, dispatched, foreign, publisher, got):
    settings = settings_for(dispatched, kafka=publisher.address, kafka_topic=publisher.topic)
    assert (await set_up(dispatched, settings, images=False)).position == "recorded"
    publisher.insert(id_of(1))
    await publisher.save()
    async with reading(dispatched, publisher):
        await eventually(lambda: got == [1], what="the change after the setup is delivered")


async def test_a_full_partition_does_not_stop_the_other_partitions_and_loses_nothing(
    account, dispatched, broker, client, database, monkeypatch
):
    """The queues of the full partition are bounded. The reading of this partition goes on when there is room."""
    got: list[int] = []
    gate = asyncio.Event()
    logs: list[TopicLog] = []
    monkeypatch.setattr(service, "topic_of", lambda *args: logs.append(topic_of(*args)) or logs[0])

    @post_save(account, name="saved", timeout=300)
    async def saved(sender, instance, **kwargs):
        number = int(str(instance.id), 16)
        if number % 2 == 0:
            await gate.wait()
        got.append(number)

    publisher = Publisher(broker.address, f"{database}.accounts", partitions=2)
    publisher.create()
    await publisher.begin(state_module.State(client, f"{database}_state"))
    async with reading(dispatched, publisher, max_queued_mb=1, max_queued=20) as running:
        await eventually(lambda: len(running.service.held) == 2, what="the dispatcher holds both partitions")
        for number in range(120):
            publisher.insert(id_of(number), number % 2, tags=["x" * 50_000])
        await eventually(lambda: len(got) == 60, what="the other partition is delivered")
        assert max(one._bytes for one in logs[0]._open.values()) < 500_000
        gate.set()
        await eventually(lambda: len(got) == 120, what="all are delivered")
    assert sorted(got) == list(range(120))


@pytest.mark.slow
async def test_a_silent_broker_makes_the_dispatcher_unready_until_the_broker_answers(
    account, dispatched, foreign, client, database, got
):
    with embedded_broker() as own:
        publisher = Publisher(own.address, f"{database}.accounts")
        publisher.create()
        await publisher.begin(state_module.State(client, f"{database}_state"))
        async with reading(dispatched, publisher) as running:
            publisher.insert(id_of(1))
            await eventually(lambda: got == [1], what="the first change is delivered")
            os.kill(own.pid, signal.SIGSTOP)
            try:
                await eventually(lambda: not running.service.ready, what="the dispatcher is not ready")
            finally:
                os.kill(own.pid, signal.SIGCONT)
            publisher.insert(id_of(2))
            await eventually(lambda: got == [1, 2], what="the next change is delivered when the broker answers")
            await eventually(lambda: running.service.ready, what="the dispatcher is ready again")


# -- switching ----------------------------------------------------------------------------------------------


async def test_a_group_switches_to_a_topic_and_back_and_repeats_nothing(
    account, dispatched, foreign, broker, client, database
):
    """Changes that were finished ahead of the position stay finished."""
    got: list[int] = []
    gate = asyncio.Event()

    @post_save(account, name="saved", timeout=60)
    async def saved(sender, instance, **kwargs):
        number = int(str(instance.id), 16)
        if number == 1:
            await gate.wait()
        got.append(number)

    # A list stands for the oplog, so both sources have the same tokens.
    publisher = Publisher(broker.address, f"{database}.accounts", partitions=2)
    publisher.create()
    state = state_module.State(client, f"{database}_state")
    await publisher.begin(state)
    events = [publisher.made("insert", id_of(n), fullDocument={"_id": id_of(n), "name": "x"}) for n in range(1, 9)]
    listed = ListSource(events[:4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "ChangeStreamSource", lambda *_, **__: listed)
        patch.setattr(service, "token_of_now", AsyncMock(return_value=publisher.token))
        async with dispatching(dispatched, grace=0.0):
            await eventually(lambda: len(got) == 3, what="all but the first are delivered")
    assert sorted(got) == [2, 3, 4]
    gate.set()
    for number, one in enumerate(events[:6]):
        publisher.publish(one, number % 2)
    await publisher.save()
    mover = Mover(state_module.Group(state, dispatched.dispatched))
    settings = settings_for(dispatched, kafka=publisher.address, kafka_topic=publisher.topic)
    assert await mover.switch(await origin_of(settings, state, mover.now)) == 2
    async with reading(dispatched, publisher):
        await eventually(lambda: len(got) == 6, what="the others are delivered from the topic")
        await eventually(
            lambda: min(one["token"] for one in positions(foreign)) >= publisher.token,
            what="the position passes all changes",
        )
    assert sorted(got) == [1, 2, 3, 4, 5, 6]
    assert await mover.switch(StreamOrigin(mover.now)) == 2
    assert not any("log" in one for one in positions(foreign))
    with pytest.MonkeyPatch.context() as patch:
        sources = iter([ListSource(events[:7:2]), ListSource(events[1:8:2])])
        patch.setattr(assembly, "ChangeStreamSource", lambda *_, **__: next(sources))
        async with dispatching(dispatched):
            await eventually(lambda: len(got) == 8, what="the rest is delivered from change streams")
    assert sorted(got) == list(range(1, 9))


async def test_a_switch_is_refused_while_a_dispatcher_runs_or_if_it_would_change_nothing(
    account, dispatched, publisher, client, database, got
):
    state = state_module.State(client, f"{database}_state")
    mover = Mover(state_module.Group(state, dispatched.dispatched))
    async with reading(dispatched, publisher):
        with pytest.raises(StillRunning) as refused:
            await mover.switch(StreamOrigin(mover.now))
        assert "--force" not in refused.value.remedy  # the command has no such flag
    settings = settings_for(dispatched, kafka=publisher.address, kafka_topic=publisher.topic)
    with pytest.raises(PositionError, match=r"reads from the topic .* already"):
        await mover.switch(await origin_of(settings, state, mover.now))


async def test_a_switch_to_a_topic_that_begins_after_the_position_is_refused(
    account, dispatched, broker, client, database, got
):
    async with dispatching(dispatched):
        pass
    publisher = Publisher(broker.address, f"{database}.accounts")
    publisher.second += 3_600
    publisher.create()
    state = state_module.State(client, f"{database}_state")
    await publisher.begin(state)
    mover = Mover(state_module.Group(state, dispatched.dispatched))
    settings = settings_for(dispatched, kafka=publisher.address, kafka_topic=publisher.topic)
    with pytest.raises(PositionError, match="The relay publishes all changes to the topic"):
        await mover.switch(await origin_of(settings, state, mover.now))


def positions(foreign: Any) -> list[dict[str, Any]]:
    return list(State(foreign).database["positions"].find({"partition": {"$exists": True}}))


# -- refused ------------------------------------------------------------------------------------------------


async def test_a_dispatcher_on_change_streams_is_refused_if_the_group_reads_from_a_topic(
    account, dispatched, publisher, got
):
    async with reading(dispatched, publisher):
        pass
    with pytest.raises(PositionError, match="reads from change streams") as caught:
        async with dispatching(dispatched):
            pass
    assert f"--kafka-topic {publisher.topic}" in caught.value.remedy


async def test_a_dispatcher_on_a_topic_is_refused_if_the_group_reads_from_change_streams(
    account, dispatched, publisher, got
):
    async with dispatching(dispatched):
        pass
    with pytest.raises(PositionError, match=f"reads from the topic '{publisher.topic}' of the Kafka cluster"):
        async with reading(dispatched, publisher):
            pass


async def test_another_number_of_partitions_is_refused(account, dispatched, publisher, got):
    with pytest.raises(PositionError, match=r"--partitions is 3, but the topic .* has 1 partition"):
        async with reading(dispatched, publisher, partitions=3):
            pass


async def test_a_collection_that_the_relay_does_not_publish_is_refused(dispatched, publisher, database):
    other = make_account(dispatched, database, "others")

    @post_save(other, name="other")
    async def saved(sender, instance, **kwargs):
        """Does nothing."""

    with pytest.raises(TopicError, match=f"does not publish the changes of {database}.others") as caught:
        async with reading(dispatched, publisher):
            pass
    assert "dispatcher relay" in caught.value.remedy


@pytest.mark.parametrize("is_back", [True, False])
async def test_a_collection_that_the_relay_stops_publishing_ends_the_dispatcher(
    account, dispatched, foreign, publisher, got, is_back: bool
):
    relays = foreign.client[f"{foreign.name}_state"]["relays"]

    async def run() -> None:
        async with reading(dispatched, publisher) as running:
            publisher.insert(id_of(1))
            await eventually(lambda: got, what="the first change is delivered")
            await publisher.save()
            await eventually(
                lambda: State(foreign).token >= publisher.token, what="the position follows the relay"
            )
            later = {"name": publisher.place, "since": directly_after(publisher.token)}
            relays.update_one({}, {"$set": {"collections": [later] if is_back else []}})
            await asyncio.wait_for(running.task, PATIENCE)

    with pytest.raises(TopicError, match=f"has not published all changes of {publisher.place}") as caught:
        await run()
    assert "position switch" in caught.value.remedy


async def test_a_topic_without_a_relay_is_refused(account, dispatched, broker, database, got):
    publisher = Publisher(broker.address, f"{database}.accounts")
    publisher.create()
    with pytest.raises(TopicError, match="No relay has saved a position") as caught:
        async with reading(dispatched, publisher):
            pass
    assert "dispatcher relay" in caught.value.remedy


# -- Apache Kafka -------------------------------------------------------------------------------------------


@pytest.fixture
async def real(kafka_server: KafkaServer, client: AsyncMongoClient[Any], database: str) -> Publisher:
    made = Publisher(kafka_server.address, f"{database}.accounts")
    made.create(**{"message.timestamp.type": "LogAppendTime"})
    await made.begin(state_module.State(client, f"{database}_state"))
    return made


@pytest.fixture
def short_oplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oplog does not hold the changes that the topic has lost."""
    late = event(1, "insert", 1, second=int(time.time()) + 3_600)
    monkeypatch.setattr(assembly, "ChangeStreamSource", lambda *_, **__: ListSource([late], forgets=True))


async def test_undelivered_records_that_retention_removed_are_lost_history(
    account, dispatched, foreign, real, got, short_oplog
):
    async with reading(dispatched, real):
        real.insert(id_of(1))
        await eventually(lambda: got == [1], what="the first change is delivered")
    for number in (2, 3):
        last = real.insert(id_of(number))
    real.forget_before(0, 3)
    await real.save()
    async with reading(dispatched, real) as running:
        with pytest.raises(HistoryLost, match=r"offset 1\."):
            await running.task
    async with reading(dispatched, real, on_history_lost="resume"):
        gap = await eventually(State(foreign).database["gaps"].find_one, what="the gap is recorded")
        real.insert(id_of(4))
        await eventually(lambda: got == [1, 4], what="the dispatcher goes on after the gap")
    assert gap["kind"] == "history_lost"
    assert gap["to_time"] == token_time(last)
    assert real.topic in gap["text"]


async def test_a_quiet_partition_that_retention_emptied_has_lost_no_history(
    account, dispatched, foreign, real, got
):
    async with reading(dispatched, real):
        real.insert(id_of(1))
        await eventually(lambda: got == [1], what="the first change is delivered")
        await real.save()
        real.forget_before(0, 1)
    async with reading(dispatched, real):
        real.insert(id_of(2))
        await eventually(lambda: got == [1, 2], what="the next change is delivered")
    assert not list(State(foreign).database["gaps"].find())


async def test_undelivered_changes_that_retention_removed_come_from_the_oplog(
    account, dispatched, foreign, real, got, monkeypatch
):
    """A restart in the middle loses and repeats nothing."""
    async with reading(dispatched, real):
        real.insert(id_of(1))
        await eventually(lambda: got == [1], what="the first change is delivered")
    events = [real.made("insert", id_of(n), fullDocument={"_id": id_of(n), "name": "x"}) for n in range(2, 60)]
    for one in events:
        real.publish(one)
    real.forget_before(0, 58)
    await real.save()
    oplog = ListSource(events)
    monkeypatch.setattr(assembly, "ChangeStreamSource", lambda *_, **__: oplog)
    async with reading(dispatched, real, max_queued=1, concurrency=1):
        await eventually(lambda: len(got) > 10, what="the first changes are delivered from the oplog")
    async with reading(dispatched, real):
        real.insert(id_of(60))
        await eventually(lambda: len(got) == 60, what="the last change is delivered from the topic")
    assert got == list(range(1, 61))
    assert not list(State(foreign).database["gaps"].find())


async def test_a_topic_that_is_deleted_and_created_again_is_lost_history(
    account, dispatched, foreign, real, got, short_oplog
):
    async with reading(dispatched, real) as running:
        real.insert(id_of(1))
        await eventually(lambda: got == [1], what="the first change is delivered")
        real.delete()
        real.create()
        await real.begin_again()
        with pytest.raises(HistoryLost, match="deleted, and created again"):
            await running.task
    async with reading(dispatched, real, on_history_lost="resume"):
        await eventually(State(foreign).database["gaps"].find_one, what="the gap is recorded")
        real.insert(id_of(2))
        await eventually(lambda: got == [1, 2], what="a change of the new topic is delivered")


async def test_the_tools_of_kafka_show_the_saved_offsets(account, dispatched, real, got):
    async with reading(dispatched, real):
        for number in range(3):
            real.insert(id_of(number))
        await eventually(lambda: len(got) == 3, what="all are delivered")
        await asyncio.to_thread(
            eventually_sync,
            lambda: real.committed(f"mongoz.{dispatched.dispatched}") == 3,
            what="the offset is committed",
        )


async def test_a_compacted_topic_is_refused(account, dispatched, kafka_server, client, database, got):
    publisher = Publisher(kafka_server.address, f"{database}.accounts")
    publisher.create(**{"cleanup.policy": "compact"})
    await publisher.begin(state_module.State(client, f"{database}_state"))
    with pytest.raises(TopicError, match="is compacted"):
        async with reading(dispatched, publisher):
            pass


async def test_a_topic_that_is_compacted_while_a_dispatcher_runs_ends_the_dispatcher(
    account, dispatched, kafka_server, client, database, got
):
    publisher = Publisher(kafka_server.address, f"{database}.accounts")
    publisher.create()
    await publisher.begin(state_module.State(client, f"{database}_state"))

    async def run() -> None:
        async with reading(dispatched, publisher) as running:
            publisher.insert(id_of(1))
            await eventually(lambda: got, what="the first change is delivered")
            await compact(publisher.address, publisher.topic)
            await asyncio.wait_for(running.task, PATIENCE)

    with pytest.raises(TopicError, match="is compacted") as caught:
        await run()
    assert "cleanup.policy=delete" in caught.value.remedy
