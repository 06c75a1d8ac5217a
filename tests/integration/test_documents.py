"""Documents on a real server: writing, keeping foreign values, and loading."""

import copy
import datetime
import uuid
from typing import Any

import bson
import pytest
from pydantic import ConfigDict, Field, ValidationError
from pymongo.errors import DuplicateKeyError

import mongoz
from mongoz.exceptions import (
    AbstractDocumentError,
    DocumentNotFound,
    ImproperlyConfigured,
    InvalidKeyError,
)


class Item(mongoz.EmbeddedDocument):
    sku: str = mongoz.String()
    count: int = mongoz.Integer(default=1)
    labels: list[str] = mongoz.Array(str, default=list)


def make(registry: mongoz.Registry, database: str) -> Any:
    options = {"registry": registry, "database": database}

    class Order(mongoz.Document):
        title: str = mongoz.String(max_length=20)
        email: str = mongoz.Email(null=True)
        total: float = mongoz.Double(default=0.0)
        units: int = mongoz.Integer(default=0)
        paid: bool = mongoz.Boolean()
        at: datetime.datetime = mongoz.DateTime(null=True)
        day: datetime.date = mongoz.Date(null=True)
        key: uuid.UUID = mongoz.UUID(null=True)
        customer: Any = mongoz.ObjectId(null=True)
        payload: Any = mongoz.Object(null=True)
        tags: list[str] = mongoz.Array(str, default=list)
        item: Any = mongoz.Embed(Item, null=True)
        items: list[Item] = mongoz.Array(Item, default=list)
        note: str = mongoz.String(null=True, alias="remark")

        Meta = type("Meta", (), options)

    return Order


@pytest.fixture
def Order(registry: mongoz.Registry, database: str) -> Any:
    return make(registry, database)


def full() -> dict[str, Any]:
    """New values for every field, because tests change the values."""
    return {
        "title": "First",
        "email": "ada@example.org",
        "total": 1.5,
        "units": 3,
        "paid": True,
        "at": datetime.datetime(2024, 2, 29, 12, 30, 15, 123000),
        "day": datetime.date(2024, 2, 29),
        "key": uuid.UUID(int=7),
        "customer": bson.ObjectId(b"c" * 12),
        "payload": {"a": [1, 1.0, True, None, {"b": "c"}]},
        "tags": ["x", "y"],
        "item": Item(sku="one", labels=["l"]),
        "items": [Item(sku="two", count=2), Item(sku="three")],
        "note": "kept",
    }


# -- the core, on both drivers -----------------------------------------------------------------------


async def test_create_read_save_update_and_delete_work_with_each_driver(
    mongo: Any, database: str, foreign: Any, driver: str
) -> None:
    async with mongoz.Registry(mongo.url, driver=driver) as registry:
        Order = make(registry, database)
        order = await Order(**full()).create()
        assert isinstance(order.id, bson.ObjectId)
        row = foreign.orders.find_one()
        assert row == {
            "_id": order.id, "title": "First", "email": "ada@example.org", "total": 1.5, "units": 3, "paid": True,
            "at": full()["at"], "day": datetime.datetime(2024, 2, 29), "key": full()["key"],
            "customer": full()["customer"], "payload": full()["payload"], "tags": ["x", "y"],
            "item": {"sku": "one", "count": 1, "labels": ["l"]},
            "items": [{"sku": "two", "count": 2, "labels": []}, {"sku": "three", "count": 1, "labels": []}],
            "remark": "kept",
        }  # fmt: skip

        for found in (
            await Order.get_document_by_id(order.id),
            await Order.get_document_by_id(str(order.id)),
            await Order.objects.get_document_by_id(order.id),
            await Order.query.get(id=order.id),
        ):
            assert found == order
            assert found.model_dump() == order.model_dump()
            assert type(found.day) is datetime.date
            assert isinstance(found.items[1], Item)

        found.title = "Second"
        assert await found.save() is found
        assert foreign.orders.find_one() == {**row, "title": "Second"}
        assert await found.update(units=4, remark="alias") is found
        assert (found.units, found.note) == (4, "alias")
        assert foreign.orders.find_one() == {**row, "title": "Second", "units": 4, "remark": "alias"}
        assert await found.update() is found
        assert await found.delete() == 1
        assert foreign.orders.find_one() is None
        assert found.title == "Second", "the instance keeps its values"

        for gone in (found.save, found.delete, lambda: found.update(units=1)):
            with pytest.raises(DocumentNotFound):
                await gone()
        with pytest.raises(DocumentNotFound):
            await Order.get_document_by_id(order.id)
        assert foreign.orders.find_one() is None, "none of these calls inserts a document"


@pytest.mark.parametrize("bad", ["", "abc", "x" * 24, 3, None, {"$gt": ""}, ["65f0c0ffee0123456789abcd"]])
async def test_a_malformed_id_is_an_invalid_key(Order: Any, bad: Any) -> None:
    await Order(title="a").create()
    with pytest.raises(InvalidKeyError):
        await Order.get_document_by_id(bad)


async def test_create_accepts_an_id_and_refuses_an_existing_id(Order: Any, foreign: Any) -> None:
    id_ = bson.ObjectId()
    order = await Order.objects.create(_id=id_, title="a")
    assert order.id == foreign.orders.find_one()["_id"] == id_
    with pytest.raises(DuplicateKeyError):
        await Order.objects.create(id=id_, title="b")


async def test_an_instance_has_no_id_after_a_failed_create(Order: Any) -> None:
    order = Order(title="a")
    order.tags.append(5)
    with pytest.raises(ValidationError):
        await order.create()
    assert order.id is None


async def test_a_save_without_an_id_creates_a_document(Order: Any, foreign: Any) -> None:
    order = await Order(title="a", undeclared=[1]).save()
    first = order.id
    order.id = None
    await order.save()
    rows = list(foreign.orders.find())
    assert {row["_id"] for row in rows} == {first, order.id}
    assert len(rows) == 2
    one, two = ({**row, "_id": 0} for row in rows)
    assert one == two


@pytest.mark.parametrize("what", ["create", "save", "delete", "update", "objects", "query", "id"])
async def test_documents_without_a_collection_can_not_be_written(what: str, registry: mongoz.Registry) -> None:
    class Lost(mongoz.Document):
        name: str = mongoz.String(default="")

    class Base(mongoz.Document):
        name: str = mongoz.String(default="")

        class Meta:
            abstract = True

    for document, error in ((Lost, ImproperlyConfigured), (Base, AbstractDocumentError)):
        instance = document(id=bson.ObjectId())
        with pytest.raises(error):
            await {
                "create": instance.create,
                "save": instance.save,
                "delete": instance.delete,
                "update": lambda instance=instance: instance.update(name="x"),
                "objects": document.objects.count,
                "query": document.query.all,
                "id": lambda document=document: document.get_document_by_id(bson.ObjectId()),
            }[what]()


# -- save writes only the changes --------------------------------------------------------------------


async def test_another_clients_change_of_another_field_survives_a_save(Order: Any, foreign: Any) -> None:
    order = await Order(**full()).create()
    for instance in (order, await Order.objects.get()):
        foreign.orders.update_one(
            {}, {"$set": {"units": 99, "remark": "theirs", "new": 1}, "$unset": {"paid": ""}}
        )
        instance.title = "mine"
        await instance.save()
        row = foreign.orders.find_one()
        assert (row["title"], row["units"], row["remark"], row["new"]) == ("mine", 99, "theirs", 1)
        assert "paid" not in row


@pytest.mark.parametrize(
    ("field", "stored", "theirs"),
    [
        ("units", bson.Int64(5), bson.Int64(6)),
        ("total", 5, 6),
        ("day", datetime.datetime(2024, 1, 1, 12), datetime.datetime(2024, 1, 2, 12)),
        ("item", {"sku": "a"}, {"sku": "b"}),
        ("tags", None, ["theirs"]),
    ],
)  # fmt: skip
async def test_a_save_keeps_the_value_and_type_that_another_client_stored_in_another_field(
    Order: Any, foreign: Any, field: str, stored: Any, theirs: Any
) -> None:
    row = {"title": "a", field: stored}
    if stored is None:  # the row lacks this field, which has a default
        del row[field]
    if field == "day":  # a Date field refuses a time of day, because the time would be lost
        row[field] = stored.replace(hour=0)
    foreign.orders.insert_one(row)
    order = await Order.objects.get()
    foreign.orders.update_one({}, {"$set": {field: theirs}})
    order.title = "mine"
    await order.save()
    found = foreign.orders.find_one()
    assert found[field] == theirs
    assert type(found[field]) is type(theirs)
    assert set(found) == {"_id", "title", field}
    # The second save compares with the snapshot that the first save made.
    order.title = "again"
    await order.save()
    assert foreign.orders.find_one()[field] == theirs


@pytest.mark.parametrize(
    ("field", "loaded", "theirs", "mine"),
    [
        ("units", bson.Int64(5), bson.Int64(6), 7),
        ("price", 5, 6, 7.5),
        ("numbers", [1, bson.Int64(2)], [bson.Int64(3)], [1, 3]),
        ("at", datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 2), datetime.datetime(2024, 1, 3)),
        ("nickname", None, "theirs", "mine"),
    ],
)  # fmt: skip
async def test_a_save_of_scalars_writes_a_field_only_if_this_process_changed_it(
    registry: mongoz.Registry, database: str, foreign: Any, field: str, loaded: Any, theirs: Any, mine: Any
) -> None:
    class Flat(mongoz.Document):
        name: str = mongoz.String(alias="n")
        units: int = mongoz.Integer(default=0)
        price: float = mongoz.Double(default=0.0)
        numbers: list[int] = mongoz.Array(int, default=list)
        at: datetime.datetime | None = mongoz.DateTime(null=True)
        nickname: str | None = mongoz.String(null=True)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    values = {"units": 1, "price": 1.5, "numbers": [], "at": None, "nickname": ""}
    foreign.flats.insert_one({"n": "a", **values, field: loaded})
    flat = await Flat.objects.get()
    foreign.flats.update_one({}, {"$set": {field: theirs}})
    for changed in ({"name": "b", field: getattr(flat, field)}, {"name": "c"}):
        for name, value in changed.items():
            setattr(flat, name, value)
        await flat.save()
        row = foreign.flats.find_one()
        assert row == {"_id": flat.id, "n": changed["name"], **values, field: theirs}
        assert repr(row[field]) == repr(theirs)
    setattr(flat, field, mine)
    await flat.save()
    assert foreign.flats.find_one() == {"_id": flat.id, "n": "c", **values, field: mine}


async def test_an_update_of_scalars_validates_the_values_like_an_assignment(
    registry: mongoz.Registry, database: str, foreign: Any
) -> None:
    class Flat(mongoz.Document):
        name: str = mongoz.String(max_length=5)
        email: str = mongoz.Email()
        units: int = mongoz.Integer()
        numbers: list[int] = mongoz.Array(int, default=list)
        fixed: str = Field(default="a", frozen=True)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    flat = await Flat(name="Ada", email="ada@example.org", units=1).create()
    for given, valid in (
        ({"units": "7"}, {"units": 7}),
        ({"email": "Ada@EXAMPLE.org"}, {"email": "Ada@example.org"}),
        ({"name": "Eve", "numbers": ["1"]}, {"name": "Eve", "numbers": [1]}),
    ):
        await flat.update(**given)
        row = foreign.flats.find_one()
        assert {name: row[name] for name in valid} == {name: getattr(flat, name) for name in valid} == valid
    flat.numbers.append(2)  # the snapshot does not share the list
    await flat.save()
    assert foreign.flats.find_one()["numbers"] == [1, 2]
    before, row = flat.model_dump(), foreign.flats.find_one()
    for wrong in ({"units": "x", "name": "Bob"}, {"email": "x@"}, {"name": "Elizabeth"}, {"fixed": "b"}):
        with pytest.raises(ValidationError) as raised:
            await flat.update(**wrong)
        assert raised.value.errors()[0]["loc"] == (next(iter(wrong)),)
        assert flat.model_dump() == before
        assert foreign.flats.find_one() == row


async def test_an_assigned_or_changed_default_is_written(Order: Any, foreign: Any) -> None:
    foreign.orders.insert_one({"title": "a"})
    order = await Order.objects.get()
    order.tags.append("x")
    order.paid = False
    await order.save()
    row = foreign.orders.find_one()
    assert (row["tags"], row["paid"]) == (["x"], False)
    assert "units" not in row
    order.units = 0
    await order.save()
    assert foreign.orders.find_one()["units"] == 0


async def test_a_nested_change_is_always_written(Order: Any, foreign: Any) -> None:
    values = {**full(), "undeclared": {"deep": [[1], {"a": 1}]}}
    created = await Order(**values).create()
    for order in (created, await Order.objects.get()):
        for _ in range(2):  # the second save compares with the snapshot that the first save made
            order.payload["a"][4]["b"] += "!"
            order.payload["a"].append(1)
            order.tags.append("z")
            order.item.count += 1
            order.item.labels.append("m")
            order.items[0].sku += "!"
            order.items.append(Item(sku="new"))
            order.undeclared["deep"][1]["a"] += 1
            order.undeclared["deep"][0].append(2)
            await order.save()
            assert await Order.objects.get() == order
    row = foreign.orders.find_one()
    # Both instances began with the same row, so the values of the second instance prevail.
    assert row["undeclared"] == {"deep": [[1, 2, 2], {"a": 3}]}
    assert (row["item"]["labels"], row["item"]["count"]) == (["l", "m", "m"], 3)


@pytest.mark.parametrize(("before", "after"), [(1, True), (True, 1), (1, 1.0), (1.0, 1), (0, False), ("", None)])
async def test_a_save_writes_values_that_are_equal_only_in_python(
    Order: Any, foreign: Any, before: Any, after: Any
) -> None:
    order = await Order(title="a", payload={"v": [before]}, extra=before).create()
    order.payload["v"][0] = order.extra = after
    await order.save()
    row = foreign.orders.find_one()
    assert type(row["extra"]) is type(row["payload"]["v"][0]) is type(after)


async def test_undeclared_keys_are_read_written_and_removed(Order: Any, foreign: Any) -> None:
    foreign.orders.insert_one({"title": "a", "theirs": {"x": [1]}, "item": {"sku": "s", "inner": 5}})
    order = await Order.objects.get()
    assert order.theirs == {"x": [1]}
    assert order.item.inner == 5
    order.item.count = 2
    order.theirs["x"].append(2)
    order.mine = True
    await order.save()
    row = foreign.orders.find_one()
    assert (row["theirs"], row["mine"]) == ({"x": [1, 2]}, True)
    assert row["item"]["inner"] == 5
    del order.theirs
    await order.save()
    assert "theirs" not in foreign.orders.find_one()


@pytest.mark.parametrize("key", ["a.b", "$set"])
async def test_keys_with_dots_and_dollars_are_unchanged_or_refused(Order: Any, foreign: Any, key: str) -> None:
    await Order(title="a", **{key: 1}).create()
    order = await Order.objects.get()
    order.title = "b"
    await order.save()
    assert foreign.orders.find_one()[key] == 1
    order.__pydantic_extra__[key] = 2
    with pytest.raises(InvalidKeyError, match=r"can't be updated"):
        await order.save()
    del order.__pydantic_extra__[key]
    with pytest.raises(InvalidKeyError, match=r"can't be updated"):
        await order.save()
    with pytest.raises(InvalidKeyError, match=r"can't be updated"):
        await Order(id=order.id, title="never loaded", **{key: 2}).save()
    assert foreign.orders.find_one()[key] == 1


async def test_save_validates_the_written_values(Order: Any, foreign: Any) -> None:
    order = await Order(title="a").create()
    order.tags.append(5)
    with pytest.raises(ValidationError) as caught:
        await order.save()
    assert caught.value.errors()[0]["loc"] == ("tags", 0)
    assert foreign.orders.find_one()["tags"] == []


async def test_save_validates_embedded_documents(Order: Any) -> None:
    order = await Order(title="a", item=Item(sku="s")).create()
    order.item.labels.append(5)
    with pytest.raises(ValidationError):
        await order.save()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda order: order.model_copy()])
async def test_a_copy_has_the_snapshot_of_its_original(Order: Any, foreign: Any, copied: Any) -> None:
    order = copied(await Order(title="a").create())
    foreign.orders.update_one({}, {"$set": {"title": "changed by others"}})
    order.note = "mine"
    await order.save()
    row = foreign.orders.find_one()
    assert (row["title"], row["remark"]) == ("changed by others", "mine")


async def test_a_model_that_ignores_extra_keys_does_not_remove_them(registry: Any, database: str) -> None:
    class Narrow(mongoz.Document):
        model_config = ConfigDict(extra="ignore")
        title: str = mongoz.String()

        class Meta:
            abstract = False

        Meta.registry = registry  # type: ignore[attr-defined]
        Meta.database = database  # type: ignore[attr-defined]

    narrow = await Narrow(title="a").create()
    collection = Narrow.meta.collection._collection
    await collection.update_one({}, {"$set": {"others": 1}})
    narrow = await Narrow.objects.get()
    narrow.title = "b"
    await narrow.save()
    row = await collection.find_one()
    assert (row["title"], row["others"]) == ("b", 1)


async def test_a_save_without_changes_notices_a_deleted_document(Order: Any, foreign: Any) -> None:
    order = await Order(title="a").create()
    row = foreign.orders.find_one()
    await order.save()
    assert foreign.orders.find_one() == row
    foreign.orders.delete_many({})
    with pytest.raises(DocumentNotFound):
        await order.save()


# -- update ------------------------------------------------------------------------------------------


async def test_update_writes_only_the_given_fields(Order: Any, foreign: Any) -> None:
    order = await Order(title="a", payload={"x": 1}).create()
    foreign.orders.update_one({}, {"$set": {"units": 99}})
    order.title = "changed, not saved"
    order.payload["x"] = 2
    await order.update(total=2.5)
    row = foreign.orders.find_one()
    assert (row["units"], row["title"], row["total"], row["payload"]) == (99, "a", 2.5, {"x": 1})
    # A later save writes the changes that the update has left out.
    await order.save()
    row = foreign.orders.find_one()
    assert (row["units"], row["title"], row["payload"]) == (99, "changed, not saved", {"x": 2})


async def test_an_update_of_a_never_loaded_instance_writes_only_the_given_fields(Order: Any, foreign: Any) -> None:
    stored = await Order(title="stored", units=5).create()
    order = Order(id=stored.id, title="mine", units=6)
    await order.update(total=1.0)
    assert foreign.orders.find_one()["title"] == "stored"
    await order.save()
    row = foreign.orders.find_one()
    assert (row["title"], row["units"]) == ("mine", 6)


async def test_update_validates_and_builds_embedded_documents(Order: Any, foreign: Any) -> None:
    order = await Order(title="a").create()
    await order.update(item={"sku": "s", "more": 1}, items=[{"sku": "t"}], units="7")
    assert isinstance(order.item, Item)
    assert isinstance(order.items[0], Item)
    assert order.units == 7
    assert foreign.orders.find_one()["item"] == {"sku": "s", "count": 1, "labels": [], "more": 1}
    with pytest.raises(ValidationError) as caught:
        await order.update(units="many", title="x" * 21)
    assert {error["loc"][0] for error in caught.value.errors()} == {"units", "title"}


@pytest.mark.parametrize("name", ["nope", "id", "_id", "pk", "titel", "item.skew", "$set"])
async def test_update_refuses_unknown_names(Order: Any, foreign: Any, name: str) -> None:
    order = await Order(title="a").create()
    row = foreign.orders.find_one()
    with pytest.raises(InvalidKeyError, match="title" if name == "titel" else None):
        await order.update(**{name: bson.ObjectId()})
    assert foreign.orders.find_one() == row


# -- other collections ---------------------------------------------------------------------------------------


async def test_an_instance_remembers_its_collection(Order: Any, foreign: Any) -> None:
    archive = Order.meta.database.get_collection("archive")
    order = await Order(title="a").create(archive)
    other = await Order(title="b").create()
    await order.update(units=1)
    order.title = "changed"
    await order.save()
    assert foreign.archive.find_one()["title"] == "changed"
    assert foreign.archive.find_one()["units"] == 1
    assert [row["title"] for row in foreign.orders.find()] == ["b"]
    await order.delete()
    assert foreign.archive.find_one() is None
    await other.save()


# -- loading -----------------------------------------------------------------------------------------


async def test_an_invalid_row_is_named_with_collection_id_and_field(
    Order: Any, foreign: Any, database: str
) -> None:
    foreign.orders.insert_one({"_id": "mine", "title": 5, "items": [{"sku": {"{brace}": 1}}]})
    with pytest.raises(ValidationError) as caught:
        await Order.objects.all()
    message = str(caught.value)
    assert f"{database}.orders" in message
    assert "'mine'" in message
    assert {error["loc"] for error in caught.value.errors()} >= {("title",), ("items", 0, "sku")}


async def test_loading_checks_types_and_not_all_rules(Order: Any, foreign: Any) -> None:
    foreign.orders.insert_many([{"title": "a", "email": "odd..but@stored"}, {"title": "b", "email": "no address"}])
    assert (await Order.objects.get(title="a")).email == "odd..but@stored"
    with pytest.raises(ValidationError):
        await Order.objects.get(title="b")


async def test_auto_now_is_set_by_each_write_and_auto_now_add_by_the_insert(
    registry: mongoz.Registry, database: str, foreign: Any
) -> None:
    options = {"registry": registry, "database": database}
    long_ago = datetime.datetime(2001, 1, 1)

    class Event(mongoz.Document):
        name: str = mongoz.String()
        created: datetime.datetime = mongoz.DateTime(auto_now_add=True)
        changed: datetime.datetime = mongoz.DateTime(auto_now=True)

        Meta = type("Meta", (), options)

    event = await Event.objects.create(name="a")
    assert await Event.objects.get() == event, "milliseconds, as in MongoDB"
    assert event.created.tzinfo is None
    explicit = await Event.objects.create(name="b", created=long_ago, changed=long_ago)
    assert (explicit.created, explicit.changed) == (long_ago, long_ago)
    for write in (lambda: explicit.update(name="c"), explicit.save):
        explicit.changed = long_ago
        await write()
        row = foreign.events.find_one(explicit.id)
        assert row["created"] == long_ago
        assert row["changed"] == explicit.changed > long_ago
