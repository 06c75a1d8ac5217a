"""The store of held deliveries: lanes, their heads, and the cost of queries."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import bson
import pytest
from bson import Int64, ObjectId
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure

from dispatcher.core.stats import Stats
from dispatcher.delivery.outcome import Waiting
from dispatcher.group.sessions import GroupSessions
from dispatcher.group.view import read_group
from dispatcher.operate import dead_letters
from dispatcher.operate.dead_letters import Wanted
from dispatcher.parking import files
from dispatcher.parking.letters import LetterStore
from dispatcher.parking.record import Record
from dispatcher.parking.retry_requests import RetryRequests
from dispatcher.parking.store import HeldStore, Settlement
from dispatcher.web.dashboard.letters import Letterbox
from tests.support import SentCommands, group_of

PAST, FUTURE = datetime(2020, 1, 1), datetime(2100, 1, 1)


@pytest.fixture
async def store(mongo: Any, database: str) -> AsyncIterator[HeldStore]:
    async with AsyncMongoClient(mongo.url) as client:
        group = group_of(client, database)
        await group.state.create_indexes()
        yield HeldStore(group)


@pytest.fixture
async def letters(mongo: Any, database: str) -> AsyncIterator[LetterStore]:
    async with AsyncMongoClient(mongo.url) as client:
        yield LetterStore(group_of(client, database), Stats())


@pytest.fixture
async def requests(mongo: Any, database: str) -> AsyncIterator[RetryRequests]:
    async with AsyncMongoClient(mongo.url) as client:
        yield RetryRequests(group_of(client, database))


@pytest.fixture
def held(foreign: Any, database: str) -> Any:
    return foreign.client[f"{database}_state"].held


def record(group: str, number: int, *, receiver: str = "r", size: int = 10, **parts: bytes) -> Record:
    fields = {"_id": f"d{number:05}", "group": group, "receiver": receiver, "key": 1, "size": size}
    return Record({**fields, "token": f"{number:05}", "run": ""}, parts)


async def put(store: HeldStore, lane: str, *numbers: int, state: Any = "blocked") -> None:
    """Puts a head and its followers into a lane."""
    for number in numbers:
        await store.put(record(store.group, number), lane, Waiting(state) if number == numbers[0] else None)


async def worked_off(store: HeldStore, *, most: int = 10) -> list[str]:
    """Works off the due lanes, and returns their deliveries in the order of delivery."""
    made: list[str] = []
    while True:
        lanes, seconds = await store.due("r", most, [])
        if not lanes and seconds != 0.0:
            return made
        for lane in lanes:
            first = await store.read([lane.first])
            more = await store.settle(lane, list(first.values()), None, None)
            made += first
            while more:
                rows, next_id = await store.following(lane.id)
                made += [row["_id"] for row in rows]
                more = await store.settle(lane, rows, next_id, None)


async def test_a_lane_is_delivered_in_order_and_then_removed(store, held):
    await put(store, "lane", *range(100, 200))
    assert await store.existing(["lane", "other"]) == {"lane"}
    assert (await store.is_headed("lane"), await store.is_headed("other")) == (True, None)
    assert await worked_off(store) == [f"d{n:05}" for n in range(100, 200)]
    assert await store.existing(["lane"]) == set()
    assert held.count_documents({}) == 0


async def test_followers_wait_for_a_waiting_head(store, held):
    await put(store, "lane", 1, 2)
    (lane,), _ = await store.due("r", 5, [])
    assert await store.settle(lane, [], lane.first, Waiting("retrying", 60.0, 3, PAST, ValueError("no")))
    assert (await store.due("r", 5, []))[0] == []
    _, seconds = await store.due("r", 5, [])
    assert 50 < seconds <= 60
    head = held.find_one({"_id": "d00001"})
    assert (head["state"], head["attempts"], head["error"]["message"]) == ("retrying", 3, "ValueError: no")
    assert held.find_one({"_id": "d00002"})["state"] == "following"


async def test_of_two_heads_the_first_head_counts(store, held):
    """A crash between two writes can leave two heads. The later head becomes a follower and keeps its attempts."""
    await put(store, "lane", 2, 3)
    held.update_one({"_id": "d00002"}, {"$set": {"attempts": 7, "due_at": PAST}})
    await store.put(record(store.group, 1), "lane", Waiting("retrying", 3_600.0))
    assert await store.due("r", 5, []) == ([], 0.0)
    (lane,), _ = await store.due("r", 5, [])
    assert (lane.first, lane.due_at) == ("d00001", PAST)
    other = held.find_one({"_id": "d00002"})
    assert (other["state"], other["attempts"], "due_at" in other) == ("following", 7, False)
    assert await worked_off(store) == ["d00001", "d00002", "d00003"]


async def test_a_lane_without_a_head_is_repaired(store, held):
    """Another process deleted the head, or died before it marked the next head."""
    await put(store, "lane", 1, 2, 3)
    held.delete_one({"_id": "d00001"})
    assert await store.is_headed("lane") is False
    assert await worked_off(store) == []
    await store.recover()
    assert await store.is_headed("lane") is True
    assert await worked_off(store) == ["d00002", "d00003"]


async def test_a_new_follower_becomes_the_head(store):
    """The lane was read while it had only one delivery."""
    await put(store, "lane", 1)
    (lane,), _ = await store.due("r", 5, [])
    await store.put(record(store.group, 2), "lane", None)
    assert await store.settle(lane, list((await store.read([lane.first])).values()), None, None)
    assert await worked_off(store) == ["d00002"]


async def test_a_dead_letter_is_retried_in_its_place(store, letters, requests, held):
    for number in (1, 5):
        await letters.keep(Record({**record(store.group, number).fields, "reason": "failed"}, {}))
        held.update_one({"_id": f"d{number:05}"}, {"$set": {"retry_requested_at": PAST}})
    await put(store, "lane", 3, 4)
    held.update_one({"_id": "d00003"}, {"$set": {"due_at": FUTURE, "attempts": 7}})
    asked = await requests.of(0, 1)
    assert asked == ["d00001", "d00005"]
    for id_ in asked:
        assert await store.retry(id_, "lane", {"receiver": "r"})
    assert not await store.retry("d00001", "lane", {"receiver": "r"})  # there is no new request
    assert [one["_id"] for one in held.find({"due_at": {"$exists": True}})] == ["d00005"]
    assert await worked_off(store) == ["d00001", "d00003", "d00004", "d00005"]


async def test_one_query_finds_the_requested_retries_of_all_partitions_in_their_order(mongo, database, held):
    """Other groups, and partitions that nobody asks for, are left out. Each answer has at most fifty ids."""
    hashes = {1: [4, 7], 2: [-2, 5], 0: [3], 3: []}  # four of the eight partitions; a hash is a signed number
    rows = [
        {"_id": f"{hashed} {n}", "group": database, "hash": Int64(hashed * 8 + number), "retry_requested_at": n}
        for number, several in hashes.items()
        for n, hashed in enumerate(several)
    ]
    rows += [
        {"_id": f"many {n}", "group": database, "hash": Int64(5), "retry_requested_at": -n} for n in range(60)
    ]
    rows += [{"_id": "other group", "group": "other", "hash": Int64(1), "retry_requested_at": 0}]
    rows += [{"_id": "no request", "group": database, "hash": Int64(1)}]
    held.insert_many(random.sample(rows, len(rows)))
    sent = SentCommands()
    async with AsyncMongoClient(mongo.url, event_listeners=[sent]) as client:
        requests = RetryRequests(group_of(client, database))
        found = await asyncio.gather(*(requests.of(number, 8) for number in (0, 1, 2, 3)))
        assert sent.names == ["aggregate"]
        # -2 * 8 + 2 is -14, and its partition is 6, as `partition_of` says.
        assert found == [["3 0"], ["4 0", "7 1"], ["5 1"], []]
        assert await requests.of(6, 8) == ["-2 0"]
        assert await requests.of(5, 8) == [f"many {n}" for n in range(59, 9, -1)]


async def test_many_requested_retries_of_one_partition_do_not_hide_retries_of_another_partition(
    requests, database, held
):
    rows = [
        {"_id": f"{number} {n}", "group": database, "hash": Int64(number), "retry_requested_at": n}
        for number, times in {0: range(300), 1: range(300, 500), 2: [400], 3: [600]}.items()
        for n in times
    ]
    held.insert_many(random.sample(rows, len(rows)))
    found = await asyncio.gather(*(requests.of(number, 8) for number in range(5)))
    assert found[0] == [f"0 {n}" for n in range(50)]
    assert found[1] == [f"1 {n}" for n in range(300, 350)]
    assert found[2:] == [["2 400"], ["3 600"], []]


async def test_lanes_that_end_during_a_query_do_not_hide_later_lanes(store, held, monkeypatch):
    for number in range(3):
        await put(store, f"lane {number}", number)
        held.update_one({"_id": f"d{number:05}"}, {"$set": {"due_at": PAST + timedelta(days=number)}})
    lookup = store._first
    lookup["$lookup"]["pipeline"].insert(0, {"$match": {"lane": "lane 2"}})  # as if the other lanes had ended
    with monkeypatch.context() as patch:
        patch.setattr(HeldStore, "_first", lookup)
        assert await store.due("r", 1, []) == ([], 0.0)
    lanes, _ = await store.due("r", 3, [])
    assert [lane.id for lane in lanes] == ["lane 0", "lane 1", "lane 2"]


async def test_a_delivery_whose_lane_is_no_text_waits_and_does_not_hide_the_next_delivery(store, held):
    """Somebody has edited the record by hand."""
    await put(store, "lane 0", 0)
    await put(store, "lane 1", 1)
    held.update_one({"_id": "d00000"}, {"$set": {"lane": [], "due_at": PAST}})
    assert await worked_off(store, most=1) == ["d00001"]
    assert held.find_one({"_id": "d00000"})["state"] == "malformed"
    lanes, seconds = await store.due("r", 1, [])
    assert lanes == []
    assert seconds is not None
    assert seconds > 0


async def test_a_repeated_delivery_replaces_its_record(store, held):
    await put(store, "lane", 1, 2)
    await put(store, "lane", 1, 2, state="paused")
    assert held.count_documents({}) == 2
    assert held.find_one({"_id": "d00001"})["state"] == "paused"


async def test_a_head_that_is_read_again_stays_the_head(store, held):
    """The repeated delivery finds its own record in the lane."""
    await put(store, "lane", 1, 2)
    held.update_one({"_id": "d00001"}, {"$set": {"due_at": FUTURE, "attempts": 7}})
    for number in (1, 2):
        again = record(store.group, number)
        again.fields["by"] = "me"
        await store.put(again, "lane", None)
    head, follower = held.find().sort("_id")
    assert (head["state"], head["due_at"], head["attempts"], head["by"]) == ("blocked", FUTURE, 7, "me")
    assert (follower["state"], "due_at" in follower, follower["by"]) == ("following", False, "me")


async def test_each_query_reads_at_most_50_records(store, held):
    """The state has a lane with 10,000 followers, 2,000 lanes of another receiver, and 20,000 dead letters."""
    await put(store, "lane", 0)
    row = held.find_one()
    more = {**row, "state": "following"}
    del more["due_at"]
    held.insert_many([{**more, "_id": f"f{n:05}", "token": f"{n + 1:05}"} for n in range(10_000)])
    held.insert_many([{**row, "_id": f"o{n}", "lane": f"o{n}", "receiver": "other"} for n in range(2_000)])
    letters = [{"_id": f"l{n:04}", "short_id": f"{n:012}", "last_attempt_at": PAST} for n in range(20_000)]
    held.insert_many([{**one, "group": store.group, "reason": "failed"} for one in letters])
    database = held.database
    database.command("profile", 2)
    try:
        assert await store.existing(["lane", "nothing", "o5"]) == {"lane", "o5"}
        assert await store.is_headed("lane") is True
        (lane,), _ = await store.due("r", 20, [])
        rows, next_id = await store.following("lane")
        assert (len(rows), next_id) == (20, "f00019")
        await store.settle(lane, rows, next_id, None)
        assert len((await store.due("other", 20, []))[0]) == 20
        assert await store.receivers() == {"r", "other"}
        assert await dead_letters.resolve(store._group, ["000000000012", "l0013"]) == ["l0012", "l0013"]
        assert (await Letterbox(store._group).page(Wanted(), None))["next"]
    finally:
        database.command("profile", 0)
    profile = database["system.profile"].find({"docsExamined": {"$exists": True}})
    read = [(one["docsExamined"], one["keysExamined"], one["command"]) for one in profile]
    assert len(read) >= 8
    assert [one for one in read if max(one[:2]) > 50] == []


async def test_the_finished_deliveries_of_many_lanes_are_one_entry_of_the_oplog(store, held):
    for number in range(3):
        await put(store, f"lane{number}", number)
    lanes, _ = await store.due("r", 5, [])
    rows = await store.read([lane.first for lane in lanes])
    await store.settle_all([Settlement(lane, [rows[lane.first]], None, None) for lane in lanes])
    assert held.count_documents({}) == 0
    oplog = held.database.client.local["oplog.rs"]
    assert oplog.count_documents({"ns": held.full_name, "op": "d"}) == 0
    (entry,) = oplog.find({"o.applyOps.ns": held.full_name})
    assert sorted(one["o"]["_id"] for one in entry["o"]["applyOps"]) == ["d00000", "d00001", "d00002"]


async def test_a_conflict_is_raised_because_only_the_caller_knows_whether_it_still_owns_the_partition(
    store, held, client
):
    await put(store, "lane", 1)
    (lane,), _ = await store.due("r", 5, [])
    rows = list((await store.read([lane.first])).values())
    async with client.start_session() as session, await session.start_transaction():
        other = client[held.database.name].held
        await other.update_one({"_id": lane.first}, {"$set": {"other": 1}}, session=session)
        with pytest.raises(OperationFailure):
            async with asyncio.timeout(10):
                await store.settle(lane, rows, None, None)
    assert not await store.settle(lane, rows, None, None)
    assert held.count_documents({}) == 0


async def test_the_transaction_of_a_killed_process_does_not_block_the_next_owner(
    store, held, client, mongo, database, monkeypatch
):
    """The server would keep the transaction open for a minute."""

    class Killed(BaseException):
        pass

    async def kill(_session):
        raise Killed

    await put(store, "lane", 1)
    (lane,), _ = await store.due("r", 5, [])
    rows = list((await store.read([lane.first])).values())
    group = group_of(client, database)
    async with AsyncMongoClient(mongo.url) as another:
        before = group_of(another, database)
        killed = HeldStore(before, sessions=GroupSessions(before, "killed"))
        with monkeypatch.context() as patch:
            patch.setattr(AsyncClientSession, "commit_transaction", kill)
            patch.setattr(AsyncClientSession, "abort_transaction", kill)
            with pytest.raises(Killed):
                await killed.settle_all([Settlement(lane, rows, None, None)])
        assert held.count_documents({}) == 1
        left_open = [one for one in (await read_group(group)).sessions if one.owner == "killed"]
        await GroupSessions(group, "living").end(left_open)
        async with asyncio.timeout(10):
            await store.settle_all([Settlement(lane, rows, None, None)])
    assert held.count_documents({}) == 0


async def test_files_are_created_and_deleted_with_their_delivery(store, held, monkeypatch):
    monkeypatch.setattr(files, "_INLINE", 100)
    data = bson.encode({"_id": 1, "blob": bytes(1_000)})
    await store.put(record(store.group, 1, document=data), "lane", Waiting("blocked"))
    kept = held.database["held.files"]
    assert kept.count_documents({}) == 1
    (lane,), _ = await store.due("r", 5, [])
    (row,) = (await store.read([lane.first])).values()
    assert (await store.parts(row))["document"] == data
    kept.update_one({}, {"$set": {"filename": "d00001"}})
    await store.recover()
    assert (await store.parts(row))["document"] == data
    await store.settle(lane, [row], None, None)
    assert [held.database[name].count_documents({}) for name in ("held", "held.files", "held.chunks")] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"part 'document' is missing in held.files"):
        await store.parts(row)


async def test_orphaned_files_are_deleted_later(store, held, monkeypatch):
    monkeypatch.setattr(files, "_INLINE", 100)
    await store.put(record(store.group, 1, document=bson.encode({"a": bytes(1_000)})), "lane", Waiting("blocked"))
    chunk = held.database["held.chunks"].find_one()
    old = ObjectId.from_datetime(PAST)  # the clock of the process that wrote the file may be wrong
    file = held.database["held.files"].find_one()
    now = 1_000.0
    monkeypatch.setattr(files, "monotonic", lambda: now)
    for id_, filename in ((old, "d00001"), (ObjectId(), "nobody")):
        held.database["held.files"].insert_one({**file, "_id": id_, "filename": filename})
        held.database["held.chunks"].insert_one({**chunk, "_id": ObjectId(), "files_id": id_})
    await store.recover()
    # One file has a record. The other two files may get their records soon.
    assert held.database["held.files"].count_documents({}) == 3
    assert held.database["held.files"].delete_one({"filename": "nobody"}).deleted_count
    held.database["held.files"].insert_one({**file, "_id": (new := ObjectId()), "filename": "nobody"})
    now += 3_600.0
    await store.recover()
    assert held.database["held.files"].find_one({"_id": old}) is None
    assert held.database["held.chunks"].find_one({"files_id": old}) is None
    assert {one["_id"] for one in held.database["held.files"].find()} == {file["_id"], new}


async def test_malformed_heads_do_not_hide_the_lanes_that_are_due_later(store, held):
    """Malformed heads are read again later, because somebody may fix them. `due` says that work is left."""
    for number in range(5):
        await put(store, f"lane {number}", number)
    held.update_many({"_id": {"$lt": "d00004"}}, {"$set": {"state": 7, "due_at": PAST}})
    due: list[Any] = []
    seconds: float | None = 0.0
    while not due and seconds == 0.0:
        due, seconds = await store.due("r", 1, [])
    assert [lane.first for lane in due] == ["d00004"]
    assert await worked_off(store) == ["d00004"]
    assert await store.due("r", 1, []) != ([], None)
    held.update_many({}, {"$set": {"state": "blocked", "due_at": PAST}})
    assert sorted(await worked_off(store)) == [f"d{number:05}" for number in range(4)]


async def test_a_dead_letter_whose_change_is_repeated_becomes_a_follower(store, letters, held):
    """The change of the dead letter is read again after a crash. Other deliveries of the document wait now."""
    await letters.keep(Record({**record(store.group, 1).fields, "reason": "failed", "attempts": 5}, {}))
    await put(store, "lane", 2)
    await store.put(record(store.group, 1), "lane", None)
    assert sorted(held.find_one({"_id": "d00001"}).keys() & {"reason", "attempts", "short_id"}) == []
    assert await worked_off(store) == ["d00001", "d00002"]


async def test_the_repair_of_two_heads_changes_no_delivery_that_became_a_dead_letter(store, letters, held):
    """Another process makes the later head a dead letter after `due` has read it, and before `due` writes."""
    await put(store, "lane", 2)
    await store.put(record(store.group, 1), "lane", Waiting("retrying", 3_600.0))
    bulk_write = store._held.bulk_write

    async def late(*args: Any, **options: Any) -> Any:
        await letters.keep(Record({**record(store.group, 2).fields, "reason": "failed"}, {}))
        return await bulk_write(*args, **options)

    store._held.bulk_write = late  # type: ignore[method-assign]
    await store.due("r", 5, [])
    assert held.find_one({"_id": "d00002"})["state"] == "dead"
