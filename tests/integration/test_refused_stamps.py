"""If the server refuses a delete marker, the delete works without it. In a transaction the delete is an error."""

import asyncio
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import OperationFailure

import mongoz
from mongoz.core.signals import post_delete
from tests.support import dispatching, eventually

CLOSED = {"$jsonSchema": {"properties": {"_id": {}, "name": {}}, "additionalProperties": False}}


@pytest.fixture
def Closed(dispatched: mongoz.Registry, database: str, foreign: Any) -> Any:
    class Closed(mongoz.Document):
        name: str = mongoz.String()

        Meta = type("Meta", (), {"registry": dispatched, "database": database, "collection": "closed"})

    foreign.create_collection("closed", validator=CLOSED)
    foreign.closed.insert_many([{"name": "a"}, {"name": "b"}])

    @post_delete(Closed, name="heard")
    async def heard(sender: Any, **kwargs: Any) -> None: ...

    return Closed


async def test_a_delete_works_although_its_marker_is_refused(Closed: Any, foreign: Any) -> None:
    await (await Closed.objects.get(name="a")).delete()
    assert await Closed.objects.delete() == 1
    assert foreign.closed.count_documents({}) == 0


@pytest.mark.parametrize("of", ["an instance", "a query"])
async def test_the_error_of_a_refused_marker_in_a_transaction_names_the_remedy(
    Closed: Any, foreign: Any, of: str
) -> None:
    closed = await Closed.objects.get(name="a")
    with pytest.raises(OperationFailure) as caught:
        async with Closed.meta.registry.transaction():
            await (closed.delete() if of == "an instance" else Closed.objects.delete())
    notes = " ".join(caught.value.__notes__)
    assert "The collection's validator refuses '_mongoz'" in notes
    assert "{_mongoz: {bsonType: 'binData'}}" in notes
    assert "Outside of your transaction, mongoz would delete the document without a marker" in notes
    assert foreign.closed.count_documents({}) == 2


@pytest.fixture(params=["a validator", "its size"])
def refusing(request: pytest.FixtureRequest, dispatched: mongoz.Registry, database: str, foreign: Any) -> Any:
    """A document class with four documents. The server refuses a stamp in each document."""

    class Refusing(mongoz.Document):
        name: str = mongoz.String()
        blob: bytes = mongoz.Binary(max_length=2**24, null=True)

        Meta = type("Meta", (), {"registry": dispatched, "database": database, "collection": "refusing"})

    too_large = request.param == "its size"
    blob = bytes(16 * 1024 * 1024 - 50) if too_large else b""
    foreign.create_collection("refusing")
    if too_large:
        # Error 388 with a smaller cache: "transaction is too large and will not fit in the storage engine cache".
        foreign.client.admin.command("setParameter", 1, wiredTigerEngineRuntimeConfig="cache_size=1GB")
    foreign.refusing.insert_many([{"name": name, **({"blob": blob} if too_large else {})} for name in "abcd"])
    if not too_large:
        foreign.command("collMod", "refusing", validator=CLOSED)
    with pytest.raises(OperationFailure) as refused:
        foreign.refusing.update_one({"name": "a"}, {"$set": {"_mongoz": bytes(30)}})
    assert refused.value.code == (17419 if too_large else 121)
    return Refusing


async def test_a_delete_without_a_marker_is_delivered_once(
    refusing: Any, foreign: Any, dispatched: mongoz.Registry
) -> None:
    """The dispatcher makes the delivery, because no stamp names the receivers of this process."""
    told: list[tuple[ObjectId, str]] = []

    @post_delete(refusing, name="heard")
    async def heard(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        told.append((instance.id, delivery.origin))

    ids = [row["_id"] for row in foreign.refusing.find({}, {"_id": 1}).sort("name")]
    async with dispatching(dispatched):
        await (await refusing.objects.only("name").get(name="a")).delete()
        assert await refusing.objects.filter(name__in=["b", "c"]).delete() == 2
        foreign.refusing.delete_one({"name": "d"})
        await eventually(lambda: len(told) == 4)
        await asyncio.sleep(0)
    assert sorted(told) == sorted((id_, "stream") for id_ in ids)


@pytest.mark.parametrize("of", ["an instance", "a query"])
async def test_receivers_with_delivery_process_run_although_a_marker_is_refused(
    refusing: Any, foreign: Any, of: str
) -> None:
    """A dispatcher never runs receivers with `delivery="process"`."""
    told: list[str] = []

    @post_delete(refusing, name="heard", delivery="process")
    async def heard(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        told.append(delivery.origin)

    @post_delete(refusing, name="also")
    async def also(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        told.append("also")

    if of == "an instance":
        await (await refusing.objects.only("name").get(name="a")).delete()
    else:
        assert await refusing.objects.filter(name="a").delete() == 1
    assert told == ["process"]
    assert foreign.refusing.count_documents({}) == 3


@pytest.mark.parametrize("of", ["an instance", "a query"])
async def test_a_refused_marker_in_a_transaction_prevents_the_delete(refusing: Any, foreign: Any, of: str) -> None:
    @post_delete(refusing, name="heard")
    async def heard(sender: Any, **kwargs: Any) -> None: ...

    one = await refusing.objects.only("name").get(name="a")
    with pytest.raises(OperationFailure) as caught:
        async with refusing.meta.registry.transaction():
            await (one.delete() if of == "an instance" else refusing.objects.delete())
    assert "without a marker" in " ".join(caught.value.__notes__)
    assert foreign.refusing.count_documents({}) == 4
