"""A backfill delivers every existing document once; a stopped run continues."""

import asyncio
import uuid
from types import SimpleNamespace
from typing import Any

import bson
import pytest
from bson import Decimal128, MaxKey, MinKey, ObjectId, Timestamp
from bson.raw_bson import RawBSONDocument

import mongoz
from dispatcher.exceptions import FilterRefused, NothingToDeliver, OtherRun, UnknownReceiver, UnknownRun
from dispatcher.runs import backfill
from dispatcher.runs.player import RunOutcome, workplace
from dispatcher.runs.snapshot import SnapshotTooOld, document
from dispatcher.runs.store import Busy
from mongoz.core.signals import post_save, post_update
from tests.integration.deliveries import State
from tests.support import eventually, settings_for


@pytest.fixture
def Thing(dispatched: mongoz.Registry, database: str) -> Any:
    class Thing(mongoz.Document):
        id: Any = mongoz.Object(alias="_id", null=True)
        n: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), {"registry": dispatched, "database": database})

    return Thing


@pytest.fixture
def seen(Thing: Any) -> list[SimpleNamespace]:
    calls: list[SimpleNamespace] = []

    @post_save(Thing, name="watcher")
    async def watcher(sender: Any, instance: Any, **kwargs: Any) -> None:
        calls.append(SimpleNamespace(id=instance.id, n=instance.n, **kwargs))

    return calls


async def run(registry: Any, *receivers: str, stop: asyncio.Event | None = None, **options: Any) -> RunOutcome:
    """One backfill, as the command runs it."""
    options = {"rate": None, "resume": None, "new": False, **options}
    settings = {name: options.pop(name) for name in ("attempts", "concurrency", "max_queued") if name in options}
    async with workplace(registry, settings_for(registry, **settings)) as place:
        one = await backfill.start(place, receivers, **options)
        return await one.work(stop or asyncio.Event())


IDS = [
    *range(40),
    *(i + 0.5 for i in range(5)),
    float("nan"),
    Decimal128("7.25"),
    "",
    "text",
    {"tenant": 1, "k": 2},
    {},
    uuid.UUID(int=7),
    b"bytes",
    ObjectId(),
    True,
    False,
    None,
    MinKey(),
    MaxKey(),
]


async def test_every_document_is_delivered_once_in_the_order_of_ids(foreign, dispatched, Thing, seen, monkeypatch):
    monkeypatch.setattr("dispatcher.runs.snapshot._FIRST", 3)
    monkeypatch.setattr("dispatcher.runs.snapshot._MOST", 3)
    foreign["things"].insert_many([{"_id": id_, "n": n} for n, id_ in enumerate(IDS)])
    outcome = await run(dispatched, "watcher", concurrency=1)
    expected = [row["n"] for row in foreign["things"].find().sort("_id")]
    assert [call.n for call in seen] == expected
    assert (outcome.finished, outcome.delivered, outcome.failed) == (True, len(IDS), 0)
    assert {(call.created, call.previous) for call in seen} == {(False, None)}
    deliveries = [call.delivery for call in seen]
    assert {(d.signal, d.image, d.replayed, d.origin) for d in deliveries} == {
        ("post_save", "current", True, "stream")
    }
    assert len({d.id for d in deliveries}) == len(IDS)
    assert all(d.cluster_time and d.wall_time for d in deliveries)


async def test_a_clustered_collection_and_a_collation_are_supported(foreign, dispatched, Thing, seen):
    foreign.create_collection("things", clusteredIndex={"key": {"_id": 1}, "unique": True})
    foreign["things"].insert_many([{"_id": n, "n": n} for n in range(70)])
    assert (await run(dispatched, "watcher")).delivered == 70
    foreign["things"].drop()
    foreign.create_collection("things", collation={"locale": "de", "strength": 2})
    foreign["things"].insert_many([{"_id": f"k{n}", "n": n} for n in range(70)])
    assert (await run(dispatched, "watcher")).delivered == 70


async def test_a_stopped_run_continues(foreign, dispatched, Thing, seen):
    foreign["things"].insert_many([{"_id": n} for n in range(400)])
    stop = asyncio.Event()
    stopping = asyncio.create_task(eventually(lambda: len(seen) >= 100))
    stopping.add_done_callback(lambda _: stop.set())
    first = await run(dispatched, "watcher", stop=stop, rate=800, max_queued=10)
    assert not first.finished
    assert first.delivered == len(seen) < 400
    second = await run(dispatched, "watcher")
    assert (second.run, second.finished, second.delivered) == (first.run, True, len(seen))
    assert sorted({call.id for call in seen}) == [*range(400)]
    # A repeated delivery has the same id.
    assert len({call.delivery.id for call in seen}) == 400
    assert len(seen) <= 400 + 10
    third = await run(dispatched, "watcher")
    assert third.run != first.run
    assert len({call.delivery.id for call in seen}) == 800


async def test_transactional_receivers_are_called_once_per_run(foreign, dispatched, Thing, database):
    calls: list[int] = []

    @post_save(Thing, name="counts", transactional=True)
    async def counts(sender, instance, delivery, **kwargs):
        calls.append(instance.id)
        await dispatched.client[database]["effects"].insert_one({"of": instance.id}, session=delivery.session)

    foreign.create_collection("effects")
    foreign["things"].insert_many([{"_id": n} for n in range(20)])
    outcome = await run(dispatched, "counts")
    runs = State(foreign).database["controls"]
    runs.update_one({"run": outcome.run}, {"$set": {"status": "stopped", "progress": {}}})  # as after SIGKILL
    again = await run(dispatched, "counts", resume=outcome.run)
    assert again.finished
    assert sorted(calls) == [*range(20)]
    assert foreign["effects"].count_documents({}) == 20


async def test_where_filters_a_backfill(foreign, dispatched, Thing):
    calls: list[int] = []

    @post_save(Thing, name="picky", where={"n": {"$gte": 5}})
    async def picky(sender, instance, **kwargs):
        calls.append(instance.id)

    foreign["things"].insert_many([{"_id": n, "n": n} for n in range(10)])
    await run(dispatched, "picky")
    assert sorted(calls) == [5, 6, 7, 8, 9]


async def test_a_failed_delivery_becomes_a_dead_letter_of_the_run(foreign, dispatched, Thing):
    @post_save(Thing, name="fails", on_failure="block")
    async def fails(sender, instance, **kwargs):
        if instance.id == 3:
            raise ValueError("not three")

    foreign["things"].insert_many([{"_id": n} for n in range(5)])
    foreign["things"].insert_one({"_id": 9, "n": "no number"})
    outcome = await run(dispatched, "fails", attempts=1)
    assert (outcome.finished, outcome.delivered, outcome.failed, outcome.dead_letters) == (True, 4, 2, 2)
    letters = {letter["key"]: letter for letter in State(foreign).letters}
    assert {key: letter["reason"] for key, letter in letters.items()} == {3: "failed", 9: "invalid"}
    assert {letter["run"] for letter in letters.values()} == {outcome.run}
    assert {letter["image"] for letter in letters.values()} == {"current"}


async def test_undecodable_documents_become_dead_letters(foreign, dispatched, Thing, seen):
    broken = bson.encode({"_id": 1, "text": "AAAA"}).replace(b"AAAA", b"\xff\xfe\xff\xfe")
    foreign["things"].insert_one(RawBSONDocument(broken))
    foreign["things"].insert_one({"_id": 2})
    outcome = await run(dispatched, "watcher")
    assert (outcome.finished, outcome.delivered, outcome.failed) == (True, 1, 1)
    letter = await State(foreign).letter()
    assert letter["reason"] == "undecodable"


async def test_the_rate_limit_is_respected(foreign, dispatched, Thing, seen):
    foreign["things"].insert_many([{"_id": n} for n in range(30)])
    loop = asyncio.get_running_loop()
    began = loop.time()
    await run(dispatched, "watcher", rate=50)
    assert loop.time() - began >= 28 / 50


async def test_unknown_receivers_and_runs_are_refused(foreign, dispatched, Thing, seen):
    @post_update(Thing, name="updates")
    async def updates(sender, **kwargs):
        raise AssertionError

    with pytest.raises(NothingToDeliver):
        await run(dispatched, "watcher")
    foreign["things"].insert_one({"_id": 1})
    with pytest.raises(UnknownReceiver, match="Did you mean 'watcher'"):
        await run(dispatched, "wacher")
    with pytest.raises(UnknownReceiver, match="post_save"):
        await run(dispatched, "updates")
    with pytest.raises(UnknownRun, match="no backfill 'none'"):
        await run(dispatched, "watcher", resume="none")
    assert seen == []
    assert State(foreign).database["controls"].count_documents({"kind": "run"}) == 0


async def test_a_resumed_run_keeps_its_filter_and_may_have_another_number_of_workers(
    foreign, dispatched, Thing, seen
):
    foreign["things"].insert_many([{"_id": n, "n": n} for n in range(100)])
    where, other = '{"n": {"$gte": 60}}', '{"n": 1}'
    stop = asyncio.Event()
    stopping = asyncio.create_task(eventually(lambda: len(seen) >= 5))
    stopping.add_done_callback(lambda _: stop.set())
    first = await run(dispatched, "watcher", stop=stop, rate=50, max_queued=5, where=where, workers=3)
    assert not first.finished
    runs = State(foreign).database["controls"]
    asked = runs.find_one({"run": first.run})["asked"]
    assert (asked["where"], asked["workers"]) == (where, 3)
    with pytest.raises(OtherRun, match="begun with another --where") as refused:
        await run(dispatched, "watcher", resume=first.run, where=other)
    assert "Continue it without --where" in refused.value.remedy
    second = await run(dispatched, "watcher", resume=first.run, workers=2)
    assert second.finished
    assert {call.n for call in seen} == {*range(60, 100)}
    assert runs.find_one({"run": first.run})["asked"] == {**asked, "workers": 2}
    # A command with another filter begins a new run.
    assert (await run(dispatched, "watcher", where=other)).delivered == 1
    assert runs.count_documents({"kind": "run"}) == 2


async def test_the_concurrency_applies_to_each_worker_of_a_backfill(foreign, dispatched, Thing):
    running, most, gate = 0, 0, asyncio.Event()

    @post_save(Thing, name="slow")
    async def slow(sender, **kwargs):
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 6:
            gate.set()
        await gate.wait()
        running -= 1

    foreign["things"].insert_many([{"_id": n} for n in range(20)])
    assert (await run(dispatched, "slow", concurrency=2, workers=3)).delivered == 20
    assert most == 6


@pytest.mark.parametrize("where", ['{"$nope": 1}', '{"n": {"$gt": 1, "x": 2}}', '{"$text": {"$search": "a"}}'])
async def test_a_filter_that_the_server_rejects_is_refused(foreign, dispatched, Thing, seen, where):
    foreign["things"].insert_one({"_id": 1, "n": 1})
    with pytest.raises(FilterRefused) as refused:
        await run(dispatched, "watcher", where=where)
    assert where in str(refused.value)
    assert f"{foreign.name}.things" in str(refused.value)
    assert seen == []
    assert State(foreign).database["controls"].count_documents({"kind": "run"}) == 0


async def test_a_run_of_another_live_process_is_not_resumed(foreign, dispatched, Thing, seen):
    foreign["things"].insert_many([{"_id": n} for n in range(3)])
    outcome = await run(dispatched, "watcher")
    runs = State(foreign).database["controls"]
    runs.update_one({"run": outcome.run}, {"$set": {"status": "running", "host": "elsewhere", "pid": 1}})
    with pytest.raises(Busy, match="Process 1 on elsewhere"):
        await run(dispatched, "watcher", resume=outcome.run)
    # The heartbeat of that process is too old now.
    runs.update_one({"run": outcome.run}, [{"$set": {"beat_at": {"$subtract": ["$$NOW", 20_000]}}}])
    assert (await run(dispatched, "watcher", resume=outcome.run)).finished


# -- one document as it was at an earlier time --------------------------------------------------------------------


async def moment(client: Any) -> Timestamp:
    """The cluster time of the last write."""
    return (await client.admin.command("ping"))["operationTime"]


@pytest.mark.parametrize("capped", [False, True])
async def test_a_document_is_read_as_it_was_at_an_earlier_time(client, database, capped):
    """A capped collection can't be read at an earlier time, so the current document is read."""
    options = {"capped": True, "size": 4096} if capped else {}
    things = await client[database].create_collection("things", **options)
    await things.insert_one({"_id": 1, "n": 1})
    time = await moment(client)
    await things.update_one({"_id": 1}, {"$set": {"n": 2}})
    found = await document(client, (database, "things"), bson.encode({"": 1}), time)
    assert found is not None
    assert found.row["n"] == (2 if capped else 1)
    assert found.time == time
    assert await document(client, (database, "things"), bson.encode({"": 2}), time) is None


async def test_reading_a_document_as_of_a_time_that_the_server_has_forgotten_fails(client, database):
    await client[database]["things"].insert_one({"_id": 1})
    point = {"failCommands": ["find"], "errorCode": 239, "namespace": f"{database}.things"}
    await client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=point)
    with pytest.raises(SnapshotTooOld):
        await document(client, (database, "things"), bson.encode({"": 1}), await moment(client))
