"""Writes reach receivers through the relay and a topic of Kafka, with stamps, as through a change stream."""

import asyncio
import time
from typing import Any

import pytest
from bson import ObjectId, Timestamp

import mongoz
from dispatcher.core.resume_tokens import token_at
from dispatcher.explain.report import explain
from dispatcher.runs import backfill
from dispatcher.runs.player import workplace
from dispatcher.runtime import assembly
from mongoz.core.signals import post_delete, post_save, post_update
from tests.integration.deliveries import State, make_account
from tests.list_source import ListSource, event
from tests.support import dispatching, eventually, settings_for

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.integration.relaying import relay_name, relaying
from tests.kafka.publisher import Publisher

ID = ObjectId()


async def test_foreign_writes_are_delivered_and_own_writes_are_not(account, dispatched, foreign, broker, client):
    got: list[tuple[str, str, str]] = []

    @post_save(account, name="saved")
    async def saved(sender, instance, delivery, **kwargs):
        got.append(("saved", instance.name, delivery.origin))

    @post_delete(account, name="deleted")
    async def deleted(sender, instance, delivery, **kwargs):
        got.append(("deleted", str(instance.name), delivery.origin))

    await client[foreign.name].create_collection("accounts", changeStreamPreAndPostImages={"enabled": True})
    name = relay_name()
    async with (
        relaying(dispatched, broker.address, name),
        dispatching(dispatched, kafka=broker.address, kafka_topic=f"mongoz.{name}") as running,
    ):
        assert len(running.service.held) == 4
        await account.query.create(name="own")
        await account.query.filter(name="own").delete()
        foreign["accounts"].insert_one({"name": "foreign"})
        foreign["accounts"].delete_one({"name": "foreign"})
        await eventually(lambda: len(got) == 4, what="the foreign writes are delivered")
        last = max(one["token"] for one in State(foreign).database["positions"].find({"log": {"$exists": True}}))
        await eventually(
            lambda: (
                min(one["token"] for one in State(foreign).database["positions"].find({"log": {"$exists": True}}))
                > last
            ),
            what="the positions of partitions without changes follow the relay",
        )
    assert got == [
        ("saved", "own", "process"),
        ("deleted", "own", "process"),
        ("saved", "foreign", "stream"),
        ("deleted", "foreign", "stream"),
    ]


async def test_the_context_of_a_write_comes_through_the_topic(account, dispatched, foreign, broker):
    """The context of a delete is in the stamp of its marker. The relay copies it to the record of the delete."""
    got: list[tuple[str, Any]] = []

    async def note(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        got.append((delivery.signal, delivery.context))

    for signal in (post_save, post_update, post_delete):
        signal(account, name="note", delivery="dispatcher")(note)
    name = relay_name()
    async with (
        relaying(dispatched, broker.address, name),
        dispatching(dispatched, kafka=broker.address, kafka_topic=f"mongoz.{name}"),
    ):
        with mongoz.context(user="ada"):
            one = await account(name="own").create()
        foreign["accounts"].update_one({}, {"$set": {"amount": 1}})
        with mongoz.context(user="bea"):
            await one.delete()
        await eventually(lambda: len(got) == 3, what="the writes are delivered")
    assert got == [("post_save", {"user": "ada"}), ("post_update", None), ("post_delete", {"user": "bea"})]


async def test_changes_that_the_topic_has_lost_come_from_the_oplog(account, dispatched, foreign, kafka_server):
    """Own deletes are not delivered, because the oplog has their markers, too."""
    got: list[tuple[str, str | None]] = []

    @post_save(account, name="saved")
    async def saved(sender, instance, **kwargs):
        got.append(("saved", instance.name))

    @post_delete(account, name="deleted")
    async def deleted(sender, instance, **kwargs):
        got.append(("deleted", None))

    name = relay_name()
    options = {"kafka": kafka_server.address, "kafka_topic": f"mongoz.{name}"}
    async with relaying(dispatched, kafka_server.address, name, partitions=2) as relay:
        async with dispatching(dispatched, **options):
            foreign["accounts"].insert_one({"name": "first"})
            await eventually(lambda: got, what="the first insert is delivered")
        await account.query.create(name="own")
        foreign["accounts"].insert_many([{"name": f"{n}"} for n in range(40)])
        await account.query.filter(name="own").delete()
        foreign["accounts"].delete_one({"name": "0"})
        got.clear()
        await relay.published(time_token(foreign))
        topic = Publisher(kafka_server.address, "", topic=f"mongoz.{name}")
        for partition, end in topic.ends(2).items():
            topic.forget_before(partition, end)
        async with dispatching(dispatched, **options):
            foreign["accounts"].insert_one({"name": "last"})
            await eventually(lambda: ("saved", "last") in got, what="the dispatcher continues on the topic")
            await eventually(lambda: len(got) >= 42, what="all changes are delivered")
    assert sorted(got) == sorted([("deleted", None), ("saved", "last"), *(("saved", f"{n}") for n in range(40))])
    assert not list(State(foreign).database["gaps"].find())


def time_token(foreign: Any) -> str:
    """A text that sorts before the tokens of all later changes."""
    return token_at(foreign.client.admin.command("ping")["operationTime"])


@pytest.mark.slow
async def test_a_backfill_after_lost_history_delivers_no_older_state_after_a_newer_one(
    account, dispatched, foreign, kafka_server, client, monkeypatch
):
    """The document changes twice before the backfill. The relay publishes these two changes after the backfill."""
    got: list[tuple[str, bool]] = []

    async def receiver(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        got.append((instance.name, delivery.replayed))

    for connect in (post_save, post_update):
        connect(account, name="watcher")(receiver)
    await client[foreign.name].create_collection("accounts", changeStreamPreAndPostImages={"enabled": True})
    name = relay_name()
    options = {"kafka": kafka_server.address, "kafka_topic": f"mongoz.{name}"}

    def rename(value: str) -> None:
        foreign["accounts"].update_one({"_id": ID}, {"$set": {"name": value}}, upsert=True)

    async with relaying(dispatched, kafka_server.address, name, partitions=1) as relay:
        async with dispatching(dispatched, **options):
            rename("delivered")
            await eventually(lambda: got == [("delivered", False)], what="the first change is delivered")
        rename("lost")
        await relay.published(time_token(foreign))
        topic = Publisher(kafka_server.address, "", topic=f"mongoz.{name}")
        topic.forget_before(0, topic.ends(1)[0])
    rename("later")
    rename("latest")
    late = event(1, "insert", 1, second=int(time.time()) + 3_600)
    monkeypatch.setattr(assembly, "ChangeStreamSource", lambda *_, **__: ListSource([late], forgets=True))
    async with dispatching(dispatched, on_history_lost="backfill", **options):
        await eventually(lambda: len(got) == 2, what="the document is delivered")
        async with relaying(dispatched, kafka_server.address, name, partitions=1):
            await eventually(lambda: len(got) == 4, what="the later changes are delivered")
    assert got[1:] == [("lost", True), ("later", False), ("latest", False)]


@pytest.mark.slow
async def test_existing_documents_are_backfilled_while_a_dispatcher_reads_from_a_topic(
    account, dispatched, foreign, broker
):
    got: list[tuple[str, bool]] = []

    @post_save(account, name="saved")
    async def saved(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        got.append((instance.name, delivery.replayed))

    foreign["accounts"].insert_many([{"name": f"{n}"} for n in range(50)])
    name = relay_name()
    async with (
        relaying(dispatched, broker.address, name),
        dispatching(dispatched, kafka=broker.address, kafka_topic=f"mongoz.{name}"),
        workplace(dispatched, settings_for(dispatched)) as place,
    ):
        run = await backfill.start(place, ["saved"], rate=None, resume=None, new=False)
        foreign["accounts"].insert_one({"name": "live"})
        outcome = await run.work(asyncio.Event())
        await eventually(lambda: ("live", False) in got, what="the live change is delivered")
    assert outcome.finished
    assert {name for name, replayed in got if replayed} >= {f"{n}" for n in range(50)}
    assert [name for name, replayed in got if not replayed] == ["live"]


async def test_the_dispatchers_of_a_topic_make_a_backfill_in_order_with_the_changes(
    account, dispatched, foreign, database, broker
):
    index: dict[Any, int] = {}
    gate, waiting = asyncio.Event(), []

    async def put(sender, instance, delivery, **kwargs):
        if delivery.replayed and not gate.is_set():
            waiting.append(instance.id)
            await gate.wait()
        index[instance.id] = instance.amount

    for signal in (post_save, post_update):
        signal(account, name="index", delivery="dispatcher")(put)
    elsewhere = mongoz.Registry(dispatched.url, dispatched=dispatched.dispatched)
    post_save(make_account(elsewhere, database), name="index", delivery="dispatcher")(put)
    ids = foreign["accounts"].insert_many([{"name": f"{n}", "amount": 0} for n in range(20)]).inserted_ids
    name = relay_name()
    async with (
        relaying(dispatched, broker.address, name),
        dispatching(dispatched, kafka=broker.address, kafka_topic=f"mongoz.{name}"),
        workplace(elsewhere, settings_for(elsewhere)) as place,
    ):
        one = await backfill.start(place, ["index"], rate=None, resume=None, new=False)
        task = asyncio.create_task(one.work(asyncio.Event()))
        await eventually(lambda: len(waiting) == 20)
        foreign["accounts"].update_many({"_id": {"$in": ids[:10]}}, {"$set": {"amount": 1}})
        later = foreign["accounts"].insert_one({"name": "later", "amount": 2}).inserted_id
        await eventually(lambda: later in index)
        assert set(index) == {later}
        gate.set()
        assert (await task).delivered == 20
        expected = {row["_id"]: row["amount"] for row in foreign["accounts"].find()}
        await eventually(lambda: index == expected)


async def test_the_changes_of_a_document_are_explained_for_a_topic_too(
    account, dispatched, foreign, database, broker
):
    got: list[Any] = []

    @post_save(account, name="saved", delivery="dispatcher")
    async def saved(sender, instance, **kwargs):
        got.append(instance.id)

    name = relay_name()
    async with (
        relaying(dispatched, broker.address, name),
        dispatching(dispatched, kafka=broker.address, kafka_topic=f"mongoz.{name}"),
    ):
        foreign["accounts"].insert_one({"_id": ID, "name": "a"})
        await eventually(lambda: got == [ID])
    since = Timestamp(int(time.time()) - 60, 0)
    elsewhere = mongoz.Registry(dispatched.url, dispatched=dispatched.dispatched)
    post_save(make_account(elsewhere, database), name="saved", delivery="dispatcher")(saved)
    report = await explain(elsewhere, settings_for(elsewhere), (database, "accounts"), [ID], since)
    (change,) = report.changes
    assert (report.topic, report.published is not None) == (f"mongoz.{name}", True)
    assert [(one.receiver, one.state) for one in change.receivers] == [("saved", "finished")]
    assert change.progress is not None
    assert change.progress.partitions == 4
