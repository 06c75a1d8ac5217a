"""A write with receivers stores, validates, raises and returns the same as a write without receivers."""

import asyncio
import contextlib
import gc
from collections import Counter
from typing import Any
from unittest import mock

import pydantic
import pytest
from pydantic import ValidationError, field_validator, model_validator
from pymongo.errors import BulkWriteError, DuplicateKeyError, WriteError

import mongoz
from mongoz import U
from mongoz.exceptions import DocumentNotFound, WriteConflict
from mongoz.persistence.bulk import selection
from mongoz.persistence.bulk.selection import Selection
from mongoz.signals import muted
from mongoz.signals.chains import Link
from mongoz.stamps import FIELD
from tests.support import without_transactions

KINDS = ("silent", "post", "pre", "both", "alone", "muted", "dispatched")
QUICK = ("both", "dispatched")  # the other kinds are marked as exhaustive


class Heard:
    """Pre and post receivers, and the instances that the post receivers got."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.ran = 0

    async def post(self, sender: Any, instance: Any, **kwargs: Any) -> None:
        self.told.append(instance)

    async def pre(self, sender: Any, instance: Any, **kwargs: Any) -> None:
        self.ran += 1

    def connect(self, document: Any, kind: str) -> None:
        for name in ("save", "update", "delete"):
            if tells(kind):
                getattr(document.signals, f"post_{name}").connect(self.post, name=f"post_{name}")
            if kind in ("pre", "both", "alone"):
                getattr(document.signals, f"pre_{name}").connect(self.pre)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture(params=[one if one in QUICK else pytest.param(one, marks=pytest.mark.exhaustive) for one in KINDS])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def place(kind: str, registry: Any, dispatched: Any, database: str) -> Any:
    """The Meta of a document class."""
    where = dispatched if kind in ("muted", "dispatched") else registry
    return type("Meta", (), {"registry": where, "database": database})


@pytest.fixture(autouse=True)
def server(request: pytest.FixtureRequest) -> Any:
    """With the kind "alone" the server has no transactions."""
    alone = "kind" in request.fixturenames and request.getfixturevalue("kind") == "alone"
    with without_transactions() if alone else contextlib.nullcontext():
        yield


async def outcome(call: Any) -> Any:
    """The result of a call, or the class of its error."""
    try:
        return await call
    except Exception as error:
        return type(error)


def quietly(kind: str) -> Any:
    return muted() if kind == "muted" else contextlib.nullcontext()


def tells(kind: str) -> bool:
    return kind in ("post", "both", "alone", "dispatched")


# -- filters -------------------------------------------------------------------------------------------


def make_stock(Meta: Any) -> Any:

    class Base(mongoz.Document):
        name: str = mongoz.String(default="s")
        left: int = mongoz.Integer(default=5)

        class Meta:
            abstract = True

    return type("Stock", (Base,), {"Meta": Meta, "__module__": __name__, "__qualname__": "Stock"})


CALLS = {
    "update_count": lambda query: query.update_count(U.inc(left=-1)),
    "update": lambda query: query.update(U.inc(left=-1)),
    "in the order of a key": lambda query: query.sort("name").update(U.inc(left=-1)),
    "a limit": lambda query: query.limit(1).update_count(U.inc(left=-1)),
    "a collation": lambda query: (
        query.filter(name="S").options(collation={"locale": "en", "strength": 2}).update_count(U.inc(left=-1))
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_counter_is_never_overdrawn(place, kind, heard, foreign, call):
    Stock = make_stock(place)
    heard.connect(Stock, kind)
    await Stock.objects.create()
    heard.told.clear()

    async def take() -> int:
        if kind == "muted":
            with muted():
                taken = await call(Stock.objects.filter(left__gt=0))
        else:
            taken = await call(Stock.objects.filter(left__gt=0))
        return taken if isinstance(taken, int) else len(taken)

    taken = await asyncio.gather(*(take() for _ in range(30)))
    assert foreign.stocks.find_one()["left"] == 0
    assert sum(taken) == 5
    assert sorted(stock.left for stock in heard.told) == ([0, 1, 2, 3, 4] if tells(kind) else [])


@pytest.mark.parametrize("limited", [False, True])
async def test_a_document_that_no_longer_matches_is_not_deleted(place, kind, heard, foreign, limited, monkeypatch):
    """Another client changes a document between the read and the delete."""
    Stock = make_stock(place)
    heard.connect(Stock, kind)
    await Stock.create_many([Stock(name="a"), Stock(name="b")])
    heard.told.clear()
    query = Stock.objects.filter(left__gt=0)
    query = query.sort("name").limit(2) if limited else query

    async def change(sender: Any, instance: Any, **kwargs: Any) -> None:
        foreign.stocks.update_one({"name": "a"}, {"$set": {"left": 0}})

    if kind in ("silent", "muted"):
        foreign.stocks.update_one({"name": "a"}, {"$set": {"left": 0}})
    else:
        Stock.signals.pre_delete.connect(change)
    with quietly(kind):
        assert await query.delete() == 1
    assert [row["name"] for row in foreign.stocks.find()] == ["a"]
    assert [stock.name for stock in heard.told] == (["b"] if tells(kind) else [])


async def test_ten_concurrent_deletes_delete_each_document_once(place, kind, heard, foreign):
    Stock = make_stock(place)
    heard.connect(Stock, kind)
    await Stock.create_many([Stock(name=f"s{n}") for n in range(10)])
    heard.told.clear()

    async def delete() -> int:
        with quietly(kind):
            return await Stock.objects.filter(left__gt=0).delete()

    assert sum(await asyncio.gather(*(delete() for _ in range(10)))) == 10
    assert foreign.stocks.count_documents({}) == 0
    assert Counter(stock.name for stock in heard.told) == (
        Counter(f"s{n}" for n in range(10)) if tells(kind) else Counter()
    )


async def test_bulk_writes_in_a_transaction_run_their_receivers_after_the_commit(place, kind, heard, foreign):
    Stock = make_stock(place)
    heard.connect(Stock, kind)
    await Stock.create_many([Stock(name="a"), Stock(name="b", left=0)])
    heard.told.clear()
    with quietly(kind):
        async with Stock.meta.registry.transaction():
            assert await Stock.objects.filter(left__gt=0).update_count(U.inc(left=-1)) == 1
            [stock] = await Stock.objects.filter(left__gt=0).update(name="c")
            assert (stock.name, stock.left) == ("c", 4)
            assert await Stock.objects.filter(left=0).delete() == 1
            assert heard.told == []
    assert [(row["name"], row["left"]) for row in foreign.stocks.find()] == [("c", 4)]
    assert [(stock.name, stock.left) for stock in heard.told] == (
        [("a", 4), ("c", 4), ("b", 0)] if tells(kind) else []
    )


async def test_a_receiver_sees_the_document_that_its_write_replaces(registry, database, foreign):
    """Another client changes the document while the receiver runs, so the ODM reads the document again."""
    Meta = type("Meta", (), {"registry": registry, "database": database})
    Stock = make_stock(Meta)
    await Stock.objects.create(name="a")
    seen = []

    async def describe(sender: Any, instance: Any, **kwargs: Any) -> None:
        seen.append(instance.left)
        if len(seen) < 4:
            foreign.stocks.update_one({}, {"$inc": {"left": 1}})
        instance.name = f"{instance.left} left"

    Stock.signals.pre_update.connect(describe)
    assert await Stock.objects.update_count(U.max(left=0)) == 1
    assert seen == [5, 6, 7, 8]
    row = foreign.stocks.find_one()
    assert (row["name"], row["left"]) == ("8 left", 8)


async def test_a_pre_receiver_that_always_changes_the_stored_document_is_an_error(registry, database, foreign):
    Stock = make_stock(type("Meta", (), {"registry": registry, "database": database}))
    await Stock.objects.create(name="a")

    async def count(sender: Any, instance: Any, **kwargs: Any) -> None:
        foreign.stocks.update_one({}, {"$inc": {"left": 1}})
        instance.name += "!"

    Stock.signals.pre_update.connect(count)
    with pytest.raises(WriteConflict, match="change the instance instead"):
        await Stock.objects.update_count(U.max(left=0))


async def test_receivers_see_the_stored_document(registry, database, foreign, heard):
    """Another client changes another field between the read and the write."""
    Stock = make_stock(type("Meta", (), {"registry": registry, "database": database}))
    heard.connect(Stock, "post")
    await Stock.objects.create(name="a")
    heard.told.clear()

    async def rename(sender: Any, instance: Any, **kwargs: Any) -> None:
        foreign.stocks.update_one({}, {"$set": {"name": "theirs"}})

    Stock.signals.pre_update.connect(rename)
    [stock] = await Stock.objects.update(left=1)
    assert (stock.name, stock.left) == ("theirs", 1)
    assert [(stock.name, stock.left) for stock in heard.told] == [("theirs", 1)]


async def test_a_duplicate_key_error_stops_at_the_same_document_with_and_without_receivers(
    place, kind, heard, foreign
):
    Stock = make_stock(place)
    heard.connect(Stock, kind)
    await Stock.create_many([Stock(name=name) for name in "abc"])
    foreign.stocks.create_index("name", unique=True)
    heard.told.clear()
    with quietly(kind), pytest.raises(DuplicateKeyError):
        await Stock.objects.update_count(name="x")
    assert sorted(row["name"] for row in foreign.stocks.find()) == ["b", "c", "x"]
    assert [stock.name for stock in heard.told] == (["x"] if tells(kind) else [])


@pytest.mark.parametrize("transaction", [False, True])
async def test_an_error_of_the_server_is_the_same_with_and_without_receivers(
    place, kind, heard, foreign, transaction
):
    Stock = make_stock(place)
    heard.connect(Stock, kind)
    foreign.stocks.insert_one({"name": "a", "left": "many"})
    foreign.stocks.insert_many([{"name": "b", "left": 5}, {"name": "c", "left": 5}])
    foreign.stocks.create_index("name", unique=True)

    async def write(*changes: Any, **values: Any) -> Any:
        with quietly(kind):
            if not transaction:
                return await Stock.objects.filter(name__in=["a", "b"]).update_count(*changes, **values)
            async with Stock.meta.registry.transaction():
                return await Stock.objects.filter(name__in=["a", "b"]).update_count(*changes, **values)

    assert await outcome(write(U.inc(left=1))) is WriteError
    assert await outcome(write(name="c")) is DuplicateKeyError
    assert heard.told == []


@pytest.mark.parametrize("kind", ["silent", "both", "alone"])
async def test_documents_are_returned_in_the_order_of_the_query(place, kind, heard, foreign):
    Stock = make_stock(place)
    heard.connect(Stock, kind)
    await Stock.create_many([Stock(name=name) for name in "bca"])

    async def move(sender: Any, instance: Any, **kwargs: Any) -> None:
        if heard.ran == 1:  # after the read of all documents
            foreign.stocks.update_one({"name": "c"}, {"$set": {"left": 7}})
        instance.left += 1

    if kind != "silent":
        Stock.signals.pre_update.connect(move)
    assert [stock.name for stock in await Stock.objects.sort("name", -1).update(left=1)] == ["c", "b", "a"]


async def test_an_error_of_a_receiver_does_not_stop_later_batches(registry, database, foreign):
    Stock = make_stock(type("Meta", (), {"registry": registry, "database": database}))
    foreign.stocks.insert_many([{"name": f"s{n}", "left": 5} for n in range(1001)])
    calls = 0

    async def fail(sender: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        raise ZeroDivisionError

    for name in ("save", "update", "delete"):
        getattr(Stock.signals, f"post_{name}").connect(fail)
    for write in (
        lambda: Stock.objects.filter(left=5).update_count(left=6),
        Stock.objects.delete,
        lambda: Stock.create_many([Stock() for _ in range(1001)]),
    ):
        calls = 0
        with pytest.raises(ExceptionGroup, match="receivers of 1001 Stock documents raised"):
            await write()
        assert calls == 1001
        assert foreign.stocks.count_documents({"left": 5}) in (0, 1001)


# -- creating ------------------------------------------------------------------------------------------


def make_item(Meta: Any) -> Any:
    class Base(mongoz.Document):
        id: int = mongoz.Integer(alias="_id")
        name: str = mongoz.String()
        tags: list[str] = mongoz.Array(str, default=list)

        class Meta:
            abstract = True

    return type("Item", (Base,), {"Meta": Meta, "__module__": __name__, "__qualname__": "Item"})


@pytest.mark.parametrize("transaction", [False, True])
async def test_of_two_instances_with_one_id_the_first_is_delivered(place, kind, heard, foreign, transaction):
    Item = make_item(place)
    foreign.items.insert_one({"_id": 9, "name": "there"})
    heard.connect(Item, kind)
    items = [Item(id=1, name="a"), Item(id=2, name="b"), Item(id=2, name="c"), Item(id=3, name="d")]

    async def create(models: list[Any]) -> None:
        with quietly(kind):
            if transaction:
                async with Item.meta.registry.transaction():
                    await Item.create_many(models)
            else:
                await Item.create_many(models)

    with pytest.raises(BulkWriteError) as caught:
        await create(items)
    assert caught.value.details["writeErrors"][0]["index"] == 2
    assert [row["name"] for row in foreign.items.find({"_id": {"$lt": 9}})] == ([] if transaction else ["a", "b"])
    assert [item.name for item in heard.told] == (["a", "b"] if tells(kind) and not transaction else [])
    heard.told.clear()
    with pytest.raises(BulkWriteError):
        await create([Item(id=9, name="here")])
    assert heard.told == []
    assert foreign.items.find_one({"_id": 9})["name"] == "there"


async def test_positions_in_an_error_count_from_the_first_instance_of_the_call(place, kind, heard, foreign):
    Item = make_item(place)
    heard.connect(Item, kind)
    items = [Item(id=n, name="a") for n in range(700)] + [Item(id=3, name="b")]
    with quietly(kind), pytest.raises(BulkWriteError) as caught:
        await Item.create_many(items)
    assert caught.value.details["nInserted"] == 700
    assert [error["index"] for error in caught.value.details["writeErrors"]] == [700]


async def test_one_invalid_instance_prevents_all_inserts(place, kind, heard, foreign):
    Item = make_item(place)
    heard.connect(Item, kind)
    items = [Item(id=n, name="a") for n in range(600)]
    items[-1].tags.append(3)
    with quietly(kind), pytest.raises(ValidationError):
        await Item.create_many(items)
    assert foreign.items.count_documents({}) == 0
    assert heard.told == []


# -- invalid documents ---------------------------------------------------------------------------------


async def test_invalid_stored_documents_are_written_and_delivered(place, kind, heard, foreign):
    Stock = make_stock(place)
    heard.connect(Stock, kind)
    foreign.stocks.insert_one({"name": 7, "left": "many"})
    with quietly(kind):
        assert await Stock.objects.update_count(name="x") == 1
        assert foreign.stocks.find_one()["name"] == "x"
        (updated,) = await Stock.objects.update(name="y")
        assert (updated.name, updated.left) == ("y", "many")
        assert foreign.stocks.find_one()["name"] == "y"
        assert await Stock.objects.delete() == 1
    assert [(stock.name, stock.left) for stock in heard.told] == (
        [("x", "many"), ("y", "many"), ("y", "many")] if tells(kind) else []
    )
    assert all(FIELD not in (stock.__pydantic_extra__ or {}) for stock in heard.told)


# -- limits of fields in operations ----------------------------------------------------------------------


class Box(mongoz.EmbeddedDocument):
    n: int = mongoz.Integer(minimum=0, default=5)


def even(value: int) -> int:
    assert value % 2 == 0, "must be even"
    return value


def make_limited(Meta: Any) -> Any:
    class Base(mongoz.Document):
        n: int = mongoz.Integer(minimum=0, maximum=10, default=5)
        maybe: Any = mongoz.Integer(minimum=0, null=True)
        price: Any = mongoz.Decimal(max_digits=3, decimal_places=1, minimum=0, default="5.0")
        tags: list[str] = mongoz.Array(str, max_length=2, default=list)
        box: Box = mongoz.Embed(Box, default=Box)
        positive: pydantic.PositiveInt | None = 5
        third: int = mongoz.Integer(multiple_of=3, default=3)
        even: int = mongoz.Integer(default=4)

        class Meta:
            abstract = True

        @field_validator("even")
        @classmethod
        def _even(cls, value: int) -> int:
            return even(value)

    return type("Limited", (Base,), {"Meta": Meta, "__module__": __name__, "__qualname__": "Limited"})


BEYOND = {
    "minimum": U.inc(n=-6),
    "maximum": U.inc(n=6),
    "a field that is not there": U.inc(maybe=-1),
    "decimal": U.inc(price=-6),
    "digits": U.inc(price=95),
    "too many": U.push("tags", "a", "b"),
    "too many new": U.add_to_set("tags", "a", "b"),
    "embedded": U.inc("box.n", -6),
    "annotated": U.inc(positive=-5),
    "multiple": U.inc(third=1),
    "a validator": U.inc(even=1),
}
WITHIN = {
    "minimum": U.inc(n=-5),
    "maximum": U.inc(n=5),
    "a field that is not there": U.inc(maybe=1),
    "decimal": U.inc(price=-5),
    "digits": U.inc(price=94),
    "just so many": U.push("tags", "a"),
    "so many new": U.add_to_set("tags", "z", "a"),
    "embedded": U.inc("box.n", -5),
    "annotated": U.inc(positive=-4),
    "multiple": U.inc(third=3),
    "a validator": U.inc(even=2),
}


@pytest.mark.parametrize("change", BEYOND.values(), ids=BEYOND)
async def test_an_operation_beyond_a_limit_writes_nothing(place, kind, heard, foreign, change):
    Limited = make_limited(place)
    one = await Limited.objects.create(tags=["z"])
    foreign.limiteds.update_many({}, {"$unset": {"maybe": ""}})
    heard.connect(Limited, kind)
    before = foreign.limiteds.find_one()
    dump = one.model_dump()
    with quietly(kind):
        for write in (
            lambda: one.update(change),
            lambda: Limited.objects.update_count(change),
            lambda: Limited.objects.update(change),
            lambda: Limited.objects.limit(1).update(change),
        ):
            with pytest.raises(ValidationError) as caught:
                await write()
            assert foreign.name in str(caught.value)
            assert repr(one.id) in str(caught.value)
            assert "nothing was written" in caught.value.__notes__[0]
    assert foreign.limiteds.find_one() == before
    assert one.model_dump() == dump
    assert heard.told == []


@pytest.mark.parametrize("change", WITHIN.values(), ids=WITHIN)
async def test_an_operation_up_to_a_limit_is_written(place, kind, heard, foreign, change):
    Limited = make_limited(place)
    one = await Limited.objects.create(tags=["z"])
    more = [await Limited.objects.create(tags=["z"]) for _ in range(2)]
    foreign.limiteds.update_many({}, {"$unset": {"maybe": ""}})
    heard.connect(Limited, kind)
    with quietly(kind):
        await one.update(change)
        assert await Limited.objects.filter(id=more[0].id).update_count(change) == 1
        [last] = await Limited.objects.filter(id=more[1].id).update(change)
    rows = [{k: v for k, v in row.items() if k not in ("_id", FIELD)} for row in foreign.limiteds.find()]
    assert rows[0] == rows[1] == rows[2]
    assert len(heard.told) == (3 if tells(kind) else 0)
    assert await Limited.objects.get(id=one.id) == one
    assert last.model_dump(exclude={"id"}) == one.model_dump(exclude={"id"})


@pytest.mark.parametrize("transactions", [True, False], ids=["", "without transactions"])
@pytest.mark.parametrize("order", [None, "n"], ids=["", "in an order"])
async def test_no_batch_is_written_if_a_document_of_a_later_batch_is_at_its_limit(
    place, kind, heard, foreign, transactions, order
):
    Limited = make_limited(place)
    heard.connect(Limited, kind)
    foreign.limiteds.insert_many([{"n": n} for n in (1, 1, 1, 1, 10)])
    query = Limited.objects.sort(order) if order else Limited.objects
    with (
        quietly(kind),
        mock.patch.object(selection, "BATCH", 2),
        contextlib.nullcontext() if transactions else without_transactions(),
    ):
        assert await outcome(query.update(U.inc(n=1))) is ValidationError
    assert [row["n"] for row in foreign.limiteds.find()] == [1, 1, 1, 1, 10]
    assert heard.told == []


async def test_a_foreign_write_before_the_load_is_no_error(place, kind, heard, foreign):
    """Without receivers `update` reads the ids, writes, and then loads the documents."""
    Limited = make_limited(place)
    heard.connect(Limited, kind)
    foreign.limiteds.insert_one({"positive": 5})
    load = Selection.rows

    async def later(self, ids):
        foreign.limiteds.update_one({}, {"$set": {"n": -1}})
        return await load(self, ids)

    with quietly(kind), mock.patch.object(Selection, "rows", later):
        (updated,) = await Limited.objects.update(n=3)
    assert updated.n == foreign.limiteds.find_one()["n"]


async def test_a_limited_counter_is_never_overdrawn(place, kind, heard, foreign):
    Limited = make_limited(place)
    one = await Limited.objects.create(tags=["z"])
    heard.connect(Limited, kind)

    async def take(number: int) -> Any:
        with quietly(kind):
            if number % 2:
                return await outcome(Limited.objects.update_count(U.inc(n=-1)))
            return type(await outcome((await Limited.objects.get(id=one.id)).update(U.inc(n=-1))))

    results = await asyncio.gather(*(take(number) for number in range(20)))
    assert foreign.limiteds.find_one()["n"] == 0
    assert len([result for result in results if result in (1, Limited)]) == 5
    assert sorted(one.n for one in heard.told) == (list(range(5)) if tells(kind) else [])


@pytest.mark.parametrize("write", ["update_count", "update", "delete"])
async def test_a_limit_applies_although_a_collation_makes_ids_equal(place, kind, heard, foreign, write):
    class Item(mongoz.Document):
        id: str
        n: int = 0

        Meta = place

    foreign.items.insert_many([{"_id": id_, "n": 0} for id_ in ("a", "A", "b")])
    heard.connect(Item, kind)
    query = Item.objects.filter(id="A").options(collation={"locale": "en", "strength": 2}).limit(1)
    with quietly(kind):
        done = await (query.delete() if write == "delete" else getattr(query, write)(n=1))
    assert (done if isinstance(done, int) else len(done)) == 1
    assert foreign.items.count_documents({"n": 0}) == 2
    assert len(heard.told) == (1 if tells(kind) else 0)


# -- validators of several fields ------------------------------------------------------------------------


def make_range(Meta: Any) -> Any:
    class Base(mongoz.Document):
        lo: int = mongoz.Integer(default=0)
        hi: int = mongoz.Integer(default=10)
        name: str = mongoz.String(default="r")

        class Meta:
            abstract = True

        @model_validator(mode="after")
        def _in_order(self) -> Any:
            if self.lo > self.hi:
                raise ValueError(f"{self.lo} is above {self.hi}")
            return self

    return type("Span", (Base,), {"Meta": Meta, "__module__": __name__, "__qualname__": "Span"})


async def test_values_refused_by_a_model_validator_are_never_stored(place, kind, heard, foreign):
    Span = make_range(place)
    span = await Span.objects.create()
    heard.connect(Span, kind)
    before = foreign.spans.find_one()
    with quietly(kind):
        for given in (((), {"lo": 11}), ((U.inc(lo=11),), {}), ((U.max(lo=11),), {}), ((U.min(hi=-1),), {})):
            for write in (
                span.update,
                Span.objects.update_count,
                Span.objects.update,
                Span.objects.limit(1).update_count,
                (await Span.objects.only("name").get()).update,
            ):
                with pytest.raises(ValidationError):
                    await write(*given[0], **given[1])
        part = await Span.objects.only("lo").get()
        part.lo = 11
        with pytest.raises(ValidationError):
            await part.save()
        assert foreign.spans.find_one() == before
        assert (span.lo, span.hi) == (0, 10)
        assert heard.told == []
        assert await Span.objects.update_count(lo=11, hi=12) == 1
        await span.update(lo=21, hi=22)
        await span.update(U.inc(lo=1))
        assert await Span.objects.update_count(U.inc(lo=1), U.inc(hi=5)) == 1
    row = foreign.spans.find_one()
    assert (row["lo"], row["hi"]) == (23, 27)
    assert (await Span.objects.get()).lo == 23


NESTED = {
    "max": U.max("part.lo", 11),
    "min": U.min("part.hi", -1),
    "unset": U.unset("part.hi"),
    "inc": U.inc("part.lo", 11),
}


@pytest.mark.parametrize("change", NESTED)
async def test_values_refused_by_the_validator_of_an_embedded_document_are_never_stored(
    place, kind, heard, foreign, change
):
    class Part(mongoz.EmbeddedDocument):
        lo: int = mongoz.Integer(default=0)
        hi: int = mongoz.Integer(default=-5)

        @model_validator(mode="after")
        def _in_order(self) -> Any:
            if self.lo > self.hi:
                raise ValueError(f"{self.lo} is above {self.hi}")
            return self

    class Whole(mongoz.Document):
        part: Part = mongoz.Embed(Part)

        Meta = place

    whole = await Whole.objects.create(part=Part(lo=0, hi=10))
    heard.connect(Whole, kind)
    before = foreign.wholes.find_one()
    with quietly(kind):
        for write in (whole.update, Whole.objects.update_count, Whole.objects.limit(1).update):
            with pytest.raises(ValidationError):
                await write(NESTED[change])
        assert foreign.wholes.find_one() == before
        assert heard.told == []
        assert await Whole.objects.update_count(U.max("part.lo", 9)) == 1
    assert (await Whole.objects.get()).part.lo == 9


async def test_a_model_validator_sees_the_document_that_the_write_replaces(place, kind, heard, foreign):
    Span = make_range(place)
    await Span.objects.create()
    heard.connect(Span, kind)

    async def move(number: int) -> Any:
        with quietly(kind):
            if number % 2:
                return await outcome(Span.objects.update_count(U.inc(lo=1)))
            return await outcome(Span.objects.update_count(U.inc(hi=-1)))

    results = await asyncio.gather(*(move(number) for number in range(20)))
    row = foreign.spans.find_one()
    assert row["lo"] == row["hi"]
    assert Counter(map(str, results))["1"] == 10
    assert len(heard.told) == (10 if tells(kind) else 0)


@pytest.mark.parametrize("mode", ["before", "after", "post_init"])
async def test_derived_values_of_a_model_are_stored_by_every_write(place, kind, heard, foreign, mode):
    class Base(mongoz.Document):
        a: int = mongoz.Integer(default=1)
        b: int = mongoz.Integer(default=0)
        name: str = mongoz.String(default="d")

        class Meta:
            abstract = True

    body: dict[str, Any] = {"Meta": place, "__module__": __name__, "__qualname__": "Derived"}
    if mode == "before":

        def _twice(cls: Any, values: Any) -> Any:
            return {**values, "b": 2 * values.get("a", 1)} if isinstance(values, dict) else values

        body["_twice"] = model_validator(mode="before")(classmethod(_twice))
    elif mode == "after":

        def _after(self: Any) -> Any:
            self.__dict__["b"] = 2 * self.a
            return self

        body["_after"] = model_validator(mode="after")(_after)
    else:

        def model_post_init(self: Any, context: Any) -> None:
            self.__dict__["b"] = 2 * self.a

        body["model_post_init"] = model_post_init
    Derived = type("Derived", (Base,), body)
    one = await Derived.objects.create(a=2)
    heard.connect(Derived, kind)

    def stored() -> tuple[int, int]:
        row = foreign.deriveds.find_one()
        return row["a"], row["b"]

    assert stored() == (2, 4)
    with quietly(kind):
        await one.update(a=6)
        assert (stored(), one.a, one.b) == ((6, 12), 6, 12)
        await one.update(U.inc(a=1))
        assert (stored(), one.a, one.b) == ((7, 14), 7, 14)
        assert await Derived.objects.update_count(a=8) == 1
        assert stored() == (8, 16)
        [other] = await Derived.objects.update(U.inc(a=1))
        assert (stored(), other.a, other.b) == ((9, 18), 9, 18)
        other.a = 10
        await other.save()
        assert (stored(), other.a, other.b) == ((10, 20), 10, 20)
        part = await Derived.objects.only("name").get()
        await part.update(a=11)
        assert stored() == (11, 22)
        part.a = 12
        await part.save()
        assert stored() == (12, 24)
        await other.update(name="x")
    assert len(heard.told) == (8 if tells(kind) else 0)
    assert all(one.b == 2 * one.a for one in heard.told if "b" in one.__dict__)


async def test_a_field_validator_may_read_another_field(place, kind, heard, foreign):
    class Base(mongoz.Document):
        a: int = mongoz.Integer(default=1)
        b: int = mongoz.Integer(default=2)

        class Meta:
            abstract = True

        @field_validator("b")
        @classmethod
        def _above(cls, value: int, info: Any) -> int:
            assert value > info.data["a"], "b must be above a"
            return value

    Pair = type("Pair", (Base,), {"Meta": place, "__module__": __name__, "__qualname__": "Pair"})
    pair = await Pair.objects.create()
    heard.connect(Pair, kind)
    with quietly(kind):
        for write in (pair.update, Pair.objects.update_count):
            for values in ({"b": 1}, {"a": 3}):
                with pytest.raises(ValidationError):
                    await write(**values)
            await write(b=3)
    assert foreign.pairs.find_one()["b"] == 3
    assert len(heard.told) == (2 if tells(kind) else 0)


# -- deleted documents ---------------------------------------------------------------------------------


async def test_a_write_to_a_deleted_document_is_an_error(place, kind, heard, foreign):
    Stock = make_stock(place)
    one = await Stock.objects.create()
    heard.connect(Stock, kind)
    foreign.stocks.delete_many({})
    with quietly(kind):
        one.name = "x"
        for write in (one.save, one.delete, lambda: one.update(name="y"), lambda: one.update(U.inc(left=1))):
            with pytest.raises(DocumentNotFound):
                await write()
        assert await Stock.objects.update_count(name="y") == 0
        assert await Stock.objects.update(name="y") == []
        assert await Stock.objects.delete() == 0
    assert heard.told == []


async def test_a_write_leaves_nothing_to_the_garbage_collector(place, kind, heard):
    Item = make_item(place)
    heard.connect(Item, kind)
    await Item(id=1, name="opens the connection").create()
    item = Item(id=2, name="a")
    gc.collect()
    gc.disable()
    try:
        before = finished()
        with quietly(kind):
            await item.create()
        await asyncio.sleep(0)  # the callback that wakes this task refers to the finished task
        left = [one for one in finished() if all(one is not other for other in before)]
    finally:
        gc.enable()
    assert left == []


def finished() -> list[object]:
    """All tasks that are done, and all `Link` objects of chains of signals."""
    return [one for one in gc.get_objects() if type(one) is Link or (type(one) is asyncio.Task and one.done())]
