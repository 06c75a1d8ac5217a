"""`where`: the server evaluates the condition on the image of the delivery."""

from typing import Any

import pytest
from bson import ObjectId
from pymongo import DeleteOne, InsertOne, UpdateOne

from dispatcher.exceptions import ApplicationError
from mongoz.core.signals import post_delete, post_save, post_update
from tests.integration.deliveries import IMAGES, actions
from tests.support import dispatching, eventually


def wanting(document: Any, where: Any, *signals: Any, name: str = "wanting", **options: Any) -> list[str]:
    """Connects a receiver with a condition; returns the received names."""
    got: list[str] = []

    async def receiver(sender: Any, instance: Any, **kwargs: Any) -> None:
        got.append(getattr(instance, "name", "?"))

    for connect in signals or (post_save,):
        connect(document, name=name, where=where, **options)(receiver)
    return got


async def test_where_applies_to_every_kind_of_change(account, foreign, dispatched):
    foreign.create_collection("accounts", **IMAGES)
    got = wanting(account, {"amount": {"$gte": 10}}, post_save, post_update, post_delete)
    id_ = ObjectId()
    async with dispatching(dispatched) as running:
        foreign["accounts"].bulk_write(
            [
                InsertOne({"_id": id_, "name": "poor", "amount": 1}),
                UpdateOne({"_id": id_}, {"$set": {"name": "rich", "amount": 10}}),
                UpdateOne({"_id": id_}, {"$set": {"name": "poor again", "amount": 9}}),
                UpdateOne({"_id": id_}, {"$set": {"name": "richer", "amount": 11}}),
                DeleteOne({"_id": id_}),  # the image of this delivery is the pre image
                InsertOne({"_id": id_, "name": "poor", "amount": 1}),
                DeleteOne({"_id": id_}),
                InsertOne({"_id": id_, "name": "end", "amount": 12}),
            ]
        )
        await eventually(lambda: "end" in got)
    assert got == ["rich", "richer", "richer", "end"]
    assert running.stats.delivered == 4


async def test_where_applies_to_own_writes(account, foreign, dispatched):
    """A save() of an existing document is a post_save, though the server sees an update."""
    foreign.create_collection("accounts", **IMAGES)
    got = wanting(account, {"amount": {"$gt": 1}})
    updates = wanting(account, {"amount": 1}, post_update, name="updates")
    async with dispatching(dispatched):
        one = await account.objects.create(name="no", amount=1)
        one.name = "still not"
        await one.save()
        one.name, one.amount = "yes", 2
        await one.save()
        await eventually(lambda: got)
    assert (got, updates) == (["yes"], [])


async def test_a_condition_sees_only_the_document(account, foreign, dispatched):
    """Neither the stamp nor internal fields are visible; values that look like expressions are literal."""
    got = wanting(
        account,
        {
            "_mongoz": {"$exists": False},
            "$expr": {"$eq": [{"$size": {"$objectToArray": "$$ROOT"}}, 4]},
        },
    )
    odd = wanting(account, {"name": "$$ROOT"}, name="odd")
    async with dispatching(dispatched):
        # The write has a stamp, because a receiver runs in process.
        post_save(account, name="here")(_ignore)
        await account.objects.create(name="own")
        foreign["accounts"].insert_one({"name": "too few fields"})
        foreign["accounts"].insert_one({"name": "$$ROOT", "amount": 1, "tags": ["$name"]})
        await eventually(lambda: odd and len(got) >= 2)
    assert (sorted(got), odd) == (["$$ROOT", "own"], ["$$ROOT"])


async def _ignore(sender: Any, **kwargs: Any) -> None:
    pass


async def test_receivers_without_a_condition_get_everything(account, foreign, dispatched):
    some = wanting(account, {"amount": 1})
    everything: list[str] = []

    @post_save(account, name="all")
    async def all_(sender, instance, **kwargs):
        everything.append(instance.name)

    async with dispatching(dispatched):
        foreign["accounts"].insert_many([{"name": f"n{i}", "amount": i % 3} for i in range(300)])
        await eventually(lambda: len(everything) == 300)
    assert sorted(some) == sorted(f"n{i}" for i in range(300) if i % 3 == 1)


async def test_a_change_whose_document_is_unknown_is_delivered(account, foreign, dispatched):
    """Without pre images the deleted document is unknown."""
    got = wanting(account, {"amount": 1}, post_delete)
    id_ = foreign["accounts"].insert_one({"name": "gone", "amount": 2}).inserted_id
    async with dispatching(dispatched):
        foreign["accounts"].delete_one({"_id": id_})
        await eventually(lambda: got)
    assert got == ["?"]


async def test_where_applies_to_large_documents(account, foreign, dispatched):
    """The documents need several commands. One document nearly fills a command: a long condition may not fit."""
    got = wanting(account, {"amount": 1})
    other = wanting(account, {"name": {"$in": ["x" * 1_000_000, "end"]}}, name="other")
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(
            [{"name": f"n{i}", "amount": i % 2, "blob": b"x" * 3_000_000} for i in range(6)]
        )
        foreign["accounts"].insert_one({"name": "no", "amount": 2, "blob": b"x" * 15_000_000})
        foreign["accounts"].insert_one({"name": "end", "amount": 1})
        await eventually(lambda: "end" in got and "end" in other)
    assert sorted(got) == ["end", "n1", "n3", "n5"]
    # 15 MB and a condition of 1 MB may not fit into a command. Then the change is delivered, because it may match.
    assert sorted(other) in (["end"], ["end", "no"])


async def test_a_document_is_delivered_if_its_condition_is_an_error_and_other_documents_are_filtered(
    account, foreign, dispatched, capsys
):
    said = actions(capsys)
    got = wanting(account, {"$expr": {"$gt": [{"$size": "$tags"}, 1]}})
    other = wanting(account, {"amount": 1}, name="other")
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(
            [
                {"name": "one tag", "tags": ["a"], "amount": 1},
                {"name": "no tags", "amount": 2},  # $size of a missing field is an error of the server
                {"name": "two tags", "tags": ["a", "b"], "amount": 2},
                {"name": "end", "tags": ["a", "b"], "amount": 1},
            ]
        )
        await eventually(lambda: "end" in got and "end" in other)
    assert sorted(got) == ["end", "no tags", "two tags"]
    assert sorted(other) == ["end", "one tag"]
    assert said().count("where.unknown") == 1


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"amount": {"$gtt": 1}}, "unknown operator: $gtt"),
        ({"$where": "true"}, "$where is not allowed"),
        ({"amount": object()}, "cannot encode object"),
    ],
)
async def test_a_refused_condition_is_reported_at_the_start(account, foreign, dispatched, where, said):
    wanting(account, where, name="broken")
    with pytest.raises(ApplicationError) as caught:
        async with dispatching(dispatched):
            pass
    assert "'broken' of Account" in caught.value.message
    assert repr(next(iter(where))) in caught.value.message
    assert said in caught.value.message
    assert caught.value.remedy


async def test_a_condition_is_evaluated_again_after_an_outage(account, foreign, dispatched):
    got = wanting(account, {"amount": 1})
    admin = foreign.client.admin
    failing = {"failCommands": ["aggregate"], "closeConnection": True, "appName": "mongoz-dispatcher"}
    async with dispatching(dispatched):
        admin.command("configureFailPoint", "failCommand", mode={"times": 2}, data=failing)
        try:
            foreign["accounts"].insert_many([{"name": "no", "amount": 2}, {"name": "yes", "amount": 1}])
            await eventually(lambda: got)
        finally:
            admin.command("configureFailPoint", "failCommand", mode="off")
    assert got == ["yes"]


async def test_conditions_are_evaluated_in_few_commands(account, foreign, dispatched):
    """One command evaluates the conditions of all receivers for up to a hundred changes."""
    got = [wanting(account, {"amount": n}, name=f"n{n}") for n in range(4)]
    database = foreign.client[f"{foreign.name}_state"]
    database.command("profile", 2)
    try:
        async with dispatching(dispatched):
            foreign["accounts"].insert_many([{"name": "x", "amount": i % 4} for i in range(100)])
            await eventually(lambda: sum(map(len, got)) == 100)
        asked = database["system.profile"].count_documents(
            {"command.aggregate": 1, "ts": {"$exists": True}, "op": "command", "nreturned": {"$gt": 0}}
        )
    finally:
        database.command("profile", 0)
    assert 1 <= asked <= 5
