"""Schemas for stored values, made from the schema of a class.

BSON has fewer types than Python. A decimal is read as a Decimal128, a pattern as a Regex, a set as a list. A
strict model would refuse these values. A model that requires a future date would refuse a stored date that is in
the past now. The schemas for stored values accept all of these. For the server, an id and a string with the
digits of this id are different values, so a stored string is never read as an ObjectId.
"""

import datetime
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Final

import bson
from pydantic_core import SchemaValidator, core_schema

from mongoz.fields.storage import stored_key

__all__ = ["DATA", "NATIVE", "STORED", "from_stored", "validator_of"]

NATIVE: Final = {"mongoz_native": True}
"""The metadata of schemas that accept stored values already."""

STORED: Final = "mongoz_stored"
"""A key in the metadata of a schema. Its value is the schema for stored values."""

DATA: Final = frozenset({"metadata", "serialization", "default", "expected", "members", "cls", "function", "ref"})
"""Keys of a schema whose values are no schemas."""

_STRICT_AS_BSON: Final = frozenset({"str", "int", "float", "bool", "model-field", "typed-dict-field"})
_PATTERNS: Final = frozenset({"pattern_either_validator", "pattern_str_validator"})


def from_stored(schema: Any) -> Any:
    """The schema that accepts stored values; the same object if nothing has to change."""
    if isinstance(schema, list | tuple):
        items = [from_stored(item) for item in schema]
        same = all(new is old for new, old in zip(items, schema, strict=True))
        return schema if same else type(schema)(items)
    if not isinstance(schema, dict) or schema.get("metadata", {}).get("mongoz_native"):
        return schema
    if STORED in schema.get("metadata", {}):
        return schema["metadata"][STORED]
    changed: dict[str, Any] = {}
    for name, value in schema.items():
        if name not in DATA:
            new = _converter(name, value)(value)
            if new is not value:
                changed[name] = new
    if schema.get("strict") and schema.get("type") not in _STRICT_AS_BSON:
        changed["strict"] = False
    if schema.get("now_op"):  # the date was in the future when it was written
        changed["now_op"] = None
    made = {name: value for name, value in {**schema, **changed}.items() if name != "now_op" or value}
    return _accepting_stored(schema if not changed else made)


def _converter(name: str, schema: Any) -> Callable[[Any], Any]:
    if name == "fields" and isinstance(schema, dict):
        return _fields_from_stored
    return _keys_from_stored if name == "keys_schema" else from_stored


def _keys_from_stored(schema: Any) -> Any:
    """Like `from_stored`, for the keys of a mapping: their stored form is a string."""
    if STORED in schema.get("metadata", {}):
        return schema
    members = schema.get("members") or schema.get("expected") or []  # of an enum or a literal
    if schema.get("type") in ("enum", "literal") and not all(isinstance(member, str) for member in members):
        return _before(partial(_key_member, members), schema)
    return from_stored(schema)


def _fields_from_stored(fields: dict[str, Any]) -> dict[str, Any]:
    """Like `from_stored`, for a dict of fields: name -> schema.

    A field may have a name that is in `DATA`, for example `default`. Its schema is converted all the same.
    """
    made = {name: from_stored(schema) for name, schema in fields.items()}
    return made if any(made[name] is not schema for name, schema in fields.items()) else fields


def validator_of(schema: Any) -> SchemaValidator:
    """The validator of a schema that was made from the schema of a class."""
    # The third argument is `_use_prebuilt`: with True, pydantic would use the class's validator, not this schema.
    return SchemaValidator(schema, schema.get("config"), False)


def _accepting_stored(schema: dict[str, Any]) -> Any:  # noqa: PLR0911 - a table, one line per kind
    kind = schema.get("type")
    if kind == "decimal":
        return _before(_decimal, schema)
    if kind == "datetime" and schema.get("tz_constraint", "naive") != "naive":
        return _before(_aware, schema)
    if kind == "literal" and any(isinstance(each, Enum) for each in schema["expected"]):
        return _before(partial(_member, [each for each in schema["expected"] if isinstance(each, Enum)]), schema)
    if kind == "json":  # the parsed value is stored, not the text
        return schema.get("schema", core_schema.any_schema())
    if kind == "is-instance" and schema["cls"] is bson.Binary:
        return _before(_binary, schema)
    if kind == "function-plain" and getattr(schema["function"]["function"], "__name__", "") in _PATTERNS:
        return _before(_pattern, schema)
    return schema


def _before(convert: Callable[[Any], Any], schema: Any) -> Any:
    ref = schema.get("ref")
    inner = {name: value for name, value in schema.items() if name != "ref"}
    return core_schema.no_info_before_validator_function(convert, inner, ref=ref)


def _decimal(value: Any) -> Any:
    return value.to_decimal() if isinstance(value, bson.Decimal128) else value


def _member(members: list[Enum], value: Any) -> Any:
    return next((each for each in members if type(each.value) is type(value) and each.value == value), value)


def _key_member(members: list[Any], key: Any) -> Any:
    return next((each for each in members if stored_key(each) == key), key)


def _aware(value: Any) -> Any:
    if isinstance(value, datetime.datetime) and value.tzinfo is None:
        return value.replace(tzinfo=datetime.UTC)
    return value


def _binary(value: Any) -> Any:
    return bson.Binary(value) if type(value) is bytes else value


def _pattern(value: Any) -> Any:
    return value.try_compile() if isinstance(value, bson.Regex) else value
