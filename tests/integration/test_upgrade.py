"""Held deliveries of an earlier version move into one collection exactly once."""

from collections.abc import AsyncIterator
from typing import Any

import bson
import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from dispatcher.core.state import Group, State
from dispatcher.operate.dead_letters import Wanted, letters_of, read
from dispatcher.parking.store import HeldStore
from tests.earlier_state import GROUP, captured

OLD = ("parked", "parked_lanes", "dead_letters", "parked_chunks", "dead_letter_chunks")


@pytest.fixture
async def group(mongo: Any, database: str) -> AsyncIterator[Group]:
    async with AsyncMongoClient(mongo.url) as client:
        yield Group(State(client, f"{database}_state"), GROUP)


@pytest.fixture
def state(foreign: Any, database: str) -> Any:
    """The state of an earlier version."""
    state = foreign.client[f"{database}_state"]
    for name, documents in captured().items():
        state[name].insert_many(documents)
    return state


async def taken_over(group: Group, *partition: int) -> HeldStore:
    await group.state.create_indexes()
    store = HeldStore(group, (partition[0], partition[1]) if partition else (0, 1))
    await store.recover()
    return store


def lanes(state: Any) -> dict[str, list[str]]:
    """The tokens of each lane, in order. The key of a lane is the state of its first delivery."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in state.held.find({"lane": {"$exists": True}}).sort([("lane", 1), ("token", 1), ("run", 1)]):
        found.setdefault(row["lane"], []).append(row)
    return {rows[0]["state"]: [row["token"] for row in rows] for rows in found.values()}


def left(state: Any) -> int:
    return sum(state[name].count_documents({}) for name in OLD)


async def test_all_held_deliveries_are_moved(group, state):
    before = captured()
    store = await taken_over(group)
    assert left(state) == 0
    assert {name: len(tokens) for name, tokens in lanes(state).items()} == {
        "blocked": 3,
        "retrying": 2,
        "paused": 1,
        "retry": 1,
    }
    assert all(tokens == sorted(tokens) for tokens in lanes(state).values())
    hashes = {lane["_id"]: lane["hash"] for lane in before["parked_lanes"]}
    assert {row["lane"]: row["hash"] for row in state.held.find({"lane": {"$exists": True}})} == hashes
    assert await store.receivers() == {"blocking", "retrying", "resting", "dying"}
    assert await store.existing(list(hashes)) == set(hashes)
    found, misfits = await letters_of(group, Wanted())
    assert not misfits
    assert {one["_id"] for one in found} == {one["_id"] for one in before["dead_letters"]}
    for one in before["dead_letters"]:
        letter, parts = await read(group, one["_id"])
        assert letter["error"] == one["error"]
        assert parts["document"] == one["parts"]["document"]
    again = list(state.held.find())
    await store.recover()
    assert list(state.held.find()) == again


async def test_each_partition_moves_its_own_deliveries(group, state):
    """The dispatchers of other partitions may still run an earlier version."""
    await taken_over(group, 0, 2)
    first = {row["_id"] for row in state.held.find()}
    assert 0 < len(first) < 8
    assert left(state) > 0
    await taken_over(group, 1, 2)
    assert left(state) == 0
    assert state.held.count_documents({}) == 8


async def test_the_state_of_another_group_is_not_moved(group, state):
    await taken_over(Group(group.state, "another"))
    assert state.held.count_documents({}) == 0
    assert left(state) == sum(map(len, captured().values()))


@pytest.mark.parametrize("refused", ["delete", "update"])
async def test_an_interrupted_upgrade_continues(group, state, foreign, refused):
    """The crash comes before the write or before the delete. The next process continues."""
    await group.state.create_indexes()
    store, admin = HeldStore(group), foreign.client.admin
    collection = "parked" if refused == "delete" else "held"
    failing = {"failCommands": [refused], "errorCode": 8000, "namespace": f"{state.name}.{collection}"}
    admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=failing)
    try:
        with pytest.raises(PyMongoError):
            await store.recover()
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")
    assert left(state) == sum(map(len, captured().values()))
    await store.recover()
    assert left(state) == 0
    assert (state.held.count_documents({}), len(lanes(state)["blocked"])) == (8, 3)


async def test_a_held_delivery_is_not_overwritten(group, state):
    """A process of an earlier version writes late: the delivery is already in the new collection."""
    row = captured()["parked"][0]
    id_ = f"{row['delivery_id']}:{row['receiver_id']}:{row['document']}"
    state.held.insert_one({"_id": id_, "group": GROUP, "lane": row["lane"], "state": "blocked", "attempts": 100})
    await taken_over(group)
    assert state.held.find_one({"_id": id_})["attempts"] == 100
    assert left(state) == 0


async def test_large_deliveries_move_with_their_files(group, state):
    letter, row = state.dead_letters.find_one({"retrying_since": {"$exists": False}}), state.parked.find_one()
    data = bson.encode({"_id": 1, "blob": bytes(5_000)})
    for collection, chunks, one in (
        ("dead_letters", "dead_letter_chunks", letter),
        ("parked", "parked_chunks", row),
    ):
        state[collection].update_one({"_id": one["_id"]}, {"$set": {"chunked": {"before": 2}}})
        parts = {f"{one['_id']}:before:0000": data[:4_000], f"{one['_id']}:before:0001": data[4_000:]}
        state[chunks].insert_many([{"_id": id_, "data": part} for id_, part in parts.items()])
    store = await taken_over(group)
    assert left(state) == 0
    for document in state.held.find({"files": {"$exists": True}}):
        assert (await store.parts(document))["before"] == data
    assert state.held.count_documents({"files": {"$exists": True}}) == 2


async def test_leftovers_of_earlier_crashes_are_moved(group, state):
    """The state has a lane without deliveries, a delivery without a lane, and a dead letter without its retry."""
    lane, row = (
        state.parked_lanes.find_one({"receiver": "resting"}),
        state.parked.find_one({"receiver": "blocking"}),
    )
    state.parked.delete_many({"lane": lane["_id"]})
    state.parked_lanes.delete_one({"_id": row["lane"]})
    state.parked.delete_one({"receiver": "dying"})
    store = await taken_over(group)
    assert left(state) == 0
    assert lane["_id"] not in await store.existing([lane["_id"], row["lane"]])
    (due,), _ = await store.due("blocking", 5, [])
    assert due.id == row["lane"]
    assert not state.held.find_one({"retrying_since": {"$exists": True}})


async def test_an_invalid_record_is_kept_and_named(group, state):
    state.parked.insert_one({"_id": ObjectId(), "group": GROUP, "lane": 5, "receiver": "blocking"})
    state.parked_lanes.insert_one({"_id": "odd", "group": GROUP, "receiver": {"a": 1}, "due_at": "soon"})
    state.dead_letters.insert_one({"_id": ObjectId(), "group": GROUP, "receiver": 5})
    await taken_over(group)
    assert left(state) == 0
    _, misfits = await letters_of(group, Wanted())
    assert len(misfits) == 1
