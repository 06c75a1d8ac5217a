"""The oplog no longer has the position, so the chosen policy applies."""

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient

import mongoz
from dispatcher.core.partitions import partition_of
from dispatcher.embedded.server import embedded_mongo
from dispatcher.exceptions import ExitCode, HistoryLost
from dispatcher.operate.positions import Mover
from mongoz.core.signals import post_save, post_update
from tests.integration.deliveries import State, make_account
from tests.support import PATIENCE, dispatching, eventually, group_of


@pytest.fixture(scope="module")
def forgetful() -> Iterator[MongoClient]:
    """A server with an oplog of one megabyte."""
    arguments = ("--oplogSize", "1", "--syncdelay", "1", "--setParameter", "enableTestCommands=1")
    with embedded_mongo(extra_args=arguments) as server, MongoClient(server.url) as client:
        client.url = server.url
        yield client


def forget(client: MongoClient, token: str) -> None:
    """Writes until the oplog has lost this token."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        client["noise"]["noise"].insert_many([{"x": "x" * 100_000} for _ in range(10)])
        oldest = client["local"]["oplog.rs"].find_one(sort=[("$natural", 1)])["ts"]
        if oldest.time > int(token[2:10], 16):
            client["noise"]["noise"].drop()
            return
        time.sleep(0.05)
    raise AssertionError("the oplog keeps everything")


def listen(document: Any) -> list[SimpleNamespace]:
    told: list[SimpleNamespace] = []

    @post_save(document, name="told")
    async def saved(sender, instance, created, delivery, **kwargs):
        told.append(SimpleNamespace(name=instance.name, created=created, delivery=delivery))

    @post_update(document, name="told")
    async def updated(sender, instance, delivery, **kwargs):
        told.append(SimpleNamespace(name=instance.name, created=None, delivery=delivery))

    return told


@pytest.mark.parametrize("policy", ["fail", "resume", "backfill"])
async def test_a_lost_position_follows_the_chosen_policy(forgetful, policy):
    name = f"lost_{policy}"
    db = forgetful[name]
    registry = mongoz.Registry(forgetful.url, dispatched=name)
    told = listen(make_account(registry, name))
    async with dispatching(registry):
        db["accounts"].insert_many([{"name": f"before {n}"} for n in range(5)] + [{"name": "b"}])
        await eventually(lambda: len(told) == 6)
    position = State(db).database["positions"].find_one({"_id": f"{name}:0"})
    db["accounts"].insert_one({"_id": ObjectId(), "name": "lost"})
    forget(forgetful, position["token"])
    told.clear()
    if policy == "fail":
        with pytest.raises(HistoryLost) as caught:
            async with dispatching(registry) as running:
                await asyncio.wait_for(running.task, PATIENCE)
        assert caught.value.exit_code == ExitCode.HISTORY_LOST
        async with AsyncMongoClient(forgetful.url) as client:
            mover = Mover(group_of(client, name))
            with pytest.raises(HistoryLost, match=r"does not reach back to .*: it begins"):
                await mover.require_held(position["token"])
            await mover.require_held(await mover.now())
        assert "--on-history-lost resume" in caught.value.remedy
        assert "backfill" in caught.value.remedy
        assert list(State(db).database["gaps"].find()) == []
        return
    async with dispatching(registry, on_history_lost=policy) as running:
        await eventually(lambda: running.stats.gaps == 1)
        db["accounts"].insert_one({"name": "after"})
        await eventually(lambda: any(call.name == "after" for call in told))
        if policy == "backfill":
            runs = State(db).database["controls"]
            await eventually(lambda: runs.find_one({"kind": "run", "status": "finished"}))
    (gap,) = State(db).database["gaps"].find()
    assert (gap["kind"], gap["policy"], gap["namespace"]) == ("history_lost", policy, None)
    assert gap["from_time"] == position["cluster_time"]
    assert gap["to_time"].time > gap["from_time"].time
    live = [call for call in told if not call.delivery.replayed]
    again = [call for call in told if call.delivery.replayed]
    assert [(call.name, call.created) for call in live] == [("after", True)]
    if policy == "resume":
        assert again == []
        return
    # The backfill may also read the document "after".
    names = {call.name for call in again}
    assert names - {"after"} == {*(f"before {n}" for n in range(5)), "b", "lost"}
    assert {(call.created, call.delivery.image) for call in again} == {(False, "current")}
    run = State(db).database["controls"].find_one({"kind": "run"})
    assert (run["what"], run["status"]) == ("backfill", "finished")
    told.clear()
    async with dispatching(registry, on_history_lost=policy):
        db["accounts"].insert_one({"name": "later"})
        await eventually(lambda: [call.name for call in told] == ["later"])


def failing(client: MongoClient, code: int, times: int) -> None:
    point = {"failCommands": ["getMore"], "errorCode": code, "appName": "mongoz-dispatcher"}
    client.admin.command("configureFailPoint", "failCommand", mode={"times": times}, data=point)


async def test_a_live_stream_can_lose_its_history(foreign, dispatched, account, database):
    """The server reports error 136. Changes that were read before are delivered."""
    told = listen(account)
    async with dispatching(dispatched, on_history_lost="resume") as running:
        foreign["accounts"].insert_one({"name": "1"})
        await eventually(lambda: len(told) == 1)
        failing(foreign.client, 136, 1)
        await eventually(lambda: running.stats.gaps == 1)
        foreign["accounts"].insert_one({"name": "2"})
        await eventually(lambda: len(told) == 2)
        assert running.service.ready
    (gap,) = State(foreign).database["gaps"].find()
    assert (gap["kind"], gap["policy"]) == ("history_lost", "resume")


@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 2])
async def test_an_interrupted_backfill_continues_at_the_next_start(
    foreign, dispatched, account, monkeypatch, partitions
):
    monkeypatch.setattr("dispatcher.runs.snapshot._FIRST", 10)
    monkeypatch.setattr("dispatcher.runs.snapshot._MOST", 10)
    gate, begun = asyncio.Event(), []
    told: list[SimpleNamespace] = []

    @post_save(account, name="slow")
    async def slow(sender, instance, delivery, **kwargs):
        begun.append(instance.id)
        if delivery.replayed and len(begun) > 30:
            await gate.wait()
        told.append(SimpleNamespace(id=instance.id, delivery=delivery))

    foreign["accounts"].insert_many([{"_id": ObjectId(), "name": f"{n}"} for n in range(100)])
    async with dispatching(dispatched, on_history_lost="backfill", partitions=partitions, grace=0.05) as running:
        failing(foreign.client, 136, partitions)
        await eventually(lambda: running.stats.gaps >= 1)
        await eventually(lambda: len(begun) > 30)
        foreign["accounts"].insert_one({"name": "live"})  # the stream continues meanwhile
        await eventually(lambda: any(not call.delivery.replayed for call in told))
    finished = len([call for call in told if call.delivery.replayed])
    assert 0 < finished < 100
    gate.set()
    runs = State(foreign).database["controls"]
    async with dispatching(dispatched, on_history_lost="backfill"):
        await eventually(lambda: {one["status"] for one in runs.find({"kind": "run"})} == {"finished"})
    again = [call for call in told if call.delivery.replayed]
    # The backfill has delivered all documents of the partitions that lost history, and no others.
    lost = {gap["partition"] for gap in State(foreign).database["gaps"].find()}
    hashed = foreign["accounts"].aggregate([{"$project": {"hash": {"$toHashedIndexKey": "$_id"}}}])
    ours = {row["_id"] for row in hashed if partition_of(row["hash"], partitions) in lost}
    assert len({call.id for call in again} ^ ours) <= 1  # the backfill may have read the live document
    # Interrupted deliveries are repeated with the same ids.
    assert len({call.delivery.id for call in again}) <= 101 * runs.count_documents({"kind": "run"})
    if partitions == 1:
        assert len(again) <= 101 + 20


async def test_a_backfilled_document_is_not_older_than_a_delivered_change(foreign, dispatched, account):
    """The document changes while its backfill waits. No receiver gets the older state after the newer one."""
    gate = asyncio.Event()
    told: list[tuple[str, bool]] = []

    @post_save(account, name="states")
    @post_update(account, name="states")
    async def states(sender, instance, delivery, **kwargs):
        told.append((instance.name, delivery.replayed))
        if instance.name == "first":
            await gate.wait()

    id_ = ObjectId()
    async with dispatching(dispatched, on_history_lost="backfill") as running:
        foreign["accounts"].insert_one({"_id": id_, "name": "first"})
        await eventually(lambda: told == [("first", False)])  # the lane of the document is occupied
        failing(foreign.client, 136, 1)
        await eventually(lambda: running.stats.gaps == 1)
        foreign["accounts"].update_one({"_id": id_}, {"$set": {"name": "second"}})
        gate.set()
        await eventually(lambda: len(told) >= 3)
    # The document is read when its backfill enters the lane of the document: before or after the change.
    assert told[1:] in (
        [("first", True), ("second", False)],
        [("second", False), ("second", True)],
    )
