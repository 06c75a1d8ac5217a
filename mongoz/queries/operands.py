"""Operands: the values of conditions, in stored form."""

import datetime
import decimal
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import bson
from pydantic import BaseModel

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.fields.storability import holds_mappings, is_open
from mongoz.fields.storage import stored, stored_names
from mongoz.model.paths import Path
from mongoz.model.shapes import shape_of

__all__ = ["ValueRefused", "convert_operand", "whole_day"]

_ALWAYS_STORABLE: Final = (bson.ObjectId, bool, float, type(None), datetime.datetime)
_MAX_DEPTH: Final = 100  # levels of nesting that MongoDB's documentation promises

# Types whose values may also be given in the form that JSON and URLs use.
_PARSED: Final[tuple[tuple[type, tuple[type, ...], Callable[[Any], Any]], ...]] = (
    (decimal.Decimal, (float, str), lambda value: decimal.Decimal(str(value))),
    (uuid.UUID, (str,), uuid.UUID),
    (datetime.date, (str,), datetime.datetime.fromisoformat),
)


class ValueRefused(OperatorInvalid, InvalidKeyError, AssertionError):
    """An operator does not support a value.

    It has several bases because applications catch AssertionError for `in` without a list, and InvalidKeyError for
    an impossible comparison.
    """


def convert_operand(path: Path, value: Any) -> Any:
    """A value in the stored form of the field at `path`, for a condition.

    For an id field, 24 hexadecimal digits or an instance become an ObjectId. For a decimal field, a str or a
    float becomes a Decimal with the digits that Python prints: 0.1 becomes Decimal("0.1"). For a date field, an
    ISO string becomes a datetime. The keys of a dict for an embedded document get the stored order.

    Raises:
        ValueRefused: the value can't be stored, or it is an instance without an id.
    """
    try:
        kept = stored(_converted(path, value), declared=_is_declared(path, value))
        if isinstance(kept, _ALWAYS_STORABLE):
            return kept
        bson.encode({"": kept}, codec_options=CODEC_OPTIONS)
        if _depth(kept) <= _MAX_DEPTH:
            return kept
    except RecursionError:
        pass
    except ValueRefused:
        raise
    except Exception as error:  # bson raises nine types of errors
        raise ValueRefused(f"A condition can't contain {value!r}: MongoDB can't store it ({error}).") from error
    raise ValueRefused(f"A {type(value).__name__} of more than {_MAX_DEPTH} levels can't be stored in MongoDB.")


def _converted(path: Path, value: Any) -> Any:
    shape = path.shape
    if shape.models and isinstance(value, dict | list | tuple):
        return _in_stored_order(shape.models, value)
    if shape.holds(bson.ObjectId):
        return _as_id(path, value)
    for kind, given, parsed in _PARSED:
        if isinstance(value, given) and shape.holds(kind) and not (isinstance(value, str) and shape.holds(str)):
            with suppress(ValueError, decimal.InvalidOperation):  # a malformed string equals no stored value
                return parsed(value)
    return value


def _in_stored_order(models: Iterable[type[BaseModel]], value: Any) -> Any:
    """A dict, or the dicts in a list, with the stored names of a model as keys, in the stored order.

    MongoDB compares embedded documents key by key, in order. Undeclared keys come last, in their order.
    """
    if isinstance(value, list | tuple):
        return [_in_stored_order(models, item) for item in value]
    if not isinstance(value, dict):
        return value
    model = max(models, key=lambda each: len(value.keys() & _names_of(each)), default=None)
    if model is None:
        return value
    ordered: dict[Any, Any] = {}
    for name, alias in stored_names(model).items():
        given = alias if alias in value else name
        if given in value:
            ordered[alias] = _in_stored_order(shape_of(model.model_fields[name].annotation).models, value[given])
    return ordered | {key: item for key, item in value.items() if key not in _names_of(model)}


def _names_of(model: type[BaseModel]) -> set[str]:
    names = stored_names(model)
    return {*names, *names.values()}


def _is_declared(path: Path, value: Any) -> bool:
    """The argument `declared` of `stored`: whether the annotation of the field declares the type of the value.

    False if the annotation contains a type that allows every content, such as Any. False also for a dict, unless
    the annotation contains a mapping.
    """
    if path.field is None:
        return not isinstance(value, dict)
    annotation = path.field.annotation
    return not is_open(annotation) and (holds_mappings(annotation) or not isinstance(value, dict))


def _as_id(path: Path, value: Any) -> Any:
    if isinstance(value, str) and bson.ObjectId.is_valid(value):
        return bson.ObjectId(value)
    if isinstance(value, BaseModel) and hasattr(type(value), "meta"):
        found = value.__dict__.get("id")
        if found is None:
            raise ValueRefused(
                f"{value} has no id yet, so nothing at {path.path!r} can reference it; create it first."
            )
        return found
    return value


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def whole_day(value: Any) -> dict[str, Any]:
    """The condition that a stored time is on one day in UTC.

    Args:
        value: a date, a datetime (a naive one is UTC), or the ISO string of either.

    Raises:
        ValueRefused: `value` has another type.
    """
    day = _day(value)
    start = datetime.datetime(day.year, day.month, day.day)
    if day == datetime.date.max:
        return {"$gte": start}
    return {"$gte": start, "$lt": start + datetime.timedelta(days=1)}


def _day(value: Any) -> datetime.date:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise ValueRefused(f"{value!r} is no date; write it as '2024-12-31'.") from None
    if isinstance(value, datetime.datetime):
        return _utc(value).date()
    if isinstance(value, datetime.date):
        return value
    raise ValueRefused(f"A day is a date, a datetime, or the ISO string of either, not {value!r}.")


def _utc(moment: datetime.datetime) -> datetime.datetime:
    if moment.tzinfo is None:
        return moment
    try:
        return moment.astimezone(datetime.UTC)
    except OverflowError:
        raise ValueRefused(f"{moment!r} is not within the years 1 to 9999 in UTC.") from None
