"""The rate of loading documents (str, e-mail, int, list of str, datetime): a whole collection into a list."""

from pymongo import MongoClient

from benchmarks.figures import Row, Target
from benchmarks.setting import Setting
from benchmarks.turns import Comparison, Side, measured_rows
from benchmarks.workloads.people import COLLECTION, ODM_DATABASE, people

__all__ = ["fill", "measure_load"]

_LOAD = Side("mongoz_odm", "load")
_ABOUT = "documents per second, "


def measure_load(setting: Setting) -> list[Row]:
    """Measure the rows.

    Raises:
        BenchmarkFailed: a side did not do what it should.
    """
    fill(setting, setting.plan.documents)
    return measured_rows(setting, _COMPARISONS, portions=setting.plan.loads, count=setting.plan.documents)


def fill(setting: Setting, count: int) -> None:
    """Fill the ODMs' database with this number of documents."""
    with MongoClient[dict[str, object]](setting.url) as client:
        client.drop_database(ODM_DATABASE)
        for portion in people(count):
            client[ODM_DATABASE][COLLECTION].insert_many(portion)


_COMPARISONS = (
    Comparison(
        "load",
        "load",
        f"{_ABOUT}all() against [d async for d in collection.find()]",
        "PyMongo",
        _LOAD,
        Side("mongoz_odm", "find"),
        "/s",
        Target(limit=0.35, tolerated=0.2, better="higher"),
        Target.cost(3.0),
    ),
    Comparison(
        "load_motor",
        "load",
        f"{_ABOUT}all() against [d async for d in collection.find()], bare rows",
        "Motor",
        _LOAD,
        Side("motor_driver", "load", "motor"),
        "/s",
    ),
    Comparison(
        "load_beanie",
        "load",
        f"{_ABOUT}all() against find_all().to_list()",
        "Beanie",
        _LOAD,
        Side("beanie_odm", "load", "beanie"),
        "/s",
        Target(limit=5.0, tolerated=2.5, better="higher"),
        Target.cost(0.2),
    ),
    Comparison(
        "load_mongoengine",
        "load",
        f"{_ABOUT}all() against list(Person.objects)",
        "MongoEngine",
        _LOAD,
        Side("mongoengine_odm", "load", "mongoengine"),
        "/s",
        Target(limit=2.5, tolerated=1.25, better="higher"),
        Target.cost(0.4),
    ),
)
