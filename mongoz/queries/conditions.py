"""The operators of queries, and their MongoDB conditions.

A value never acts as an operator, because it always follows one of our operators. If a user's input contains a
dict, MongoDB compares this dict with stored values, and does not execute it.
"""

import datetime
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import bson

from mongoz.exceptions import FieldDefinitionError, OperatorInvalid
from mongoz.model.paths import Path
from mongoz.queries import string_patterns as text
from mongoz.queries.operands import ValueRefused, convert_operand, whole_day
from mongoz.synonyms import OF_LOOKUPS, did_you_mean

__all__ = ["OPERATORS", "SPELLINGS", "make_condition", "operator_named"]

Condition = dict[str, Any]


def make_condition(path: Path, operator: str, value: Any) -> Condition:
    """The MongoDB condition of a field, an operator and a value.

    Args:
        path: the field. For a field of a referenced document, at least one referenced document must match.
        operator: a name of `OPERATORS`.
        value: the application's value.

    Raises:
        ValueRefused: the operator does not support the value.
        FieldDefinitionError: the field does not support the operator.
    """
    made = OPERATORS[operator](path, value)
    if not path.joins:
        return made
    if operator == "where":
        raise OperatorInvalid(
            "JavaScript can't read referenced documents; remove the lookup 'where' from the join."
        )
    return {path.joins[-1].slot: {"$elemMatch": made}}


def operator_named(name: Any) -> str:
    """The name in `OPERATORS` for any name of an operator: `eq`, `$eq`, `exact`, `in`, `in_`.

    Raises:
        OperatorInvalid: there is no such operator.
    """
    if isinstance(name, str):
        found = SPELLINGS.get(name, name)
        if found in OPERATORS:
            return found
    hint = did_you_mean(str(name), OPERATORS, OF_LOOKUPS)
    raise OperatorInvalid(
        f"There is no operator {name!r}.{hint} Valid operators are MongoDB's, which begin with a dollar, and: "
        f"{', '.join(sorted(OPERATORS))}."
    )


def _eq(path: Path, value: Any) -> Condition:
    return {path.path: {"$eq": convert_operand(path, value)}}


def _neq(path: Path, value: Any) -> Condition:
    kept = convert_operand(path, value)
    if _is_regex(kept):  # the server refuses a regular expression after $ne
        return {path.path: {"$not": {"$eq": kept}}}
    return {path.path: {"$ne": kept}}


def _in(path: Path, values: Any, *, operator: str, junction: str) -> Condition:
    if not isinstance(values, list | tuple):
        raise ValueRefused(f"{path.path!r}: 'in' and 'not_in' take a list or a tuple, not {values!r}.")
    members = [convert_operand(path, value) for value in values]
    if any(map(_is_special_in_lists, members)):
        return {junction: [{path.path: {"$eq": member}} for member in members]}
    return {path.path: {operator: members}}


def _is_special_in_lists(member: Any) -> bool:
    """Whether MongoDB refuses this member of a list, or matches it as a pattern, instead of comparing with it."""
    if isinstance(member, Mapping):
        return any(str(key).startswith("$") for key in member)
    return _is_regex(member)


def _is_regex(value: Any) -> bool:
    return isinstance(value, re.Pattern | bson.Regex)


def _compare(path: Path, value: Any, *, operator: str) -> Condition:
    kept = convert_operand(path, value)
    if kept is None or _is_regex(kept):
        raise ValueRefused(
            f"{path.path!r} can't be compared with {value!r} by {operator}: the value has no order."
        )
    return {path.path: {operator: kept}}


def _date(path: Path, value: Any) -> Condition:
    if not (path.shape.open or path.shape.holds(datetime.date)):
        raise FieldDefinitionError(f"{path.path!r} holds no dates, so it does not support the lookup 'date'.")
    day = whole_day(value)
    if not path.items:
        return {path.path: day}
    # $elemMatch requires that one item fulfils both conditions. Without it, one item could be after the start of
    # the day, and another item before its end.
    steps = path.path.split(".")
    inside = ".".join(steps[path.items :])
    return {".".join(steps[: path.items]): {"$elemMatch": {inside: day} if inside else day}}


def _exists(path: Path, value: Any) -> Condition:
    if not isinstance(value, bool):
        raise ValueRefused(f"{path.path!r}: 'exists' takes True or False, not {value!r}.")
    return {path.path: {"$exists": value}}


def _where(path: Path, value: Any) -> Condition:
    if not isinstance(value, str):  # bson.Code is a subclass
        raise ValueRefused(f"{path.path!r}: 'where' takes JavaScript as a str or a bson.Code, not {value!r}.")
    return {"$where": value}


def _text(path: Path, value: Any, *, match: Callable[..., Condition], ignoring_case: bool) -> Condition:
    if path.shape.is_moment:
        raise FieldDefinitionError(f"{path.path!r} holds dates, not strings; compare by date, gte and lt.")
    wanted = convert_operand(path, value)
    if isinstance(wanted, datetime.time):  # stored as a string
        wanted = wanted.isoformat()
    if not isinstance(wanted, str) or isinstance(wanted, bson.Code):
        raise ValueRefused(f"{path.path!r}: a lookup on strings takes a str, not {value!r}.")
    return {path.path: match(wanted, ignoring_case=ignoring_case)}


def _contains(path: Path, value: Any, *, ignoring_case: bool) -> Condition:
    if path.shape.is_text or (path.shape.may_be_text and isinstance(value, str)):
        return _text(path, value, match=text.has, ignoring_case=ignoring_case)
    # In a list, `contains` looks for an equal item. For other values that are not text, it means equality.
    if ignoring_case and isinstance(value, str) and not path.shape.is_moment:
        return _text(path, value, match=text.equals, ignoring_case=True)
    return _eq(path, value)


def _pattern(path: Path, value: Any) -> Condition:
    if not path.shape.may_be_text:
        raise FieldDefinitionError(f"{path.path!r} holds no strings, so no pattern can match it.")
    return {path.path: text.matches(value)}


OPERATORS: Final[dict[str, Callable[[Path, Any], Condition]]] = {
    "eq": _eq,
    "neq": _neq,
    "in_": partial(_in, operator="$in", junction="$or"),
    "not_in": partial(_in, operator="$nin", junction="$nor"),
    "gt": partial(_compare, operator="$gt"),
    "gte": partial(_compare, operator="$gte"),
    "lt": partial(_compare, operator="$lt"),
    "lte": partial(_compare, operator="$lte"),
    "contains": partial(_contains, ignoring_case=False),
    "icontains": partial(_contains, ignoring_case=True),
    "startswith": partial(_text, match=text.starts, ignoring_case=False),
    "istartswith": partial(_text, match=text.starts, ignoring_case=True),
    "endswith": partial(_text, match=text.ends, ignoring_case=False),
    "iendswith": partial(_text, match=text.ends, ignoring_case=True),
    "pattern": _pattern,
    "date": _date,
    "exists": _exists,
    "where": _where,
}

SPELLINGS: Final = {
    "exact": "eq", "ne": "neq", "not": "neq", "not_": "neq", "in": "in_", "nin": "not_in", "regex": "pattern",
    "$eq": "eq", "$ne": "neq", "$in": "in_", "$nin": "not_in", "$gt": "gt", "$gte": "gte", "$lt": "lt",
    "$lte": "lte", "$regex": "pattern", "$exists": "exists", "$where": "where",
}  # fmt: skip
"""Other names of the operators, including MongoDB's."""
