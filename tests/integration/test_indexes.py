"""Indexes on the server: created, listed, checked and dropped, by both drivers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pymongo.errors import DuplicateKeyError, OperationFailure

import mongoz
from mongoz import Index, IndexType, Order
from mongoz.exceptions import AbstractDocumentError, ImproperlyConfigured, InvalidKeyError, MongozException
from mongoz.persistence.indexing import ensure_indexes
from tests.support import PATIENCE

Define = Callable[..., Any]


@pytest.fixture
async def registry(mongo: Any, driver: str) -> AsyncIterator[mongoz.Registry]:
    """A registry; the test runs once with each driver."""
    async with mongoz.Registry(mongo.url, driver=driver) as made:
        yield made


@pytest.fixture
def define(registry: mongoz.Registry, database: str) -> Define:
    """Makes a document class (by default `Movie`) for the collection `movies`; keywords are options of Meta."""

    def make(name: str = "Movie", **meta: Any) -> Any:
        options = {"registry": registry, "database": database, "collection": "movies", **meta}
        body = {"Meta": type("Meta", (), options), "name": mongoz.String(index=True)}
        return type(mongoz.Document)(name, (mongoz.Document,), {"__module__": __name__, **body})

    return make


async def names(document: Any, collection: Any = None) -> list[str]:
    return [index["name"] for index in await document.list_indexes(collection=collection)]


async def test_indexes_are_created_and_listed(define: Define) -> None:
    Movie = define(
        indexes=[
            Index(keys=[("year", Order.DESCENDING), ("genre", Order.ASCENDING)], unique=True, sparse=True),
            Index(keys=[("plot", IndexType.TEXT)]),
            Index(keys=[("place", IndexType.GEOSPHERE)]),
            Index(keys=[("flat", IndexType.GEO2D)]),
            Index(keys=[("shard", IndexType.HASHED)]),
            Index("seen", expireAfterSeconds=60, background=True),
        ]
    )
    declared = ["name", "year_genre", "plot", "place", "flat", "shard", "seen"]
    assert await Movie.list_indexes() == []
    assert await Movie.create_indexes() == declared
    assert await Movie.create_indexes() == declared, "existing indexes stay"
    rows = {row["name"]: row for row in await Movie.list_indexes()}
    assert list(rows) == ["_id_", *declared]
    assert all(type(row) is dict for row in rows.values())
    assert list(rows["year_genre"]["key"].items()) == [("year", -1), ("genre", 1)]
    assert (rows["year_genre"]["unique"], rows["year_genre"]["sparse"]) == (True, True)
    assert rows["name"]["key"] == {"name": 1}
    assert "unique" not in rows["name"]
    assert rows["plot"]["weights"] == {"plot": 1}
    kinds = [rows[name]["key"][name] for name in ("place", "flat", "shard")]
    assert kinds == ["2dsphere", "2d", "hashed"]
    assert rows["seen"]["expireAfterSeconds"] == 60


async def test_one_index_can_be_created(define: Define) -> None:
    Movie = define(indexes=[Index("year"), Index("rating", name="by_rating")])
    assert await Movie.create_index("by_rating") == "by_rating"
    assert await Movie.create_index("name") == "name"
    assert await names(Movie) == ["_id_", "by_rating", "name"]
    with pytest.raises(InvalidKeyError, match=r"Movie declares no index 'yaer'\. Did you mean 'year'\?"):
        await Movie.create_index("yaer")


async def test_one_index_can_be_dropped(define: Define, foreign: Any) -> None:
    Movie = define(indexes=[Index("year")])
    await Movie.drop_index("year")  # no collection
    await Movie.create_indexes()
    foreign.movies.create_index("theirs", name="theirs")
    assert await Movie.drop_index("year") == "year"
    await Movie.drop_index("year")  # no such index
    await Movie.drop_index("theirs")
    assert await names(Movie) == ["_id_", "name"]


async def test_all_indexes_can_be_dropped(define: Define, foreign: Any) -> None:
    Movie = define(indexes=[Index("year"), Index("rating")])
    assert await Movie.drop_indexes() == []
    assert await Movie.drop_indexes(force=True) == []
    await Movie.create_indexes()
    foreign.movies.create_index("theirs", name="theirs")
    await Movie.drop_index("rating")
    assert await Movie.drop_indexes() == ["name", "year"]
    assert await names(Movie) == ["_id_", "theirs"]
    await Movie.create_indexes()
    await Movie.drop_indexes(force=True)
    assert await names(Movie) == ["_id_"]


async def test_a_unique_index_is_enforced(define: Define) -> None:
    Movie = define(indexes=[Index("year", unique=True)])
    await Movie.create_indexes()
    await Movie(name="a", year=1).create()
    with pytest.raises(DuplicateKeyError):  # the error of the driver
        await Movie(name="b", year=1).create()


async def test_fields_are_indexed_under_their_stored_names(registry: mongoz.Registry, database: str) -> None:
    options = {"registry": registry, "database": database, "indexes": [Index(keys=["year", "email", "free"])]}

    class Movie(mongoz.Document):
        year: int = mongoz.Integer(alias="y", index=True)
        email: str = mongoz.Email(alias="e", unique=True, sparse=True)
        Meta = type("Meta", (), options)

    assert await Movie.create_indexes() == ["year", "email", "year_email_free"]
    _, year, email, both = await Movie.list_indexes()
    assert (year["key"], email["key"], list(both["key"])) == ({"y": 1}, {"e": 1}, ["y", "e", "free"])
    assert (email["unique"], email["sparse"]) == (True, True)
    await Movie.drop_index("year")
    await Movie.check_indexes()
    assert await Movie.drop_indexes() == ["email", "year_email_free", "year"]


async def test_a_document_without_indexes_sends_no_command() -> None:
    registry = mongoz.Registry("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=60000")
    options = {"registry": registry, "database": "x", "autogenerate_index": True}

    class Movie(mongoz.Document):
        title: str = mongoz.String()
        Meta = type("Meta", (), options)

    async with registry, asyncio.timeout(PATIENCE):
        assert await Movie.create_indexes() == []
        await ensure_indexes(Movie.meta, Movie.get_collection())


async def test_check_creates_and_drops_indexes(define: Define, foreign: Any) -> None:
    Movie = define(indexes=[Index("year"), Index("rating")])
    await Movie.check_indexes()  # no collection yet
    assert await names(Movie) == ["_id_", "name", "year", "rating"]
    foreign.movies.create_index("theirs", name="theirs")
    Movie.meta.indexes.append(Index("more"))
    del Movie.meta.indexes[1]
    await Movie.check_indexes()
    assert await names(Movie) == ["_id_", "name", "rating", "more"]
    Movie.meta.fields["name"].index = False
    await Movie.check_indexes()
    assert await names(Movie) == ["_id_", "rating", "more"]
    await Movie.create(Movie(name="a"))  # the first write does not create the dropped index again
    assert await names(Movie) == ["_id_", "rating", "more"]
    assert await Movie.create_indexes() == ["name", "rating", "more"]  # all indexes that meta.indexes lists
    assert sorted(await names(Movie)) == ["_id_", "more", "name", "rating"]
    await Movie.check_indexes()
    assert await names(Movie) == ["_id_", "rating", "more"]
    Movie.meta.fields["name"].index = True
    await Movie.check_indexes()
    assert sorted(await names(Movie)) == ["_id_", "more", "name", "rating"]


async def test_check_renames_indexes(define: Define) -> None:
    await define(indexes=[Index("year", name="old")]).create_indexes()
    await define(indexes=[Index("year", name="new")]).check_indexes()
    assert await names(define()) == ["_id_", "name", "new"]


async def test_a_changed_index_is_refused_or_rebuilt(define: Define) -> None:
    before, after = define(indexes=[Index("year")]), define(indexes=[Index("year", unique=True)])
    await before.create_indexes()
    for refused in (after.create_indexes, after.check_indexes):
        with pytest.raises(OperationFailure) as caught:
            await refused()
        assert "The indexes of Movie in" in caught.value.__notes__[0]
        assert "check_indexes(force_drop=True)" in caught.value.__notes__[0]
    await after.check_indexes(force_drop=True)
    rows = {row["name"]: row for row in await after.list_indexes()}
    assert set(rows) == {"_id_", "name", "year"}
    assert rows["year"]["unique"] is True


async def test_an_error_names_two_indexes_that_have_the_same_keys(define: Define) -> None:
    Movie = define(indexes=[Index("name", name="again"), Index("year")])
    for refused in (Movie.create_indexes, lambda: Movie.check_indexes(force_drop=True)):
        with pytest.raises(OperationFailure) as caught:
            await refused()
        assert caught.value.__notes__[0].endswith("'name' and 'again' have the same keys; remove one of them.")


async def test_a_partial_unique_index_allows_missing_values(define: Define) -> None:
    """As in the guide: None is stored, so a sparse index is not sufficient."""
    only_strings = {"partialFilterExpression": {"code": {"$type": "string"}}}
    Movie = define(indexes=[Index("code", unique=True, **only_strings)], autogenerate_index=True)
    await Movie.create_many([Movie(name=name, code=None) for name in "ab"])
    await Movie.objects.create(name="c", code="1")
    with pytest.raises(DuplicateKeyError):
        await Movie.objects.create(name="d", code="1")


@pytest.mark.parametrize("whose", ["ours", "the driver's"])
async def test_indexes_can_be_created_in_another_collection(
    define: Define, registry: mongoz.Registry, database: str, whose: str
) -> None:
    Movie = define(indexes=[Index("year")])
    ours = registry.get_database(database).get_collection("archive")
    other = ours if whose == "ours" else ours._collection
    assert await Movie.create_index("year", collection=other) == "year"
    assert await names(Movie, other) == ["_id_", "year"]
    assert await Movie.create_indexes(collection=other) == ["name", "year"]
    await Movie.drop_index("year", collection=other)
    assert await names(Movie, other) == ["_id_", "name"]
    await Movie.check_indexes(collection=other)
    assert await names(Movie, other) == ["_id_", "name", "year"]
    assert await Movie.drop_indexes(collection=other) == ["name", "year"]
    assert await names(Movie) == []


async def test_indexes_can_be_created_in_several_databases(
    define: Define, registry: mongoz.Registry, database: str
) -> None:
    Movie = define(indexes=[Index("year")])
    others = [f"{database}_one", f"{database}_two"]
    places = [registry.get_database(name).get_collection("movies") for name in others]
    try:
        await Movie.create_indexes_for_multiple_databases(others)
        for place in (None, *places):
            assert await names(Movie, place) == ["_id_", "name", "year"]
        await Movie.drop_indexes_for_multiple_databases(tuple(others[:1]))
        assert [len(await names(Movie, place)) for place in (None, *places)] == [3, 1, 3]
        await Movie.drop_indexes_for_multiple_databases([database])
        assert await names(Movie) == ["_id_"]
    finally:
        for name in others:
            await registry.drop_database(name)


@pytest.mark.parametrize("wrong", ["shop", {"shop"}, None, [1], 5])
async def test_databases_must_be_a_list_of_names(define: Define, wrong: Any) -> None:
    Movie = define()
    for call in (Movie.create_indexes_for_multiple_databases, Movie.drop_indexes_for_multiple_databases):
        with pytest.raises(MongozException, match="a list or a tuple of names"):
            await call(wrong)
    assert await names(Movie) == []


CALLS: dict[str, tuple[Any, ...]] = {
    "create_index": ("name",),
    "create_indexes": (),
    "drop_index": ("name",),
    "drop_indexes": (),
    "list_indexes": (),
    "check_indexes": (),
    "create_indexes_for_multiple_databases": (["x"],),
    "drop_indexes_for_multiple_databases": (["x"],),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_document_without_a_collection_is_refused(define: Define, call: str) -> None:
    class Loose(mongoz.Document):
        name: str = mongoz.String()

    for document, error in ((define(abstract=True), AbstractDocumentError), (Loose, ImproperlyConfigured)):
        with pytest.raises(error):
            await getattr(document, call)(*CALLS[call])


async def test_the_first_write_creates_the_indexes(
    define: Define, registry: mongoz.Registry, database: str
) -> None:
    Movie = define(indexes=[Index("year", unique=True)], autogenerate_index=True)
    assert await Movie.objects.count() == 0
    assert await names(Movie) == [], "reading creates nothing"
    await Movie(name="a", year=1).create()
    assert await names(Movie) == ["_id_", "name", "year"]
    await Movie.drop_indexes()
    await Movie(name="b", year=1).create()
    assert await names(Movie) == ["_id_"], "a process creates the indexes once"
    archive = registry.get_database(database).get_collection("archive")
    await Movie(name="a", year=1).create(archive)
    assert await names(Movie, archive) == ["_id_", "name", "year"], "each collection has its first write"
    await registry.drop_database(database)
    await Movie(name="a", year=1).create()
    assert await names(Movie) == ["_id_", "name", "year"], "a new database has its own first write"


async def test_the_first_write_creates_no_index_without_the_meta_option(define: Define) -> None:
    Movie = define(indexes=[Index("year")])
    await Movie(name="a").create()
    assert await names(Movie) == ["_id_"]


async def test_concurrent_first_writes_wait_until_the_indexes_exist(define: Define) -> None:
    Movie = define(indexes=[Index("year", unique=True)], autogenerate_index=True)
    attempts = [Movie(name="a", year=n % 2).create() for n in range(20)]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(outcome, DuplicateKeyError) for outcome in outcomes) == 18
    assert sum(isinstance(outcome, mongoz.Document) for outcome in outcomes) == 2
    assert await names(Movie) == ["_id_", "name", "year"]


async def test_a_first_write_fails_if_the_indexes_can_not_be_created(define: Define, foreign: Any) -> None:
    Movie = define(indexes=[Index("year", unique=True)], autogenerate_index=True)
    foreign.movies.insert_many([{"year": 1}, {"year": 1}])
    for _ in range(2):
        with pytest.raises(OperationFailure) as caught:
            await Movie(name="a", year=2).create()
        assert caught.value.code == 11000
    assert foreign.movies.count_documents({}) == 2
    foreign.movies.delete_one({})
    await Movie(name="a", year=2).create()
    assert await names(Movie) == ["_id_", "name", "year"]


async def test_the_first_write_may_be_in_a_transaction(define: Define, registry: mongoz.Registry) -> None:
    Movie = define(indexes=[Index("year", unique=True)], autogenerate_index=True)

    async def write_and_fail() -> None:
        async with registry.transaction():
            await Movie(name="a", year=1).create()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write_and_fail()
    assert await names(Movie) == ["_id_", "name", "year"], "built outside of the transaction"
    assert await Movie.objects.count() == 0


async def test_a_first_write_in_a_transaction_that_already_uses_the_collection_fails(
    define: Define, registry: mongoz.Registry, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mongoz.persistence.indexing._TIMEOUT_IN_TRANSACTION", {"maxTimeMS": 50})
    Movie = define(indexes=[Index("year")], autogenerate_index=True)
    foreign.movies.insert_one({})

    async def read_and_write() -> None:
        async with registry.transaction() as session:
            await Movie.get_collection()._collection.find_one({}, session=session)
            await Movie(name="a").create()

    with pytest.raises(OperationFailure) as caught:
        await read_and_write()
    assert "registry.document_checks()" in caught.value.__notes__[0]


async def test_a_check_keeps_the_indexes_of_other_documents_in_the_collection(define: Define) -> None:
    Movie, Film = define("Movie", indexes=[Index("year")]), define("Film", indexes=[Index("rating")])
    await Film.create_indexes()
    await Movie.check_indexes()
    assert sorted(await names(Movie)) == ["_id_", "name", "rating", "year"]
    await Film.check_indexes(force_drop=True)
    assert sorted(await names(Film)) == ["_id_", "name", "rating", "year"]


async def test_the_registry_checks_all_documents(
    define: Define, registry: mongoz.Registry, foreign: Any, database: str
) -> None:
    define("Movie", indexes=[Index("forgotten")])
    Movie = define("Movie", indexes=[Index("year")])
    Film = define("Film", indexes=[Index("rating")])  # in the same collection
    Book = define("Book", collection="books")
    define("Base", abstract=True, indexes=[Index("abstract")])
    foreign.movies.create_index("theirs", name="theirs")
    await registry.document_checks()
    await registry.document_checks()
    assert sorted(await names(Movie)) == ["_id_", "name", "rating", "year"]
    assert await names(Film) == await names(Movie)
    assert await names(Book) == ["_id_", "name"]
    found = [collection.name for collection in await registry.get_database(database).get_collections()]
    assert found == ["books", "movies"]


async def test_a_check_keeps_the_indexes_of_a_class_of_the_same_name_in_another_module(define: Define) -> None:
    Movie, other = define("Movie", indexes=[Index("year")]), define("Movie", indexes=[Index("rating")])
    Movie.__module__ = "shop.catalogue"
    await Movie.create_indexes()
    await other.check_indexes()
    assert sorted(await names(Movie)) == ["_id_", "name", "rating", "year"]


async def test_the_unique_field_of_an_embedded_document_is_unique(
    registry: mongoz.Registry, database: str
) -> None:
    class Code(mongoz.EmbeddedDocument):
        value: str = mongoz.String(unique=True, alias="v")

    class Ticket(mongoz.Document):
        code: Code = mongoz.Embed(Code)
        codes: list[Code] = mongoz.Array(Code, default=list)

        Meta = type("Meta", (), {"registry": registry, "database": database, "autogenerate_index": True})

    await Ticket.objects.create(code=Code(value="a"), codes=[Code(value="x"), Code(value="y")])
    for wrong in ({"code": {"value": "a"}}, {"code": {"value": "b"}, "codes": [{"value": "y"}]}):
        with pytest.raises(DuplicateKeyError):
            await Ticket.objects.create(**wrong)
    assert await names(Ticket) == ["_id_", "code.value", "codes.value"]
    Code.model_fields["value"].index = False
    await Ticket.check_indexes()
    assert await names(Ticket) == ["_id_"]
