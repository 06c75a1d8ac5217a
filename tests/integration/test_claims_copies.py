"""Copies of documents with claims, and documents that were written again before a takeover."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from bson import ObjectId

import mongoz
from mongoz.stamps import FIELD, Stamp
from tests.integration.claiming import Held, Told, claiming, make, until_announced, until_passed
from tests.support import dispatching, eventually


@pytest.fixture
async def registry(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    """The registry of the dispatcher."""
    async with claiming(mongo.url, database) as made:
        yield made


def aged(document: dict[str, Any], seconds: int) -> dict[str, Any]:
    """The document, as if it had been written some seconds earlier."""
    stamp = Stamp.unpack(document[FIELD])
    assert stamp is not None
    token = stamp.token.binary
    made = int.from_bytes(token[:4], "big") - seconds
    return {**document, FIELD: stamp._replace(token=ObjectId(made.to_bytes(4, "big") + token[4:])).pack()}


@pytest.mark.parametrize("seconds", [1, 60, 3_600])
async def test_a_restored_copy_is_delivered_although_its_claim_is_done(
    seconds, registry, mongo, database, foreign, state
):
    """Another client restores the document with its stamp. The copy is a new write with a delivery of its own."""
    served: Told = []
    ids: dict[str, list[str]] = {"any": [], "durable": []}

    async def note(name: str, instance: Any, delivery: Any) -> None:
        ids[name].append(delivery.id)

    make(registry, database, served, on_delivery=note)
    items = foreign.create_collection("items")
    async with claiming(mongo.url, database) as writing, dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        await make(writing, database, [])(n=1).create()
        original = aged(items.find_one(), seconds)
        await until_passed(state)
        items.delete_one({})
        items.insert_one(original)  # the dispatcher sees this stamp for the first time
        await until_passed(state)
        before = len(ids["any"])
        items.delete_one({})
        items.insert_one(original)
        await until_passed(state)
    restored = ids["any"][before:]
    token = str(Stamp.unpack(original[FIELD]).token)
    assert len(restored) == 2, "the delete and the copy"
    assert token not in restored
    assert served[-2:] in (
        [("post_save", "any", 1, "stream"), ("post_save", "durable", 1, "stream")],
        [("post_save", "durable", 1, "stream"), ("post_save", "any", 1, "stream")],
    )


async def test_a_copy_of_a_document_with_an_open_claim_is_delivered_after_the_takeover(
    registry, database, foreign, state, held
):
    told: list[tuple[str, str, bool]] = []

    async def note(name: str, instance: Any, delivery: Any) -> None:
        told.append((delivery.signal, delivery.origin, delivery.id == token))

    make(registry, database, [], on_delivery=note, others=False)
    items = foreign.create_collection("items")
    async with dispatching(registry):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        original = items.find_one()
        token = str(Stamp.unpack(original[FIELD]).token)
        items.delete_one({})
        items.insert_one(original)
        state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
        await until_passed(state)
    assert told == [
        ("post_save", "takeover", True),
        ("post_delete", "stream", False),
        ("post_save", "stream", False),
    ]


async def test_a_takeover_gets_only_the_id_of_a_document_that_another_process_has_deleted(
    registry, mongo, database, foreign, state, held
):
    """The receiver keeps an index. A takeover must not put the deleted document back into the index."""
    index: dict[Any, Any] = {}
    seen: list[tuple[str, str, bool, str]] = []

    async def note(name: str, instance: Any, delivery: Any) -> None:
        seen.append((delivery.signal, delivery.image, delivery.superseded, delivery.origin))
        if delivery.signal == "post_delete" or delivery.image == "key":
            index.pop(instance.id, None)
        else:
            index[instance.id] = instance.n

    make(registry, database, [], on_delivery=note, others=False)
    foreign.create_collection("items")
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        async with claiming(mongo.url, database) as other:
            Other = make(other, database, [], on_delivery=note, others=False)
            await (await Other.objects.get()).delete()
        state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
        await until_passed(state)
    assert seen == [("post_delete", "pre", False, "process"), ("post_save", "key", True, "takeover")]
    assert index == {}


async def test_the_claims_of_one_document_are_taken_over_in_the_order_of_its_writes(
    registry, database, foreign, state, held
):
    """One process makes two writes, and their receivers wait. A foreign write follows the two writes."""
    served: Told = []
    make(registry, database, served, others=False)
    foreign.create_collection("items")
    async with dispatching(registry):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        Item = held.Item
        await held.begin((await Item.objects.get()).update(n=2))
        foreign["items"].update_one({}, {"$set": {"n": 3}})
        assert served == []
        state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
        await until_passed(state)
    assert [(signal, origin) for signal, _, _, origin in served] == [
        ("post_save", "takeover"),
        ("post_update", "takeover"),
        ("post_update", "stream"),
    ]
    assert served[-1][2] == 3


async def test_a_claim_that_waits_behind_a_parked_claim_holds_back_later_deliveries(
    registry, mongo, database, foreign, state, held
):
    """Two processes write one document, and their receivers wait. The dispatcher is restarted between the writes.

    So the first claim is parked, and the second one waits in memory. A foreign write follows them.
    """
    served: Told = []
    make(registry, database, served)
    foreign.create_collection("items")
    async with dispatching(registry):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        await eventually(lambda: served)
    assert state.held.count_documents({"state": "claimed"}) == 1
    other = Held(mongo.url, database)
    async with other.registry, dispatching(registry):
        await other.begin((await other.Item.objects.get()).update(n=2))
        foreign["items"].update_one({}, {"$set": {"n": 3}})
        await eventually(lambda: len([one for one in served if one[1] == "durable"]) == 3)
        state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
        await eventually(lambda: [one for one in served if one[1] == "any"], what="the parked claim is taken over")
        state.claims.update_one(other.book, {"$set": {"fenced_at": 1}})
        await until_passed(state)
        await eventually(lambda: not state.held.find_one(), what="no delivery is parked")
        await other.finish()
    assert [(signal, origin) for signal, name, _, origin in served if name == "any"] == [
        ("post_save", "takeover"),
        ("post_update", "takeover"),
        ("post_update", "stream"),
    ]
