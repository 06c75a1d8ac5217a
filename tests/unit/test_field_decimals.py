"""Decimal fields: truncation, validation, equality and serialization."""

import copy
import decimal
import pickle
from decimal import Decimal
from typing import Any

import bson
import pytest
from bson import Decimal128
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import mongoz
from mongoz.connection.codec import CODEC_OPTIONS, StoredDecimal
from mongoz.exceptions import FieldDefinitionError
from mongoz.fields import Array
from mongoz.fields import Decimal as DecimalField
from mongoz.fields.decimals import decimal_of
from mongoz.fields.storage import stored


class Movie(mongoz.Document):
    price: Decimal = DecimalField(max_digits=5, decimal_places=2)
    rating: Decimal = DecimalField(
        max_digits=3, decimal_places=1, null=True, minimum=0.1, maximum=5, multiple_of=0.1
    )
    fees: list[Decimal] = Array(Decimal, default=list)


@pytest.mark.parametrize(
    ("given_as", "becomes"),
    [
        ("22.246", "22.24"),
        (22.246, "22.24"),
        (Decimal("22.246"), "22.24"),
        (Decimal128("22.246"), "22.24"),
        ("-22.249", "-22.24"),
        ("999.999", "999.99"),
        (0.1, "0.1"),
        (0.30000000000000004, "0.3"),
        (28, "28"),
        (Decimal128("28"), "28"),
        ("28.00", "28"),
        ("1e2", "100"),
        ("1e-9", "0"),
        ("0e9", "0"),
        (0, "0"),
        ("9" * 3 + "." + "9" * 60, "999.99"),
    ],
)
def test_surplus_decimals_are_cut_before_digits_are_counted(given_as: Any, becomes: str) -> None:
    made, assigned = Movie(price=given_as), Movie(price=1)
    assigned.price = given_as
    for movie in (made, assigned):
        assert movie.price == Decimal(becomes)
        assert int(movie.price.as_tuple().exponent) in (0, -1, -2)


@pytest.mark.parametrize("field", ["price"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1530.2", "decimal_whole_digits"),
        (1530.2, "decimal_whole_digits"),
        (Decimal("1000"), "decimal_whole_digits"),
        ("1e400000", "decimal_whole_digits"),
        (10**50, "decimal_whole_digits"),
        ("NaN", "finite_number"),
        ("sNaN", "finite_number"),
        (float("nan"), "finite_number"),
        (float("-inf"), "finite_number"),
        (Decimal("Infinity"), "finite_number"),
        (Decimal128("NaN"), "finite_number"),
        ("twelve", "decimal_parsing"),
        ("", "decimal_parsing"),
        (True, "decimal_type"),
        (None, "decimal_type"),
        ([1], "decimal_type"),
        (b"1", "decimal_type"),
    ],
)
def test_a_value_that_does_not_fit_is_a_validation_error(field: str, value: Any, kind: str) -> None:
    movie = Movie(price=1)
    for attempt in (lambda: Movie(**{field: value}), lambda: setattr(movie, field, value)):
        with pytest.raises(ValidationError) as caught:
            attempt()
        assert [(line["type"], line["loc"]) for line in caught.value.errors()] == [(kind, (field,))]


def test_bounds_are_decimals_and_apply_to_the_cut_value() -> None:
    assert Movie(price=1, rating="0.19").rating == Decimal("0.1"), "0.1 is a tenth, not its binary fraction"
    assert Movie(price=1, rating=0.3).rating == Decimal("0.3"), "0.3 is a multiple of a tenth"
    for wrong in ("0.09", 5.1, -1):
        with pytest.raises(ValidationError):
            Movie(price=1, rating=wrong)


def test_a_value_equals_a_decimal128_from_both_sides() -> None:
    price = Movie(price="28").price
    assert isinstance(price, Decimal)
    assert price == Decimal128("28")
    assert Decimal128("28") == price
    assert price == Decimal128("28.0") == price
    assert price == 28 == price
    assert not price != Decimal128("28")  # noqa: SIM202 - != is what is tested
    assert price != Decimal128("29")
    assert Decimal128("29") != price
    assert price != "28"
    assert price != None  # noqa: E711
    assert type(price.to_decimal()) is Decimal  # type: ignore[attr-defined]
    assert price.to_decimal() == 28  # type: ignore[attr-defined]
    assert {price: 1}[Decimal(28)] == 1
    assert price < 29 < price + 2


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda price: pickle.loads(pickle.dumps(price)), lambda price: +price + 0]
)
def test_copies_are_the_same_value(again: Any) -> None:
    assert again(Movie(price="28.50").price) == Decimal("28.50")


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda price: pickle.loads(pickle.dumps(price))])
def test_copies_still_equal_a_decimal128(again: Any) -> None:
    assert again(Movie(price="28.50").price) == Decimal128("28.5")


def test_a_dump_has_a_decimal128_and_json_has_a_string() -> None:
    movie = Movie(price="28.50", fees=["1.25"])
    dumped = movie.model_dump()
    assert type(dumped["price"]) is Decimal128
    assert dumped["price"] == Decimal128("28.50")
    assert dumped["rating"] is None
    assert dumped == dict(movie)
    assert movie.model_dump(mode="json")["price"] == "28.50"
    assert Movie.model_validate_json(movie.model_dump_json()).price == movie.price
    assert movie.model_dump(mode="json")["fees"] == ["1.25"]


@pytest.mark.parametrize("value", [Decimal("1.50"), StoredDecimal("1.50"), Decimal128("1.50")])
def test_every_write_stores_a_decimal128(value: Any) -> None:
    assert type(stored(value)) is Decimal128
    for row in ({"a": stored([value])}, {"a": [value]}):
        assert bson.decode(bson.encode(row, codec_options=CODEC_OPTIONS)) == {"a": [Decimal128("1.50")]}


def test_a_default_is_converted() -> None:
    class Ticket(mongoz.Document):
        price: Decimal = DecimalField(max_digits=4, decimal_places=2, default=1.259)
        fee: Decimal = DecimalField(max_digits=4, decimal_places=2, default=lambda: "0.5")

    assert Ticket().price == Decimal128("1.25")
    assert Ticket().fee == Decimal128("0.5")


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_a_decimal_field_has_a_json_schema(mode: Any) -> None:
    assert Movie.model_json_schema(mode=mode)["properties"]["price"]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_digits": 5},
        {"decimal_places": 2},
        {"max_digits": 2, "decimal_places": 3},
        {"max_digits": 0, "decimal_places": 0},
        {"max_digits": 5, "decimal_places": -1},
        {"max_digits": "5", "decimal_places": 2},
        {"max_digits": 5, "decimal_places": 2, "minimum": 2, "maximum": 1},
        {"max_digits": 5, "decimal_places": 2, "minimum": "2"},
        {"max_digits": 5, "decimal_places": 2, "multiple_of": 0},
    ],
)
def test_contradicting_declarations_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(FieldDefinitionError):
        DecimalField(**arguments)


def field_of(max_digits: int, decimal_places: int) -> Any:
    class One(mongoz.EmbeddedDocument):
        x: Decimal = DecimalField(max_digits=max_digits, decimal_places=decimal_places)

    return One


FIELDS = {
    (digits, places): field_of(digits, places) for digits, places in ((1, 0), (3, 3), (5, 2), (34, 6), (40, 3))
}


@given(st.sampled_from(sorted(FIELDS)), st.decimals(allow_nan=False, allow_infinity=False) | st.floats(-1e9, 1e9))
def test_the_rules_apply_to_every_value(size: tuple[int, int], value: Any) -> None:
    digits, places = size
    exact = Decimal(str(value))
    with decimal.localcontext(prec=decimal.MAX_PREC):
        whole = abs(exact) < Decimal(10) ** min(digits - places, 40)
    try:
        made = FIELDS[size](x=value).x
    except ValidationError as error:
        kinds = {line["type"] for line in error.errors()}
        assert kinds == {"decimal_whole_digits"} if not whole else kinds == {"decimal_max_digits"}
        assert not whole or digits > 34, "a fitting value is never refused"
        return
    assert whole
    assert abs(made) <= abs(exact), "the value is cut toward zero"
    assert abs(exact - made) < Decimal(1).scaleb(-places)
    assert made == 0 or (made > 0) == (exact > 0)
    assert len(made.as_tuple().digits) <= min(digits, 34)
    assert -int(made.as_tuple().exponent) <= places
    assert FIELDS[size](x=Decimal128(made)).x == made, "the loaded value equals the stored one"


@given(st.integers(-(10**34) + 1, 10**34 - 1), st.integers(-6176, 6111))
def test_a_stored_decimal128_is_read_as_the_driver_reads_it(digits: int, exponent: int) -> None:
    sent = Decimal128(Decimal((digits < 0, tuple(map(int, str(abs(digits)))), exponent)))
    read = decimal_of(sent)
    assert read == sent.to_decimal()
    assert read.as_tuple().exponent == sent.to_decimal().as_tuple().exponent


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_equality_agrees_with_decimals(value: Decimal) -> None:
    ours = StoredDecimal(value)
    assert ours == value == ours
    assert hash(ours) == hash(value)
    assert ours == Decimal128(value)
    assert (ours != Decimal128(value + 1)) is True
