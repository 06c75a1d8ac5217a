"""Saves skip some work. The skipped work would change nothing, for all kinds of annotations and configs."""

import datetime
import itertools
import math
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Final

import bson
import pytest
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    InstanceOf,
    PlainValidator,
    SkipValidation,
    StringConstraints,
    ValidationError,
    WrapValidator,
)
from pydantic_core import CoreSchema, core_schema

import mongoz
from mongoz.fields.storage import stored
from mongoz.model.state import loaded, remember
from mongoz.persistence.operations.operation import Operation
from mongoz.persistence.patches import settle_update
from mongoz.persistence.rows import flat, unsaved
from mongoz.persistence.rows.changes import Changes, are_same
from mongoz.persistence.rows.validation import validated_row

DAY: Final = datetime.datetime(2024, 5, 17, 1, 2, 3, 4567)


class Text(str):
    __slots__ = ()


class Moment(datetime.datetime):
    pass


class Color(StrEnum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Start(datetime.datetime, Enum):
    FIRST = 2024, 5, 17


class Anything:
    """Makes an annotation accept any value."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.any_schema()


def as_colors(value: Any) -> list[Color]:
    return [Color.RED, Color.RED]


SCALARS: Final[list[Any]] = [
    None, "", " a ", "Ab", "abcdef", Text("x"), Color.RED, True, 0, 1, Size.SMALL, 2**40, bson.Int64(3), 1.0, 1.5,
    math.nan, math.inf, DAY, DAY.replace(microsecond=4000), DAY.replace(tzinfo=datetime.UTC), DAY.date(),
    Moment(2024, 5, 17), Start.FIRST, b"a", bson.ObjectId("65f0c0ffee0123456789abcd"), "65f0c0ffee0123456789abcd",
]  # fmt: skip
VALUES: Final = [*SCALARS, [], [1, 2], ["a", " b "], *([value] for value in SCALARS), [[Color.RED], ["a"]]]

ANNOTATIONS: Final[dict[str, Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "bytes": bytes,
    "datetime": datetime.datetime,
    "date": datetime.date,
    "id": mongoz.ObjectId,
    "str or None": str | None,
    "float or None": float | None,
    "datetime or None": datetime.datetime | None,
    "int or str": int | str,
    "list of str": list[str],
    "list of int, or None": list[int] | None,
    "list of str or None": list[str | None],
    "list of lists": list[list[str]],
    "list of datetime": list[datetime.datetime],
    "stripped": Annotated[str, StringConstraints(strip_whitespace=True)],
    "upper": Annotated[str, StringConstraints(to_upper=True)],
    "lower or None": Annotated[str | None, StringConstraints(to_lower=True)],
    "short": Annotated[str, Field(max_length=3)],
    "strict int": Annotated[int, Field(ge=1, strict=True)],
    "finite": Annotated[float, Field(allow_inf_nan=False)],
    "strict datetime": Annotated[datetime.datetime, Field(strict=True)],
    "title": Annotated[str, AfterValidator(str.title)],
    "color": Annotated[str, AfterValidator(Color)],
    "list of colors for a str": Annotated[str, AfterValidator(as_colors)],
    "length": Annotated[int, BeforeValidator(lambda value: len(str(value)))],
    "anything for a str": Annotated[str, Anything()],
    "anything for a list": Annotated[list[str], Anything()],
}

CONFIGS: Final[list[ConfigDict]] = [
    {},
    {"strict": True},
    {"str_strip_whitespace": True},
    {"str_to_lower": True},
    {"str_to_upper": True},
    {"str_max_length": 3},
    {"coerce_numbers_to_str": True},
    {"allow_inf_nan": False},
    {"use_enum_values": True, "validate_default": True},
]


def documents(annotation: Any) -> list[Any]:
    """A document with a field of this annotation, for each config."""
    made = []
    for config in CONFIGS:

        class Thing(mongoz.Document):
            model_config = config
            x: annotation

        made.append(Thing)
    return made


def types_in(value: Any) -> Any:
    return [list, *map(types_in, value)] if type(value) is list else type(value)


@pytest.mark.parametrize("annotation", ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_the_values_of_a_flat_row_are_their_own_stored_forms(annotation: Any) -> None:
    rows = [
        row
        for document, value in itertools.product(documents(annotation), VALUES)
        if (row := flat.flat_row(document, {"id": None, "x": value})) is not None
    ]
    assert rows
    for row in rows:
        assert types_in(row["x"]) == types_in(stored(row["x"]))
        assert are_same(row["x"], stored(row["x"]))


@pytest.mark.parametrize("annotation", ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_values_that_are_not_loaded_again_would_load_unchanged_or_be_refused(annotation: Any) -> None:
    for document, value in itertools.product(documents(annotation), VALUES):
        if flat.loads_unchanged(document, {"x": value}, ["x"]):
            reloaded = flat.reloaded_values(document, {"x": value})
            assert reloaded is None or (
                types_in(reloaded["x"]) == types_in(value) and are_same(reloaded["x"], value)
            )


def test_most_scalars_are_not_loaded_again() -> None:
    class Usual(mongoz.Document):
        name: str = mongoz.String(max_length=10)
        email: str = mongoz.Email()
        count: int = mongoz.Integer(minimum=0, null=True)
        share: float = mongoz.Double()
        seen_at: datetime.datetime = mongoz.DateTime(auto_now=True)
        is_new: bool = mongoz.Boolean()

    known = {"name": "a", "email": "a@example.org", "count": None, "share": 0.5, "seen_at": DAY, "is_new": True}
    assert flat.loads_unchanged(Usual, known, known)
    assert not flat.loads_unchanged(Usual, {**known, "share": 1}, known)
    assert not flat.loads_unchanged(Usual, known, ["another"])


@pytest.mark.parametrize("annotation", ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_a_save_finds_the_same_changes_as_if_it_loaded_all_values_again(
    annotation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> list[Changes]:
        changes = []
        for document, known, new in itertools.product(things, VALUES, (" a ", "Ab", 1, 1.5, DAY, ["a"], None)):
            try:
                thing = document.from_row({"_id": bson.ObjectId(), "x": known})
                thing.x = new
                row = validated_row(thing)
            except ValidationError:
                continue
            changes.append(unsaved.unsaved_changes(thing, row, loaded(thing).row()))
        return changes

    things = documents(annotation)
    quick = found()
    monkeypatch.setattr(unsaved, "loads_unchanged", lambda *_: False)
    assert repr(quick) == repr(found())


class Limits:
    """A validator whose limit the application changes."""

    highest = 10

    @classmethod
    def check(cls, value: int) -> int:
        if value > cls.highest:
            raise ValueError("too high")
        return value


class Counted(mongoz.Document):
    name: str = mongoz.String()
    count: int = mongoz.Integer(maximum=10)
    level: Annotated[int, AfterValidator(Limits.check)]
    tags: list[str] = mongoz.Array(str)

    class Meta:
        registry = mongoz.Registry("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=50")  # nothing listens there
        database = "flat"


def place_in_dict(thing: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    thing.__dict__["count"] = 11


def change_list_in_place(thing: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    thing.tags.append(5)  # type: ignore[arg-type]


def lower_limit(thing: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "highest", 1)


def compute_scalar(thing: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_update(thing, Changes({}, ()), [Operation("$max", "count", "count", 1)], {"count": 11}, None)


def compute_list(thing: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_update(thing, Changes({}, ()), [Operation("$push", "tags", "tags", "a")], {"tags": [5, "a"]}, None)


@pytest.mark.parametrize("write", ["save", "update"])
@pytest.mark.parametrize(
    "spoil",
    [place_in_dict, change_list_in_place, lower_limit, compute_scalar, compute_list],
    ids=lambda f: f.__name__,
)
async def test_an_invalid_value_of_any_field_is_refused(
    write: str, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = Counted.from_row({"_id": bson.ObjectId(), "name": "a", "count": 1, "level": 5, "tags": ["x"]})
    spoil(thing, monkeypatch)
    thing.name = "b"
    written = thing.save() if write == "save" else thing.update(name="c")
    with pytest.raises(ValidationError):
        await written


async def test_an_invalid_value_without_a_type_in_bson_gets_no_note() -> None:
    thing = Counted.from_row({"_id": bson.ObjectId(), "name": "a", "count": 1, "level": 5, "tags": ["x"]})
    thing.__dict__["count"] = 2**70
    with pytest.raises(ValidationError) as caught:
        await thing.save()
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(
    "annotation",
    [
        SkipValidation[list[str]],
        InstanceOf[list[str]],
        Annotated[list[str], PlainValidator(lambda value: value)],
        Annotated[list[str], WrapValidator(lambda value, _: value)],
        SkipValidation[list[str]] | None,
        list[SkipValidation[list[str]]],
    ],
    ids=["skipped", "instance", "plain", "wrap", "nullable", "nested"],
)
def test_a_list_that_validation_does_not_copy_is_no_part_of_the_snapshot(annotation: Any) -> None:
    class Tagged(mongoz.Document):
        x: annotation

    thing = Tagged.from_row({"_id": bson.ObjectId(), "x": [["a"]]})
    thing.x[0].append("b")
    changes = unsaved.unsaved_changes(thing, validated_row(thing), loaded(thing).row())
    assert changes.changed == {"x": [["a", "b"]]}
    remember(thing, validated_row(thing), None)
    thing.x.append("c")
    changes = unsaved.unsaved_changes(thing, validated_row(thing), loaded(thing).row())
    assert changes.changed == {"x": [["a", "b"], "c"]}
