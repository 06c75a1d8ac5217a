"""Values from user input are only compared, in every lookup and operator."""

import datetime
import decimal
import operator
import re
from collections.abc import Mapping
from typing import Any

import bson
import pytest
from bson import Code, DBRef, Decimal128, Int64, Regex
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import mongoz
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.queries.expressions import Expression, compile_condition
from mongoz.queries.lookups import compile_lookups
from mongoz.queries.plan import conjunction
from mongoz.queries.q import Q

OID = bson.ObjectId("65f0c0ffee0123456789abcd")
checked = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], database=None
)


class Thing(mongoz.Document):
    name: str = mongoz.String(null=True)
    n: int = mongoz.Integer(null=True)
    owner: Any = mongoz.ObjectId(null=True)
    data: Any = mongoz.Object(null=True)
    tags: list[str] = mongoz.Array(str, null=True)


KEYS = [
    "$gt", "$ne", "$in", "$nin", "$not", "$regex", "$options", "$where", "$or", "$exists", "$eq", "$expr", "a",
    "b.c", "",
]  # fmt: skip
SCALARS = [
    None, True, False, 0, 1, 1.0, 2**40, Int64(1), Decimal128("1.0"), float("nan"), "", "a", "abc", ".*", "a\n",
    "1", Code("true"), Code("a", {"x": 1}), Regex("a"), Regex(".*", "i"), re.compile("a"),
    re.compile("^a", re.I | re.S), OID, str(OID), b"a", datetime.datetime(2024, 1, 1), decimal.Decimal("1"),
    bson.MinKey(), bson.MaxKey(), bson.Timestamp(1, 1),
]  # fmt: skip
scalars = st.sampled_from(SCALARS)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


# -- expected matches, in Python ---------------------------------------------------------------------


def in_bson(value: Any) -> Any:
    return bson.decode(bson.encode({"": value}, codec_options=CODEC_OPTIONS), codec_options=CODEC_OPTIONS)[""]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal128) and not isinstance(value, bool)


def as_decimal(value: Any) -> decimal.Decimal:
    return value.to_decimal() if isinstance(value, Decimal128) else decimal.Decimal(value)


def same(a: Any, b: Any) -> bool:
    """Whether MongoDB considers two values equal."""
    if is_number(a) and is_number(b):
        a, b = as_decimal(a), as_decimal(b)
        return (a.is_nan() and b.is_nan()) or a == b
    if isinstance(a, dict) and isinstance(b, dict):
        return len(a) == len(b) and all(
            k == other and same(v, b[other]) for (k, v), other in zip(a.items(), b, strict=True)
        )
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Code) or isinstance(b, Code):
        return type(a) is type(b) and str(a) == str(b) and a.scope == b.scope
    if isinstance(a, Regex) and isinstance(b, Regex):
        return (a.pattern, a.flags) == (b.pattern, b.flags)
    return type(a) is type(b) and a == b


def reached(stored: Any) -> list[Any]:
    """The values that a condition compares: the stored value, and its items if it is a list."""
    return [stored, *(stored if isinstance(stored, list) else ())]


def equal(stored: Any, value: Any) -> bool:
    return any(same(each, in_bson(value)) for each in reached(in_bson(stored)))


def text_in(stored: Any, test: Any) -> bool:
    return any(isinstance(each, str) and not isinstance(each, Code) and test(each) for each in reached(stored))


# -- on a server -------------------------------------------------------------------------------------


@pytest.fixture
def things(foreign: Any) -> Any:
    return foreign.get_collection("things", codec_options=CODEC_OPTIONS)


def fill(things: Any, field: str, stored: list[Any]) -> None:
    things.delete_many({})
    things.insert_many([{"_id": number, field: value} for number, value in enumerate(stored)])


def found(things: Any, condition: Any) -> set[int]:
    return {row["_id"] for row in things.find(condition, {"_id": 1})}


def by_lookup(keyword: str, value: Any) -> Any:
    return conjunction(compile_lookups(Thing, {keyword: value}).conditions)


def spellings(field: str, name: str, lookups: tuple[str, ...], value: Any) -> list[Any]:
    """The same condition in each spelling."""
    proxy = getattr(Thing, field)
    keywords = [f"{field}{lookup}" for lookup in lookups]
    expressions = [getattr(Q, name)(key, value) for key in (field, proxy)]
    expressions.append(Expression(field, name, value))
    if name == "eq":
        expressions += [proxy == value, Expression(field, "$eq", value)]
    if name == "neq":
        expressions += [proxy != value, ~(proxy == value), Q.not_(field, value)]
    compiled = [compile_condition(Thing, expression) for expression in expressions]
    return [*(by_lookup(keyword, value) for keyword in keywords), *compiled]


@pytest.mark.slow
@checked
@given(stored=st.lists(values, min_size=1, max_size=4), other=values)
@example(stored=[{"$gt": ""}, "x"], other={"$gt": ""})
@example(stored=[Regex("a"), "a", [Regex("a")]], other=re.compile("a"))
@example(stored=[[{"$in": ["a"]}], "a"], other={"$in": ["a"]})
def test_equality_is_literal(things: Any, stored: list[Any], other: Any) -> None:
    fill(things, "data", stored)
    for value in (*stored, other):
        expected = {number for number, each in enumerate(stored) if equal(each, value)}
        rest = set(range(len(stored))) - expected
        for condition in spellings("data", "eq", ("", "__exact"), value):
            assert found(things, condition) == expected, condition
        for condition in spellings("data", "neq", ("__neq", "__not"), value):
            assert found(things, condition) == rest, condition
        if not isinstance(value, str):
            for lookup in ("contains", "icontains"):
                for condition in spellings("data", lookup, (f"__{lookup}",), value):
                    assert found(things, condition) == expected, condition


@checked
@given(stored=st.lists(values, min_size=1, max_size=4), others=st.lists(values, max_size=3))
@example(stored=["a", {"$gt": ""}], others=[{"$gt": ""}, Regex(".*")])
def test_membership_is_literal(things: Any, stored: list[Any], others: list[Any]) -> None:
    fill(things, "data", stored)
    for members in (others, tuple(others), [*others, stored[0]]):
        expected = {number for number, each in enumerate(stored) if any(equal(each, value) for value in members)}
        for condition in spellings("data", "in_", ("__in",), members):
            assert found(things, condition) == expected, condition
        for condition in spellings("data", "not_in", ("__not_in",), members):
            assert found(things, condition) == set(range(len(stored))) - expected, condition


ORDERS = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


@checked
@given(stored=st.lists(values, min_size=1, max_size=4), value=values)
def test_comparisons_match_only_values_of_the_same_type(things: Any, stored: list[Any], value: Any) -> None:
    """Strings and numbers are compared as in Python; other values match neither strings nor numbers."""
    plain = ["a", "b", 1, 2.5]
    fill(things, "data", [*plain, *stored])
    for lookup, order in ORDERS.items():
        conditions = []
        for make in (by_lookup, lambda keyword, v: compile_condition(Thing, getattr(Q, keyword[6:])("data", v))):
            try:
                conditions.append(make(f"data__{lookup}", value))
            except OperatorInvalid:
                assert value is None or isinstance(value, bool | re.Pattern | Regex)
        for condition in conditions:
            among_plain = found(things, condition) & set(range(4))
            if isinstance(value, str) and not isinstance(value, Code):
                assert among_plain == {i for i in (0, 1) if order(plain[i], value)}
            elif is_number(value) and value == value:  # no NaN
                assert among_plain == {i for i in (2, 3) if order(plain[i], float(str(value)))}
            elif not isinstance(
                value, bson.MinKey | bson.MaxKey | decimal.Decimal
            ):  # MinKey and MaxKey match every type, and decimals match numbers
                assert among_plain == set()


@checked
@given(value=values)
def test_typed_fields_match_only_equal_values(things: Any, value: Any) -> None:
    row = {"_id": OID, "name": "abc", "n": 1, "owner": OID, "tags": ["a", "abc"]}
    things.delete_many({})
    things.insert_one(row)
    for field in ("name", "n", "owner", "tags", "id", "pk"):
        stored = row["_id" if field in ("id", "pk") else field]
        hexadecimal = isinstance(stored, bson.ObjectId) and value == str(OID)
        expected = int(equal(stored, value) or hexadecimal)
        for lookup, count in (("exact", expected), ("neq", 1 - expected), ("not", 1 - expected)):
            assert things.count_documents(by_lookup(f"{field}__{lookup}", value)) == count, (field, lookup)
        assert things.count_documents(by_lookup(f"{field}__in", [value])) == expected, field
        assert things.count_documents(by_lookup(f"{field}__not_in", [value])) == 1 - expected, field


@checked
@given(value=values.filter(lambda value: not isinstance(value, str) or isinstance(value, Code)))
def test_lookups_of_one_type_refuse_values_of_other_types(value: Any) -> None:
    refused = ["startswith", "istartswith", "endswith", "iendswith"]
    refused += ["contains", "icontains"]
    refused += [] if isinstance(value, bool) else ["exists"]
    refused += [] if isinstance(value, re.Pattern | Regex) else ["pattern"]
    refused += [] if isinstance(value, Code) else ["where"]
    refused += [] if isinstance(value, list) else ["in", "not_in"]
    for lookup in refused:
        with pytest.raises(OperatorInvalid):
            by_lookup(f"name__{lookup}", value)
        with pytest.raises(OperatorInvalid):
            compile_condition(Thing, getattr(Q, {"in": "in_"}.get(lookup, lookup))(Thing.name, value))
    if not isinstance(value, datetime.datetime):
        with pytest.raises(OperatorInvalid):
            by_lookup("data__date", value)


texts = st.text(alphabet=st.sampled_from("aAbß\n\r\0.*^$\\[](){}|+?#-& é😀İ\u2028"), max_size=4) | st.text(
    max_size=3
)
TESTS = {
    "contains": str.__contains__,
    "startswith": str.startswith,
    "endswith": str.endswith,
}


@checked
@given(stored=st.lists(texts | st.lists(texts, max_size=2), min_size=1, max_size=6), text=texts)
@example(stored=["a\n", "a", "\na", "b\na"], text="a")
@example(stored=["a\0b", "a"], text="\0")
@example(stored=["a.c", "abc"], text="a.c")
def test_strings_match_literally(things: Any, stored: list[Any], text: str) -> None:
    fill(things, "data", stored)
    for lookup, test in TESTS.items():
        expected = {n for n, each in enumerate(stored) if text_in(each, lambda s, test=test: test(s, text))}
        for condition in spellings("data", lookup, (f"__{lookup}",), text):
            assert found(things, condition) == expected, condition


plain_texts = st.text(alphabet="aAbB.\n ", max_size=4)


@checked
@given(stored=st.lists(plain_texts, min_size=1, max_size=6), text=plain_texts)
def test_strings_match_case_insensitively(things: Any, stored: list[str], text: str) -> None:
    fill(things, "name", stored)
    for lookup, test in TESTS.items():
        expected = {n for n, each in enumerate(stored) if test(each.lower(), text.lower())}
        for condition in spellings("name", f"i{lookup}", (f"__i{lookup}",), text):
            assert found(things, condition) == expected, condition


# -- unstorable values -------------------------------------------------------------------------------


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


IMPOSSIBLE = [
    2**63, -(2**70), [2**64], {"a": {1: 2}}, {"a\0b": 1}, "\ud800", object(), {"a": object()}, range(3), iter([]),
    nested(101), nested(5000), decimal.Decimal("1." + "1" * 60), Thing.name,
]  # fmt: skip


@pytest.mark.parametrize("value", IMPOSSIBLE, ids=lambda value: type(value).__name__)
def test_unstorable_values_are_refused_before_the_server(value: Any) -> None:
    for field in ("name", "n", "owner", "data", "tags", "id"):
        for lookup in ("exact", "neq", "not", "gt", "gte", "lt", "lte", "contains", "startswith", "iendswith"):
            with pytest.raises(OperatorInvalid):
                by_lookup(f"{field}__{lookup}", value)
        for lookup in ("in", "not_in"):
            with pytest.raises(OperatorInvalid):
                by_lookup(f"{field}__{lookup}", [value])
        with pytest.raises(OperatorInvalid):
            Q.eq(field, value)


def test_the_server_accepts_the_deepest_and_longest_values_that_the_odm_accepts(things: Any) -> None:
    for lookup, value in (("exact", nested(100)), ("neq", nested(100)), ("in", [nested(100), {"$a": nested(98)}])):
        found(things, by_lookup(f"data__{lookup}", value))
    for character in "x.k\0é😀":
        for lookup in ("contains", "icontains", "istartswith", "endswith"):
            found(things, by_lookup(f"name__{lookup}", character * 10_000))
    with pytest.raises(OperatorInvalid, match="too long"):
        by_lookup("name__startswith", "x" * 10_001)


ODD = [
    RawBSONDocument(bson.encode({"$gt": ""})), DBRef("things", OID), {"$ref": "things", "$id": OID}, {"$id": 1},
    {"$gt": {"$gt": 1}}, {"$numberLong": "1"}, {"$date": "2024-01-01"}, {"$oid": str(OID)}, {"": {"": ""}},
    [[], {}], bson.MinKey(),
]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_values_cause_no_error(things: Any, value: Any) -> None:
    things.insert_one({"name": "abc", "n": 1, "owner": OID, "tags": ["a"]})
    for field in ("name", "n", "owner", "tags", "id"):
        for lookup in ("exact", "contains"):
            if lookup == "contains" and field == "name":
                continue
            assert things.count_documents(by_lookup(f"{field}__{lookup}", value)) == 0, (field, lookup)
        assert things.count_documents(by_lookup(f"{field}__neq", value)) == 1, field
        assert things.count_documents(by_lookup(f"{field}__in", [value])) == 0, field
        assert things.count_documents(by_lookup(f"{field}__not_in", [value])) == 1, field


# -- names from user input ---------------------------------------------------------------------------

NAMES = [
    "$where", "$or", "$expr", "", ".", "__", "name.", ".name", "name..x", "a\0b", "data\0", "_joined_x",
    "name.$x", 5,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_invalid_names_are_refused(name: Any) -> None:
    with pytest.raises((InvalidKeyError, OperatorInvalid)):
        compile_lookups(Thing, {name: "true"})
    with pytest.raises((InvalidKeyError, OperatorInvalid)):
        compile_condition(Thing, Q.eq(name, "true"))


@checked
@given(name=st.text(alphabet=st.sampled_from("dat.$_0gin\0 "), max_size=8), value=values)
def test_dotted_names_inside_a_plain_dict_cause_no_error(things: Any, name: str, value: Any) -> None:
    things.delete_many({})
    things.insert_one({"data": {"a": 1}, "name": "abc"})
    try:
        condition = by_lookup(f"data.{name}", value)
    except (InvalidKeyError, OperatorInvalid):
        return
    expected = isinstance(value, Mapping | list) or value is None
    assert things.count_documents(condition) <= int(expected or equal(1, value)) or "__" in name
