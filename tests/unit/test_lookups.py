"""Keyword filters compile to queries, without a server."""

import datetime
import re
from typing import Any

import bson
import pytest

import mongoz
from mongoz import settings
from mongoz.exceptions import (
    AbstractDocumentError,
    FieldDefinitionError,
    ImproperlyConfigured,
    InvalidKeyError,
    MongozException,
    OperatorInvalid,
)
from mongoz.model.joins import Join
from mongoz.queries.lookups import CompiledLookups, compile_lookups
from mongoz.queries.pipelines import attachment_stages, pipeline
from mongoz.queries.plan import Plan

OID = bson.ObjectId("65f0c0ffee0123456789abcd")
DAY, NEXT = datetime.datetime(2024, 2, 29), datetime.datetime(2024, 3, 1)
registry = mongoz.Registry("mongodb://never.connected")


class Base(mongoz.Document):
    class Meta:
        abstract = True
        registry = registry
        database = "unit"


class Country(Base):
    name: str = mongoz.String()
    people: int = mongoz.Integer(null=True)


class Studio(Base):
    name: str = mongoz.String(alias="n")
    tags: list[str] = mongoz.Array(str, default=list)
    country: Any = mongoz.ForeignKey(Country, null=True)

    class Meta:
        collection = "companies"


class Stay(mongoz.EmbeddedDocument):
    since: datetime.datetime = mongoz.DateTime()
    days: Any = mongoz.Array(datetime.datetime, default=list)


class Place(mongoz.EmbeddedDocument):
    city: str = mongoz.String(alias="c")
    date: str = mongoz.String(default="")
    stays: list[Stay] = mongoz.Array(Stay, default=list)
    owner: Any = mongoz.ForeignKey(Studio, null=True)


class Movie(Base):
    name: str = mongoz.String()
    year: int = mongoz.Integer(null=True)
    price: Any = mongoz.Decimal(max_digits=5, decimal_places=2, null=True)
    made: datetime.datetime = mongoz.DateTime(null=True)
    shown: datetime.date = mongoz.Date(null=True)
    days: Any = mongoz.Array(datetime.date, default=list)
    place: Any = mongoz.Embed(Place, null=True)
    places: list[Place] = mongoz.Array(Place, default=list)
    payload: Any = mongoz.Object(null=True)
    class_: str = mongoz.String(default="", alias="class")
    a__gt: int = mongoz.Integer(default=0)
    producer: Any = mongoz.ForeignKey(Studio, null=True)
    distributor: Any = mongoz.ForeignKey(f"{__name__}.Studio", null=True, alias="dist")


PRODUCER = Join("producer", Studio, "companies")
DISTRIBUTOR = Join("dist", Studio, "companies")


def one(**lookups: Any) -> Any:
    """The only condition of a filter that neither joins nor sorts."""
    compiled = compile_lookups(Movie, lookups)
    assert not compiled.joins
    assert not compiled.order
    (condition,) = compiled.conditions
    return condition


# -- the table ---------------------------------------------------------------------------------------

TABLE: list[tuple[str, Any, dict[str, Any]]] = [
    ("name", "x", {"name": {"$eq": "x"}}),
    ("name__exact", "x", {"name": {"$eq": "x"}}),
    ("name__neq", "x", {"name": {"$ne": "x"}}),
    ("name__not", "x", {"name": {"$ne": "x"}}),
    ("name__not", None, {"name": {"$ne": None}}),
    ("name__in", ["x"], {"name": {"$in": ["x"]}}),
    ("name__not_in", ("x",), {"name": {"$nin": ["x"]}}),
    ("name__contains", "x.", {"name": {"$regex": r"x\."}}),
    ("name__icontains", "x", {"name": {"$regex": "x", "$options": "i"}}),
    ("name__startswith", "x", {"name": {"$regex": "^x"}}),
    ("name__istartswith", "x", {"name": {"$regex": "^x", "$options": "i"}}),
    ("name__endswith", "x", {"name": {"$regex": r"x\z"}}),
    ("name__iendswith", "x", {"name": {"$regex": r"x\z", "$options": "i"}}),
    ("name__pattern", "x.*", {"name": {"$regex": "x.*"}}),
    ("name__pattern", re.compile("x", re.M), {"name": {"$regex": "x", "$options": "m"}}),
    ("name__exists", False, {"name": {"$exists": False}}),
    ("year__gt", 1, {"year": {"$gt": 1}}),
    ("year__gte", 1, {"year": {"$gte": 1}}),
    ("year__lt", 1, {"year": {"$lt": 1}}),
    ("year__lte", 1, {"year": {"$lte": 1}}),
    ("price", 10.1, {"price": {"$eq": bson.Decimal128("10.1")}}),
    ("price__gt", "10.1", {"price": {"$gt": bson.Decimal128("10.1")}}),
    ("price__in", [1, 1.5, "x"], {"price": {"$in": [1, bson.Decimal128("1.5"), "x"]}}),
    ("made__date", datetime.date(2024, 2, 29), {"made": {"$gte": DAY, "$lt": NEXT}}),
    ("made__date", datetime.datetime(2024, 2, 29, 23, 59), {"made": {"$gte": DAY, "$lt": NEXT}}),
    ("made__date", "2024-02-29", {"made": {"$gte": DAY, "$lt": NEXT}}),
    ("made__date", "2024-02-29T12:00:00+00:00", {"made": {"$gte": DAY, "$lt": NEXT}}),
    ("made__date", "2024-03-01T01:00:00+02:00", {"made": {"$gte": DAY, "$lt": NEXT}}),
    ("shown__date", "2024-02-29", {"shown": {"$gte": DAY, "$lt": NEXT}}),
    ("days__date", "2024-02-29", {"days": {"$elemMatch": {"$gte": DAY, "$lt": NEXT}}}),
    ("days.0__date", "2024-02-29", {"days.0": {"$gte": DAY, "$lt": NEXT}}),
    ("payload.day__date", "2024-02-29", {"payload.day": {"$gte": DAY, "$lt": NEXT}}),
    ("places.stays.since__date", "2024-02-29",
     {"places.stays": {"$elemMatch": {"since": {"$gte": DAY, "$lt": NEXT}}}}),
    ("places.stays.0.since__date", "2024-02-29",
     {"places": {"$elemMatch": {"stays.0.since": {"$gte": DAY, "$lt": NEXT}}}}),
    ("places.0.stays.0.days__date", "2024-02-29",
     {"places.0.stays.0.days": {"$elemMatch": {"$gte": DAY, "$lt": NEXT}}}),
    ("made__date", datetime.date.max, {"made": {"$gte": datetime.datetime(9999, 12, 31)}}),
    ("id", str(OID), {"_id": {"$eq": OID}}),
    ("_id__in", [str(OID)], {"_id": {"$in": [OID]}}),
    ("pk__not", OID, {"_id": {"$ne": OID}}),
    ("id", 3, {"_id": {"$eq": 3}}),
]  # fmt: skip


@pytest.mark.parametrize(("keyword", "value", "condition"), TABLE, ids=lambda value: str(value)[:30])
def test_a_lookup_compiles_to_its_condition(keyword: str, value: Any, condition: Any) -> None:
    assert one(**{keyword: value}) == condition


def test_the_table_has_all_lookups() -> None:
    tested = {keyword.rpartition("__")[2] for keyword, *_ in TABLE}
    assert set(settings.filter_operators) <= tested | {"asc", "desc", "where"}


def test_several_lookups_are_several_conditions() -> None:
    assert compile_lookups(Movie, {}) == CompiledLookups()
    compiled = compile_lookups(Movie, {"name": "x", "year__gt": 1, "year__lt": 3})
    assert compiled.conditions == ({"name": {"$eq": "x"}}, {"year": {"$gt": 1}}, {"year": {"$lt": 3}})


def test_asc_and_desc_only_sort() -> None:
    compiled = compile_lookups(Movie, {"class___desc": True, "place__city__asc": True, "id__desc": 1})
    assert compiled == CompiledLookups(order=(("class", -1), ("place.c", 1), ("_id", -1)))
    assert compile_lookups(Movie, {"name__asc": False}) == CompiledLookups()


# -- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "condition"),
    [
        ("place.city", {"place.c": {"$eq": 1}}),
        ("place__city", {"place.c": {"$eq": 1}}),
        ("place__c", {"place.c": {"$eq": 1}}),
        ("place__city__gt", {"place.c": {"$gt": 1}}),
        ("place.city__gt", {"place.c": {"$gt": 1}}),
        ("places__0__city", {"places.0.c": {"$eq": 1}}),
        ("places.0.stays.1.since__gt", {"places.0.stays.1.since": {"$gt": 1}}),
        ("places__stays__since__gt", {"places.stays.since": {"$gt": 1}}),
        ("place__date", {"place.date": {"$eq": 1}}),  # a field takes precedence over a lookup of the same name
        ("payload.a.b.c", {"payload.a.b.c": {"$eq": 1}}),
        ("payload.a.b.c__gt", {"payload.a.b.c": {"$gt": 1}}),
        ("payload.a__b__exact", {"payload.a__b": {"$eq": 1}}),
        ("payload.__a", {"payload.__a": {"$eq": 1}}),
        ("class_", {"class": {"$eq": 1}}),
        ("class___gt", {"class": {"$gt": 1}}),
        ("class__gt", {"class": {"$gt": 1}}),
        ("a__gt", {"a__gt": {"$eq": 1}}),
        ("a__gt__gt", {"a__gt": {"$gt": 1}}),
        ("producer", {"producer": {"$eq": 1}}),
        ("producer__id", {"producer": {"$eq": 1}}),
        ("producer___id", {"producer": {"$eq": 1}}),
        ("producer__pk__gt", {"producer": {"$gt": 1}}),
        ("producer__gt", {"producer": {"$gt": 1}}),
        ("place__owner__id__exact", {"place.owner": {"$eq": 1}}),
    ],
)
def test_field_names_and_lookups_are_distinguished(keyword: str, condition: Any) -> None:
    assert one(**{keyword: 1}) == condition


@pytest.mark.parametrize(
    ("keyword", "error", "hint"),
    [
        ("nmae", InvalidKeyError, "'name'"),
        ("nmae__gt", InvalidKeyError, "'name'"),
        ("place.ctiy", InvalidKeyError, "'city'"),
        ("place__ctiy", InvalidKeyError, "'city'"),
        ("place__ctiy", OperatorInvalid, "startswith"),
        ("place.city.x", InvalidKeyError, "place.city.x"),
        ("producer__tagz", InvalidKeyError, "'tags'"),
        ("producer.tagz", InvalidKeyError, "'tags'"),
        ("name__startwith", OperatorInvalid, "'startswith'"),
        ("name__", OperatorInvalid, "startswith"),
        ("name__gt__lt", OperatorInvalid, "'gt__lt'"),
        ("payload__key", OperatorInvalid, "exact"),
        ("payload.key__foo", OperatorInvalid, "exact"),
        ("places__x__city", InvalidKeyError, "'x__city'"),
        ("$where", InvalidKeyError, "where"),
    ],
)
def test_the_error_for_an_unknown_name_has_a_hint(keyword: str, error: Any, hint: str) -> None:
    with pytest.raises(error) as caught:
        compile_lookups(Movie, {keyword: 1})
    assert hint in str(caught.value)


def test_an_unknown_field_is_distinguished_from_an_unknown_lookup() -> None:
    with pytest.raises(InvalidKeyError) as caught:
        compile_lookups(Movie, {"stock__gte": 1})
    assert str(caught.value).startswith("Movie has no field 'stock' (in 'stock__gte'). There are: ")
    assert str(caught.value).endswith("For a key that is stored but not declared, use query({name: ...}).")
    with pytest.raises(InvalidKeyError, match=r"^Movie has no field 'nmae'\. Did you mean 'name'\?$"):
        compile_lookups(Movie, {"nmae": 1})


def test_the_error_for_an_unknown_lookup_names_all_valid_lookups() -> None:
    with pytest.raises(OperatorInvalid) as caught:
        compile_lookups(Movie, {"name__nope": 1})
    for name in settings.filter_operators:
        assert name in str(caught.value)


def test_keywords_accept_javascript_only_if_the_settings_allow_it(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"'name__where' of Movie would run JavaScript .* allow_javascript=True .* where\('\.\.\.'\)"
    for value in ("sleep(1500) || true", bson.Code("true"), {"$code": "x"}, 3):
        with pytest.raises(OperatorInvalid, match=said):
            compile_lookups(Movie, {"name__where": value})
    with monkeypatch.context() as patched:
        patched.setattr(mongoz.settings, "filter_operators", {"js": "$where"}, raising=False)
        with pytest.raises(OperatorInvalid, match="allow_javascript"):
            compile_lookups(Movie, {"name__js": "true"})
    request.getfixturevalue("javascript_allowed")
    assert compile_lookups(Movie, {"name__where": "this.name"}).conditions == ({"$where": "this.name"},)
    for wrong in ({"$code": "x"}, 3):
        with pytest.raises(OperatorInvalid):
            compile_lookups(Movie, {"name__where": wrong})


# -- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "value", "error"),
    [
        ("name__in", "x", AssertionError), ("id__in", None, AssertionError), ("id__not_in", {"x"}, AssertionError),
        ("year__gt", None, OperatorInvalid), ("year__lte", None, InvalidKeyError),
        ("year__gte", re.compile("x"), OperatorInvalid), ("name__exists", 1, OperatorInvalid),
        ("name__exists", None, OperatorInvalid), ("name__where", 3, OperatorInvalid),
        ("name__where", {"$code": "x"}, OperatorInvalid), ("name__contains", 3, OperatorInvalid),
        ("name__startswith", None, OperatorInvalid), ("year__endswith", 3, OperatorInvalid),
        ("name__pattern", 3, OperatorInvalid), ("name__pattern", re.compile(b"x"), OperatorInvalid),
        ("year__pattern", "x", FieldDefinitionError), ("name__date", "2024-01-01", FieldDefinitionError),
        ("made__date", None, OperatorInvalid), ("made__date", "yesterday", OperatorInvalid),
        ("made__date", 20240101, OperatorInvalid), ("producer", Studio(n="unsaved"), OperatorInvalid),
        ("made__date", datetime.datetime.min.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
         OperatorInvalid),
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind_are_refused(keyword: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        compile_lookups(Movie, {keyword: value})
    assert isinstance(caught.value, MongozException)


def test_references_are_compared_by_id() -> None:
    studio = Studio(id=OID, n="x")
    for value in (OID, str(OID), studio, mongoz.ObjectId(OID)):
        for keyword in ("producer", "producer__exact", "producer__id", "producer__contains"):
            assert one(**{keyword: value}) == {"producer": {"$eq": OID}}
        assert one(producer__in=[value]) == {"producer": {"$in": [OID]}}
        assert one(distributor__not=value) == {"dist": {"$ne": OID}}
        assert one(place__owner=value) == {"place.owner": {"$eq": OID}}
    assert one(producer=None) == {"producer": {"$eq": None}}


def test_a_condition_shares_nothing_with_the_value() -> None:
    value: dict[str, Any] = {"a": [1]}
    condition = one(payload=value)
    value["a"].append(2)
    assert condition == {"payload": {"$eq": {"a": [1]}}}


# -- joins -------------------------------------------------------------------------------------------


def test_a_filter_by_a_field_of_a_reference_makes_a_join() -> None:
    slot = "_joined_producer"
    assert compile_lookups(Movie, {"producer__name": "x"}) == CompiledLookups(
        ({slot: {"$elemMatch": {"n": {"$eq": "x"}}}},), (PRODUCER,)
    )
    assert compile_lookups(
        Movie, {"producer__name__icontains": "x", "producer__tags__in": ["y"], "name": "z"}
    ) == (
        (
            {slot: {"$elemMatch": {"n": {"$regex": "x", "$options": "i"}}}},
            {slot: {"$elemMatch": {"tags": {"$in": ["y"]}}}},
            {"name": {"$eq": "z"}},
        ),
        (PRODUCER,),
        (),
    )
    assert compile_lookups(Movie, {"distributor__name": "x"}).joins == (DISTRIBUTOR,)
    assert compile_lookups(Movie, {"producer__name__desc": True}) == CompiledLookups(
        (), (PRODUCER,), (("companies.n", -1),)
    )


def test_joins_can_be_chained() -> None:
    compiled = compile_lookups(Movie, {"producer__country__name": "x", "producer__name": "y"})
    country = Join("_joined_producer.country", Country, "countrys")
    assert compiled.joins == (PRODUCER, country)
    assert compiled.conditions[0] == {country.slot: {"$elemMatch": {"name": {"$eq": "x"}}}}
    assert pipeline(Plan(joins=(country,)))[:1] == [
        {
            "$lookup": {
                "from": "countrys",
                "localField": "_joined_producer.country",
                "foreignField": "_id",
                "as": "_joined__joined_producer__country",
            }
        }
    ]
    assert compile_lookups(Movie, {"place.owner.name": "x"}).joins == (Join("place.owner", Studio, "companies"),)


def test_two_references_to_one_collection_are_joined_separately() -> None:
    assert attachment_stages([PRODUCER, DISTRIBUTOR]) == [
        {"$set": {"companies": {"$concatArrays": ["$_joined_producer", "$_joined_dist"]}}},
        {"$unset": ["_joined_producer", "_joined_dist"]},
    ]
    assert attachment_stages([]) == []


def test_impossible_joins_are_refused() -> None:
    class Elsewhere(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            registry = registry
            database = "other"

    class Nowhere(Base):
        name: str = mongoz.String()

        class Meta:
            abstract = True

    class Odd(Base):
        elsewhere: Any = mongoz.ForeignKey(Elsewhere, null=True)
        nowhere: Any = mongoz.ForeignKey(Nowhere, null=True)
        unknown: Any = mongoz.ForeignKey("no.such.Thing", null=True)
        studio: Any = mongoz.ForeignKey(Studio, null=True)
        companies: list[str] = mongoz.Array(str, default=list)

    with pytest.raises(ImproperlyConfigured, match="different databases"):
        compile_lookups(Odd, {"elsewhere__name": "x"})
    with pytest.raises(AbstractDocumentError):
        compile_lookups(Odd, {"nowhere__name": "x"})
    with pytest.raises(MongozException, match=r"no\.such\.Thing"):
        compile_lookups(Odd, {"unknown__name": "x"})
    with pytest.raises(ImproperlyConfigured, match="'companies'"):
        compile_lookups(Odd, {"studio__name": "x"})
    with pytest.raises(OperatorInvalid, match="JavaScript"):
        compile_lookups(Movie, {"producer__name__where": "true"})
    with pytest.raises(InvalidKeyError, match="keyword filters"):
        Movie.query(mongoz.Q.eq("producer__name", "x"))
    assert compile_lookups(Odd, {"unknown": OID}).conditions == ({"unknown": {"$eq": OID}},)


# -- settings ----------------------------------------------------------------------------------------


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Any:
    def configure(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setattr(settings, name, value)

    return configure


def test_settings_may_rename_lookups(configured: Any) -> None:
    configured(filter_operators={**settings.filter_operators, "like": "icontains", "is": "eq", "odd": "nope"})
    assert one(name__like="x") == {"name": {"$regex": "x", "$options": "i"}}
    assert one(name__is="x") == {"name": {"$eq": "x"}}
    with pytest.raises(OperatorInvalid, match="'nope'"):
        one(name__odd="x")
    with pytest.raises(OperatorInvalid, match="like"):
        one(name__nope="x")


def test_settings_may_leave_out_lookups(configured: Any) -> None:
    configured(filter_operators={"exact": "eq"})
    with pytest.raises(OperatorInvalid, match=r"Valid are: exact\."):
        one(name__gt="x")


def test_settings_may_change_the_prefix_and_the_names_of_the_id(configured: Any) -> None:
    configured(lookup_prefix="--", parsed_ids=("key",))
    assert one(**{"place--city--gt": 1}) == {"place.c": {"$gt": 1}}
    assert one(key=str(OID)) == {"_id": {"$eq": OID}}
    assert one(**{"producer--key": OID}) == {"producer": {"$eq": OID}}
    with pytest.raises(InvalidKeyError):
        one(name__gt="x")
