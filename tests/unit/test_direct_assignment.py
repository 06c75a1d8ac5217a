"""An assignment without a copy of the instance has the result of pydantic's own assignment."""

import datetime
import decimal
import enum
import uuid
from functools import cached_property
from typing import Annotated, Any, Literal

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

import mongoz
from mongoz.model.assignment import _validators


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    """A subclass."""


class Inner(mongoz.EmbeddedDocument):
    number: int = 0


class Everything(mongoz.EmbeddedDocument):
    any: Any = None
    whole: int = 0
    strict: int = Field(default=0, strict=True)
    few: int = Field(default=1, ge=1, le=3)
    real: float = 0.0
    truth: bool = False
    text: str = ""
    short: Annotated[str, Field(max_length=3, pattern="^a*$")] = ""
    raw: bytes = b""
    exact: decimal.Decimal | None = None
    day: datetime.date | None = None
    moment: datetime.datetime | None = None
    span: datetime.timedelta | None = None
    key: uuid.UUID | None = None
    one_of: Literal["a", 1, None] = None
    texts: list[str] = Field(default_factory=list)
    several: list[list[int] | None] = Field(default=[], max_length=2)
    id_: bson.ObjectId | None = Field(default=None, alias="ident")
    either: int | str = 0
    colour: Colour = Colour.RED
    inner: Inner = Inner()
    doubled: Annotated[int, AfterValidator(lambda value: value * 2)] = 0
    mail: str = mongoz.Email(default="a@example.org")


class Lax(Everything):
    model_config = ConfigDict(str_strip_whitespace=True, str_to_lower=True, coerce_numbers_to_str=True)


class Strict(Everything):
    model_config = ConfigDict(strict=True)


NAMES = sorted(Everything.model_fields)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([2**63, 2**70, -(2**65), 1.0, 1.5, float("inf"), float("nan"), Text("aa"), Colour.RED]),
    st.sampled_from(
        ["", "a", "aaaa", "  A ", "1", "1.5", "true", "red", "2024-01-01", "2024-01-01T00:00:00Z", "PT1S"]
    ),
    st.sampled_from([b"", b"a", b"\xff", bytearray(b"a"), decimal.Decimal("1.50"), decimal.Decimal("NaN")]),
    st.sampled_from([datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1), datetime.timedelta(days=1)]),
    st.sampled_from([uuid.UUID(int=1), str(uuid.UUID(int=1)), bson.ObjectId("a" * 24), "a" * 24, Inner(number=1)]),
    st.sampled_from(["b@example.org", "no address", object, {"number": 2}, {1, 2}, (1, 2)]),
)
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.lists(st.lists(st.integers(), max_size=2), max_size=3)
)


def outcome(instance: Any, assign: Any) -> Any:
    """The state after an assignment, and the lines of its error."""
    error = None
    try:
        assign(instance)
    except ValidationError as raised:
        error = (raised.title, repr(raised.errors(include_url=False)))
    values = [(name, type(value), repr(value)) for name, value in instance.__dict__.items()]
    return error, values, instance.__pydantic_fields_set__, instance.__pydantic_extra__


@pytest.mark.parametrize("name", NAMES)
@given(model=st.sampled_from([Everything, Lax, Strict]), value=VALUES, is_partial=st.booleans())
def test_an_assignment_has_the_result_of_pydantic(name, model, value, is_partial):
    def make() -> Any:
        return model.model_construct({"text"}, text="x", extra=1) if is_partial else model(extra=1)

    own = outcome(make(), lambda instance: setattr(instance, name, value))
    theirs = outcome(make(), lambda instance: BaseModel.__setattr__(instance, name, value))
    assert own == theirs


def test_fields_whose_schemas_call_functions_or_have_models_inside_are_left_to_pydantic():
    left = {"colour", "doubled", "either", "id_", "inner", "mail"}
    assert set(_validators(Everything)) == set(NAMES) - left


def test_a_list_is_copied():
    given = ["a"]
    one = Everything()
    one.texts = given
    assert one.texts == given
    assert one.texts is not given


class Ordered(mongoz.Document):
    low: int = 0
    high: int = 10

    @model_validator(mode="after")
    def is_ordered(self) -> "Ordered":
        if self.low > self.high:
            raise ValueError("low is greater than high")
        return self


class Summed(mongoz.Document):
    first: int = 0
    second: int = 0

    @field_validator("second")
    @classmethod
    def add(cls, value: int, info: Any) -> int:
        return value + info.data["first"]


class Fixed(mongoz.Document):
    one: int = 0
    fixed: int = Field(default=0, frozen=True)


class Frozen(mongoz.Document):
    model_config = ConfigDict(frozen=True)
    one: int = 0


class Unchecked(mongoz.Document):
    model_config = ConfigDict(validate_assignment=False)
    one: int = 0


class Recursive(mongoz.Document):
    one: int = 0
    inner: "Recursive | None" = None


class Computing(mongoz.Document):
    one: int = 0

    @cached_property
    def twice(self) -> int:
        return self.one * 2


class Watching(mongoz.Document):
    one: int = 0
    _seen: list[str] = PrivateAttr(default_factory=list)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self._seen.append(name)


def test_validators_of_the_model_run():
    one = Ordered()
    with pytest.raises(ValidationError, match="low is greater than high"):
        one.low = 11


def test_validators_get_the_other_fields():
    one = Summed(first=3)
    one.first = 4
    one.second = 1
    assert one.second == 5


@pytest.mark.parametrize(("model", "name"), [(Fixed, "fixed"), (Frozen, "one")])
def test_a_frozen_field_is_refused(model, name):
    one = model()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(one, name, 1)
    assert getattr(one, name) == 0


def test_a_model_can_turn_validation_of_assignments_off():
    one = Unchecked()
    one.one = "text"
    assert one.one == "text"


def test_a_recursive_model_is_assigned():
    one = Recursive()
    one.one = "1"
    one.inner = {"one": "2"}
    assert (one.one, one.inner.one) == (1, 2)


def test_a_cached_property_is_kept():
    one = Computing(one=1)
    assert one.twice == 2
    one.one = 2
    assert one.twice == 2
    assert one.model_extra == {}


def test_a_class_with_its_own_setattr_gets_valid_values():
    one = Watching()
    one.one = "5"
    assert (one.one, one._seen) == (5, ["one"])
    with pytest.raises(ValidationError):
        one.one = "five"
    assert one._seen == ["one"]


def test_a_model_that_is_rebuilt_has_new_rules():
    class Later(mongoz.EmbeddedDocument):
        number: int = 0

    one = Later()
    one.number = "1"
    assert one.number == 1
    Later.__pydantic_fields__["number"].annotation = str
    Later.model_rebuild(force=True)
    one.number = "1"
    assert one.number == "1"
