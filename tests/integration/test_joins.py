"""Filters on fields of referenced documents, and the attached referenced instances."""

from typing import Any

import bson
import pytest

import mongoz
from mongoz import Q
from mongoz.exceptions import InvalidKeyError


@pytest.fixture(params=["class", "name"])
def models(registry: mongoz.Registry, database: str, request: pytest.FixtureRequest) -> Any:
    """Movies with references to producers, by class or by name."""

    class Base(mongoz.Document):
        Meta = type("Meta", (), {"abstract": True, "registry": registry, "database": database})

    class Country(Base):
        name: str = mongoz.String()

        class Meta:
            collection = "countries"

    class Producer(Base):
        name: str = mongoz.String(alias="full_name")
        age: int = mongoz.Integer(null=True)
        movie_types: list[str] = mongoz.Array(str, default=list)
        country_id: Any = mongoz.ForeignKey(Country, null=True)

    class Cut(mongoz.EmbeddedDocument):
        label: str = mongoz.String()
        editor: Any = mongoz.ForeignKey(Producer, null=True)

    to = Producer if request.param == "class" else "Producer"

    class Movie(Base):
        name: str = mongoz.String()
        producer_id: Any = mongoz.ForeignKey(to, null=True)
        director: Any = mongoz.ForeignKey(to, null=True, alias="director_id")
        sequel_of: Any = mongoz.ForeignKey("Movie", null=True)
        cuts: list[Cut] = mongoz.Array(Cut, default=list)

    return Country, Producer, Movie


@pytest.fixture
async def Movie(models: Any) -> Any:
    Country, Producer, Movie = models
    france, norway = await Country.create_many([Country(name="France"), Country(name="Norway")])
    ada = await Producer.objects.create(name="Ada", age=30, movie_types=["drama", "war"], country_id=france)
    bob = await Producer.objects.create(name="Bob", age=40, movie_types=["drama"], country_id=norway)
    cyd = await Producer.objects.create(name="Cyd.")
    create = Movie.objects.create
    a = await create(name="A", producer_id=ada, director=bob, cuts=[{"label": "x", "editor": bob.id}])
    await create(name="B", producer_id=bob, director=ada, sequel_of=a, cuts=[{"label": "x", "editor": cyd.id}])
    await create(name="C", producer_id=cyd.id, director=cyd)
    await create(name="D")
    await create(name="E", producer_id=bson.ObjectId())  # a reference to a deleted document
    return Movie


async def names(query: Any) -> str:
    return "".join(sorted(movie.name for movie in await query))


JOINS: list[tuple[dict[str, Any], str]] = [
    ({"producer_id__name": "Ada"}, "A"),
    ({"producer_id__name__exact": "Ada"}, "A"),
    ({"producer_id__full_name": "Ada"}, "A"),
    ({"producer_id.name": "Ada"}, "A"),
    ({"producer_id__name__neq": "Ada"}, "BC"),  # not D and E, which have no existing producer
    ({"producer_id__name__not": "Ada"}, "BC"),
    ({"producer_id__name__in": ["Ada", "Bob"]}, "AB"),
    ({"producer_id__name__not_in": ["Ada"]}, "BC"),
    ({"producer_id__name__icontains": "B"}, "B"),
    ({"producer_id__name__endswith": "."}, "C"),
    ({"producer_id__name__pattern": "^[AB]"}, "AB"),
    ({"producer_id__age__gt": 30}, "B"),
    ({"producer_id__age__lte": 40}, "AB"),
    ({"producer_id__age": None}, "C"),
    ({"producer_id__age__exists": True}, "ABC"),
    ({"producer_id__movie_types__contains": "war"}, "A"),
    ({"producer_id__movie_types": "drama"}, "AB"),
    ({"producer_id__name": "Ada", "producer_id__age__gt": 30}, ""),
    ({"producer_id__name": "Bob", "producer_id__age__gt": 30}, "B"),
    ({"producer_id__name": "Ada", "name": "A"}, "A"),
    ({"producer_id__name": "Ada", "name": "B"}, ""),
    ({"director__name": "Ada"}, "B"),
    ({"director__name": "Bob", "producer_id__name": "Ada"}, "A"),
    ({"director__name": "Bob", "producer_id__name": "Bob"}, ""),
    ({"producer_id__country_id__name": "France"}, "A"),
    ({"producer_id__country_id__name__startswith": "N", "director__country_id__name": "France"}, "B"),
    ({"producer_id__country_id__name": "Norway", "producer_id__name": "Bob"}, "B"),
    ({"sequel_of__name": "A"}, "B"),
    ({"sequel_of__producer_id__name": "Ada"}, "B"),
    ({"cuts__editor__name": "Bob"}, "A"),
    ({"cuts.editor.name__in": ["Bob", "Cyd."]}, "AB"),
]


@pytest.mark.parametrize(("lookups", "expected"), JOINS, ids=str)
async def test_lookups_through_references_find_the_matching_documents(
    Movie: Any, lookups: Any, expected: str
) -> None:
    assert await names(Movie.objects.filter(**lookups)) == expected
    assert await names(Movie.query.filter(**lookups)) == expected
    assert await Movie.objects.filter(**lookups).count() == len(expected)
    assert await Movie.objects.filter(**lookups).exists() is bool(expected)
    rest = "".join(name for name in "ABCDE" if name not in expected)
    assert await names(Movie.objects.exclude(**lookups)) == rest
    one_by_one = Movie.objects
    for keyword, value in lookups.items():
        one_by_one = one_by_one.filter(**{keyword: value})
    assert await names(one_by_one) == expected


async def test_a_reference_is_compared_with_instances_and_ids_without_a_join(Movie: Any, models: Any) -> None:
    _, Producer, _ = models
    ada = await Producer.objects.get(name="Ada")
    bob = await Producer.objects.get(name="Bob")
    for value in (ada, ada.id, str(ada.id)):
        for query in (
            Movie.objects.filter(producer_id=value),
            Movie.objects.filter(producer_id__exact=value),
            Movie.objects.filter(producer_id__id=value),
            Movie.objects.filter(producer_id__in=[value]),
            Movie.query(Movie.producer_id == value),
            Movie.query(Q.eq("producer_id", value)),
            Movie.query({"producer_id": value}),
            Movie.query({Movie.producer_id: {"$in": [value]}}),
        ):
            assert await names(query) == "A"
            assert not query._plan.joins
    assert await names(Movie.objects.filter(producer_id__in=[ada, bob.id])) == "AB"
    assert await names(Movie.objects.filter(producer_id__not_in=[ada, bob.id])) == "CDE"
    assert await names(Movie.objects.filter(producer_id=None)) == "D"
    assert await names(Movie.objects.filter(director=bob)) == "A"
    assert await names(Movie.objects.filter(**{"cuts.editor": bob})) == "A"
    with pytest.raises(InvalidKeyError, match="keyword filters"):
        Movie.producer_id.name  # noqa: B018 - reading it is the test


async def test_referenced_instances_are_attached(Movie: Any, models: Any) -> None:
    _, Producer, _ = models
    (movie,) = await Movie.objects.filter(producer_id__name="Ada")
    assert [type(each) for each in movie.producers] == [Producer]
    assert [each.name for each in movie.producers] == ["Ada"]
    assert not any(name.startswith("_joined") for name in movie.model_dump())
    (movie,) = await Movie.objects.filter(producer_id__name="Ada", director__name="Bob")
    assert [each.name for each in movie.producers] == ["Ada", "Bob"]
    (movie,) = await Movie.objects.filter(producer_id__country_id__name="France")
    assert [each.name for each in movie.countries] == ["France"]
    assert [each.name for each in movie.producers] == ["Ada"]
    movie.name = "A2"
    await movie.save()
    assert await names(Movie.objects.filter(producer_id__name="Ada")) == "A2"


async def test_joins_can_be_combined_with_the_rest_of_a_query(Movie: Any) -> None:
    joined = Movie.objects.filter(producer_id__age__gte=30)
    assert [movie.name for movie in await joined.sort("name", -1)] == ["B", "A"]
    assert [movie.name for movie in await joined.sort(producer_id__age__desc=True)] == ["B", "A"]
    assert [movie.name for movie in await joined.sort("name").skip(1).limit(1)] == ["B"]
    assert await names(joined.query(Q.or_(Q.eq("name", "B"), Q.eq("name", "C")))) == "B"
    assert await names(joined.filter(name__in=["A", "C"])) == "A"
    assert await Movie.objects.filter(producer_id__name="Ada").values(["name", "producer_id__movie_types"]) == [
        {"name": "A", "producers": [{"movie_types": ["drama", "war"]}]}
    ]


@pytest.mark.parametrize(
    "hostile", [{"$gt": ""}, {"$ne": None}, {"$regex": ".*"}, bson.Regex(".*"), ["Ada"]], ids=str
)
async def test_values_of_lookups_through_references_are_literal(Movie: Any, hostile: Any) -> None:
    for keyword in (
        "producer_id__name",
        "producer_id__name__exact",
        "producer_id__country_id__name",
        "producer_id",
    ):
        assert await names(Movie.objects.filter(**{keyword: hostile})) == "", keyword
    assert await names(Movie.objects.filter(producer_id__name__in=[hostile])) == ""
    assert await names(Movie.objects.filter(producer_id__name__not=hostile)) == "ABC"
