"""The factories of instants, days and times of day."""

# ruff: noqa: N802 - as in mongoz.fields.factories

import datetime
from typing import Any, Literal, Unpack, overload

from mongoz.exceptions import FieldDefinitionError
from mongoz.fields.arguments import Moments, Shared
from mongoz.fields.base import declare

__all__ = ["Date", "DateTime", "Time", "utc_now"]


def utc_now() -> datetime.datetime:
    """Now in naive UTC, in whole milliseconds, which is the precision of MongoDB."""
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _today() -> datetime.date:
    return utc_now().date()


def _moment(type_: type, now: Any, auto_now: bool, auto_now_add: bool, shared: dict[str, Any]) -> Any:
    if auto_now and auto_now_add:
        raise FieldDefinitionError(
            "auto_now and auto_now_add exclude each other; auto_now also sets the field at creation."
        )
    if auto_now or auto_now_add:
        shared["default"] = now  # it replaces a declared default
    field = declare(type_, **shared)
    field.auto_now, field.auto_now_add = auto_now, auto_now_add
    return field


@overload
def DateTime(*, null: Literal[True], **arguments: Unpack[Moments]) -> Any: ...
@overload
def DateTime(*, null: bool = False, **arguments: Unpack[Moments]) -> datetime.datetime: ...
def DateTime(*, auto_now: bool = False, auto_now_add: bool = False, **shared: Any) -> Any:
    """A `datetime`, naive UTC, stored in milliseconds.

    Args:
        auto_now: every save and update sets the field to now. `create()` sets it too, unless a value is given.
        auto_now_add: creating the document sets the field to now, unless a value is given.
        **shared: the arguments of all fields, see `mongoz.fields.arguments.Shared`.

    Raises:
        FieldDefinitionError: both auto_now and auto_now_add are given.
    """
    return _moment(datetime.datetime, utc_now, auto_now, auto_now_add, shared)


@overload
def Date(*, null: Literal[True], **arguments: Unpack[Moments]) -> Any: ...
@overload
def Date(*, null: bool = False, **arguments: Unpack[Moments]) -> datetime.date: ...
def Date(*, auto_now: bool = False, auto_now_add: bool = False, **shared: Any) -> Any:
    """A `date`, stored as midnight UTC; arguments and errors as for `DateTime`."""
    return _moment(datetime.date, _today, auto_now, auto_now_add, shared)


@overload
def Time(*, null: Literal[True], **arguments: Unpack[Shared]) -> Any: ...
@overload
def Time(*, null: bool = False, **arguments: Unpack[Shared]) -> datetime.time: ...
def Time(**shared: Any) -> Any:
    """A `time`, stored as its ISO string."""
    return declare(datetime.time, **shared)
