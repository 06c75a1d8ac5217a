"""Builders and reading terminals on both drivers: their results and their commands."""

import datetime
import decimal
from collections.abc import AsyncIterator
from typing import Any

import bson
import pytest
from pymongo import AsyncMongoClient, monitoring
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.collation import Collation
from pymongo.errors import ExecutionTimeout, OperationFailure

import mongoz
from mongoz.exceptions import (
    DocumentNotFound,
    FieldDefinitionError,
    ImproperlyConfigured,
    InvalidKeyError,
    MultipleDocumentsReturned,
    OperatorInvalid,
)
from mongoz.queries import Manager, QuerySet


class Commands(monitoring.CommandListener):
    """The commands that a client sends."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def started(self, event: Any) -> None:
        if event.command_name not in ("hello", "endSessions", "killCursors"):
            self.sent.append(event.command)

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass

    @property
    def last(self) -> Any:
        return self.sent[-1]


class Rating(mongoz.EmbeddedDocument):
    by: str = mongoz.String(alias="b")
    stars: int = mongoz.Integer(default=0)


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
async def client(mongo: Any, driver: str, commands: Commands) -> AsyncIterator[Any]:
    if driver == "pymongo":
        async with AsyncMongoClient(mongo.url, event_listeners=[commands]) as client:
            yield client
    else:
        from motor.motor_asyncio import AsyncIOMotorClient

        client = AsyncIOMotorClient(mongo.url, event_listeners=[commands])
        yield client
        client.close()


@pytest.fixture
async def Movie(client: Any, database: str, commands: Commands) -> AsyncIterator[Any]:
    async with mongoz.Registry(client) as registry:

        class Base(mongoz.Document):
            year: int = mongoz.Integer(null=True)

            Meta = type("Meta", (), {"registry": registry, "database": database, "abstract": True})

        class Movie(Base):
            name: str = mongoz.String()
            price: Any = mongoz.Decimal(max_digits=5, decimal_places=2, null=True)
            shown: datetime.date = mongoz.Date(null=True)
            at: datetime.time = mongoz.Time(null=True)
            tags: list[str] = mongoz.Array(str, default=list)
            ratings: list[Rating] = mongoz.Array(Rating, default=list)
            best: Any = mongoz.Embed(Rating, null=True)
            kind: str = mongoz.String(null=True, alias="movie_kind")

        for number, name in enumerate("ABCDE"):
            await Movie.objects.create(
                name=name, year=2000 + number // 2, price=f"{number}.5", tags=["all", name], kind="k",
                shown=datetime.date(2024, 1, 1 + number), at=datetime.time(20, number),
                ratings=[Rating(by="x", stars=number)], best=Rating(by=name),
            )  # fmt: skip
        commands.sent.clear()
        yield Movie


async def names(query: Any) -> str:
    return "".join(movie.name for movie in await query)


# -- builders ----------------------------------------------------------------------------------------


async def test_all_is_a_builder_and_can_be_awaited(Movie: Any) -> None:
    for start in (Movie.objects, Movie.query, Movie.query()):
        assert len(await start) == len(await start.all()) == len(await start.execute()) == 5
        assert await names(start.all(name="B")) == "B"
        assert await names(start.all().filter(year=2000).sort("name")) == "AB"
        assert await names(start.all(year=2000).sort("name", -1)) == "BA"
        assert await start.all(year=2000).count() == 2
    assert isinstance(Movie.objects.all(), Manager)
    assert isinstance(Movie.query().all(), QuerySet)


async def test_exclude_omits_documents_that_match_all_conditions(Movie: Any) -> None:
    ordered = Movie.objects.sort("name")
    assert await names(ordered.exclude(name="A")) == "BCDE"
    assert await names(ordered.exclude(name="A", year=2000)) == "BCDE"
    assert await names(ordered.exclude(name="A", year=2001)) == "ABCDE", "no document matches both"
    assert await names(ordered.exclude(name="A").exclude(year=2001)) == "BE"
    assert await names(ordered.exclude(name__in=["A", "B"], year__gte=2000)) == "CDE"
    assert await names(ordered.exclude()) == "ABCDE"
    assert await names(Movie.objects.exclude(name="A", name__desc=True)) == "EDCB", "asc and desc only sort"
    assert await names(Movie.objects.exclude(name__asc=True)) == "ABCDE"
    with pytest.raises(InvalidKeyError):
        ordered.exclude(nope=1)


async def test_query_and_raw_take_mongodb_queries_and_expressions(Movie: Any) -> None:
    ordered = Movie.objects.sort("name")
    for build in (ordered.query, ordered.raw, Movie.query.sort("name").raw, Movie.query().sort("name").query):
        assert await names(build({"name": {"$in": ["A", "B"]}}, Movie.year == 2000)) == "AB"
        assert await names(build({Movie.year: {"$gt": 2000}})) == "CDE"
        assert await names(build({"$or": [{"name": "A"}, {"name": "E"}]})) == "AE"
        assert await names(build()) == "ABCDE"
        with pytest.raises(InvalidKeyError):
            build("name")
    assert await names(ordered.raw({"name": {"$gt": "A"}}).raw({"name": {"$lt": "C"}}).filter(year=2000)) == "B"


async def test_queries_can_be_sorted_by_inherited_and_embedded_names(Movie: Any) -> None:
    assert await names(Movie.objects.sort("best.by", -1)) == "EDCBA"
    assert await names(Movie.objects.sort(Movie.best.by, -1)) == "EDCBA"
    assert await names(Movie.objects.sort("year", -1).sort("name")) == "ECDAB"
    assert await names(Movie.objects.sort([("year", -1), "name"])) == "ECDAB"
    assert await names(Movie.objects.sort(key="name", direction=-1)) == "EDCBA"
    assert await names(Movie.objects.filter(name__desc=True)) == "EDCBA"


async def test_where_filters_by_javascript(Movie: Any, commands: Commands) -> None:
    condition = "this.year > 2000"
    for javascript in (condition, bson.Code(condition), f"function() {{ return {condition} }}"):
        query = Movie.objects.where(javascript).sort("name")
        assert await names(query) == "CDE"
        assert await query.filter(name__neq="C").count() == 2
        assert await query.skip(1).limit(1).count() == 1
        assert await query.exists()
        assert await query.distinct_values("year") == [2001, 2002]
    for wrong in (None, 1, {"$gt": 1}):
        with pytest.raises(TypeError, match="JavaScript"):
            Movie.objects.where(wrong)


async def test_builders_do_not_change_their_query(Movie: Any) -> None:
    base = Movie.objects.filter(year__gte=2000)
    before = base._plan
    derived = [
        base.exclude(name="A"), base.raw({"name": "A"}), base.all(name="A"), base.only("name"), base.defer("name"),
        base.using("other"), base.using_session(None), base.options(batch_size=1), base.none(), base.where("true"),
        base.sort("name"), base.limit(1), base.skip(1), base.filter(), base.query(), base.query({"name": "A"}),
    ]  # fmt: skip
    assert base._plan is before
    assert all(query is not base for query in derived)
    assert await base.count() == 5


# -- none --------------------------------------------------------------------------------------------


async def test_the_query_of_none_sends_no_command(Movie: Any, commands: Commands) -> None:
    for start in (Movie.objects, Movie.query(), Movie.objects.filter(name="A")):
        empty = start.none()
        assert await empty is empty
        assert not empty
        assert list(empty) == []
        assert len(empty) == 0
        assert await empty.count() == 0
        assert await empty.execute() == []
        assert await empty.first() is None
        assert await empty.last() is None
        assert await empty.skip(1).last() is None
        assert await empty.get_or_none(name="A") is None
        assert await empty.exists() is False
        assert await empty.distinct_values("name") == []
        assert await empty.values() == []
        assert await empty.values_list("name", flat=True) == []
        assert await empty.explain() == {}
        assert [movie async for movie in empty] == []
        assert [row async for row in empty._rows()] == []
        with pytest.raises(DocumentNotFound):
            await empty.get()
        still = empty.filter(year=2000).sort("name")
        assert await still == []
    assert commands.sent == []


async def test_a_query_is_not_a_list_before_it_is_awaited(Movie: Any) -> None:
    assert Movie.objects
    with pytest.raises(TypeError, match="await it"):
        len(Movie.objects)
    with pytest.raises(TypeError, match="async for"):
        list(Movie.objects.filter(name="A"))
    for key in (0, slice(10, 15)):
        with pytest.raises(TypeError, match=r"for \[10:15\] write skip\(10\)\.limit\(5\)"):
            Movie.objects[key]


# -- using, sessions, options ------------------------------------------------------------------------


async def test_using_reads_and_writes_in_another_database(Movie: Any, database: str, foreign: Any) -> None:
    other = f"{database}_other"
    copies = foreign.client[other].movies
    try:
        copies.insert_one({"name": "Z", "year": 1})
        for name in (other, Movie.meta.registry.get_database(other)):
            query = Movie.objects.using(name)
            assert await names(query) == "Z"
            assert query._collection.full_name == f"{other}.movies"
        assert await query.count() == 1
        assert await query.exists(name="Z")
        assert await query.distinct_values("year") == [1]
        assert await query.values_list("name", flat=True) == ["Z"]
        assert await names(Movie.objects) == "ABCDE"
        for movie in (await query.get(name="Z"), await query.only("name").first(), await query.last()):
            movie.name = "Y"
            await movie.save()
            assert copies.find_one()["name"] == "Y"
            movie.name = "Z"
            await movie.save()
        assert foreign.movies.count_documents({}) == 5
        mine = await Movie.objects.first()
        await mine.update(year=1999)
        assert foreign.movies.count_documents({"year": 1999}) == 1, "`using` does not affect other instances"
        assert await movie.delete() == 1
        assert copies.count_documents({}) == 0
    finally:
        foreign.client.drop_database(other)
    for wrong in (None, "", 3):
        with pytest.raises(ImproperlyConfigured, match="name of a database"):
            Movie.objects.using(wrong)


async def test_a_collection_of_the_driver_is_accepted(Movie: Any, driver: str) -> None:
    from motor.motor_asyncio import AsyncIOMotorCollection

    kind = AsyncCollection if driver == "pymongo" else AsyncIOMotorCollection
    for query in (Movie.objects, Movie.query, Movie.objects.filter(name="A").using("other")):
        assert isinstance(query._collection, kind)
    assert Movie.objects.using("other")._collection.database.name == "other"


async def test_every_read_joins_the_session(Movie: Any, commands: Commands) -> None:
    async def read(query: Any) -> None:
        await query
        await query.first()
        await query.last()
        await query.skip(1).last()
        await query.get_or_none(name="nobody")
        await query.count()
        await query.exists()
        await query.distinct_values("name")
        await query.values(["name"])
        assert [movie async for movie in query]

    registry = Movie.meta.registry
    async with registry.transaction() as session:
        lsid = session.session_id
        await Movie.objects.create(name="T")
        assert await Movie.objects.count() == 6
        await read(Movie.objects)
    assert {command["lsid"]["id"] for command in commands.sent} == {lsid["id"]}
    assert all("txnNumber" in command for command in commands.sent)
    commands.sent.clear()
    async with registry.new_session() as session:
        await read(Movie.query.using_session(session))
        assert {command["lsid"]["id"] for command in commands.sent} == {session.session_id["id"]}


async def test_options_reach_the_server(Movie: Any, commands: Commands, foreign: Any) -> None:
    foreign.movies.create_index([("name", 1)])
    query = Movie.objects.filter(name="a").options(collation={"locale": "en", "strength": 2}, max_time_ms=60000)
    for hinted in (query, query.options(hint="_id_"), query.options(hint=[("name", 1)])):
        commands.sent.clear()
        assert [movie.name for movie in await hinted.options(batch_size=7)] == ["A"]
        assert commands.last["batchSize"] == 7
        assert await hinted.count() == 1
        assert await hinted.skip(0).limit(1).last()
        assert await hinted.skip(1).last() is None
        assert await hinted.exists()
        for command in commands.sent:
            assert command["collation"]["strength"] == 2
            assert command["maxTimeMS"] == 60000
            assert ("hint" in command) is (hinted is not query)
    assert await query.distinct_values("name") == ["A"]
    assert await query.options(collation=Collation("en", strength=1)).count() == 1
    assert await query.options(collation=None).count() == 0
    with pytest.raises(OperationFailure):
        await query.options(hint="no_such_index")
    with pytest.raises(ExecutionTimeout):
        await Movie.objects.where("sleep(100) || true").options(max_time_ms=20)
    with pytest.raises(InvalidKeyError, match="'max_time_ms'"):
        query.options(maxTimeMS=3)


# -- terminals ---------------------------------------------------------------------------------------


async def test_first_and_last_read_one_document(Movie: Any, commands: Commands) -> None:
    ordered = Movie.objects.sort("year").sort("name", -1)
    assert (await ordered.first()).name == "B"
    assert commands.last["limit"] == 1
    assert (await ordered.last()).name == "E"
    assert commands.last["limit"] == 1
    assert commands.last["sort"] == {"year": -1, "name": 1}
    assert (await Movie.objects.last()).name == "E"
    assert (commands.last["sort"], commands.last["limit"]) == ({"_id": -1}, 1)
    assert (await Movie.objects.filter(name__lt="C").last()).name == "B"
    assert await Movie.objects.filter(name="X").first() is None
    assert await Movie.objects.filter(name="X").last() is None
    assert all(command["limit"] == 1 for command in commands.sent)


async def test_last_with_skip_or_limit_reads_one_document(Movie: Any, commands: Commands) -> None:
    ordered = Movie.objects.sort("name", -1)
    cases = [
        (ordered.limit(2), "D"), (ordered.skip(1).limit(3), "B"), (ordered.skip(3), "A"),
        (ordered.skip(3).limit(9), "A"),
        (ordered.skip(5), None), (Movie.objects.limit(3), "C"), (Movie.objects.skip(1).limit(2), "C"),
        (Movie.objects.skip(4), "E"), (Movie.objects.filter(name="X").skip(1), None),
        (Movie.objects.filter(year=2000).limit(9), "B"),
    ]  # fmt: skip
    for query, expected in cases:
        found = await query.last()
        assert (found and found.name) == expected, query
        assert commands.last.get("aggregate"), "the server selects and sends one document"
        listed = await query
        assert (listed[-1].name if listed else None) == expected, "the last document of the whole list"


async def test_get_respects_skip_and_limit(Movie: Any, commands: Commands) -> None:
    ordered = Movie.objects.sort("name")
    assert (await ordered.skip(4).get()).name == "E"
    assert (await ordered.limit(1).get()).name == "A"
    assert commands.last["limit"] == 1
    with pytest.raises(MultipleDocumentsReturned):
        await ordered.skip(1).get()
    assert commands.last["limit"] == 2
    with pytest.raises(DocumentNotFound):
        await ordered.skip(5).get()
    assert await ordered.skip(5).get_or_none() is None
    with pytest.raises(MultipleDocumentsReturned):
        await ordered.get_or_none()


async def test_get_document_by_id_finds_the_document_or_raises(Movie: Any) -> None:
    a = await Movie.objects.get(name="A")
    for id_ in (a.id, str(a.id)):
        assert await Movie.objects.get_document_by_id(id_) == a
        assert await Movie.query.get_document_by_id(id_) == a
    with pytest.raises(DocumentNotFound):
        await Movie.objects.filter(name="B").get_document_by_id(a.id)
    with pytest.raises(DocumentNotFound):
        await Movie.objects.get_document_by_id(bson.ObjectId())
    for wrong in ("zz", "", None, 3):
        with pytest.raises(InvalidKeyError):
            await Movie.objects.get_document_by_id(wrong)


async def test_count_respects_skip_and_limit_and_exists_reads_one_document(Movie: Any, commands: Commands) -> None:
    assert await Movie.objects.count() == 5
    assert await Movie.objects.skip(1).limit(3).count() == 3
    assert await Movie.objects.skip(4).limit(3).count() == 1
    assert await Movie.objects.filter(name="X").limit(3).count() == 0
    assert await Movie.objects.exists(name="A") is True
    assert commands.last["limit"] == 1
    assert commands.last["projection"] == {"_id": 1}
    assert await Movie.objects.exists(name="X") is False
    assert await Movie.objects.skip(5).exists() is False


async def test_distinct_values_have_the_types_of_their_fields(Movie: Any) -> None:
    assert await Movie.objects.distinct_values("year") == [2000, 2001, 2002]
    assert await Movie.objects.filter(name="A").distinct_values(Movie.tags) == ["A", "all"]
    assert await Movie.objects.distinct_values("best.by") == ["A", "B", "C", "D", "E"]
    assert await Movie.objects.distinct_values(Movie.ratings.stars) == [0, 1, 2, 3, 4]
    assert await Movie.objects.distinct_values("kind") == await Movie.query.distinct_values("movie_kind") == ["k"]
    assert await Movie.objects.limit(2).distinct_values("price") == [
        decimal.Decimal("0.5"),
        decimal.Decimal("1.5"),
    ]
    assert all(isinstance(value, decimal.Decimal) for value in await Movie.objects.distinct_values("price"))
    assert await Movie.objects.sort("name", -1).limit(1).distinct_values("shown") == [datetime.date(2024, 1, 5)]
    assert await Movie.objects.sort("name").skip(4).distinct_values("at") == [datetime.time(20, 4)]
    assert (await Movie.objects.filter(name="A").distinct_values("best")) == [Rating(by="A")]
    assert len(await Movie.objects.distinct_values("id")) == 5
    with pytest.raises(InvalidKeyError, match="'year'"):
        await Movie.objects.distinct_values("yaer")


async def test_distinct_values_of_another_type_are_returned_unchanged(Movie: Any, foreign: Any) -> None:
    foreign.movies.insert_many([{"name": "X", "price": "expensive"}, {"name": "X", "price": None}])
    found = await Movie.objects.filter(name="X").distinct_values("price")
    assert sorted(found, key=repr) == ["expensive", None]


async def test_explain_returns_the_plan_of_the_server(Movie: Any, commands: Commands) -> None:
    explained = await Movie.objects.filter(name="A").sort("year").explain()
    assert explained["queryPlanner"]["parsedQuery"] == {"name": {"$eq": "A"}}
    assert explained["executionStats"]["nReturned"] == 1
    async with Movie.meta.registry.transaction():
        await Movie.objects.count()
        assert (await Movie.query.explain())["queryPlanner"]


async def test_iteration_reads_batches(Movie: Any, commands: Commands) -> None:
    query = Movie.objects.filter(name__neq="C").sort("name", -1).skip(1).options(batch_size=2)
    assert [movie.name async for movie in query] == ["D", "B", "A"]
    assert commands.sent[0]["batchSize"] == 2
    assert [next(iter(command)) for command in commands.sent] == ["find", "getMore"]
    async for movie in query.options(batch_size=2):
        assert movie.name == "D"
        break
    rows = [row async for row in query._rows({"name": 1}, batch_size=3)]
    assert [row["name"] for row in rows] == ["D", "B", "A"]
    assert set(rows[0]) == {"_id", "name"}


# -- values ------------------------------------------------------------------------------------------


async def test_values_are_dicts_of_the_selected_fields(Movie: Any, commands: Commands) -> None:
    ordered = Movie.objects.sort("name")
    a = await ordered.first()
    everything = {
        "id": a.id, "year": 2000, "name": "A", "price": decimal.Decimal("0.5"), "shown": datetime.date(2024, 1, 1),
        "at": datetime.time(20, 0), "tags": ["all", "A"], "ratings": [{"by": "x", "stars": 0}],
        "best": {"by": "A", "stars": 0}, "kind": "k",
    }  # fmt: skip
    for all_of_it in (await ordered.values(), await ordered.values([]), await Movie.query.sort("name").values()):
        assert all_of_it[0] == everything
        assert " ".join(all_of_it[0]) == "id year name price shown at tags ratings best kind"
        assert len(all_of_it) == 5
    assert type(all_of_it[0]["ratings"][0]) is dict
    assert await ordered.limit(1).values(["name", "year"]) == [{"year": 2000, "name": "A"}]
    assert commands.last["projection"] == {"_id": 1, "name": 1, "year": 1}
    assert await ordered.limit(1).values([Movie.kind, "pk"]) == [{"id": a.id, "kind": "k"}]
    assert await ordered.limit(1).values(["name", "year"], exclude=["year"]) == [{"name": "A"}]
    [row] = await ordered.limit(1).values(exclude={"ratings", "id"})
    assert row == {name: value for name, value in everything.items() if name not in ("ratings", "id")}
    assert commands.last["projection"] == {"ratings": 0}
    assert await ordered.only("name").limit(1).values() == [{"id": a.id, "name": "A"}]
    assert await ordered.only("name").limit(1).values(exclude=["id"]) == [{"name": "A"}]
    assert "name" not in (await ordered.defer("name").values())[0]


async def test_exclude_none_omits_missing_values(Movie: Any, foreign: Any) -> None:
    foreign.movies.insert_one({"name": "X", "undeclared": {"a": [1]}})
    query = Movie.objects.filter(name="X")
    [row] = await query.values(exclude_none=True)
    assert set(row) == {"id", "name", "tags", "ratings", "undeclared"}
    assert row["undeclared"] == {"a": [1]}
    assert await query.values(["name", "year"]) == [{"year": None, "name": "X"}]
    assert await query.values(["name", "year"], exclude_none=True) == [{"name": "X"}]
    assert await query.values_list(["name", "year"]) == [(None, "X")]
    assert await query.values_list(["name", "year"], exclude_none=True) == [("X",)]
    assert await query.values_list("year", flat=True) == [None]
    assert await query.values_list("year", exclude_none=True, flat=True) == []


async def test_values_list_returns_tuples_or_single_values(Movie: Any) -> None:
    ordered = Movie.objects.sort("name").limit(2)
    a, b = await ordered
    assert await ordered.values_list(["name", "year", "id"]) == [(a.id, 2000, "A"), (b.id, 2000, "B")]
    assert await ordered.values_list("name") == [("A",), ("B",)]
    for fields in ("name", ["name"]):
        assert await ordered.values_list(fields, flat=True) == ["A", "B"]
    assert [row[:3] for row in await ordered.values_list()] == [(a.id, 2000, "A"), (b.id, 2000, "B")]
    assert [len(row) for row in await ordered.values_list()] == [10, 10]
    others = ("price", "shown", "at", "tags", "ratings", "best", "kind", "id")
    assert await ordered.values_list(exclude=others) == [(2000, "A"), (2000, "B")]
    assert await ordered.values_list("price", flat=True) == [bson.Decimal128("0.50"), bson.Decimal128("1.50")]


@pytest.mark.parametrize("rows", ["some", "none"])
async def test_values_refuses_invalid_arguments(Movie: Any, rows: str) -> None:
    query = Movie.objects if rows == "some" else Movie.objects.filter(name="X")
    for fields in (1, 0, 1.5, "name", ("name",), {"name"}, {"name": 1}, object()):
        with pytest.raises(FieldDefinitionError, match="fields"):
            await query.values(fields)
        if not isinstance(fields, str):
            with pytest.raises(FieldDefinitionError, match="fields"):
                await query.values_list(fields)
    for flat in (["name", "year"], ["nope"], "nope", None, []):
        with pytest.raises(FieldDefinitionError, match="flat"):
            await query.values_list(flat, flat=True)
    for exclude in ("name", 3, {"name": 1}):
        with pytest.raises(FieldDefinitionError, match="exclude"):
            await query.values(exclude=exclude)
    for values in (query.values, query.values_list):
        with pytest.raises(InvalidKeyError, match="'name'"):
            await values(["nmae"])
        with pytest.raises((InvalidKeyError, OperatorInvalid)):
            await values(["best.by"])
        with pytest.raises(InvalidKeyError, match="'name'"):
            await values(exclude=["nmae"])


async def test_the_query_of_none_returns_itself_when_it_is_awaited(
    registry: mongoz.Registry, database: str
) -> None:
    class Empty(mongoz.Document):
        name: str = mongoz.String()

        Meta = type("Meta", (), {"registry": registry, "database": database})

    await Empty.objects.create(name="a")
    empty = Empty.objects.none()
    assert await empty is empty
    assert await empty.all() == await empty.filter(name="a") == await empty.execute() == []
