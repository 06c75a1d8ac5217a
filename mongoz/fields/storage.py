"""The stored form of Python values: models become dicts with stored names, and containers are copied.

Scalars with a BSON type stay unchanged; the codec options of the registry encode dates and times. Every other
value has a stored form that its annotation converts back: see `mongoz.fields.stored_schema`.
"""

import dataclasses
import datetime
import decimal
import fractions
import pathlib
import uuid
import zoneinfo
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

import bson
from bson.errors import InvalidBSON, InvalidDocument
from pydantic import AliasChoices, BaseModel, NameEmail, Secret, SecretBytes, SecretStr

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.fields.class_cache import cached_per_class
from mongoz.fields.storability import IP_ADDRESSES, URLS, is_open

__all__ = ["SCALARS", "UNSTORABLE", "explain_value", "stored", "stored_key", "stored_names", "stored_values"]

UNSTORABLE: Final = (InvalidBSON, InvalidDocument, ArithmeticError, ValueError)
"""The errors of a value that BSON can't hold, for example a large number, or text that is no Unicode."""

SCALARS: Final = frozenset(
    {
        str, int, float, bool, bytes, type(None), bson.ObjectId, uuid.UUID, datetime.datetime, datetime.date,
        datetime.time, bson.Decimal128, bson.Int64, bson.Binary, bson.Timestamp,
    }
)  # fmt: skip


@cached_per_class
def stored_names(model: Any) -> dict[str, str]:
    """Attribute name -> stored name, for each field: the validation alias, or else the attribute name."""
    return {name: _validation_name(name, field) for name, field in model.model_fields.items()}


def _validation_name(name: str, field: Any) -> str:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
    return alias if isinstance(alias, str) else name


def stored(value: Any, *, declared: bool = True) -> Any:  # noqa: PLR0911 - a table, one line per kind
    """The stored form of a value. Containers are copied, so later changes of `value` don't affect it.

    Args:
        value: a scalar, a model, a dataclass, or a list, tuple, set, mapping or enum of these.
        declared: whether an annotation declares the type, so that the value can be read back. An undeclared
            `pathlib.Path` or timedelta, for example, stays unchanged, and the driver refuses it.
    """
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is list or isinstance(value, list | tuple | deque):
        return [item if type(item) in SCALARS else stored(item, declared=declared) for item in value]
    if isinstance(value, set | frozenset):  # sorted, else an equal set would look changed
        return sorted((stored(item, declared=declared) for item in value), key=_encoded)
    if isinstance(value, BaseModel):
        return _stored_model(value)
    if isinstance(value, dict):
        if not declared:
            return {key: stored(item, declared=False) for key, item in value.items()}
        return {key if type(key) is str else stored_key(key): stored(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return stored(value.value)
    if isinstance(value, decimal.Decimal):  # subclasses too: every codec can encode a Decimal128
        return bson.Decimal128(value)
    return _converted(value) if declared else value


def stored_values(model: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The stored form of some fields of a model, by stored name.

    Args:
        model: the class.
        values: attribute name -> value.
    """
    names, open_ = stored_names(model), _open_fields(model)
    row = {}
    for name, value in values.items():
        try:
            row[names[name]] = stored(value, declared=name not in open_)
        except UNSTORABLE as error:
            explain_value(error, model, name, value)
            raise
    return row


def _stored_model(model: BaseModel) -> Any:
    names, open_ = stored_names(type(model)), _open_fields(type(model))
    if model.__pydantic_root_model__:  # quicker than isinstance
        return stored(model.__dict__["root"], declared="root" not in open_)
    name, value = "", None
    row = {}
    try:
        for name, value in model.__dict__.items():
            if name in names:
                # `stored` checks for scalars, too. The check here saves a call of `stored` for each scalar.
                row[names[name]] = value if type(value) in SCALARS else stored(value, declared=name not in open_)
        for name, value in (model.__pydantic_extra__ or {}).items():
            row[name] = stored(value, declared=False)
    except UNSTORABLE as error:
        explain_value(error, type(model), name, value)
        raise
    return row


def explain_value(error: BaseException, model: Any, name: str, value: Any) -> None:
    """Add a note to an error: the field and its value."""
    note = f"{model.__name__}.{name} is {value!r}, which MongoDB has no type for."
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


@cached_per_class
def _open_fields(model: Any) -> frozenset[str]:
    """The fields whose annotation does not restrict their content."""
    return frozenset(name for name, field in model.model_fields.items() if is_open(field.annotation))


def _converted(value: Any) -> Any:
    """The stored form of a value that BSON has no type for; the value itself if it has no stored form."""
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _stored_dataclass(value)
    return value


def _stored_dataclass(value: Any) -> dict[str, Any]:
    declared = getattr(type(value), "__pydantic_fields__", {})  # pydantic's own dataclasses have aliases
    return {
        _validation_name(field.name, declared[field.name]) if field.name in declared else field.name: stored(
            getattr(value, field.name)
        )
        for field in dataclasses.fields(value)
    }


def _seconds(value: datetime.timedelta) -> int | float:
    seconds = value.total_seconds()
    if not _is_exact(seconds, value):
        raise ValueError(f"{value!r} is too long to be stored as a number of seconds with microseconds.")
    return int(seconds) if seconds.is_integer() else seconds


def _is_exact(seconds: float, value: datetime.timedelta) -> bool:
    try:
        return datetime.timedelta(seconds=seconds) == value
    except OverflowError:
        return False


def stored_key(key: Any) -> str:
    """The stored form of a key of a mapping: BSON keys are strings."""
    if isinstance(key, Enum):
        return stored_key(key.value)
    if isinstance(key, datetime.datetime | datetime.date):
        return key.isoformat()
    if isinstance(key, datetime.timedelta):
        sign, span = ("-", -key) if key < datetime.timedelta(0) else ("", key)
        whole, rest = divmod(span, datetime.timedelta(seconds=1))
        return f"{sign}PT{whole}.{rest.microseconds:06}S"
    if isinstance(key, bytes):
        return key.decode()
    text = _converted(key)
    return text if isinstance(text, str) else str(text)


def _encoded(value: Any) -> bytes:
    return bson.encode({"": value}, codec_options=CODEC_OPTIONS)


_CONVERSIONS: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    (datetime.timedelta, _seconds),
    ((SecretStr, SecretBytes, Secret), lambda value: stored(value.get_secret_value())),
    (
        (
            pathlib.PurePath, *IP_ADDRESSES, *URLS, NameEmail, zoneinfo.ZoneInfo, complex, fractions.Fraction,
        ),
        str,
    ),
)  # fmt: skip
