"""The cost of single writes, awaited one after another, as in a request handler.

Most of the time of a write is spent in the server, equally for all sides. So ratios are near 1.
If each write waits for the journal, which some servers flush once a millisecond, all sides take about a
millisecond, and the ratio says little. So the targets that matter are about the processor time of the process,
which does not include the server. It includes the thread that sends the beats of claims.

`create`, and the same operation of other ODMs, makes an instance from plain values, validates it fully, and writes
it. The e-mail address is the most expensive part of the validation. PyMongo and Motor only insert the values.
`create of an instance` does not include making the instance.
"""

from math import ceil

from benchmarks.figures import Row, Target
from benchmarks.load import fill
from benchmarks.setting import Setting
from benchmarks.turns import Comparison, Side, measured_rows

__all__ = ["measure_writes"]

# Operations in a turn: few, so that a disturbance of the machine affects both sides alike, and so many that the
# start of a turn hardly counts.
_PORTION = 50

# `save` and `update` also validate the new value, and compare it with the old one.
_CHANGE = Target(limit=1.15, tolerated=1.8, better="lower")


def measure_writes(setting: Setting) -> list[Row]:
    """Measure the rows.

    Raises:
        BenchmarkFailed: a side did not do what it should.
    """
    count = min(_PORTION, setting.plan.operations)
    fill(setting, count + 1)
    return measured_rows(setting, _COMPARISONS, portions=ceil(setting.plan.operations / count), count=count)


def _ours(operation: str) -> Side:
    return Side("mongoz_odm", operation)


_CREATE, _INSERT_ONE, _UPDATE_ONE = _ours("create"), _ours("insert_one"), _ours("update_one")

_COMPARISONS = (
    Comparison(
        "create",
        "create",
        "microseconds to make an instance and create() it, without receivers, against insert_one of "
        "the same values",
        "PyMongo",
        _CREATE,
        _INSERT_ONE,
        "us",
        Target(limit=1.10, tolerated=2.0, better="lower"),
        Target.cost(1.15),
    ),
    Comparison(
        "create_heard",
        "create, heard",
        "microseconds to make an instance and create() it, with one pre_save and one post_save receiver that do "
        "nothing, against insert_one of the same values",
        "PyMongo",
        _ours("create_heard"),
        _INSERT_ONE,
        "us",
        Target(limit=1.15, tolerated=2.0, better="lower"),
        Target.cost(1.25),
    ),
    Comparison(
        "create_made",
        "create of an instance",
        "microseconds to create() an instance that was made before, without receivers, against insert_one of "
        "the same values",
        "PyMongo",
        _ours("create_made"),
        _INSERT_ONE,
        "us",
    ),
    Comparison(
        "create_stamped",
        "create, stamped",
        "microseconds to make and create() an instance with one post_save receiver, on a dispatched registry with "
        "claims=False, against a plain registry",
        "create, unstamped",
        _ours("create_stamped"),
        _ours("create_announced"),
        "us",
        Target(limit=1.05, tolerated=1.5, better="lower"),
        Target.cost(1.15),
    ),
    Comparison(
        "create_claimed",
        "create, claimed",
        "microseconds to make and create() an instance with one post_save receiver, on a dispatched registry with "
        "claims, against one with claims=False",
        "create, unclaimed",
        _ours("create_claimed"),
        _ours("create_stamped"),
        "us",
        Target(limit=1.05, tolerated=1.5, better="lower"),
        Target.cost(1.25),
    ),
    Comparison(
        "create_claimed_heard",
        "create, heard, claimed",
        "microseconds to make and create() an instance with one pre_save and one post_save receiver that do "
        "nothing, with claims, against insert_one",
        "PyMongo",
        _ours("create_claimed_heard"),
        _INSERT_ONE,
        "us",
        Target(limit=1.15, tolerated=2.0, better="lower"),
        Target(limit=1.4, tolerated=2.5, better="lower"),
    ),
    Comparison(
        "delete_stamped",
        "delete, stamped",
        "microseconds to delete() an instance with one post_delete receiver, on a dispatched registry, against a "
        "plain registry",
        "delete, unstamped",
        _ours("delete_claimed"),
        _ours("delete_announced"),
        "us",
        Target(limit=2.0, tolerated=2.0, better="lower"),
        Target.cost(3.0),
    ),
    Comparison(
        "delete_many_stamped",
        "bulk delete, stamped",
        "microseconds per document for one objects.filter(...).delete() of many documents, with one post_delete "
        "receiver, on a dispatched registry, against a plain registry",
        "bulk, unstamped",
        _ours("delete_many_claimed"),
        _ours("delete_many_announced"),
        "us",
        Target(limit=5.0, tolerated=2.0, better="lower"),
        Target.cost(2.5),
    ),
    Comparison(
        "save",
        "save",
        "microseconds to change a field of a loaded instance and save() it, against update_one with $set",
        "PyMongo",
        _ours("save"),
        _UPDATE_ONE,
        "us",
        cpu_target=_CHANGE,
    ),
    Comparison(
        "update",
        "update",
        "microseconds to update(name=...) a loaded instance, against update_one with $set",
        "PyMongo",
        _ours("update"),
        _UPDATE_ONE,
        "us",
        cpu_target=_CHANGE,
    ),
    Comparison(
        "create_motor",
        "create",
        "microseconds to make an instance and create() it, without receivers, against insert_one of Motor",
        "Motor",
        _CREATE,
        Side("motor_driver", "create", "motor"),
        "us",
    ),
    Comparison(
        "create_beanie",
        "create",
        "microseconds to make an instance and create() it, without receivers, against Created(...).insert()",
        "Beanie",
        _CREATE,
        Side("beanie_odm", "create", "beanie"),
        "us",
    ),
    Comparison(
        "create_mongoengine",
        "create",
        "microseconds to make an instance and create() it, without receivers, against Created(...).save(), which "
        "blocks",
        "MongoEngine",
        _CREATE,
        Side("mongoengine_odm", "create", "mongoengine"),
        "us",
    ),
)
