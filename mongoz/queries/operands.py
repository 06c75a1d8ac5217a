"""Values of conditions: as they are stored, so that what compares equal in Python does in the database."""

import datetime
import decimal
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import bson
from pydantic import BaseModel

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.fields.storability import holds_mappings, is_open
from mongoz.fields.storage import stored
from mongoz.model.paths import Path

__all__ = ["ValueRefused", "comparable", "whole_day"]

_ALWAYS_FINE: Final = (bson.ObjectId, bool, float, type(None), datetime.datetime)
_DEEPEST: Final = 100  # levels; what MongoDB's documentation promises to nest

# What is also known by something else than a value of the type: as it comes out of JSON or a URL.
_PARSED: Final[tuple[tuple[type, tuple[type, ...], Callable[[Any], Any]], ...]] = (
    (decimal.Decimal, (float, str), lambda value: decimal.Decimal(str(value))),
    (uuid.UUID, (str,), uuid.UUID),
    (datetime.date, (str,), datetime.datetime.fromisoformat),
)


class ValueRefused(OperatorInvalid, InvalidKeyError, AssertionError):
    """An operator was given a value of a kind that it does not take.

    All of these: applications catch AssertionError for `in` without a list, InvalidKeyError for an impossible
    comparison.
    """


def comparable(path: Path, value: Any) -> Any:
    """A value as the field at `path` would store it, for a condition on it.

    For ids that is an ObjectId, also of its 24 hexadecimal digits and of an instance that has the id; for
    decimals a Decimal, also of a float (by its digits) and of a str; for dates a datetime, also of its ISO string.

    Raises:
        ValueRefused: nothing that could ever be stored, or an instance without an id.
    """
    try:
        kept = stored(_converted(path, value), declared=_is_declared(path, value))
        if isinstance(kept, _ALWAYS_FINE):
            return kept
        bson.encode({"": kept}, codec_options=CODEC_OPTIONS)
        if _depth(kept) <= _DEEPEST:
            return kept
    except RecursionError:
        pass
    except ValueRefused:
        raise
    except Exception as error:  # bson raises nine kinds of errors, decimal's among them
        raise ValueRefused(f"{value!r} can't be compared with: MongoDB could never store it ({error}).") from error
    raise ValueRefused(f"A {type(value).__name__} of more than {_DEEPEST} levels can't be stored in MongoDB.")


def _converted(path: Path, value: Any) -> Any:
    shape = path.shape
    if shape.holds(bson.ObjectId):
        return _as_id(path, value)
    for kind, given, parsed in _PARSED:
        if isinstance(value, given) and shape.holds(kind) and not (isinstance(value, str) and shape.holds(str)):
            with suppress(ValueError, decimal.InvalidOperation):  # then it equals nothing
                return parsed(value)
    return value


def _is_declared(path: Path, value: Any) -> bool:
    """Whether the annotation of the field reads back what stands for such a value."""
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
                f"{value!r} has no id yet, so nothing at {path.path!r} can refer to it; create it first."
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
    """The instants of one day in UTC, as a half-open interval.

    Args:
        value: a date, a datetime (a naive one is UTC), or the ISO string of one.

    Raises:
        ValueRefused: anything else.
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
    raise ValueRefused(f"A day is a date, a datetime, or the ISO string of one, not {value!r}.")


def _utc(moment: datetime.datetime) -> datetime.datetime:
    if moment.tzinfo is None:
        return moment
    try:
        return moment.astimezone(datetime.UTC)
    except OverflowError:
        raise ValueRefused(f"{moment!r} is not within the years 1 to 9999 in UTC.") from None
