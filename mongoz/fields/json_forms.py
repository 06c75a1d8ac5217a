"""The JSON forms of BSON's own types: how models write values of these types to JSON, and read them from JSON.

Web frameworks parse JSON first, and then validate the Python values. So a model also accepts a Python string with
the JSON form, except in strict mode.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import bson
from pydantic_core import CoreSchema, PydanticSerializationError, core_schema, to_jsonable_python

from mongoz.fields.stored_schema import DATA, STORED

__all__ = ["add_json_forms", "as_json", "bson_schema"]


class _Text(NamedTuple):
    """The text that stands for values of a type.

    Attributes:
        parse: makes the value from the text.
        pattern: the pattern of the text.
        expected: a description of the valid input, for errors.
    """

    parse: Callable[[str], Any]
    pattern: str
    expected: str


_TEXTS: Final = {
    bson.ObjectId: _Text(bson.ObjectId, "^[0-9a-fA-F]{24}$", "an ObjectId, or its 24 hexadecimal digits"),
    bson.Decimal128: _Text(
        bson.Decimal128, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$", "a Decimal128, or a number in a string"
    ),
}


def bson_schema(kind: Any) -> CoreSchema:
    """The schema of an annotation that is a BSON type. It accepts instances of the type and their JSON text.

    Args:
        kind: `bson.ObjectId` or `bson.Decimal128`.
    """
    parse, pattern, expected = _TEXTS[kind]
    instance = core_schema.is_instance_schema(kind, cls_repr=kind.__name__)
    text = core_schema.no_info_after_validator_function(
        parse, core_schema.str_schema(pattern=pattern, strict=True)
    )
    either = core_schema.union_schema([instance, text], mode="left_to_right")
    return core_schema.json_or_python_schema(
        python_schema=core_schema.lax_or_strict_schema(
            lax_schema=_explained(either, expected), strict_schema=instance
        ),
        json_schema=_explained(text, expected),
        serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json"),
        metadata={STORED: instance},
    )


def _explained(schema: CoreSchema, expected: str) -> CoreSchema:
    return core_schema.custom_error_schema(
        schema, custom_error_type="bson_type", custom_error_message=f"Input should be {expected}"
    )


def as_json(value: Any) -> Any:
    """The JSON form of a value that JSON has no type for.

    Raises:
        TypeError: the value has no JSON form.
    """
    if isinstance(value, tuple(_TEXTS)):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} can't become JSON.")


def add_json_forms(schema: Any, *, extra: bool = False) -> None:
    """Add the JSON forms of BSON's types to a model's schema.

    The forms apply to fields that have a BSON type as annotation, to fields of type Any, and to undeclared keys.

    Web frameworks serialize a model without the `fallback` of `model_dump`, so the schema itself needs the forms.

    Args:
        schema: the schema of one class; it is changed.
        extra: whether the model keeps undeclared keys.
    """
    if isinstance(schema, list | tuple):
        for item in schema:
            add_json_forms(item, extra=extra)
    if not isinstance(schema, dict) or STORED in schema.get("metadata", {}):
        return
    match schema.get("type"):
        case "any":
            schema.setdefault("serialization", _ANY)
        case "is-instance" if schema["cls"] in _TEXTS:
            _replace(schema, bson_schema(schema["cls"]))
            return
        case "model":
            extra = schema.get("config", {}).get("extra_fields_behavior") == "allow"
        case "model-fields" if extra:
            schema.setdefault("extras_schema", core_schema.any_schema())
    for name, value in schema.items():
        if name not in DATA:
            parts = list(value.values()) if name == "fields" and isinstance(value, dict) else value
            add_json_forms(parts, extra=extra)


def _replace(schema: dict[str, Any], other: Any) -> None:
    ref = {"ref": schema["ref"]} if "ref" in schema else {}
    schema.clear()
    schema.update(other, **ref)


def _any_as_json(value: Any, serialize: core_schema.SerializerFunctionWrapHandler, info: Any) -> Any:
    try:
        return to_jsonable_python(
            value,
            include=info.include,
            exclude=info.exclude,
            by_alias=bool(info.by_alias),
            exclude_none=info.exclude_none,
            context=info.context,
            bytes_mode="base64",
            fallback=as_json,
        )
    except (TypeError, PydanticSerializationError):
        return serialize(value)  # with the `fallback` that the caller may have given


_ANY: Final = core_schema.wrap_serializer_function_ser_schema(_any_as_json, info_arg=True, when_used="json")
