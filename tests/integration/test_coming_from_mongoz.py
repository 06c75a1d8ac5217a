"""Each line of the table in "Coming from mongoz" has a test, and each test has a line."""

import datetime
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import bson
import pytest
from pydantic import ValidationError
from pymongo import AsyncMongoClient, monitoring

import mongoz
from mongoz import Q
from mongoz.core.signals import post_delete

PAGE = Path(__file__).parents[2] / "docs" / "coming-from" / "mongoz.md"

Proof = Callable[[mongoz.Registry, str, Any], Awaitable[None]]
PROOFS: Final[dict[str, Proof]] = {}


def line(begins: str) -> Callable[[Proof], Proof]:
    """Marks a function as the proof of a table line. `begins` is the first column of the line."""

    def proves(proof: Proof) -> Proof:
        assert begins not in PROOFS
        PROOFS[begins] = proof
        return proof

    return proves


def lines_of_the_page() -> list[str]:
    """The first column of the table of differences."""
    table = (
        PAGE.read_text()
        .partition("## What behaves differently")[2]
        .partition("\n\n| | older package | here |\n|---|")[2]
    )
    rows = table.partition("\n\n")[0].splitlines()[1:]
    return [row.split(" | ")[0].removeprefix("| ") for row in rows]


def test_every_line_has_a_proof_and_every_proof_has_a_line() -> None:
    assert sorted(lines_of_the_page()) == sorted(PROOFS)


@pytest.mark.parametrize("begins", list(PROOFS) or lines_of_the_page())
async def test_a_line_of_the_table_is_true(
    begins: str, registry: mongoz.Registry, database: str, foreign: Any
) -> None:
    await PROOFS[begins](registry, database, foreign)


class City(mongoz.EmbeddedDocument):
    name: str = mongoz.String()


def base(registry: mongoz.Registry, database: str) -> Any:
    class Base(mongoz.Document):
        Meta = type("Meta", (), {"abstract": True, "registry": registry, "database": database})

    return Base


def movies(registry: mongoz.Registry, database: str) -> Any:
    class Movie(base(registry, database)):  # type: ignore[misc]
        name: str = mongoz.String()
        year: int = mongoz.Integer(minimum=0, null=True)
        city: Any = mongoz.Embed(City, null=True)
        changed: Any = mongoz.DateTime(auto_now=True)

    return Movie


class Commands(monitoring.CommandListener):
    """The commands of a client."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def started(self, event: Any) -> None:
        self.sent.append(event.command)

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


async def listened(registry: mongoz.Registry) -> tuple[mongoz.Registry, Any, Commands]:
    commands = Commands()
    client: Any = AsyncMongoClient(registry.url, event_listeners=[commands])
    return mongoz.Registry(client), client, commands


@line("defining a class")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    ours, client, commands = await listened(registry)

    class Movie(base(ours, database)):
        name: str = mongoz.String(unique=True)

        class Meta:
            indexes = (mongoz.Index("year"),)
            autogenerate_index = True

    assert commands.sent == []
    assert await Movie.objects.count() == 0
    assert {command.get("aggregate") for command in commands.sent if "aggregate" in command} == {"movies"}
    await client.close()


@line("`instance.update(...)`")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    movie = await movies(registry, database)(name="a", year=1).create()
    foreign.movies.update_one({}, {"$set": {"year": 2}})
    movie.year = 3
    await movie.update(name="b")
    assert (foreign.movies.find_one()["name"], foreign.movies.find_one()["year"]) == ("b", 2)


@line("`instance.delete()` of a document that is gone")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    Movie, fired = movies(registry, database), []

    @post_delete(Movie)
    async def deleted(sender: Any, **kwargs: Any) -> None:
        fired.append(sender)

    movie = await Movie(name="a").create()
    foreign.movies.delete_many({})
    with pytest.raises(mongoz.DocumentNotFound):
        await movie.delete()
    assert fired == []


@line("the collection that an instance came from (`using`)")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    Movie, elsewhere = movies(registry, database), f"{database}_state"
    await Movie.objects.using(elsewhere).create(name="there")
    here = await Movie.objects.create(name="here")
    there = await Movie.objects.using(elsewhere).get()
    for movie in (here, there):
        movie.name += "!"
        await movie.save()
    assert [row["name"] for row in foreign.movies.find()] == ["here!"]
    assert [row["name"] for row in foreign.client[elsewhere].movies.find()] == ["there!"]
    assert Movie.meta.collection.database.name == database


@line("attribute access through a nullable `Embed` (`User.address.city`)")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    Movie = movies(registry, database)
    await Movie.objects.create(name="a", city={"name": "Bonn"})
    assert str(Movie.city.name) == "city.name"
    assert await Movie.query(Movie.city.name == "Bonn").count() == 1
    with pytest.raises(mongoz.InvalidKeyError):
        _ = Movie.city.nmae


@line("undeclared keys of an `EmbeddedDocument`")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    Movie = movies(registry, database)
    foreign.movies.insert_one({"name": "a", "city": {"name": "Bonn", "mayor": {"since": 2015}}})
    movie = await Movie.objects.get()
    movie.city.name = "Ulm"
    await movie.save()
    assert foreign.movies.find_one()["city"] == {"name": "Ulm", "mayor": {"since": 2015}}


@line("`index` and `unique` on a field of an `EmbeddedDocument`")
async def embedded_fields_have_indexes(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    class Code(mongoz.EmbeddedDocument):
        value: str = mongoz.String(unique=True)
        kind: str = mongoz.String(index=True)

    class Ticket(mongoz.Document):
        code: Code = mongoz.Embed(Code)
        Meta = type("Meta", (), {"registry": registry, "database": database})

    await Ticket.create_indexes()
    assert foreign.tickets.index_information().keys() == {"_id_", "code.value", "code.kind"}


@line("`minimum=0`, `maximum=0` of numbers")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    class Zero(mongoz.Document):
        above: int = mongoz.Integer(minimum=0)
        below: float = mongoz.Double(maximum=0)
        price: Any = mongoz.Decimal(max_digits=4, decimal_places=2, minimum=0, null=True)

    zero = Zero(above=0, below=0)
    for name, value in (("above", -1), ("below", 0.5), ("price", "-0.01")):
        with pytest.raises(ValidationError):
            setattr(zero, name, value)
        with pytest.raises(ValidationError):
            Zero(**{"above": 0, "below": 0, name: value})


@line("`auto_now`")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    Movie = movies(registry, database)
    long_ago = datetime.datetime(2000, 1, 1)

    async def refreshed(write: Callable[[Any], Awaitable[Any]]) -> None:
        movie = await Movie.objects.create(name="a", year=0, changed=long_ago)
        assert movie.changed == long_ago, "an explicit value is accepted"
        await write(movie)
        assert foreign.movies.find_one({"_id": movie.id})["changed"] > long_ago

    await refreshed(lambda movie: movie.save())
    await refreshed(lambda movie: movie.update(name="b"))
    await refreshed(lambda movie: Movie.objects.filter(id=movie.id).update(name="b"))
    await refreshed(lambda movie: Movie.objects.filter(id=movie.id).update_count(name="b"))
    await refreshed(lambda movie: movie.update(mongoz.U.inc("year", 1)))


@line("lookups through a `ForeignKey`")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    class Producer(base(registry, database)):  # type: ignore[misc]
        name: str = mongoz.String()

    class Film(base(registry, database)):  # type: ignore[misc]
        by_class: Any = mongoz.ForeignKey(Producer)
        by_path: Any = mongoz.ForeignKey(f"{__name__}.Producer", null=True)
        by_name: Any = mongoz.ForeignKey("Producer")

    globals()["Producer"] = Producer  # the target of the path
    ada = await Producer.objects.create(name="Ada")
    await Film.objects.create(by_class=ada, by_path=ada, by_name=ada)
    await Film.objects.create(by_class=bson.ObjectId(), by_name=bson.ObjectId())
    for name in ("by_class", "by_path", "by_name"):
        found = await Film.objects.filter(**{f"{name}__name__startswith": "A"}).get()
        assert [producer.name for producer in found.producers] == ["Ada"]
        for value in (ada, ada.id, str(ada.id)):
            assert await Film.objects.filter(**{name: value}).count() == 1


@line("builders (`filter`, `sort`, ...)")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    Movie = movies(registry, database)
    await Movie.objects.create_many([Movie(name="b", year=1), Movie(name="a", year=2)])
    for kept in (Movie.objects, Movie.query(), Movie.objects.filter(year__gte=1)):
        kept.filter(name="b"), kept.exclude(name="b"), kept.query(Movie.year == 1), kept.raw({"year": 1})
        kept.sort("name"), kept.limit(1), kept.skip(1), kept.only("name"), kept.defer("name")
        kept.using("another"), kept.none(), kept.all(name="b"), kept.where("false"), kept.options(max_time_ms=1)
        assert [movie.name for movie in await kept] == ["b", "a"]


@line("`first()`, `last()`")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    ours, client, commands = await listened(registry)
    Movie = movies(ours, database)
    foreign.movies.insert_many([{"name": str(number)} for number in range(300)])
    for query in (Movie.objects, Movie.objects.sort("name"), Movie.query(Movie.name > "1")):
        assert await query.first()
        assert await query.last()
    finds = [command for command in commands.sent if "find" in command]
    assert [command["limit"] for command in finds] == [1] * 6
    await client.close()


@line("`async for` over a query")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    Movie = movies(registry, database)
    foreign.movies.insert_many([{"name": str(number), "year": number} for number in range(10)])
    query = Movie.objects.filter(year__gte=2).exclude(year=5).sort("year", -1).skip(1).limit(3).only("name")
    seen = [movie async for movie in query]
    assert [movie.name for movie in seen] == ["8", "7", "6"]
    assert not hasattr(seen[0], "year")
    assert [movie async for movie in Movie.objects.using(f"{database}_state")] == []


@line("lookups (`not_in`, `date`, `iendswith`, ...)")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    Movie = movies(registry, database)
    await Movie.objects.create(name="Abc", year=5, changed=datetime.datetime(2024, 5, 1, 23, 59))
    await Movie.objects.create(name="x", changed=datetime.datetime(2024, 5, 2))
    holds = {
        "name": "Abc", "name__exact": "Abc", "name__neq": "x", "name__not": "x", "name__in": ["Abc"],
        "name__not_in": ("x",), "name__contains": "b", "name__icontains": "B", "name__startswith": "A",
        "name__istartswith": "a", "name__endswith": "c", "name__iendswith": "C", "name__pattern": "^A.c$",
        "year__gt": 4, "year__gte": 5, "year__lt": 6, "year__lte": 5, "changed__date": datetime.date(2024, 5, 1),
        "year__not": None,
    }  # fmt: skip
    for lookup, value in holds.items():
        assert [movie.name for movie in await Movie.objects.filter(**{lookup: value})] == ["Abc"], lookup
        assert [movie.name for movie in await Movie.objects.exclude(**{lookup: value})] == ["x"], lookup
    assert await Movie.objects.filter(year__exists=True).count() == 2
    for lookup, order in (("name__asc", ["Abc", "x"]), ("name__desc", ["x", "Abc"])):
        assert [movie.name for movie in await Movie.objects.filter(**{lookup: True})] == order
        assert [movie.name for movie in await Movie.objects.exclude(**{lookup: True})] == order
    tried = {lookup.partition("__")[2] or "exact" for lookup in holds} | {"exists", "asc", "desc"}
    assert tried == set(mongoz.settings.operators) - {"where"}
    with pytest.raises(mongoz.exceptions.OperatorInvalid, match="allow_javascript"):
        Movie.objects.filter(name__where="this.name == 'Abc'")
    assert [movie.name for movie in await Movie.objects.where("this.name == 'Abc'")] == ["Abc"]


@line("strings in lookups (`contains`, `startswith`, ...)")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    Movie = movies(registry, database)
    await Movie.objects.create_many([Movie(name="C++ (2.0)"), Movie(name="Cxx")])
    for lookup, value in (
        ("contains", "++ ("), ("icontains", "c++"), ("startswith", "C+"), ("istartswith", "c+"),
        ("endswith", "(2.0)"), ("iendswith", ".0)"),
    ):  # fmt: skip
        assert await Movie.objects.filter(**{f"name__{lookup}": value}).count() == 1, lookup
        assert await Movie.objects.filter(**{f"name__{lookup}": ".*"}).count() == 0, lookup
        assert await Movie.query(getattr(Q, lookup)(Movie.name, value)).count() == 1, lookup
    for pattern in ("^C.x", re.compile("^c.X", re.IGNORECASE)):
        assert await Movie.objects.filter(name__pattern=pattern).count() == 1


@line("several `or_` in one query")
async def _(registry: mongoz.Registry, database: str, foreign: Any) -> None:
    Movie = movies(registry, database)
    await Movie.objects.create_many([Movie(name=name, year=year) for name in "ab" for year in (1, 2)])
    one = Q.or_(Movie.name == "a", Movie.name == "z"), Q.or_(Movie.year == 2, Movie.year == 9)
    for query in (Movie.query(*one), Movie.query(one[0]).query(one[1]), Movie.query(Q.and_(*one))):
        found = await query.get()
        assert (found.name, found.year) == ("a", 2)
