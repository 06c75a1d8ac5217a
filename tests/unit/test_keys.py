"""The keys of two values have the same bytes exactly if the server considers the values equal."""

import decimal
import math
import struct
from typing import Any

import bson
import pytest
from bson import Code, DBRef, Decimal128, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st

import mongoz
from dispatcher.core.keys import document_key, lane_key
from dispatcher.parking.lane import lane_id
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.keys import canonical, canonical_of
from mongoz.stamps import key_hash

EQUAL = [
    [1, Int64(1), 1.0, Decimal128("1"), Decimal128("1.00"), Decimal128("10E-1")],
    [0, -0.0, Decimal128("-0"), Decimal128("0E+5")],
    [float("nan"), -float("nan"), Decimal128("NaN"), Decimal128("-NaN"), Decimal128("sNaN")],
    [math.inf, Decimal128("Infinity")],
    [-math.inf, Decimal128("-Infinity")],
    [0.5, Decimal128("0.50")],
    [2**53 + 1, Decimal128(str(2**53 + 1))],
    [2.0**63, Decimal128(str(2**63))],
    [1e22, Decimal128("1E+22"), Decimal128("10000000000000000000000")],
    [Decimal128("0.1"), Decimal128("0.10")],
    [Decimal128("1E+6144"), Decimal128("10E+6143")],
    [ObjectId(b"i" * 12), mongoz.ObjectId(b"i" * 12)],
]
DIFFERENT = [
    *(same[0] for same in EQUAL),
    True, False, None, "1", b"1", 2, -1, 2**53, -(2**63), 0.1, 1e300, 5e-324, Decimal128("1E+300"),
    math.nextafter(1, 2), Decimal128("0.1000000000000000055511151231257827"), Code("1"),
    ObjectId("0102030405060708090a0b0c"),
    [1], {"a": 1}, {"b": 1}, {"a": {"a": 1}}, {"a": [1]}, {"a": "1"}, {"a": 1, "b": 1}, {"b": 1, "a": 1}, {},
]  # fmt: skip
WAYS = {
    "itself": lambda value: value,
    "in a document": lambda value: {"a": value, "b": "x"},
    "in an array": lambda value: {"a": ["x", [value]]},
    "in a reference": lambda value: DBRef("other", value),
    "in a scope": lambda value: {"a": Code("x", {"n": value}), "b": 1},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("same", EQUAL, ids=lambda same: str(same[0]))
def test_equal_values_have_one_key(same, way):
    made = [WAYS[way](value) for value in same]
    for function in (
        canonical,
        lane_key,
        lambda id_: key_hash("a.b", id_),
        lambda id_: document_key(("a", "b"), id_),
    ):
        assert len({function(id_) for id_ in made}) == 1


@pytest.mark.parametrize("way", WAYS)
def test_different_values_have_different_keys(way):
    made = [WAYS[way](value) for value in DIFFERENT]
    for function in (canonical, lambda id_: key_hash("a.b", id_), lambda id_: document_key(("a", "b"), id_)):
        assert len({function(id_) for id_ in made}) == len(DIFFERENT)


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.sampled_from([0, 2**31, -(2**31) - 1, 2**53, 2.0**53, 2.0**63, -(2.0**63)]),
)


@given(NUMBERS, NUMBERS)
def test_numbers_are_compared_by_value(one, other):
    equal = one == other or (one != one and other != other)
    assert (canonical(one) == canonical(other)) is equal
    assert (canonical([one]) == canonical([other])) is equal


@given(st.decimals(allow_nan=False, places=2, min_value=-(10**20), max_value=10**20) | NUMBERS, st.integers(0, 6))
def test_decimals_are_compared_by_value(number, zeros):
    if number != number or abs(number) == math.inf or len(decimal.Decimal(number).as_tuple().digits) > 28:
        return
    written = decimal.Decimal(number)
    padded = (
        written.scaleb(0)
        if not written
        else decimal.Decimal(
            (
                written.as_tuple().sign,
                (*written.as_tuple().digits, *[0] * zeros),
                written.as_tuple().exponent - zeros,
            )
        )
    )
    assert canonical(Decimal128(padded)) == canonical(Decimal128(written)) == canonical(number, CODEC_OPTIONS)


@pytest.mark.parametrize(
    "id_", [5, 2**40, "x", 1.5, b"x", True, None, {"a": 1, "b": ["x", {"c": 2.5}]}, ObjectId()]
)
def test_the_keys_of_common_values_are_their_bson(id_):
    """Stamps of earlier versions remain valid."""
    assert canonical(id_) == bson.encode({"": id_})


def element(type_: int, value: bytes) -> bytes:
    body = bytes((type_,)) + b"\0" + value
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def test_unusual_bson_has_a_key():
    text = struct.pack("<i", 3) + b"\xff\xfe\0"
    assert canonical_of(element(0x0E, text)) == element(0x02, text)  # a symbol equals a string
    assert canonical_of(element(0x05, struct.pack("<iB", 3, 4) + b"123")) == element(0x05, b"\3\0\0\0\4" + b"123")
    inner = (
        struct.pack("<i", 5 + 22) + b"\x01a\0" + struct.pack("<d", 1) + b"\x01a\0" + struct.pack("<d", 2) + b"\0"
    )
    narrow = (
        struct.pack("<i", 5 + 14) + b"\x10a\0" + struct.pack("<i", 1) + b"\x10a\0" + struct.pack("<i", 2) + b"\0"
    )
    assert canonical_of(element(0x03, inner)) == element(0x03, narrow)
    numbered = struct.pack("<i", 5 + 7) + b"\x107\0" + struct.pack("<i", 1) + b"\0"
    assert canonical_of(element(0x04, numbered)) == canonical([1])
    deep: Any = 1.0
    for _ in range(190):
        deep = {"a": deep}
    assert len(canonical(deep)) == len(bson.encode({"": deep})) - 4


EARLIER = [
    (5, "bea99dc57dcbeb3a69589a6bb571fe86"),
    (2**40, "4d5a90caff8f95e6e3db835be0e99d9e"),
    (1.5, "7a56abb06db2b2cc1f9456c53caa24c1"),
    (100.0, "1c5d6709c7e777bb68a7a82e53a88f5b"),
    (Decimal128("1.50"), "7a56abb06db2b2cc1f9456c53caa24c1"),
    (-0.0, "01342f862fb0c17f595ab200bae7d007"),
    (float("nan"), "65993b18b78888e3880f3cf9d859eddf"),
    ("x", "1ea1f9008d3e6ac5260a4652abab7d1e"),
    (ObjectId("0102030405060708090a0b0c"), "2b6dabac74e6955a6675f6cea33d3bfb"),
    ({"a": 1, "b": [2.5, "x"]}, "d3997b5d78e2860bd0bbf3fae1124e7b"),
    (True, "93be04c87e11fd9a38d75e177125a098"),
]


@pytest.mark.parametrize(("id_", "name"), EARLIER)
def test_parked_lanes_of_earlier_versions_keep_their_names(id_, name):
    assert lane_id("g", "r", "d", ("db", "c"), id_) == name


def test_the_decimal_context_of_the_application_does_not_change_keys():
    ids = [Decimal128("1234567.89"), 12345.678, {"a": 123456789}]
    before = [(canonical(id_), lane_key(id_)) for id_ in ids]
    with decimal.localcontext(decimal.Context(prec=3, traps=[decimal.Inexact])):
        assert [(canonical(id_), lane_key(id_)) for id_ in ids] == before
