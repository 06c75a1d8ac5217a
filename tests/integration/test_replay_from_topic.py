"""Replays of past changes from the topic of a relay. Changes that the topic does not hold come from the oplog."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from bson import Timestamp
from structlog.testing import capture_logs

import mongoz
from dispatcher.core.events import EventBatch, Start
from dispatcher.core.resume_tokens import token_at, token_time
from dispatcher.exceptions import HistoryLost
from dispatcher.kafka.relay_state import RelayStore
from dispatcher.kafka.source import KafkaSource
from dispatcher.runs import replay
from dispatcher.runs.player import RunOutcome, workplace
from dispatcher.stream.change_stream import ChangeStreamSource
from mongoz.core.signals import post_save
from mongoz.signals import muted
from tests.integration.deliveries import IMAGES, State, make_account
from tests.integration.test_replay import behind, listen, signals
from tests.support import eventually, group_of, settings_for

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.integration.relaying import Relaying, relay_name, relaying
from tests.kafka.publisher import Publisher

pytestmark = pytest.mark.slow

PARTITIONS = 3


class Topic:
    """A topic with a relay that publishes to it."""

    def __init__(self, registry: mongoz.Registry, address: str, name: str, relay: Relaying) -> None:
        self._registry = registry
        self._address = address
        self.name = f"mongoz.{name}"
        self.relay = relay

    async def run(self, *receivers: str, stop: asyncio.Event | None = None, **options: Any) -> RunOutcome:
        """One replay, as the command runs it."""
        given = {"since": None, "until": None, "asked": {"since": None, "until": None}, "rate": None}
        options = {**given, "resume": None, "new": False, **options}
        settings = {name: options.pop(name) for name in ("concurrency", "max_queued") if name in options}
        settings |= {"kafka": self._address, "kafka_topic": self.name}
        async with workplace(self._registry, settings_for(self._registry, **settings)) as place:
            one = await replay.start(place, receivers, **options)
            return await one.work(stop or asyncio.Event())

    def empty(self) -> None:
        """Remove all records, as retention does."""
        publisher = Publisher(self._address, "", topic=self.name)
        for partition, end in publisher.ends(PARTITIONS).items():
            publisher.forget_before(partition, end)


@pytest.fixture
def calls(account: Any) -> list[SimpleNamespace]:
    """The deliveries."""
    return listen(account, "watcher")


@pytest.fixture
async def topic(calls, dispatched, kafka_server) -> AsyncIterator[Topic]:
    name = relay_name()
    async with relaying(dispatched, kafka_server.address, name, partitions=PARTITIONS) as relay:
        yield Topic(dispatched, kafka_server.address, name, relay)


@contextlib.contextmanager
def broken_oplog(foreign: Any) -> Iterator[None]:
    """The oplog does not hold the changes of a replay."""
    admin = foreign.client.admin
    point = {"failCommands": ["getMore"], "errorCode": 286, "appName": "mongoz-dispatcher"}
    admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=point)
    try:
        yield
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")


@pytest.fixture
def oplog_reads(monkeypatch: pytest.MonkeyPatch) -> list[Start]:
    """The starting points of the change streams that replays open to read the oplog."""
    starts: list[Start] = []

    class Noted(ChangeStreamSource):
        async def batches(self, start: Start) -> AsyncGenerator[EventBatch]:
            starts.append(start)
            async for batch in super().batches(start):
                yield batch

    monkeypatch.setattr(replay, "ChangeStreamSource", Noted)
    return starts


async def test_a_replay_from_a_topic_delivers_past_changes_with_their_signals(
    foreign, dispatched, account, topic, calls, oplog_reads
):
    """The replay delivers foreign and own changes of all partitions, but no muted changes."""
    await asyncio.to_thread(foreign.create_collection, "accounts", **IMAGES)
    foreign["accounts"].insert_one({"name": "too early"})
    begin = behind(foreign)
    id_ = foreign["accounts"].insert_one({"name": "foreign"}).inserted_id
    own = await account.objects.create(name="own")
    await own.update(name="updated")
    with muted(account):
        gone = await account.objects.create(name="muted")
        await gone.delete()
    foreign["accounts"].update_one({"_id": id_}, {"$set": {"name": "changed"}})
    await own.delete()
    foreign["accounts"].insert_many([{"name": f"{n}"} for n in range(30)])
    foreign["accounts"].delete_one({"_id": id_})
    end = Timestamp((last := behind(foreign)).time, last.inc - 1)
    foreign["accounts"].insert_one({"name": "too late"})
    calls.clear()
    outcome = await topic.run(since=begin, until=end)
    calls.sort(key=lambda call: call.delivery.cluster_time)
    assert signals(calls) == [
        ("post_save", "foreign"),
        ("post_save", "own"),
        ("post_update", "updated"),
        ("post_update", "changed"),
        ("post_delete", "updated"),
        *(("post_save", f"{n}") for n in range(30)),
        ("post_delete", "changed"),
    ]
    assert (outcome.finished, outcome.delivered, outcome.failed) == (True, 36, 0)
    assert {(call.delivery.replayed, call.delivery.origin) for call in calls} == {(True, "stream")}
    assert oplog_reads == []


async def test_changes_that_the_topic_does_not_hold_come_from_the_oplog(
    foreign, dispatched, account, topic, calls, oplog_reads
):
    begin = behind(foreign)
    foreign["accounts"].insert_many([{"name": f"{n}"} for n in range(30)])
    await topic.relay.published(token_at(behind(foreign)))
    topic.empty()
    foreign["accounts"].insert_one({"name": "last"})
    await topic.run(since=begin, concurrency=1)
    assert [call.name for call in calls] == [*(f"{n}" for n in range(30)), "last"]
    assert len(oplog_reads) == 1


async def test_a_change_whose_large_event_is_missing_is_named_and_counts_as_failed(
    foreign, dispatched, account, topic, calls, state
):
    begin = behind(foreign)
    for name, text in (("first", ""), ("large", "x" * 3_000_000), ("last", "")):
        foreign["accounts"].insert_one({"name": name, "text": text})
    files = state["relayed.files"]
    await eventually(lambda: files.count_documents({}) == 1, what="the relay has kept the large event")
    files.delete_many({})
    with capture_logs() as lines:
        outcome = await topic.run(since=begin)
    assert sorted(signals(calls)) == [("post_save", "first"), ("post_save", "last")]
    assert (outcome.finished, outcome.delivered, outcome.failed) == (True, 2, 1)
    (line,) = [one for one in lines if one["action"] == "replay.change_lost"]
    assert "its file in the state database is missing" in line["why"]


async def test_a_stopped_replay_continues_from_the_oplog_if_the_topic_has_lost_the_next_changes(
    foreign, dispatched, account, topic, calls, oplog_reads
):
    """The replay stops cleanly, so no delivery is repeated."""
    begin = behind(foreign)
    foreign["accounts"].insert_many([{"name": f"{n}"} for n in range(120)])
    stop = asyncio.Event()
    stopping = asyncio.create_task(eventually(lambda: len(calls) >= 20))
    stopping.add_done_callback(lambda _: stop.set())
    first = await topic.run(since=begin, stop=stop, rate=100, max_queued=10)
    assert not first.finished
    assert oplog_reads == []
    topic.empty()
    second = await topic.run(since=begin)
    assert (second.run, second.finished) == (first.run, True)
    assert sorted((call.name for call in calls), key=int) == [f"{n}" for n in range(120)]
    assert len(oplog_reads) == 1
    assert oplog_reads[0].cluster_time > begin


async def test_the_refusal_of_a_replay_names_topic_and_oplog_if_neither_holds_its_changes(
    foreign, dispatched, account, topic
):
    foreign["accounts"].insert_one({"name": "first"})
    begin = behind(foreign)
    foreign["accounts"].insert_many([{"name": f"{n}"} for n in range(30)])
    await topic.relay.published(token_at(behind(foreign)))
    topic.empty()
    await topic.relay.stop()
    with broken_oplog(foreign), pytest.raises(HistoryLost) as caught:
        await topic.run(since=begin)
    text = str(caught.value)
    assert f"of the topic '{topic.name}' does not hold all changes since" in text
    assert "The oplog at" in text
    assert "reaches back to" in text
    assert "--since" in caught.value.remedy
    assert State(foreign).database["controls"].count_documents({"kind": "run"}) == 0


async def test_a_replay_that_finds_records_missing_names_the_run_and_the_time(
    foreign, dispatched, account, topic, calls, monkeypatch
):
    """The replay has delivered the changes before the missing records."""
    begin = behind(foreign)
    foreign["accounts"].insert_many([{"name": f"{n}"} for n in range(120)])
    await topic.relay.published(token_at(behind(foreign)))
    await topic.relay.stop()
    batches = KafkaSource.batches

    async def interrupted(self: KafkaSource, start: Start) -> AsyncGenerator[EventBatch]:
        count = 0
        async for batch in batches(self, start):
            count += len(batch.events)
            yield batch
            if count > 10:
                raise HistoryLost("Records are missing.")

    monkeypatch.setattr(KafkaSource, "batches", interrupted)
    monkeypatch.setattr(replay, "_FEW", 1)
    monkeypatch.setattr(replay, "_RELAY_PATIENCE", 0.5)
    with broken_oplog(foreign), pytest.raises(HistoryLost) as caught:
        await topic.run(since=begin)
    (run,) = State(foreign).database["controls"].find({"kind": "run"})
    assert f"The run {run['run']} has read the changes until" in str(caught.value)
    assert run["status"] == "stopped"
    assert 0 < len(calls) == run["delivered"] < 120


async def test_a_replay_ends_at_the_position_of_a_relay_that_does_not_run(
    foreign, dispatched, account, topic, calls, client, monkeypatch
):
    begin = behind(foreign)
    foreign["accounts"].insert_one({"name": "published"})
    await topic.relay.published(token_at(behind(foreign)))
    await topic.relay.stop()
    foreign["accounts"].insert_one({"name": "not published"})
    monkeypatch.setattr(replay, "_RELAY_PATIENCE", 0.5)
    outcome = await topic.run(since=begin)
    assert outcome.finished
    assert [call.name for call in calls] == ["published"]
    relay = await RelayStore(group_of(client, foreign.name).state, topic.name).load()
    (run,) = State(foreign).database["controls"].find({"kind": "run"})
    assert run["until_time"] == token_time(relay.position.token)


async def test_a_collection_that_the_relay_does_not_publish_comes_from_the_oplog(
    foreign, dispatched, account, topic, database, oplog_reads
):
    other, got = make_account(dispatched, database, "others"), list[str]()

    @post_save(other, name="other")
    async def saved(sender, instance, **kwargs):
        got.append(instance.name)

    begin = behind(foreign)
    foreign["others"].insert_one({"name": "other"})
    assert (await topic.run("other", since=begin)).delivered == 1
    assert got == ["other"]
    assert len(oplog_reads) == 1
