"""`get_or_create` and `create` store undeclared keys of any name in the same way."""

import asyncio
from typing import Any

import bson
import pytest

import mongoz
from mongoz import Registry
from mongoz.core.signals import post_save

ODD = {"a.b": 1, "$x": {"$gt": ""}, "": 3, "plain": {"c.d": 2, "$in": [1]}}
EACH = {repr(key): {key: value} for key, value in ODD.items()}


@pytest.fixture(params=["plain", "dispatched"])
def Thing(request: pytest.FixtureRequest, registry: Registry, dispatched: Registry, database: str) -> Any:
    here = (registry if request.param == "plain" else dispatched).get_database(database)

    class Thing(mongoz.Document):
        name: str = mongoz.String()
        data: Any = mongoz.Object(null=True)

        class Meta:
            registry = here.deployment
            database = here

    @post_save(Thing, name="heard")
    async def heard(sender: Any, **kwargs: Any) -> None: ...

    return Thing


@pytest.mark.parametrize("odd", [ODD, *EACH.values()], ids=["all", *EACH])
@pytest.mark.parametrize("by_id", [False, True])
async def test_names_with_dots_and_dollars_are_stored_literally(
    Thing: Any, foreign: Any, by_id: bool, odd: dict[str, Any]
) -> None:
    created = await Thing.objects.create(name="created", **odd)
    lookups = {"name": "got"} | ({"id": bson.ObjectId()} if by_id else {})
    got = await Thing.objects.get_or_create(odd, **lookups)
    stored = {row.pop("name"): row for row in foreign.things.find({}, {"_id": 0, "_mongoz": 0})}
    assert stored["got"] == stored["created"] == {"data": None, **odd}
    assert got.model_dump(exclude={"id", "name"}) == created.model_dump(exclude={"id", "name"})
    again = await Thing.objects.get_or_create({"a.b": 5}, **lookups)
    assert again == got
    assert foreign.things.count_documents({}) == 2


async def test_concurrent_calls_with_one_id_create_one_document(Thing: Any, foreign: Any) -> None:
    id_ = bson.ObjectId()
    found = await asyncio.gather(*(Thing.objects.get_or_create({"name": "x", **ODD}, id=id_) for _ in range(8)))
    assert {each.id for each in found} == {id_}
    assert foreign.things.count_documents({}) == 1


async def test_values_are_never_operators(Thing: Any, foreign: Any) -> None:
    hostile: list[Any] = [{"$gt": ""}, {"$where": "true"}, {"$ne": None}, {"$regex": "."}, [{"$gt": ""}]]
    await Thing.objects.create(name="there", data={"secret": 1})
    for value in hostile:
        assert await Thing.objects.filter(data=value).count() == 0
        assert await Thing.objects.filter(data__in=[value]).count() == 0
        assert await Thing.objects.filter(**{"data.secret": value}).count() == 0
        assert await Thing.query(Thing.data == value).count() == 0
        assert await Thing.objects.exclude(data=value).count() == 1
        made = await Thing.objects.get_or_create(name="made", data=value)
        assert foreign.things.find_one({"_id": made.id})["data"] == value
        assert await Thing.objects.get_or_create(name="made", data=value) == made
        await Thing.objects.filter(id=made.id).update(data={"$inc": 1})
        assert foreign.things.find_one({"_id": made.id})["data"] == {"$inc": 1}
        await made.delete()
