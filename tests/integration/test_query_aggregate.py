"""`aggregate` of managers and querysets: the query comes before the pipeline."""

import enum
from typing import Any, ClassVar

import pytest

import mongoz
from mongoz import Registry
from mongoz.exceptions import OperatorInvalid
from mongoz.signals import muted
from mongoz.stamps import FIELD


@pytest.fixture
async def Movie(dispatched: Registry, database: str) -> Any:
    options = type("Meta", (), {"registry": dispatched, "database": database})

    class Studio(mongoz.Document):
        name: str = mongoz.String()
        Meta = options

    class Recent(mongoz.QuerySetManager):
        def get_queryset(self) -> Any:
            return super().get_queryset().filter(year__gte=2000)

    class Movie(mongoz.Document):
        name: str = mongoz.String(alias="n")
        year: int = mongoz.Integer()
        studio: mongoz.ObjectId = mongoz.ForeignKey(Studio)
        recent: ClassVar[Recent] = Recent()
        Meta = options

    with muted():  # a stamp in each document
        studios = [await Studio.objects.create(name=name) for name in ("A", "B")]
        for number in range(6):
            await Movie.objects.create(name=f"m{number}", year=1998 + number, studio=studios[number % 2])
    return Movie


NAMES = [{"$project": {"_id": 0, "n": 1}}]


async def test_filter_sort_skip_and_limit_come_before_the_pipeline(Movie: Any) -> None:
    query = Movie.objects.filter(year__gt=1998).sort("year", -1).skip(1).limit(2)
    assert await query.aggregate(NAMES) == [{"n": "m4"}, {"n": "m3"}]
    assert await Movie.query(Movie.year < 2000).aggregate([{"$count": "movies"}]) == [{"movies": 2}]
    assert await Movie.query.aggregate([{"$group": {"_id": None, "last": {"$max": "$year"}}}]) == [
        {"_id": None, "last": 2003}
    ]
    assert await Movie.recent.exclude(name="m5").aggregate([{"$count": "n"}]) == [{"n": 3}]
    assert await Movie.objects.none().aggregate([{"$count": "n"}]) == []
    assert [row["n"] for row in await Movie.objects.filter(name="m1").aggregate([])] == ["m1"]


async def test_joins_and_selected_fields_come_before_the_pipeline_and_stamps_are_left_out(
    Movie: Any, foreign: Any
) -> None:
    assert FIELD in foreign.movies.find_one()
    joined = Movie.objects.filter(studio__name="B").sort("name")
    assert await joined.aggregate(NAMES) == [{"n": "m1"}, {"n": "m3"}, {"n": "m5"}]
    rows = await Movie.objects.only("year").sort("year").limit(1).aggregate([{"$set": {"all": "$$ROOT"}}])
    assert [set(row) for row in rows] == [{"_id", "year", "all"}]
    rows = await Movie.objects.limit(1).aggregate([{"$set": {"copy": "$$ROOT"}}])
    assert FIELD not in str(rows)


async def test_values_in_a_pipeline_are_converted_as_for_storage(Movie: Any) -> None:
    class Year(enum.Enum):
        last = 2003

    assert await Movie.objects.aggregate([{"$match": {"year": Year.last}}, {"$count": "n"}]) == [{"n": 1}]
    with pytest.raises(TypeError, match="list of stages"):
        await Movie.objects.aggregate({"$match": {}})


async def test_a_condition_that_no_pipeline_supports_is_named(Movie: Any) -> None:
    with pytest.raises(OperatorInvalid, match=r"supports no JavaScript .*\$where"):
        await Movie.objects.where("this.year > 1").aggregate(NAMES)


async def test_aggregate_joins_a_transaction_and_uses_another_database(
    Movie: Any, foreign: Any, dispatched: Registry
) -> None:
    async with dispatched.transaction():
        await Movie.objects.delete()
        assert await Movie.objects.aggregate([{"$count": "n"}]) == []
    assert await Movie.objects.using(f"{foreign.name}_state").aggregate(NAMES) == []
