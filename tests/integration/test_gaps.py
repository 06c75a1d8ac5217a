"""Events of whole collections are recorded as gaps, and the stream continues."""

from typing import Any

import pytest
from bson import Timestamp

from mongoz.core.signals import post_delete, post_save, post_update
from tests.integration.deliveries import State, actions
from tests.support import dispatching, eventually


@pytest.fixture
def names(account) -> list[str]:
    """The names of the inserted documents, in the order of the deliveries."""
    told: list[str] = []

    @post_save(account, name="told")
    async def save(sender, instance, **kwargs):
        told.append(instance.name)

    @post_update(account, name="told")
    @post_delete(account, name="told")
    async def others(sender, **kwargs):
        raise AssertionError("nothing was updated or deleted")

    return told


@pytest.fixture
def state(foreign) -> State:
    return State(foreign)


def gaps(state: State) -> list[dict[str, Any]]:
    return list(state.database["gaps"].find().sort("from_time"))


def drop(db):
    db["accounts"].drop()


def drop_database(db):
    db.client.drop_database(db.name)


def rename(db):
    db["accounts"].rename("elsewhere")


def rename_onto(db):
    db["others"].insert_one({"name": "from others"})
    db["others"].rename("accounts", dropTarget=True)


def out(db):
    db["others"].insert_one({"name": "from others"})
    list(db["others"].aggregate([{"$out": "accounts"}]))


@pytest.mark.parametrize(
    ("deed", "expected"),
    [
        (drop, [("drop", "accounts")]),
        (drop_database, [("drop", "accounts"), ("dropDatabase", None)]),
        (rename, [("rename", "accounts")]),
        (rename_onto, [("rename", "accounts")]),
        (out, [("out", "accounts")]),
    ],
)
async def test_an_event_of_a_collection_is_recorded_as_a_gap(
    deed, expected, foreign, dispatched, database, names, state, capsys
):
    """Each gap is recorded and logged, and later writes are delivered."""
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "before"})
        deed(foreign)
        foreign["accounts"].insert_one({"name": "after"})
        await eventually(lambda: "after" in names)
        assert running.stats.gaps == len(expected)
    assert names == ["before", "after"]
    found = gaps(state)
    assert [(gap["kind"], gap["namespace"].get("coll")) for gap in found] == expected
    said = [line for line in capsys.readouterr().out.splitlines() if "gap.recorded" in line]
    assert len(said) == len(expected)
    for gap in found:
        assert (gap["group"], gap["partition"], gap["policy"]) == (database, 0, None)
        assert gap["namespace"]["db"] == database
        assert isinstance(gap["from_time"], Timestamp)
        assert gap["from_time"] == gap["to_time"]
        assert gap["noted_at"]
        assert database in gap["text"]


async def test_a_repeated_gap_is_recorded_once(foreign, dispatched, names, state):
    async with dispatching(dispatched):
        token = state.token
        foreign["accounts"].insert_one({"name": "1"})
        foreign["accounts"].drop()
        foreign["accounts"].insert_one({"name": "2"})
        await eventually(lambda: len(names) == 2)
    (first,) = gaps(state)
    state.rewind(token)  # as after a crash
    async with dispatching(dispatched) as running:
        await eventually(lambda: len(names) == 4)
        assert running.stats.gaps == 1
    assert gaps(state) == [first]


async def test_the_position_does_not_pass_an_unrecorded_gap(foreign, dispatched, names, state, capsys):
    admin = foreign.client.admin
    async with dispatching(dispatched):
        admin.command(
            "configureFailPoint",
            "failCommand",
            mode="alwaysOn",
            data={
                "failCommands": ["update"],
                "namespace": f"{state.database.name}.gaps",
                "errorCode": 11602,
                "appName": "mongoz-dispatcher",
            },
        )
        try:
            foreign["accounts"].insert_one({"name": "1"})
            await eventually(lambda: len(names) == 1)
            foreign["accounts"].drop()
            hello = foreign.client.admin.command("hello")
            dropped_at = hello["$clusterTime"]["clusterTime"]
            foreign["accounts"].insert_one({"name": "2"})
            said = actions(capsys)
            # The pauses between these attempts are longer than the pauses between two saves of the position.
            await eventually(lambda: said().count("gap.not_recorded") >= 3)
            assert state.database["positions"].find_one({"partition": 0})["cluster_time"] < dropped_at
            assert gaps(state) == []
        finally:
            admin.command("configureFailPoint", "failCommand", mode="off")
        await eventually(lambda: len(names) == 2)
        assert len(gaps(state)) == 1


async def test_an_unwatched_collection_has_no_gaps(foreign, dispatched, names, state):
    foreign["elsewhere"].insert_one({})
    async with dispatching(dispatched):
        foreign["elsewhere"].rename("nowhere")
        foreign["nowhere"].drop()
        foreign["accounts"].insert_one({"name": "1"})
        await eventually(lambda: names == ["1"])
    assert gaps(state) == []
