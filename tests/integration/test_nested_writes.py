"""Updates of parts of fields: dotted names, `U.set`, parts of embedded documents in lists."""

import datetime
import decimal
from typing import Any

import pytest
from pydantic import Field, ValidationError, field_validator
from pymongo.errors import WriteError

import mongoz
from mongoz import Registry, U
from mongoz.exceptions import InvalidKeyError, OperatorInvalid


class City(mongoz.EmbeddedDocument):
    name: str = mongoz.String(max_length=10)
    code: str | None = mongoz.String(null=True, alias="c")

    @field_validator("name")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return value.strip()


class Address(mongoz.EmbeddedDocument):
    city: City = mongoz.Embed(City)
    street: str = mongoz.String()
    number: int = mongoz.Integer(default=1)
    kind: str = mongoz.String(choices=[("home", "Home"), ("work", "Work")], default="home")


class Item(mongoz.EmbeddedDocument):
    sku: str = mongoz.String(alias="s")
    qty: int = mongoz.Integer(minimum=0)
    tags: list[str] = mongoz.Array(str, default=list)


@pytest.fixture
def Order(registry: Registry, database: str) -> Any:
    here = registry.get_database(database)

    class Order(mongoz.Document):
        title: str = mongoz.String(alias="t", default="")
        address: Address | None = mongoz.Embed(Address, null=True)
        items: list[Item] = mongoz.Array(Item, default=list)
        tags: list[str] = mongoz.Array(str, default=list)
        options: dict[str, Any] = mongoz.Object(default=dict)
        count: int = mongoz.Integer(default=0)
        prices: dict[str, int] = Field(default_factory=dict)

        class Meta:
            registry = here.deployment
            database = here

    return Order


def made(Order: Any) -> Any:
    return Order(
        address={"city": {"name": "Bonn", "c": "BN"}, "street": "a"},
        items=[{"s": "a", "qty": 1}, {"s": "b", "qty": 2, "tags": ["x"]}],
        tags=["a"],
    )


async def on_the_instance(Order: Any, order: Any, *operations: Any, **fields: Any) -> Any:
    assert await order.update(*operations, **fields) is order
    return order


async def on_a_query(Order: Any, order: Any, *operations: Any, **fields: Any) -> Any:
    [changed] = await Order.objects.filter(id=order.id).update(*operations, **fields)
    return changed


async def on_a_query_with_receivers(Order: Any, order: Any, *operations: Any, **fields: Any) -> Any:
    heard = []

    @Order.signals.pre_update.connect
    async def hear(sender: Any, instance: Any, update_fields: Any, **kwargs: Any) -> None:
        heard.append(update_fields)

    changed = await on_a_query(Order, order, *operations, **fields)
    assert len(heard) == 1
    return changed


UPDATES = pytest.mark.parametrize("update", [on_the_instance, on_a_query, on_a_query_with_receivers])


@UPDATES
async def test_a_dotted_name_sets_a_part_and_keeps_the_rest(Order: Any, foreign: Any, update: Any) -> None:
    order = await made(Order).create()
    foreign.orders.update_one({}, {"$set": {"address.number": 7, "address.extra": 1}})
    changed = await update(Order, order, **{"address.city.name": " Lyon ", "address.city.code": "LY"}, title="n")
    assert (changed.address.city, changed.title) == (City(name="Lyon", code="LY"), "n")
    assert changed.address.number == 7
    row = foreign.orders.find_one()
    assert row["address"] == {
        "city": {"name": "Lyon", "c": "LY"},
        "street": "a",
        "number": 7,
        "kind": "home",
        "extra": 1,
    }
    assert row["t"] == "n"
    assert await Order.objects.get() == changed


@UPDATES
async def test_one_item_or_all_items_of_a_list_are_changed(Order: Any, foreign: Any, update: Any) -> None:
    order = await made(Order).create()
    changed = await update(Order, order, U.set("items.0.qty", 3))
    assert [item.qty for item in changed.items] == [3, 2]
    changed = await update(Order, order, **{"items.$[].qty": 0})
    assert [item["qty"] for item in foreign.orders.find_one()["items"]] == [0, 0]
    assert [item.qty for item in changed.items] == [0, 0]
    changed = await update(Order, order, U.push("items.1.tags", "new"), U.set(Order.items[1].sku, "z"))
    assert [(item.sku, item.tags) for item in changed.items] == [("a", []), ("z", ["x", "new"])]
    changed = await update(Order, order, U.push("items.$[].tags", "all"), **{"items.$[].qty": 5})
    assert [(item.qty, item.tags) for item in changed.items] == [(5, ["all"]), (5, ["x", "new", "all"])]
    changed = await update(Order, order, U.set("tags.0", "first"), U.set("options.deep.key", [1]))
    assert (changed.tags, changed.options) == (["first"], {"deep": {"key": [1]}})


async def test_set_of_a_whole_field_works_like_the_keyword(Order: Any, foreign: Any) -> None:
    order = await made(Order).create()
    await order.update(U.set(Order.title, "a"), U.set(count=2, tags=[]))
    await Order.objects.update_count(U.set("count", "3"))
    row = foreign.orders.find_one()
    assert (row["t"], row["count"], row["tags"]) == ("a", 3, [])


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no field": ({"nope": 1}, InvalidKeyError, "no field 'nope'"),
    "a similar name": ({"titel": 1}, InvalidKeyError, "Did you mean 'title'"),
    "two underscores": ({"address__city__name": 1}, InvalidKeyError, r"with dots: \*\*{'address\.city\.name': "),
    "no field inside": ({"address.town": 1}, InvalidKeyError, "town"),
    "a field inside of a text": ({"title.x": 1}, InvalidKeyError, "title"),
    "the id": ({"pk": 1}, InvalidKeyError, "id"),
    "a wrong type": ({"address.city.name": 5}, ValidationError, "address.city.name"),
    "not one of the choices": ({"address.kind": "x"}, ValidationError, "Invalid choice for field 'kind'"),
    "too long": ({"address.city.name": "x" * 11}, ValidationError, "address.city.name"),
    "nothing where a value is required": ({"address.street": None}, ValidationError, "address.street"),
    "too small in a list": ({"items.1.qty": -1}, ValidationError, "items.1.qty"),
    "too small in all of a list": ({"items.$[].qty": -1}, ValidationError, "items"),
    "an item after the end": ({"items.5.qty": 1}, ValidationError, "items"),
    "a positional operator": ({"items.$.qty": 1}, InvalidKeyError, r"\$\[\] for every item"),
    "a filtered operator": ({"items.$[i].qty": 1}, InvalidKeyError, r"\$\[\] for every item"),
    "all items of a field that is no list": ({"prices.$[]": 1}, InvalidKeyError, "prices"),
    "a field and a part of it": ({"address": None, "address.street": "b"}, InvalidKeyError, "overlap"),
    "an item and all": ({"items.$[].qty": 1, "items.0.qty": 1}, InvalidKeyError, "overlap"),
    "different parts of an item and of all": (
        {"items.0.sku": "z", "items.$[].qty": 1},
        InvalidKeyError,
        "overlap",
    ),
    "an item and all, the other way": ({"items.0.qty": 1, "items.$[].qty": 1}, InvalidKeyError, "overlap"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("update", [on_the_instance, on_a_query])
async def test_a_wrong_part_is_refused_and_nothing_is_written(
    Order: Any, foreign: Any, case: str, update: Any
) -> None:
    fields, error, message = REFUSED[case]
    order = await made(Order).create()
    before, row = order.model_dump(), foreign.orders.find_one()
    with pytest.raises(error, match=message):
        await update(Order, order, **fields)
    assert foreign.orders.find_one() == row
    assert order.model_dump() == before


@pytest.mark.parametrize("operation", [U.inc("count"), U.min(count=1), U.set(count=2), U.unset("count")])
async def test_two_different_changes_of_one_field_are_refused(Order: Any, operation: Any) -> None:
    order = await made(Order).create()
    for attempt in (order.update, Order.objects.update, Order.objects.update_count):
        if operation.operator != "$set":
            with pytest.raises(InvalidKeyError, match="'count' is changed twice"):
                await attempt(operation, count=1)
        with pytest.raises(InvalidKeyError, match="'count' is changed twice"):
            await attempt(operation, U.inc(count=1))
    assert (await Order.objects.get()).count == 0


@UPDATES
async def test_a_part_of_an_embedded_document_that_is_none_or_missing_is_not_set(
    Order: Any, foreign: Any, update: Any
) -> None:
    order = await Order(count=1).create()
    with pytest.raises(
        ValidationError, match=r"address is None, so address\.street can't be changed; set address"
    ):
        await update(Order, order, **{"address.street": "b"})
    assert foreign.orders.find_one()["address"] is None
    foreign.orders.update_one({}, {"$unset": {"address": ""}})
    with pytest.raises(ValidationError, match="city"):  # half of an address must not be stored
        await update(Order, order, **{"address.street": "b"})
    assert "address" not in foreign.orders.find_one()


async def test_an_update_by_a_query_writes_no_document_if_one_of_the_embedded_documents_is_none(
    Order: Any, foreign: Any
) -> None:
    await Order.create_many([made(Order), Order(), made(Order)])
    with pytest.raises(ValidationError, match="address is None"):
        await Order.objects.update(**{"address.street": "b"})
    assert foreign.orders.count_documents({"address.street": "b"}) == 0
    assert await Order.objects.filter(address__not=None).update_count(**{"address.street": "b"}) == 2


async def test_a_change_of_all_items_of_a_missing_list_raises_the_error_of_the_server(
    Order: Any, foreign: Any
) -> None:
    order = await made(Order).create()
    foreign.orders.update_one({}, {"$unset": {"items": ""}})
    with pytest.raises(WriteError, match="items"):
        await Order.objects.update(**{"items.$[].qty": 1})
    assert order.items[0].qty == 1


@UPDATES
async def test_pull_of_a_dict_removes_embedded_documents_with_these_values(
    Order: Any, foreign: Any, update: Any
) -> None:
    order = await made(Order).create()
    foreign.orders.update_one({}, {"$push": {"items": {"s": "c", "qty": 2, "tags": [], "more": 1}}})
    changed = await update(Order, order, U.pull(items={"sku": "a"}), U.pull("items", {"qty": 2, "tags": "x"}))
    assert [item.sku for item in changed.items] == ["c"]
    changed = await update(Order, order, U.pull(items={"s": {"$ne": None}}))  # a value here, not an operator
    assert [item["s"] for item in foreign.orders.find_one()["items"]] == ["c"]
    # Pull of a whole item removes only equal items. The stored item also has `more`.
    changed = await update(Order, order, U.pull(items=Item(sku="c", qty=2)))
    assert len(changed.items) == 1


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (U.pull(items={}), OperatorInvalid),
        (U.pull("items", {"sku": "a"}, Item(sku="b", qty=1)), OperatorInvalid),
        (U.pull(items={"nope": 1}), InvalidKeyError),
    ],
)
async def test_pull_refuses_a_wrong_description_of_items(
    Order: Any, foreign: Any, operation: Any, error: Any
) -> None:
    order = await made(Order).create()
    with pytest.raises(error):
        await order.update(operation)
    assert len(foreign.orders.find_one()["items"]) == 2


async def test_pull_respects_the_minimum_length_of_a_list(registry: Registry, database: str) -> None:
    class Basket(mongoz.Document):
        items: list[Item] = mongoz.Array(Item, min_length=1)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    basket = await Basket(items=[Item(sku="a", qty=1), Item(sku="b", qty=1)]).create()
    await basket.update(U.pull(items={"sku": "a"}))
    for attempt in (basket.update, Basket.objects.update, Basket.objects.update_count):
        with pytest.raises(ValidationError, match="items"):
            await attempt(U.pull(items={"sku": "b"}))
    assert len((await Basket.objects.get()).items) == 1


@UPDATES
async def test_several_operations_of_one_kind_on_a_list_are_all_applied(Order: Any, update: Any) -> None:
    order = await made(Order).create()
    changed = await update(Order, order, U.push("tags", "b"), U.push(tags="c"), U.push(Order.tags, "b"))
    assert changed.tags == ["a", "b", "c", "b"]
    changed = await update(Order, order, U.pull("tags", "a"), U.pull(tags="c"))
    assert changed.tags == ["b", "b"]
    changed = await update(Order, order, U.add_to_set("tags", "b"), U.add_to_set(tags="d"))
    assert changed.tags == ["b", "b", "d"]
    with pytest.raises(InvalidKeyError, match="'tags' is changed twice"):
        await update(Order, order, U.push(tags="x"), U.pull(tags="b"))


@pytest.mark.parametrize("update", [on_the_instance, on_a_query])
async def test_receivers_see_the_new_part_and_changes_by_a_pre_receiver_are_written(
    Order: Any, foreign: Any, update: Any
) -> None:
    order, seen = await made(Order).create(), []

    @Order.signals.pre_update.connect
    async def look(sender: Any, instance: Any, update_fields: Any, **kwargs: Any) -> None:
        seen.append((instance.address.city.name, set(update_fields)))
        instance.address.street = "from the receiver"
        instance.count = 40

    @Order.signals.post_update.connect
    async def note(sender: Any, instance: Any, update_fields: Any, previous: Any, **kwargs: Any) -> None:
        seen.append((instance.address.street, set(update_fields), previous.address.city.name))

    changed = await update(Order, order, U.inc(count=1), **{"address.city.name": "Lyon"})
    assert seen == [
        ("Lyon", {"address", "count"}),
        ("from the receiver", {"address", "count"}, "Bonn"),
    ]
    row = foreign.orders.find_one()
    assert (row["address"]["street"], row["address"]["city"]["name"], row["count"]) == (
        "from the receiver",
        "Lyon",
        40,
    )
    assert changed.count == 40


async def test_concurrent_updates_of_different_parts_are_both_stored(Order: Any) -> None:
    await made(Order).create()
    one, other = await Order.objects.get(), await Order.objects.get()
    await one.update(**{"address.city.name": "Lyon"})
    await other.update(**{"address.street": "b"})
    assert (other.address.city.name, other.address.street) == ("Lyon", "b")
    await other.save()
    assert (await Order.objects.get()).address.city.name == "Lyon"


class Zone(mongoz.EmbeddedDocument):
    name: str = mongoz.String()
    day: datetime.date = mongoz.Date(default=datetime.date(2020, 1, 1))
    price: decimal.Decimal = mongoz.Decimal(max_digits=5, decimal_places=2, default=decimal.Decimal("1.50"))


class Place(mongoz.EmbeddedDocument):
    zones: list[Zone] = mongoz.Array(Zone, default=list)


async def test_lists_inside_of_lists_are_changed_in_place(registry: Registry, database: str, foreign: Any) -> None:
    class Tenant(mongoz.Document):
        places: list[Place] = mongoz.Array(Place)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    tenant = await Tenant(
        places=[Place(zones=[Zone(name="a"), Zone(name="b")]), Place(zones=[Zone(name="b")])]
    ).create()

    def names() -> list[list[str]]:
        assert tenant.places == Tenant.from_row(foreign.tenants.find_one()).places
        return [[zone.name for zone in place.zones] for place in tenant.places]

    await tenant.update(U.pull("places.$[].zones", {"name": "b"}))
    assert names() == [["a"], []]
    await tenant.update(U.push("places.1.zones", {"name": "c", "day": "2022-02-02"}, Zone(name="d", price="2.25")))
    assert names() == [["a"], ["c", "d"]]
    await tenant.update(U.pull("places.1.zones", {"day": datetime.date(2022, 2, 2)}))
    await tenant.update(U.pull("places.1.zones", {"price": decimal.Decimal("2.25")}))
    assert names() == [["a"], []]
    await Tenant.objects.update(**{"places.$[].zones.$[].day": datetime.date(2023, 3, 3)})
    await tenant.update(U.inc("places.0.zones.0.price", decimal.Decimal("0.25")))
    assert tenant.places[0].zones == [Zone(name="a", day=datetime.date(2023, 3, 3), price=decimal.Decimal("1.75"))]
