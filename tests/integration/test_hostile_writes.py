"""Values from user input are stored literally by every write."""

import contextlib
from typing import Any

import pytest
from bson import Regex
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pymongo.errors import PyMongoError

import mongoz
from mongoz import U
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.exceptions import InvalidKeyError, MongozException
from tests.integration.test_hostile_queries import in_bson, same, values

checked = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], database=None
)


class Part(mongoz.EmbeddedDocument):
    name: str = mongoz.String()


def make(registry: mongoz.Registry, database: str) -> Any:
    class Thing(mongoz.Document):
        name: str = mongoz.String()
        data: Any = mongoz.Object(null=True)
        items: list[Any] = mongoz.ArrayList(null=True)
        part: Any = mongoz.Embed(Part, null=True)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    return Thing


@pytest.fixture
def Thing(registry: mongoz.Registry, database: str) -> Any:
    return make(registry, database)


@pytest.fixture
def things(foreign: Any) -> Any:
    return foreign.get_collection("things", codec_options=CODEC_OPTIONS)


BYSTANDER = {"_id": 1, "name": "bystander", "data": {"$gt": ""}, "items": [1], "part": {"name": "p"}}


def prepared(things: Any) -> None:
    things.delete_many({})
    things.insert_one(dict(BYSTANDER))


def untouched(things: Any) -> bool:
    return same(things.find_one({"_id": 1}), in_bson(BYSTANDER))


def written(things: Any) -> Any:
    return things.find_one({"name": "mine"})


@pytest.mark.slow
@checked
@given(value=values)
@example(value={"$set": {"name": "obeyed"}})
@example(value={"$each": [1], "$position": 0})
@example(value=["$name", {"$literal": 1}, "$$ROOT"])
async def test_instances_and_queries_store_values(Thing: Any, things: Any, value: Any) -> None:
    async def create() -> None:
        await Thing.objects.create(name="mine", data=value, items=[value])

    async def create_many() -> None:
        await Thing.objects.create_many([Thing(name="mine", data=value, items=[value])])

    async def save() -> None:
        mine = await Thing.objects.create(name="mine")
        mine.data, mine.items = value, [value]
        await mine.save()

    async def update() -> None:
        await (await Thing.objects.create(name="mine")).update(data=value, items=[value])

    async def update_all() -> None:
        await Thing.objects.create(name="mine")
        await Thing.objects.filter(name="mine").update(data=value, items=[value])

    async def update_count() -> None:
        await Thing.objects.create(name="mine")
        await Thing.objects.filter(name="mine").update_count(data=value, items=[value])

    async def get_or_create() -> None:
        await Thing.objects.get_or_create({"data": value, Thing.items: [value]}, name="mine")

    for write in (create, create_many, save, update, update_all, update_count, get_or_create):
        prepared(things)
        await write()
        row = written(things)
        assert same(row["data"], in_bson(value)), write.__name__
        assert same(row["items"], in_bson([value])), write.__name__
        assert set(row) == {"_id", "name", "data", "items", "part"}
        assert untouched(things), write.__name__
        assert things.count_documents({}) == 2


@checked
@given(value=values)
@example(value={"$gt": ""})
@example(value=Regex(".*"))
@example(value={"a": {"$ne": 1}})
async def test_conditions_of_get_or_create_are_literal(Thing: Any, things: Any, value: Any) -> None:
    prepared(things)
    things.update_one({"_id": 1}, {"$set": {"data": "else"}})
    found = await Thing.objects.get_or_create({"name": "mine"}, data=value)
    if value == "else":
        assert found.name == "bystander"
        return
    if value is None or isinstance(value, list):  # for these values MongoDB also finds unequal documents
        return
    row = written(things)
    assert row is not None, "another document does not match"
    assert same(row["data"], in_bson(value))
    again = await Thing.objects.get_or_create({"name": "other"}, data=value)
    assert again.id == row["_id"]
    assert things.count_documents({}) == 2


@pytest.mark.slow
@checked
@given(value=values)
@example(value={"$each": [1, 2]})
@example(value=[{"$each": [1]}])
@example(value={"$in": [1, 2]})
async def test_operators_store_values(Thing: Any, things: Any, value: Any) -> None:
    operations = {
        "push": (U.push("items", value), [0, value]),
        "add_to_set": (U.add_to_set("items", value), [0, value]),
        "pull": (U.pull("items", value), [0]),
        "push below": (U.push("data.list", value), None),
    }
    for name, (operation, expected) in operations.items():
        for one in (True, False):
            prepared(things)
            mine = await Thing.objects.create(name="mine", items=[0], data={"list": [0]})
            if one:
                await mine.update(operation)
            else:
                await Thing.objects.filter(name="mine").update_count(operation)
            row = written(things)
            items = row["items"] if expected is not None else row["data"]["list"]
            wanted = [0, value] if expected is None else expected
            if name == "pull" and same(in_bson(value), 0):
                wanted = []
            if name == "add_to_set" and same(in_bson(value), 0):
                wanted = [0]
            assert same(items, in_bson(wanted)), name
            assert untouched(things), name


@checked
@given(value=values)
async def test_values_of_min_and_max_are_stored_literally(Thing: Any, things: Any, value: Any) -> None:
    for operation in (U.min(data=value), U.max(data=value), U.min("data.a", value)):
        prepared(things)
        await Thing.objects.create(name="mine", data={"a": 1})
        with contextlib.suppress(MongozException):
            await Thing.objects.filter(name="mine").update_count(operation)
        data = written(things)["data"]
        assert same(data, in_bson(value)) or same(data, {"a": 1}) or same(data, {"a": in_bson(value)})
        assert untouched(things)


KEYS = ["$where", "$set", "a.b", "", "$", "a", "_mongoz_", "$$ROOT", "x.$", "name.x"]


@checked
@given(extra=st.dictionaries(st.sampled_from(KEYS), values, max_size=3))
async def test_keys_of_embedded_documents_are_stored_literally(
    Thing: Any, things: Any, extra: dict[str, Any]
) -> None:
    part = {"name": "p", **extra}
    for create in (True, False):
        prepared(things)
        mine = await Thing.objects.create(name="mine", part=part if create else None)
        if not create:
            await mine.update(part=part)
        assert same(dict(sorted(written(things)["part"].items())), dict(sorted(in_bson(part).items())))
        assert untouched(things)
        assert await Thing.query(Thing.part == Part(**part), Thing.name == "mine").count() == 1
        assert await Thing.objects.filter(name="mine", part=mine.part).count() == 1


@checked
@given(key=st.sampled_from([key for key in KEYS if key != "a"]), value=values)
async def test_undeclared_keys_are_refused_or_stored(Thing: Any, things: Any, key: str, value: Any) -> None:
    """An update can't write these keys, and must not read them as paths or operators."""
    prepared(things)
    mine = await Thing.objects.create(name="mine")
    setattr(mine, key, value)
    with contextlib.suppress(InvalidKeyError, PyMongoError):
        await mine.save()
    row = written(things)
    assert (row["name"], row["data"], row["part"]) == ("mine", None, None)
    assert set(row) <= {"_id", "name", "data", "items", "part", key}
    assert untouched(things)
    with pytest.raises(InvalidKeyError):
        await mine.update(**{key: value})
