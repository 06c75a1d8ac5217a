"""Values of every field are equal after a round trip, and are stored as documented."""

import asyncio
import datetime
import decimal
import uuid
from typing import Any

import bson
import pytest
from bson import Decimal128
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import mongoz
from mongoz import fields

CHOICES = [("K1", "Feature"), ("Group", [("S1", "Short")])]


class Part(mongoz.EmbeddedDocument):
    name: str = fields.String(alias="n")
    kind: str = fields.String(choices=CHOICES, default="K1")
    price: decimal.Decimal = fields.Decimal(max_digits=9, decimal_places=3, null=True)
    parts: list[Any] = fields.ArrayList(default=list)


def thing(registry: mongoz.Registry, name: str) -> Any:
    """A document class with a field of each kind."""

    class Thing(mongoz.Document):
        text: str = fields.String()
        mail: str = fields.Email(null=True)
        number: int = fields.Integer()
        double: float = fields.Double()
        price: decimal.Decimal = fields.Decimal(max_digits=20, decimal_places=4)
        flag: bool = fields.Boolean()
        instant: datetime.datetime = fields.DateTime()
        day: datetime.date = fields.Date()
        clock: datetime.time = fields.Time()
        anything: Any = fields.Object(null=True)
        data: bytes = fields.Binary(max_length=100)
        uid: uuid.UUID = fields.UUID()
        ref: mongoz.ObjectId = mongoz.ObjectId()
        maybe: mongoz.ObjectId | None = fields.NullableObjectId()
        key: mongoz.ObjectId = fields.ForeignKey("Thing", null=True)
        numbers: list[int] = fields.Array(int)
        prices: list[decimal.Decimal] = fields.Array(decimal.Decimal)
        mixed: list[Any] = fields.ArrayList()
        part: Part = fields.Embed(Part, null=True)
        parts: list[Part] = fields.Array(Part)
        kind: str = fields.String(choices=CHOICES, alias="type")

        class Meta:
            pass

        Meta.registry = registry  # type: ignore[attr-defined]
        Meta.database = name  # type: ignore[attr-defined]

    return Thing


integers = st.integers(-(2**63), 2**63 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]))
moments = st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)
)
ids = st.binary(min_size=12, max_size=12).map(bson.ObjectId)
json_like = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False) | text | ids,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "C d", "ä"]), inner),
    max_leaves=5,
)
prices = st.decimals(-(10**15), 10**15, places=4)
parts = st.builds(
    Part,
    n=text,
    kind=st.sampled_from(["K1", "S1"]),
    price=st.none() | st.decimals(-1000, 1000, places=3),
    parts=st.lists(json_like, max_size=2),
    undeclared=json_like,
)
everything = st.fixed_dictionaries(
    {
        "text": text,
        "mail": st.none() | st.just("ada@example.org"),
        "number": integers,
        "double": st.floats(allow_nan=False),
        "price": prices | st.floats(-1e9, 1e9) | prices.map(str) | prices.map(Decimal128),
        "flag": st.booleans(),
        "instant": moments,
        "day": st.dates(datetime.date(1, 1, 2)),
        "clock": st.times(),
        "anything": json_like,
        "data": st.binary(max_size=100),
        "uid": st.uuids(),
        "ref": ids,
        "maybe": st.none() | ids,
        "key": st.none() | ids,
        "numbers": st.lists(integers, max_size=3),
        "prices": st.lists(prices, max_size=3),
        "mixed": st.lists(json_like, max_size=3),
        "part": st.none() | parts,
        "parts": st.lists(parts, max_size=2),
        "kind": st.sampled_from(["K1", "S1"]),
        "undeclared": json_like,
    }
)


def kind_of(value: Any) -> type:
    """The type of a value. Int64 counts as int, because the driver loads large undeclared integers as Int64."""
    return int if isinstance(value, bson.Int64) else type(value)


def test_a_loaded_value_equals_the_saved_value(mongo: Any, database: str) -> None:
    registry = mongoz.Registry(mongo.url)
    document = thing(registry, database)

    async def there_and_back(values: dict[str, Any]) -> None:
        made = await document(**values).create()
        found = await document.get_document_by_id(made.id)
        assert found == made
        assert {name: kind_of(value) for name, value in found} == {name: kind_of(value) for name, value in made}
        stored = await document.meta.collection._collection.find_one({"_id": made.id})
        await found.save()
        assert await document.meta.collection._collection.find_one({"_id": made.id}) == stored

    with asyncio.Runner() as runner:

        @given(everything)
        def round_trip(values: dict[str, Any]) -> None:
            runner.run(there_and_back(values))

        round_trip()
        runner.run(registry.close())


VALUES: dict[str, Any] = {
    "text": "a", "number": 1, "double": 1.5, "price": "1.23456", "flag": True, "data": b"\x00\xff",
    "instant": datetime.datetime(2024, 5, 6, 7, 8, 9), "day": datetime.date(2024, 5, 6), "numbers": [1],
    "clock": datetime.time(7, 8), "uid": uuid.UUID(int=5), "ref": bson.ObjectId(b"r" * 12), "mixed": [1, ["a"]],
    "prices": [decimal.Decimal("0.5")],
    "parts": [{"n": "p", "price": 2}], "kind": "S1",
}  # fmt: skip


async def test_values_are_stored_with_the_documented_types(
    registry: mongoz.Registry, database: str, foreign: Any
) -> None:
    made = await thing(registry, database).objects.create(**VALUES)
    row = foreign.things.find_one()
    assert row.pop("_id") == made.id
    assert row == {
        **{
            name: VALUES[name]
            for name in ("text", "number", "double", "flag", "data", "numbers", "instant", "ref")
        },
        "price": Decimal128("1.2345"),
        "day": datetime.datetime(2024, 5, 6),
        "clock": "07:08:00",
        "uid": uuid.UUID(int=5),
        "prices": [Decimal128("0.5")],
        "mixed": [1, ["a"]],
        "parts": [{"n": "p", "kind": "K1", "price": Decimal128("2"), "parts": []}],
        "type": "S1",
        **dict.fromkeys(["mail", "anything", "maybe", "key", "part"]),
    }


async def test_values_of_other_clients_are_loaded(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    document = thing(registry, database)
    made = await document.objects.create(**VALUES)
    foreign.things.update_one({}, {"$set": {"price": 3, "double": 2, "number": bson.Int64(7), "clock": "10:20"}})
    found = await document.objects.get()
    assert (found.price, found.double, found.number, found.clock) == (3, 2.0, 7, datetime.time(10, 20))
    assert found.price == Decimal128("3")
    for price in (Decimal128("NaN"), Decimal128("Infinity"), "abc", 10**17):
        foreign.things.update_one({}, {"$set": {"price": price}})
        with pytest.raises(ValidationError, match=str(made.id)):
            await document.objects.get()


async def test_every_write_accepts_instances_as_references(registry: mongoz.Registry, database: str) -> None:
    document = thing(registry, database)
    first = await document.objects.create(**VALUES)
    second = await document.objects.create(**VALUES, key=first)
    assert second.key == first.id
    await second.update(key=second)
    assert (await document.get_document_by_id(second.id)).key == second.id
    second.key = first
    await second.save()
    assert (await document.get_document_by_id(second.id)).key == first.id
    assert [found.id for found in await document.objects.filter(key=first.id)] == [second.id]
    (partly,) = await document.objects.only("text").filter(id=first.id)
    await second.update(key=partly)
    assert second.key == first.id
    with pytest.raises(ValidationError, match="save it first"):
        await second.update(key=document(**VALUES))


async def test_every_write_checks_choices(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    document = thing(registry, database)
    with pytest.raises(ValueError, match="^Invalid choice for field 'kind'. Input provided as 'K2'$") as caught:  # noqa: RUF043
        await document.objects.create(**{**VALUES, "kind": "K2"})
    assert type(caught.value) is ValueError
    made = await document.objects.create(**VALUES)
    for changes in ({"kind": "K2"}, {"part": {"n": "a", "kind": "K2"}}, {"parts": [{"n": "a", "kind": "K2"}]}):
        with pytest.raises(ValidationError, match="Invalid choice"):
            await made.update(**changes)
        with pytest.raises(ValidationError, match="Invalid choice"):
            await document.objects.filter(id=made.id).update(**changes)
    made.parts[0].parts.append("changed")
    made.parts[0].__dict__["kind"] = "K2"
    with pytest.raises(ValidationError, match="Invalid choice"):
        await made.save()
    assert foreign.things.find_one()["parts"][0] == {
        "n": "p",
        "kind": "K1",
        "price": Decimal128("2"),
        "parts": [],
    }
    await made.update(kind="K1", part={"n": "a", "kind": "S1"}, parts=[])
    found = await document.objects.get()
    assert (found.get_kind_display(), found.part.get_kind_display()) == ("Feature", "Short")
    assert isinstance(found.part, Part)
    foreign.things.update_one({}, {"$set": {"type": "K2"}})
    with pytest.raises(ValidationError, match="Invalid choice"):
        await document.objects.get()


async def test_loaded_decimals_can_be_used_in_queries(registry: mongoz.Registry, database: str) -> None:
    document = thing(registry, database)
    price = (await document.objects.create(**VALUES)).price
    for query in (
        document.objects.filter(price=price),
        document.objects.filter(price__gte=Decimal128("1.2345")),
        document.query({"price": price}),
        document.query(document.price == price),
    ):
        assert await query.count() == 1


async def test_embedded_documents_keep_undeclared_keys_of_other_clients(
    registry: mongoz.Registry, database: str, foreign: Any
) -> None:
    document = thing(registry, database)
    made = await document.objects.create(**VALUES)
    foreign.things.update_one({}, {"$set": {"parts.0.theirs": {"deep": [1]}}})
    found = await document.objects.get()
    found.parts[0].name = "renamed"
    await found.save()
    assert foreign.things.find_one({"_id": made.id})["parts"][0]["theirs"] == {"deep": [1]}
    assert foreign.things.find_one({"_id": made.id})["parts"][0]["n"] == "renamed"
