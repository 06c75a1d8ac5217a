"""Queries on fields of referenced documents: results, attached instances, and writes."""

import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest

import mongoz
from mongoz.exceptions import DocumentNotFound, InvalidKeyError, MultipleDocumentsReturned


@pytest.fixture
async def models(mongo: Any, database: str, driver: str) -> AsyncIterator[Any]:
    async with mongoz.Registry(mongo.url, driver=driver) as registry:
        options = {"registry": registry, "database": database}

        class Country(mongoz.Document):
            code: str = mongoz.String()

            Meta = type("Meta", (), {**options, "collection": "countries"})

        class Producer(mongoz.Document):
            name: str = mongoz.String()
            movie_types: str = mongoz.String(alias="types")
            price: Any = mongoz.Decimal(max_digits=4, decimal_places=1, null=True)
            country: Any = mongoz.ForeignKey(Country, null=True)

            Meta = type("Meta", (), options)

        class Movie(mongoz.Document):
            name: str = mongoz.String()
            year: int = mongoz.Integer(default=2000)
            producer_id: Any = mongoz.ForeignKey(Producer, null=True)

            Meta = type("Meta", (), options)

        de = await Country.objects.create(code="de")
        ann = await Producer.objects.create(name="Ann", movie_types="drama", price="1.5", country=de)
        ben = await Producer.objects.create(name="Ben", movie_types="crime")
        for name, producer in (("A", ann), ("B", ann), ("C", ben), ("D", None)):
            await Movie.objects.create(name=name, year=2000 + ord(name), producer_id=producer)
        yield {"Country": Country, "Producer": Producer, "Movie": Movie}


async def names(query: Any) -> str:
    return "".join(movie.name for movie in await query)


async def test_joins_filter_by_referenced_fields(models: Any) -> None:
    Movie = models["Movie"]
    ordered = Movie.objects.sort("name")
    assert await names(ordered.filter(producer_id__name="Ann")) == "AB"
    assert await names(ordered.filter(producer_id__name="Ann", name="B")) == "B"
    assert await names(ordered.filter(producer_id__name__in=["Ann", "Ben"])) == "ABC"
    assert await names(ordered.filter(producer_id__name="Ann").filter(producer_id__movie_types="crime")) == ""
    assert await names(ordered.filter(producer_id__country__code="de")) == "AB"
    assert await names(ordered.exclude(producer_id__name="Ann")) == "CD"
    assert await names(ordered.exclude(producer_id__name="Ann", name="A")) == "BCD"
    assert await names(ordered.filter(producer_id__name="Ann").skip(1).limit(1)) == "B"
    assert await names(Movie.objects.sort(producer_id__name__desc=True).sort("name")) == "CABD"
    assert await names(Movie.objects.sort("producer_id__name").sort("name", -1)) == "DBAC"


async def test_every_terminal_supports_joins(models: Any) -> None:
    query = models["Movie"].objects.filter(producer_id__name="Ann").sort("name")
    assert await query.count() == 2
    assert await query.skip(1).count() == 1
    assert await query.filter(name="X").count() == 0
    assert await query.exists() is True
    assert await query.exists(name="C") is False
    assert (await query.first()).name == "A"
    assert (await query.last()).name == "B"
    assert (await query.limit(1).last()).name == "A"
    assert (await query.get(name="B")).producers[0].name == "Ann"
    with pytest.raises(MultipleDocumentsReturned):
        await query.get()
    with pytest.raises(DocumentNotFound):
        await query.get(name="C")
    assert await query.distinct_values("name") == ["A", "B"]
    assert [movie.producers[0].name async for movie in query.options(batch_size=1)] == ["Ann", "Ann"]
    assert [row["name"] async for row in query._rows({"name": 1}, batch_size=1)] == ["A", "B"]
    assert "stages" in await query.explain() or "queryPlanner" in await query.explain()
    async with models["Movie"].meta.registry.transaction():
        assert await query.count() == 2
        assert await names(query) == "AB"
        assert await query.explain()


async def test_referenced_instances_are_attached(models: Any, foreign: Any) -> None:
    Movie, Producer = models["Movie"], models["Producer"]
    movie = await Movie.objects.filter(producer_id__name="Ann").get(name="A")
    [ann] = movie.producers
    assert type(ann) is Producer
    assert ann == await Producer.objects.get(name="Ann")
    plain = await Movie.objects.get(name="A")
    assert movie == plain
    assert movie.model_dump() == dict(movie) == plain.model_dump()
    assert "producers" not in movie.model_dump(mode="json")
    assert not hasattr(plain, "producers")
    assert copy.copy(movie).producers == copy.deepcopy(movie).producers == [ann]
    assert copy.deepcopy(movie).producers[0] is not ann
    movie.name = "A2"
    await movie.save()
    await movie.update(year=1)
    stored = foreign.movies.find_one({"name": "A2"})
    assert set(stored) == {"_id", "name", "year", "producer_id"}
    ann.name = "Anna"
    await ann.save()
    assert foreign.producers.count_documents({"name": "Anna"}) == 1
    unmatched = await Movie.objects.sort("producer_id__name").first()
    assert (unmatched.name, unmatched.producers) == ("D", [])


async def test_joins_through_two_documents_attach_both(models: Any) -> None:
    movie = await models["Movie"].objects.filter(producer_id__country__code="de").sort("name").first()
    assert [producer.name for producer in movie.producers] == ["Ann"]
    assert [country.code for country in movie.countries] == ["de"]


async def test_values_may_contain_fields_of_referenced_documents(models: Any) -> None:
    Movie = models["Movie"]
    for start in (Movie.objects, Movie.objects.filter(producer_id__movie_types__in=["drama", "crime"])):
        query = start.sort("name").limit(3)
        assert await query.values(["name", "producer_id__movie_types"]) == [
            {"name": "A", "producers": [{"movie_types": "drama"}]},
            {"name": "B", "producers": [{"movie_types": "drama"}]},
            {"name": "C", "producers": [{"movie_types": "crime"}]},
        ]
    [row] = await Movie.objects.filter(name="A").values(["producer_id__name", "producer_id__price"])
    assert row == {"producers": [{"name": "Ann", "price": row["producers"][0]["price"]}]}
    assert str(row["producers"][0]["price"]) == "1.5"
    assert await Movie.objects.filter(name="D").values(["name", "producer_id__name"]) == [
        {"name": "D", "producers": []}
    ]
    [row] = await Movie.objects.filter(name="A").values_list(["name", "producer_id__name"])
    assert row == ("A", [{"name": "Ann"}])
    rows = await Movie.objects.filter(name="A").values(["name", "producer_id__country__code", "producer_id__name"])
    assert rows == [{"name": "A", "countries": [{"code": "de"}], "producers": [{"name": "Ann"}]}]
    everything = await Movie.objects.filter(producer_id__name="Ben").values()
    assert [set(row) for row in everything] == [{"id", "name", "year", "producer_id"}]
    assert await Movie.objects.filter(producer_id__name="Ben").values(["name"]) == [{"name": "C"}]
    with pytest.raises(InvalidKeyError):
        await Movie.objects.values(["producer_id__nope"])


async def test_only_and_defer_apply_to_a_join(models: Any) -> None:
    Movie = models["Movie"]
    for query in (Movie.objects.only("name"), Movie.objects.defer("year", "producer_id")):
        movie = await query.filter(producer_id__name="Ben").get()
        assert movie.producers[0].name == "Ben"
        assert set(movie.__dict__) == {"id", "name"}


async def test_a_join_after_using_reads_both_collections_in_the_other_database(
    models: Any, database: str, foreign: Any
) -> None:
    Movie, Producer = models["Movie"], models["Producer"]
    other = f"{database}_other"
    try:
        producer = await Producer.objects.using(other).create(name="Zed", movie_types="x")
        await Movie.objects.using(other).create(name="Z", producer_id=producer)
        query = Movie.objects.using(other).filter(producer_id__name="Zed")
        movie = await query.get()
        movie.producers[0].name = "Zoe"
        await movie.producers[0].save()
        assert foreign.client[other].producers.find_one()["name"] == "Zoe"
        assert await query.count() == 0
    finally:
        foreign.client.drop_database(other)


async def test_writes_support_joins(models: Any, foreign: Any) -> None:
    query = models["Movie"].objects.filter(producer_id__name="Ann")
    assert await query.update_count(year=7) == 2
    assert foreign.movies.count_documents({"year": 7}) == 2
    assert await query.sort("name").limit(1).delete() == 1
    assert sorted(foreign.movies.distinct("name")) == ["B", "C", "D"]
