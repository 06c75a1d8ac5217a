"""Queries on a real server: lookups, expressions, builders, terminals, and literal values."""

import datetime
from typing import Any

import bson
import pytest

import mongoz
from mongoz.exceptions import (
    DocumentNotFound,
    InvalidKeyError,
    MultipleDocumentsReturned,
    OperatorInvalid,
)
from mongoz.queries import Manager, Order, QuerySet, SortExpression


class City(mongoz.EmbeddedDocument):
    name: str = mongoz.String(alias="n")
    size: int = mongoz.Integer(default=0)


class Address(mongoz.EmbeddedDocument):
    city: City = mongoz.Embed(City)
    street: str = mongoz.String(default="")


def make(registry: mongoz.Registry, database: str) -> Any:
    options = {"registry": registry, "database": database}

    class User(mongoz.Document):
        name: str = mongoz.String()
        age: int = mongoz.Integer(null=True)
        born: datetime.date = mongoz.Date(null=True)
        address: Any = mongoz.Embed(Address, null=True)
        homes: list[Address] = mongoz.Array(Address, default=list)
        payload: Any = mongoz.Object(null=True)
        family: str = mongoz.String(null=True, alias="last_name")

        Meta = type("Meta", (), options)

    return User


def user(name: str, age: int | None, city: str = "Bonn") -> dict[str, Any]:
    address = Address(city=City(name=city, size=age or 0))
    born = datetime.date(2000, 1, age or 31)
    return {"name": name, "age": age, "address": address, "homes": [address], "born": born, "family": name.upper()}


@pytest.fixture
async def User(registry: mongoz.Registry, database: str) -> Any:
    made = make(registry, database)
    for values in (user("Ada", 1), user("Bob", 2, "Berlin"), user("Cyd", 3), user("Dan", None, "Rome")):
        await made.objects.create(**values)  # in sequence, so their ids have this order
    return made


async def names(query: Any) -> str:
    """The initials of the found users, in order."""
    return "".join(found.name[0] for found in await query)


# -- lookups -----------------------------------------------------------------------------------------

LOOKUPS: list[tuple[dict[str, Any], str]] = [
    ({"name": "Bob"}, "B"),
    ({"name__exact": "Bob"}, "B"),
    ({"name__neq": "Bob"}, "ACD"),
    ({"name__in": ["Ada", "Dan", "Eve"]}, "AD"),
    ({"name__in": ()}, ""),
    ({"name__not_in": ("Ada", "Dan")}, "BC"),
    ({"age__gt": 2}, "C"),
    ({"age__gte": 2}, "BC"),
    ({"age__lt": 2}, "A"),
    ({"age__lte": 2}, "AB"),
    ({"age": None}, "D"),
    ({"age__neq": None}, "ABC"),
    ({"age__gte": 2, "name__neq": "Bob"}, "C"),
    ({"born": datetime.date(2000, 1, 2)}, "B"),
    ({"born__lte": datetime.date(2000, 1, 2)}, "AB"),
    ({"family": "BOB"}, "B"),
    ({"last_name": "BOB"}, "B"),
    ({"address.city.name": "Bonn"}, "AC"),
    ({"address.city.n": "Bonn"}, "AC"),
    ({"address.city.size__gte": 2}, "BC"),
    ({"homes.city.name": "Rome"}, "D"),
    ({"homes.0.city.name": "Rome"}, "D"),
    ({"address": Address(city=City(name="Berlin", size=2))}, "B"),
    ({"payload.any.thing": None}, "ABCD"),
    ({"_id": 3}, ""),
    ({"pk": "no ObjectId"}, ""),
    ({"id__in": [3, None, "x"]}, ""),
    ({}, "ABCD"),
]


async def test_each_lookup_finds_the_matching_documents(User: Any) -> None:
    for lookups, found in LOOKUPS:
        assert await names(User.objects.filter(**lookups).sort("name")) == found, lookups
        assert await names(User.query.filter(**lookups).sort("name")) == found, lookups
        assert await User.objects.filter(**lookups).count() == len(found), lookups
        assert await User.objects.exists(**lookups) is bool(found), lookups
        assert len(await User.objects.all(**lookups)) == len(found), lookups


@pytest.mark.parametrize("spelling", ["id", "_id", "pk"])
async def test_an_id_may_be_given_as_a_hexadecimal_string(User: Any, spelling: str) -> None:
    bob = await User.objects.get(name="Bob")
    for value in (bob.id, str(bob.id), mongoz.ObjectId(bob.id)):
        assert await User.objects.get(**{spelling: value}) == bob
        assert await names(User.objects.filter(**{f"{spelling}__in": [value]})) == "B"
        assert await names(User.objects.filter(**{f"{spelling}__neq": value}).sort("name")) == "ACD"
        assert await User.query(User.id == value).get() == bob


@pytest.mark.parametrize("value", ["Ada", 5, None, {"a"}, iter([]), {"$gt": ""}])
@pytest.mark.parametrize("lookup", ["name__in", "name__not_in", "id__in"])
def test_in_accepts_only_lists_and_tuples(registry: mongoz.Registry, lookup: str, value: Any) -> None:
    User = make(registry, "never_connected")
    with pytest.raises(AssertionError) as caught:
        User.objects.filter(**{lookup: value})
    assert isinstance(caught.value, OperatorInvalid)


@pytest.mark.parametrize(
    ("lookups", "error", "hint"),
    [
        ({"nmae": "x"}, InvalidKeyError, "'name'"),
        ({"address.ctiy": "x"}, InvalidKeyError, "'city'"),
        ({"$where": "true"}, InvalidKeyError, "where"),
        ({"name__gtt": "x"}, OperatorInvalid, "'gt'"),
        ({"age__unknown": "x"}, OperatorInvalid, "exact, exists, gt, gte"),
        ({"age__": 1}, OperatorInvalid, "exact, exists"),
    ],
)
def test_the_error_for_an_unknown_name_has_a_hint(
    registry: mongoz.Registry, lookups: Any, error: type[Exception], hint: str
) -> None:
    User = make(registry, "never_connected")
    with pytest.raises(error) as caught:
        User.objects.filter(**lookups)
    assert hint in str(caught.value)


# -- literal values ---------------------------------------------------------------------------------

HOSTILE: list[dict[str, Any]] = [
    {"$gt": ""},
    {"$ne": None},
    {"$exists": True},
    {"$regex": ".*"},
    {"$in": ["Ada"]},
    {"$not": {"$eq": 1}},
    {"$where": "true"},
    {"$expr": True},
    {"$or": [{}]},
    {"$gt": "", "name": 1},
    {"a": {"$gt": ""}},
    {},
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: next(iter(hostile), "empty"))
async def test_a_dict_value_is_not_an_operator(User: Any, hostile: dict[str, Any]) -> None:
    for field in ("name", "age", "payload", "payload.key", "address.city.name", "id", "pk"):
        await expect_nothing_found(User, field, hostile)


async def expect_nothing_found(User: Any, field: str, hostile: dict[str, Any]) -> None:
    assert await User.objects.filter(**{field: hostile}).count() == 0
    for lookup in ("exact", "gt", "gte", "lt", "lte"):
        assert await User.objects.filter(**{f"{field}__{lookup}": hostile}).count() == 0, lookup
    assert await User.objects.filter(**{f"{field}__neq": hostile}).count() == 4
    assert await User.objects.filter(**{f"{field}__in": [hostile]}).count() == 0
    assert await User.objects.filter(**{f"{field}__not_in": [hostile]}).count() == 4
    assert await User.objects.get_or_none(**{field: hostile}) is None
    assert not await User.objects.exists(**{field: hostile})
    if "." not in field and field != "pk":
        proxy = getattr(User, field)
        for expression in (proxy == hostile, proxy > hostile, proxy >= hostile, proxy < hostile, proxy <= hostile):
            assert await User.query(expression).count() == 0, expression


async def test_a_dict_is_found_where_it_is_stored(User: Any, foreign: Any) -> None:
    for hostile in HOSTILE:
        foreign.users.insert_one({"name": "Mal", "payload": hostile})
        assert await names(User.objects.filter(payload=hostile)) == "M"
        assert await names(User.query(User.payload == hostile)) == "M"
        assert await names(User.objects.filter(payload__in=[hostile, 1])) == "M"
        assert await names(User.objects.filter(payload__not_in=[hostile]).sort("name")) == "ABCD"
        foreign.users.delete_one({"name": "Mal"})


# -- expressions -------------------------------------------------------------------------------------


async def test_each_field_expression_finds_the_matching_documents(User: Any) -> None:
    cases = [
        (User.age >= 3, "C"), (User.age > 1, "BC"), (User.age < 2, "A"), (User.age <= 2, "AB"),
        (User.name == "Bob", "B"), (User.name != "Bob", "ACD"), (User.age == None, "D"),  # noqa: E711 - a condition
        (User.address.city.name == "Bonn", "AC"), (User.address.city.size > 1, "BC"),
        (User.homes.city.name == "Rome", "D"), (User.family == "BOB", "B"),
        ({"age": {"$gte": 2}}, "BC"), ({User.age: {"$gte": 2}}, "BC"), ({User.address.city.name: "Rome"}, "D"),
    ]  # fmt: skip
    for condition, found in cases:
        assert await names(User.query(condition).sort("name")) == found, condition
        assert await names(User.objects.query(condition).sort("name")) == found, condition
    assert await names(User.query(User.age > 1, {"name": "Bob"})) == "B"
    assert await names(User.query(User.age > 1).query(User.age < 3)) == "B", "the conditions of all calls hold"
    assert await names(User.query(User.age > 1)(User.age < 3).filter(age__neq=2)) == ""


async def test_an_expression_has_no_truth_value(User: Any) -> None:
    with pytest.raises(TypeError, match="has no truth value"):
        bool(User.age == 3)
    with pytest.raises(InvalidKeyError, match="None"):
        User.age > None  # noqa: B015 - refused when it is made
    with pytest.raises(InvalidKeyError, match="'city'"):
        User.address.ctiy  # noqa: B018 - reading it is the test
    with pytest.raises(AttributeError):
        User.nope  # noqa: B018
    with pytest.raises(InvalidKeyError, match="expressions and dicts"):
        User.query("age > 3")
    assert hash(User.age) == hash(User.age) != hash(User.name)


# -- builders ----------------------------------------------------------------------------------------


async def test_documents_come_in_the_order_of_all_sort_keys(User: Any) -> None:
    cases = [
        (User.objects.sort("age", Order.DESCENDING), "CBAD"),
        (User.objects.sort("age"), "DABC"),
        (User.objects.sort(User.age, -1), "CBAD"),
        (User.objects.sort(SortExpression("age", -1)), "CBAD"),
        (User.objects.sort([("address.city.name", 1), ("name", -1)]), "BCAD"),
        (User.objects.sort([(User.address.city.name, 1), SortExpression(User.name, -1)]), "BCAD"),
        (User.objects.sort("address.city.name").sort("name", -1), "BCAD"),
        (User.objects.sort(name__desc=True), "DCBA"),
        (User.objects.sort(last_name__asc=True), "ABCD"),
        (User.objects.sort("pk", -1), "DCBA"),
    ]
    for query, found in cases:
        assert await names(query) == found, query


@pytest.mark.parametrize(
    ("arguments", "lookups"), [(("nope",), {}), (("age", 2), {}), ((), {"age": True}), ((), {"nope__asc": 1})]
)
def test_invalid_sort_keys_are_refused(registry: mongoz.Registry, arguments: Any, lookups: Any) -> None:
    User = make(registry, "never_connected")
    with pytest.raises(InvalidKeyError):
        User.objects.sort(*arguments, **lookups)


async def test_limit_and_skip_apply_to_every_terminal(User: Any) -> None:
    ordered = User.objects.sort("name")
    assert await names(ordered.limit(2)) == "AB"
    assert await names(ordered.skip(1).limit(2)) == "BC"
    assert await names(ordered.skip(9)) == ""
    assert await names(ordered.limit(0)) == "ABCD"
    assert await ordered.skip(1).limit(2).count() == 2
    assert await ordered.skip(3).count() == 1
    assert (await ordered.skip(2).first()).name == "Cyd"
    assert (await ordered.skip(3).get()).name == "Dan", "get respects skip"
    assert await ordered.skip(4).get_or_none() is None
    assert not await ordered.skip(4).exists()
    for builder in (ordered.limit, ordered.skip):
        for wrong in (-1, 1.5, "1", None):
            with pytest.raises(ValueError, match="int of at least 0"):
                builder(wrong)


async def test_a_builder_does_not_change_its_query(User: Any) -> None:
    base = User.objects.filter(age__gte=1)
    before = repr(base), base._plan
    derived = [
        base.filter(name="Ada"), base.query(User.age > 1), base.sort("name"), base.limit(1), base.skip(1),
    ]  # fmt: skip
    assert (repr(base), base._plan) == before
    assert all(query is not base for query in derived)
    assert await base.count() == 3
    assert [await query.count() for query in derived] == [1, 2, 3, 1, 2]


async def test_objects_and_query_are_two_spellings_of_the_same_query(User: Any) -> None:
    assert isinstance(User.objects, Manager)
    assert isinstance(User.query, QuerySet)
    assert isinstance(User.query(), QuerySet)
    assert isinstance(User.query(User.age > 1).sort("age"), QuerySet)
    assert isinstance(User.objects.filter(), Manager)
    ada = await User.query.get(name="Ada")
    assert await names(ada.objects.sort("name")) == await names(ada.query().sort("name")) == "ABCD"
    assert (await User.query.create(name="Eve")).id
    assert User.objects._collection is User.meta.collection._collection


# -- terminals ---------------------------------------------------------------------------------------


async def test_first_get_and_all_return_instances_and_get_raises_unless_it_finds_exactly_one(User: Any) -> None:
    assert (await User.objects.sort("name").first()).name == "Ada"
    assert await User.objects.filter(name="Eve").first() is None
    assert (await User.objects.get(name="Bob")).age == 2
    assert await User.objects.get_or_none(name="Eve") is None
    assert len(await User.objects) == len(await User.query) == len(await User.objects.all()) == 4
    assert [type(found) for found in await User.objects.limit(1)] == [User]
    with pytest.raises(DocumentNotFound, match=r"User.*Eve"):
        await User.objects.get(name="Eve")
    with pytest.raises(DocumentNotFound):
        await User.objects.get_document_by_id(bson.ObjectId())
    for get in (User.objects.get, User.objects.get_or_none):
        with pytest.raises(MultipleDocumentsReturned, match="User"):
            await get(age__gte=1)


async def test_streaming_keeps_the_whole_state_of_the_query(
    mongo: Any, database: str, driver: str, User: Any
) -> None:
    async with mongoz.Registry(mongo.url, driver=driver) as registry:
        streamed = make(registry, database)
        query = streamed.objects.filter(age__neq=2).sort("name", -1).skip(1).limit(2)
        assert "".join([found.name[0] async for found in query]) == "CA"
        assert "".join([found.name[0] async for found in query]) == "CA", "a query can run again"
        async for found in streamed.query().sort("name"):
            assert found.name == "Ada"
            break
        assert await names(query) == "CA"
        assert await query.count() == 2
        assert (await query.first()).name == "Cyd"
