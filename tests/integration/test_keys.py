"""Keys are compared as in the server, for every numeric type of an `_id`."""

import datetime
import decimal
import enum
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from bson import Decimal128, Int64
from pymongo.errors import DuplicateKeyError

import mongoz
from dispatcher.core.resume_tokens import token_of
from mongoz.core.signals import post_delete, post_save, post_update
from tests.support import dispatching, eventually
from tests.unit.test_keys import DIFFERENT, EQUAL, WAYS


@pytest.mark.parametrize("way", WAYS)
def test_the_server_considers_the_same_keys_equal(foreign, way):
    made, collection = WAYS[way], foreign["keys"]
    different = [made(value) for value in DIFFERENT if way != "itself" or not isinstance(value, list)]
    collection.insert_many([{"_id": id_} for id_ in different])
    for same in EQUAL:
        for value in same:
            with pytest.raises(DuplicateKeyError):
                collection.insert_one({"_id": made(value)})


class Color(enum.Enum):
    RED = "red"


def make(registry: mongoz.Registry, database: str, type_: Any, told: list[Any]) -> Any:
    class Thing(mongoz.Document):
        id: type_ = mongoz.Object(alias="_id")
        name: str = mongoz.String(default="")
        n: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), {"registry": registry, "database": database, "collection": "things"})

    async def listen(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        told.append(
            SimpleNamespace(
                signal=delivery.signal, origin=delivery.origin, id=instance.id, name=vars(instance).get("name")
            )
        )

    for connect in (post_save, post_update, post_delete):
        connect(Thing, name="listen")(listen)
    return Thing


STORED = {
    "int as int64": (int, 1, Int64(1)),
    "int as double": (int, 1, 1.0),
    "int as decimal": (int, 1, Decimal128("1.00")),
    "float as int": (float, 2.0, 2),
    "negative zero": (float, 0.0, -0.0),
    "decimal as int": (decimal.Decimal, decimal.Decimal("3"), 3),
    "decimal as double": (decimal.Decimal, decimal.Decimal("0.5"), 0.5),
    "document": (dict[str, Any], {"a": 1, "b": [2]}, {"a": 1.0, "b": [Int64(2)]}),
}


@pytest.mark.parametrize("stored", STORED)
async def test_own_writes_to_foreign_documents_are_recognized(dispatched, database, foreign, stored):
    type_, own, theirs = STORED[stored]
    told: list[Any] = []
    Thing = make(dispatched, database, type_, told)
    things = foreign["things"]
    async with dispatching(dispatched):
        for call in (
            lambda thing: thing.save(),
            lambda thing: thing.update(n=1),
            lambda thing: thing.delete(),
            lambda thing: Thing.objects.filter(id=own).update(n=1),
            lambda thing: Thing.objects.filter(id=own).update_count(n=1),
            lambda thing: Thing.objects.filter(id=own).delete(),
        ):
            things.delete_many({})
            await eventually(lambda: not told or told[-1].signal == "post_delete")
            things.insert_one({"_id": theirs, "name": "Ada"})
            await eventually(lambda: told and told[-1].name == "Ada" and told[-1].signal == "post_save")
            thing = await Thing.objects.get(id=own)
            thing.id = own  # the id as an application writes it without reading the document
            told.clear()
            await call(thing)
            things.replace_one({"_id": theirs}, {"name": "end"}, upsert=True)
            await eventually(lambda: told[-1].name == "end")
            assert [one.origin for one in told] == ["process", "stream"], told


OWN = {
    "int": (int, 1),
    "bool": (bool, True),
    "float": (float, 1.5),
    "decimal": (decimal.Decimal, decimal.Decimal("1.50")),
    "str": (str, "x"),
    "uuid": (uuid.UUID, uuid.UUID(int=1)),
    "date": (datetime.date, datetime.date(2024, 2, 29)),
    "datetime": (datetime.datetime, datetime.datetime(2024, 2, 29, 1, 2, 3, 456789)),
    "time": (datetime.time, datetime.time(1, 2, 3)),
    "bytes": (bytes, b"x"),
    "document": (dict[str, Any], {"d": decimal.Decimal(1), "n": [datetime.date(2024, 2, 29)]}),
    "enum": (Color, Color.RED),
}


@pytest.mark.parametrize("kind", OWN)
async def test_own_writes_are_recognized_for_ids_of_all_types(dispatched, database, foreign, kind):
    type_, id_ = OWN[kind]
    told: list[Any] = []
    Thing = make(dispatched, database, type_, told)
    async with dispatching(dispatched):
        thing = await Thing(id=id_, name="Ada").create()
        stored = foreign["things"].find_one()["_id"]
        await thing.update(n=1)
        thing.n = 2
        await thing.save()
        await thing.refresh()
        await Thing.objects.update(n=3)
        await Thing.objects.update_count(n=4)
        (loaded,) = await Thing.objects.all()
        await loaded.update(n=5)
        await loaded.refresh()
        await loaded.delete()
        await Thing.create_many([Thing(id=id_)])
        await Thing.objects.delete()
        foreign["things"].insert_one({"_id": stored, "name": "end"})
        await eventually(lambda: told[-1].name == "end")
    *own, end = told
    assert end.origin == "stream"
    assert [(one.origin, one.signal) for one in own] == [
        ("process", f"post_{name}")
        for name in ("save", "update", "save", "update", "update", "update", "delete", "save", "delete")
    ]


@pytest.mark.parametrize("id_", [1, 2**40, Int64(5), 7.5, Decimal128("8.0"), {"a": 2**40, "b": [0.5]}], ids=repr)
async def test_a_dispatcher_resumes_after_a_change_with_a_key_of_any_numeric_type(
    dispatched, database, foreign, id_
):
    """The server needs the numeric types of a key to find the change of a resume token."""
    told: list[Any] = []
    make(dispatched, database, Any, told)
    positions = foreign.client[f"{database}_state"]["positions"]
    async with dispatching(dispatched):
        foreign["things"].insert_one({"_id": id_, "name": "first"})
        await eventually(lambda: told)
    with foreign["things"].watch(max_await_time_ms=5_000) as stream:
        foreign["things"].replace_one({"_id": id_}, {"name": "second"})
        token = token_of(stream.next()["_id"])
    positions.update_one({"partition": 0}, {"$set": {"token": token, "ahead": b""}})
    async with dispatching(dispatched):
        foreign["things"].insert_one({"_id": "end", "name": "end"})
        await eventually(lambda: told[-1].name == "end")
    assert [one.name for one in told] == ["first", "end"]


IDS = {
    int | None: 5,
    str: "five",
    uuid.UUID: uuid.UUID(int=5),
    decimal.Decimal: decimal.Decimal("5.5"),
    dict[str, Any]: {"shop": 1, "number": "five"},
}


@pytest.mark.parametrize("type_", IDS)
async def test_an_id_with_a_plain_annotation_is_stored_as_the_key(dispatched, database, foreign, type_):
    class Thing(mongoz.Document):
        id: type_
        n: int = 0

        Meta = type("Meta", (), {"registry": dispatched, "database": database, "collection": "things"})

    id_ = IDS[type_]
    thing = await Thing(id=id_).create()
    with pytest.raises(DuplicateKeyError):
        await Thing(id=id_).create()
    thing.n = 1
    await thing.save()
    assert (await thing.update(n=2)).id == id_
    [stored] = foreign["things"].find({}, {"n": 1})
    assert (await Thing.objects.get(id=stored["_id"])).id == (await Thing.objects.get(id=id_)).id == id_
    assert set(stored) == {"_id", "n"}
    assert stored["n"] == 2
    assert await thing.delete() == 1
    assert foreign["things"].find_one() is None
