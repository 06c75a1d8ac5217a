"""`only("address.city")`: embedded documents that are loaded in part."""

import copy
import decimal
import pickle
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

import mongoz
from mongoz import Registry
from mongoz.exceptions import InvalidKeyError


class City(mongoz.EmbeddedDocument):
    name: str = mongoz.String()
    code: str = mongoz.String(alias="c")
    size: decimal.Decimal = decimal.Decimal(1)


class Address(mongoz.EmbeddedDocument):
    street: str = mongoz.String()
    city: City = mongoz.Embed(City)
    inner: "Address | None" = None


class Order(mongoz.Document):
    title: str = mongoz.String(alias="t")
    address: Address = mongoz.Embed(Address, alias="a")
    other: Address | None = mongoz.Embed(Address, null=True)
    stops: list[Address] = mongoz.Array(Address, default=list)
    named: dict[str, City] = Field(default_factory=dict)
    data: Any = mongoz.Object(default=dict)


@pytest.fixture
async def Orders(registry: Registry, database: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    class Stored(Order):
        class Meta:
            pass

    Stored.__qualname__ = Stored.__name__ = "Stored"
    monkeypatch.setitem(globals(), "Stored", Stored)  # pickle imports it
    meta = Stored.meta
    meta.registry = registry
    meta.collection = registry.get_database(database).get_collection("orders")
    city = {"name": "Bonn", "c": "BN", "size": "1.5"}
    await Stored.objects.create(
        title="x",
        address={"street": "s", "city": city},
        stops=[{"street": "p", "city": city}, {"street": "q", "city": city}],
        named={"k": city},
        data={"a": 1, "b": {"c": 2, "d": 3}},
    )
    return Stored


async def test_only_the_named_parts_are_loaded(Orders: Any) -> None:
    order = await Orders.objects.only(
        "title", "address.city.code", Orders.stops.street, "named.k.c", "data.b.c"
    ).get()
    assert order.model_dump(exclude={"id"}) == {
        "title": "x",
        "address": {"city": {"code": "BN"}},
        "stops": [{"street": "p"}, {"street": "q"}],
        "named": {"k": {"code": "BN"}},
        "data": {"b": {"c": 2}},
    }
    assert isinstance(order, Orders)
    assert isinstance(order.address, Address)
    for read in (lambda: order.address.street, lambda: order.address.city.name, lambda: order.stops[0].city):
        with pytest.raises(AttributeError, match="was not loaded"):
            read()
    with pytest.raises(AttributeError, match=r"other was not loaded"):
        order.other  # noqa: B018
    with pytest.raises(AttributeError, match="nope"):
        order.address.nope  # noqa: B018
    assert '"address":{"city":{"code":"BN"}}' in order.model_dump_json()
    assert order == (await Orders.objects.only("t", "a.city.c", "stops.street", "named.k.c", "data.b.c"))[0]


async def test_a_whole_field_or_an_outer_part_includes_the_inner_parts(Orders: Any) -> None:
    order = await Orders.objects.only("address.city.name", "address", "stops.city", "stops.city.name").get()
    assert order.address.street == "s"
    assert order.stops[0].city.size == decimal.Decimal("1.5")
    order = await Orders.objects.only("address.city").only("title").get()
    assert order.title == "x"
    assert not hasattr(order, "address")


async def test_missing_optional_parts_have_their_defaults_and_missing_required_parts_are_errors(
    Orders: Any, foreign: Any
) -> None:
    foreign.orders.update_one({}, {"$unset": {"a.city.size": "", "stops.0.city.size": "", "a.inner": ""}})
    order = await Orders.objects.only("address.city.size", "address.inner", "stops.city").get()
    assert (order.address.city.size, order.address.inner, order.stops[0].city.size) == (1, None, 1)
    foreign.orders.update_one({}, {"$unset": {"a.city.name": "", "stops.0.city.name": ""}})
    for name in ("address.city.name", "stops.city"):
        with pytest.raises(ValidationError, match="name"):
            await Orders.objects.only(name)
    assert (await Orders.objects.only("address.city.code").get()).address.city.code == "BN"


async def test_values_and_aggregate_return_only_the_selected_parts(Orders: Any) -> None:
    query = Orders.objects.only("address.city.name")
    assert [row["address"] for row in await query.values()] == [{"city": {"name": "Bonn"}}]
    assert await query.values_list(["title"], flat=True) == ["x"]
    rows = await query.aggregate([{"$project": {"_id": 0}}])
    assert rows == [{"a": {"city": {"name": "Bonn"}}}]


@pytest.mark.parametrize(
    ("name", "match"), [("address.town", "town"), ("stops.0.street", "items"), ("nope.x", "nope")]
)
async def test_a_wrong_part_is_refused(Orders: Any, name: str, match: str) -> None:
    with pytest.raises(InvalidKeyError, match=match):
        Orders.objects.only(name)
    with pytest.raises(InvalidKeyError, match="whole fields"):
        Orders.objects.defer("address.city")


@pytest.mark.parametrize("how", ["as loaded", "copied", "pickled"])
async def test_save_writes_the_changed_parts_only(Orders: Any, foreign: Any, how: str) -> None:
    order = await Orders.objects.only("address.city.code", "title", "address.street").get()
    order = {"as loaded": order, "copied": copy.deepcopy(order), "pickled": pickle.loads(pickle.dumps(order))}[how]
    foreign.orders.update_one({}, {"$set": {"a.city.name": "Lyon", "a.more": 1}})
    await order.save()
    order.address.city.code = "LY"
    order.address.city.size = 7  # was not loaded
    order.address.city.extra = "e"
    await order.save()
    stored = foreign.orders.find_one()["a"]
    assert (stored["street"], stored["more"]) == ("s", 1)
    city = stored["city"]
    assert (city["name"], city["c"], city["extra"], str(city["size"])) == ("Lyon", "LY", "e", "7")
    foreign.orders.update_one({}, {"$set": {"a.city.c": "XX"}})
    await order.save()  # nothing has changed since
    assert foreign.orders.find_one()["a"]["city"]["c"] == "XX"
    del order.address.city.extra
    order.title = "y"
    await order.save()
    row = foreign.orders.find_one()
    assert ("extra" in row["a"]["city"], row["t"]) == (False, "y")


async def test_a_whole_value_replaces_a_part(Orders: Any, foreign: Any) -> None:
    order = await Orders.objects.only("address.street").get()
    with pytest.raises(ValidationError):
        order.address = {"street": "new"}
    order.address = {"street": "new", "city": {"name": "Lyon", "code": "LY"}}
    await order.save()
    assert foreign.orders.find_one()["a"]["city"]["c"] == "LY"
    assert order.address.city.code == "LY"


async def test_items_that_were_loaded_in_part_are_not_written(Orders: Any, foreign: Any) -> None:
    before = foreign.orders.find_one()
    order = await Orders.objects.only("stops.street", "named.k.c").get()
    order.stops[0].street = "changed"
    with pytest.raises(InvalidKeyError, match="'stops' was loaded in part"):
        await order.save()
    order = await Orders.objects.only("title", "address", "stops.street", "named", "other", "data").get()
    order.id = None
    with pytest.raises(AttributeError, match="stops was not loaded"):
        await order.create()
    assert list(foreign.orders.find()) == [before]


async def test_updates_of_a_part_give_the_instance_the_whole_field(Orders: Any, foreign: Any) -> None:
    order = await Orders.objects.only("address.street").get()
    await order.update(**{"address.city.name": "Lyon"})
    assert (order.address.street, order.address.city.code, order.address.city.name) == ("s", "BN", "Lyon")
    order.address.street = "t"
    await order.save()
    assert foreign.orders.find_one()["a"]["city"]["name"] == "Lyon"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    bark: int
    size: int = 1


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    meow: str


async def test_the_discriminator_of_a_union_is_loaded_too(registry: Registry, database: str, foreign: Any) -> None:
    class Owner(mongoz.Document):
        pet: Dog | Cat = Field(discriminator="kind")
        maybe: Annotated[Dog | Cat, Field(discriminator="kind")] | None = None
        pets: list[Annotated[Dog | Cat, Field(discriminator="kind")]] = Field(default_factory=list)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    dog, cat = {"kind": "dog", "bark": 1}, {"kind": "cat", "meow": "m"}
    owner = await Owner.objects.create(pet=dog, maybe=cat, pets=[dog, cat])
    found = await Owner.objects.only("pet.bark", "maybe.meow", "pets.bark", "pets.meow").get(id=owner.id)
    assert found.model_dump(exclude={"id"}) == {"pet": dog, "maybe": cat, "pets": [dog, cat]}
    assert '"pet":{"kind":"dog","bark":1},"maybe":{"kind":"cat","meow":"m"}' in found.model_dump_json()
    found.pet.bark = 5
    await found.save()
    assert foreign.owners.find_one()["pet"] == {"kind": "dog", "bark": 5, "size": 1}


async def test_a_model_validator_sees_the_whole_document(registry: Registry, database: str, foreign: Any) -> None:
    class Part(mongoz.EmbeddedDocument):
        low: int = mongoz.Integer()
        high: int = mongoz.Integer()

    class Range(mongoz.Document):
        part: Part = mongoz.Embed(Part)
        width: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), {"registry": registry, "database": database})

        @model_validator(mode="after")
        def _measure(self) -> Any:
            if self.part.high < self.part.low:
                raise ValueError("high is less than low")
            self.__dict__["width"] = self.part.high - self.part.low
            return self

    await Range.objects.create(part=Part(low=1, high=5))
    found = await Range.objects.only("part.high").get()
    found.part.high = 9
    await found.save()
    row = foreign.ranges.find_one()
    assert (row["part"], row["width"]) == ({"low": 1, "high": 9}, 8)
    found.part.high = 0
    with pytest.raises(ValidationError, match="high is less than low"):
        await found.save()
