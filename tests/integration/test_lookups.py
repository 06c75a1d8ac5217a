"""Every lookup and every operator of `Q` on a real server, each in all its spellings."""

import datetime
import enum
import re
import uuid
from decimal import Decimal
from typing import Any

import bson
import pytest

import mongoz
from mongoz import Q


class Kind(enum.Enum):
    OLD = "old"


class City(mongoz.EmbeddedDocument):
    name: str = mongoz.String(alias="n")
    size: int = mongoz.Integer(default=0)
    founded: datetime.datetime = mongoz.DateTime(null=True)


@pytest.fixture
def Movie(registry: mongoz.Registry, database: str) -> Any:
    class Movie(mongoz.Document):
        name: str = mongoz.String()
        year: int = mongoz.Integer(null=True)
        kind: str = mongoz.String(null=True)
        price: Any = mongoz.Decimal(max_digits=6, decimal_places=2, null=True)
        key: uuid.UUID = mongoz.UUID(null=True)
        made: datetime.datetime = mongoz.DateTime(null=True)
        shown: datetime.date = mongoz.Date(null=True)
        starts: datetime.time = mongoz.Time(null=True)
        days: Any = mongoz.Array(datetime.datetime, default=list)
        tags: list[str] = mongoz.Array(str, default=list)
        city: Any = mongoz.Embed(City, null=True)
        cities: list[City] = mongoz.Array(City, default=list)
        data: Any = mongoz.Object(null=True)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    return Movie


async def fill(Movie: Any, **values: list[Any]) -> None:
    """One movie for each value of a field; the names are "0", "1", ... except for the field `name`."""
    ((field, each),) = values.items()
    await Movie.create_many([Movie(**{"name": str(number), field: value}) for number, value in enumerate(each)])


async def found(query: Any, field: str) -> list[Any]:
    return [getattr(movie, field) for movie in await query.sort("id")]


STRINGS = ["abc", "ABC", "a.c", "xabc", "abcx", "abc\n", "\nabc", "a\nabc", "äbc", "abc\x00", "", "^abc$"]

TEXT = [
    ("exact", "eq", "abc", ["abc"]),
    ("neq", "neq", "abc", [each for each in STRINGS if each != "abc"]),
    ("not", "not_", "abc", [each for each in STRINGS if each != "abc"]),
    ("in", "in_", ["abc", "a.c", "q"], ["abc", "a.c"]),
    ("not_in", "not_in", ("abc", "a.c"), [each for each in STRINGS if each not in ("abc", "a.c")]),
    ("contains", "contains", "abc", [each for each in STRINGS if "abc" in each]),
    ("contains", "contains", "a.c", ["a.c"]),
    ("contains", "contains", "", STRINGS),
    ("contains", "contains", "\n", ["abc\n", "\nabc", "a\nabc"]),
    ("contains", "contains", "$", ["^abc$"]),
    ("icontains", "icontains", "aBc", [each for each in STRINGS if "abc" in each.lower()]),
    ("icontains", "icontains", "Ä", ["äbc"]),
    ("startswith", "startswith", "abc", ["abc", "abcx", "abc\n", "abc\x00"]),
    ("startswith", "startswith", "^", ["^abc$"]),
    ("istartswith", "istartswith", "ABC", ["abc", "ABC", "abcx", "abc\n", "abc\x00"]),
    ("endswith", "endswith", "abc", ["abc", "xabc", "\nabc", "a\nabc"]),
    ("endswith", "endswith", "\n", ["abc\n"]),
    ("endswith", "endswith", "\x00", ["abc\x00"]),
    ("iendswith", "iendswith", "aBC", ["abc", "ABC", "xabc", "\nabc", "a\nabc"]),
    ("pattern", "pattern", r"^a\.c\z", ["a.c"]),
    ("pattern", "pattern", "^a.c$", ["abc", "a.c", "abc\n"]),
    ("pattern", "pattern", re.compile("^abc$", re.IGNORECASE), ["abc", "ABC", "abc\n"]),
    ("pattern", "pattern", re.compile("^abcx?$", re.MULTILINE), ["abc", "abcx", "abc\n", "\nabc", "a\nabc"]),
    ("pattern", "pattern", re.compile("a.a", re.DOTALL), ["a\nabc"]),
    ("gt", "gt", "b", ["xabc", "äbc"]),
    ("gte", "gte", "xabc", ["xabc", "äbc"]),
    ("lt", "lt", "A", ["\nabc", ""]),
    ("lte", "lte", "", [""]),
]  # fmt: skip


async def test_each_lookup_of_strings_finds_the_matching_documents(Movie: Any) -> None:
    await fill(Movie, name=STRINGS)
    for lookup, operator, value, expected in TEXT:
        queries = [
            Movie.objects.filter(**{f"name__{lookup}": value}),
            Movie.query.filter(**{f"name__{lookup}": value}),
            Movie.query(getattr(Q, operator)("name", value)),
            Movie.query(getattr(Q, operator)(Movie.name, value)),
            Movie.objects.raw(getattr(Q, operator)(Movie.name, value)),
        ]
        for query in queries:
            assert await found(query, "name") == expected, (lookup, value)
        rest = [each for each in STRINGS if each not in expected]
        assert await found(Movie.objects.exclude(**{f"name__{lookup}": value}), "name") == rest, (lookup, value)
        assert await found(Movie.query(~getattr(Q, operator)("name", value)), "name") == rest, (lookup, value)


async def test_dates_are_also_found_by_their_iso_strings(Movie: Any) -> None:
    """A URL or a JSON document has dates as ISO strings. A text that is not a date matches nothing."""
    moments = [datetime.datetime(2024, 5, day, 12, 30) for day in (1, 2, 3)]
    await fill(Movie, made=moments)
    assert await found(Movie.objects.filter(made="2024-05-02T12:30:00"), "made") == [moments[1]]
    assert await found(Movie.objects.filter(made="2024-05-02T14:30:00+02:00"), "made") == [moments[1]]
    assert await found(Movie.objects.filter(made__gte="2024-05-02"), "made") == moments[1:]
    assert await found(Movie.objects.filter(made__in=["2024-05-03T12:30Z", "never"]), "made") == [moments[2]]
    assert await found(Movie.objects.filter(made="yesterday"), "made") == []
    await Movie.objects.delete()
    days = [datetime.date(2024, 5, day) for day in (1, 2)]
    await fill(Movie, shown=days)
    assert await found(Movie.objects.filter(shown="2024-05-02"), "shown") == days[1:]
    assert await found(Movie.query(Q.lt(Movie.shown, "2024-05-02")), "shown") == days[:1]
    # If an attribute can hold both dates and texts, a text is compared as a text.
    await Movie.objects.delete()
    await fill(Movie, data=["2024-05-02"])
    assert await found(Movie.objects.filter(data="2024-05-02"), "data") == ["2024-05-02"]


@pytest.mark.usefixtures("javascript_allowed")
async def test_lookups_find_numbers_and_missing_values(Movie: Any, foreign: Any) -> None:
    await fill(Movie, year=[1, 2, 3, None])
    foreign.movies.insert_one({"name": "4"})
    for lookups, expected in [
        ({"year": 2}, [2]), ({"year__gt": 1}, [2, 3]), ({"year__gte": 2}, [2, 3]), ({"year__lt": 2}, [1]),
        ({"year__lte": 2}, [1, 2]), ({"year__contains": 2}, [2]), ({"year__icontains": 2}, [2]),
        ({"year__in": [1, 3]}, [1, 3]), ({"year__gt": 1, "year__lt": 3}, [2]), ({"year__not": None}, [1, 2, 3]),
        ({"year__exists": True}, [1, 2, 3, None]), ({"year__exists": False}, [None]),
        ({"year": None}, [None, None]),
        ({"year__where": "this.year > 2"}, [3]), ({"year__where": bson.Code("this.year > 2")}, [3]),
        ({"year__where": "function() { return this.year == 1 }"}, [1]), ({"year__gt": "1"}, []),
    ]:  # fmt: skip
        assert await found(Movie.objects.filter(**lookups), "year") == expected, lookups
    assert await found(Movie.query(Q.where("year", "this.year == 1")), "year") == [1]
    assert await found(Movie.query(Q.exists(Movie.year, False)), "name") == ["4"]


async def test_values_of_all_types_compare_as_stored(Movie: Any) -> None:
    key, day = uuid.uuid4(), datetime.date(2024, 2, 29)
    cases: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("price", Decimal("10.10"), (Decimal("10.1"), "10.1", 10.1, bson.Decimal128("10.10"))),
        ("key", key, (key,)),
        ("made", datetime.datetime(2024, 2, 29, 1, 2), (
            datetime.datetime(2024, 2, 29, 1, 2),
            datetime.datetime(2024, 2, 29, 3, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
            "2024-02-29T01:02", "2024-02-29 03:02:00+02:00",
        )),
        ("shown", day, (day, datetime.datetime(2024, 2, 29), "2024-02-29")),
        ("days", [datetime.datetime(2024, 2, 29)], ("2024-02-29",)),
        ("starts", datetime.time(12, 30), (datetime.time(12, 30),)),
        ("kind", "old", (Kind.OLD, "old")),
        ("city", City(name="x"), (City(name="x"), {"n": "x", "size": 0, "founded": None})),
        ("cities", [City(name="x")], ([City(name="x")], City(name="x"))),
        ("tags", ["x", "y"], (["x", "y"], "x", "y")),
        ("data", {"$gt": ""}, ({"$gt": ""},)),
    ]  # fmt: skip
    for field, stored, spellings in cases:
        movie = await Movie.objects.create(name="x", **{field: stored})
        await Movie.objects.create(name="other")
        for value in spellings:
            for query in (
                Movie.objects.filter(**{field: value}),
                Movie.objects.filter(**{f"{field}__in": [value]}),
                Movie.query(getattr(Movie, field) == value),
                Movie.query(Q.in_(field, [value])),
                Movie.query(Q.contains(field, value)),
                Movie.objects.exclude(**{f"{field}__not": value}),
            ):
                assert [each.id for each in await query] == [movie.id], (field, value)
        await Movie.objects.delete()


async def test_a_list_contains_its_items(Movie: Any) -> None:
    await fill(Movie, tags=[["red", "x.y"], ["RED"], ["redder"], []])
    for lookup, value, expected in [
        ("contains", "red", ["0"]), ("icontains", "rEd", ["0", "1"]), ("contains", "x.y", ["0"]),
        ("contains", "x.", []), ("contains", ["redder"], ["2"]), ("in", ["RED", "redder"], ["1", "2"]),
        ("startswith", "red", ["0", "2"]), ("iendswith", "ER", ["2"]), ("not_in", ["red", "RED"], ["2", "3"]),
    ]:  # fmt: skip
        assert await found(Movie.objects.filter(**{f"tags__{lookup}": value}), "name") == expected, (lookup, value)
    assert await found(Movie.objects.filter(**{"tags.0__contains": "ed"}), "name") == ["0", "2"]
    assert await found(Movie.query(Q.pattern(Movie.tags[0], "^RE")), "name") == ["1"]


async def test_the_lookup_date_matches_a_whole_day(Movie: Any) -> None:
    minute = datetime.timedelta(minutes=1)
    start = datetime.datetime(2024, 2, 29)
    instants = [start - minute, start, start + 600 * minute, start + 1440 * minute - minute, start + 1440 * minute]
    await fill(Movie, made=instants)
    plus_two = datetime.timezone(datetime.timedelta(hours=2))
    for day in (
        start.date(), start, start + 700 * minute, "2024-02-29", "2024-02-29T23:00:00",
        datetime.datetime(2024, 3, 1, 1, tzinfo=plus_two), "2024-03-01T01:00:00+02:00",
    ):  # fmt: skip
        assert await found(Movie.objects.filter(made__date=day), "name") == ["1", "2", "3"], day
        assert await found(Movie.objects.exclude(made__date=day), "name") == ["0", "4"], day
    await Movie.objects.delete()
    await fill(Movie, shown=[start.date(), datetime.date(2024, 3, 1), datetime.date.max, None])
    assert await found(Movie.objects.filter(shown__date="2024-02-29"), "name") == ["0"]
    assert await found(Movie.objects.filter(shown__date=datetime.date.max), "name") == ["2"]


async def test_a_day_matches_one_item_of_a_list(Movie: Any) -> None:
    before, on, after = (datetime.datetime(2024, 2, day) for day in (27, 28, 29))
    await fill(Movie, days=[[before, after], [before, on], [on], []])
    assert await found(Movie.objects.filter(days__date="2024-02-28"), "name") == ["1", "2"]
    assert await found(Movie.objects.filter(**{"days.1__date": "2024-02-28"}), "name") == ["1"]
    await Movie.objects.delete()
    await fill(
        Movie, cities=[[City(name="x", founded=day) for day in days] for days in ([before, after], [on], [])]
    )
    for keyword in ("cities.founded__date", "cities__founded__date"):
        assert await found(Movie.objects.filter(**{keyword: "2024-02-28"}), "name") == ["1"]


async def test_conditions_may_name_nested_fields(Movie: Any) -> None:
    bonn, rome = City(name="Bonn", size=3), City(name="Rome", size=28)
    await fill(Movie, city=[bonn, rome, None])
    for lookups in (
        {"city.name": "Rome"}, {"city__name": "Rome"}, {"city.n": "Rome"}, {"city__size__gt": 3},
        {"city.size__gt": 3}, {"city__name__in": ["Rome"]}, {"city__name__icontains": "OM"}, {"city": rome},
    ):  # fmt: skip
        assert await found(Movie.objects.filter(**lookups), "name") == ["1"], lookups
    for condition in (Movie.city.size > 3, Q.eq("city.name", "Rome"), {Movie.city.name: "Rome"}):
        assert await found(Movie.query(condition), "name") == ["1"], condition
    await Movie.objects.delete()
    await fill(Movie, data=[{"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, {"a": [{"b": {"c": 3}}]}, "text"])
    for lookups, expected in [
        ({"data.a.b.c": 1}, ["0"]), ({"data.a.b.c__gt": 1}, ["1", "2"]), ({"data.a.0.b.c": 3}, ["2"]),
        ({"data.a.b.c__exists": False}, ["3"]), ({"data__contains": "ex"}, ["3"]), ({"data": "text"}, ["3"]),
    ]:  # fmt: skip
        assert await found(Movie.objects.filter(**lookups), "name") == expected, lookups


async def test_conditions_can_be_combined(Movie: Any) -> None:
    await fill(Movie, year=[0, 1, 2, 3, 4, 5])
    one, two = Movie.year > 1, Movie.year < 4
    even = Q.in_("year", [0, 2, 4])
    for conditions, expected in [
        ([one & two], [2, 3]), ([one, two], [2, 3]), ([~one | ~two], [0, 1, 4, 5]),
        ([Q.and_(one, two, even)], [2]),
        ([Q.or_(Q.eq("year", 1), Q.eq("year", 5))], [1, 5]), ([Q.or_([Q.eq("year", 1), even])], [0, 1, 2, 4]),
        ([Q.nor_(even, Q.gt(Movie.year, 3))], [1, 3]),
        ([Q.or_(~one, ~two), Q.or_(even, Q.eq("year", 5))], [0, 4, 5]),
        ([even & {"year": {"$gt": 0}}], [2, 4]), ([{"$or": [{Movie.year: 1}, even]}], [0, 1, 2, 4]),
        ([Q.not_("year", 3), one], [2, 4, 5]),
    ]:  # fmt: skip
        assert await found(Movie.query(*conditions), "year") == expected, conditions
    assert await found(Movie.query(Q.or_(even, Q.eq("year", 1))).query(Q.or_(one, Q.eq("year", 1))), "year") == [
        1,
        2,
        4,
    ]
    assert [movie.year for movie in await Movie.query(even).sort(Q.desc(Movie.year))] == [4, 2, 0]
    assert [movie.year for movie in await Movie.objects.filter(year__lt=2, year__desc=True)] == [1, 0]
    assert [movie.year for movie in await Movie.objects.exclude(year__lt=4, year__desc=True)] == [5, 4]


async def test_fields_can_be_used_as_keys_everywhere(Movie: Any) -> None:
    movie = await Movie.objects.filter(name="x").get_or_create({Movie.year: 3})
    assert movie.year == 3
    assert await found(Movie.query({Movie.year: {"$gte": 3}, Movie.id: str(movie.id)}), "name") == ["x"]
    assert await found(Movie.query({"_id": {"$in": [str(movie.id)]}}), "name") == ["x"]
