"""The choices of a field: the accepted values and their labels."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema, to_jsonable_python

from mongoz.exceptions import FieldDefinitionError

__all__ = ["Choices", "invalid_choice"]

_ERROR_TYPE: Final = "invalid_choice"


class Choices:
    """The choices of one field, and their rule for pydantic.

    Args:
        declared: `(value, label)` pairs, groups `(label, pairs)`, or both.

    Raises:
        FieldDefinitionError: an item is neither a pair nor a group.
    """

    __slots__ = ("declared", "pairs")

    def __init__(self, declared: Iterable[Any]) -> None:
        self.declared = _items(declared)
        self.pairs: list[tuple[Any, Any]] = list(_flattened(self.declared))

    def __contains__(self, value: object) -> bool:
        return any(value == choice for choice, _ in self.pairs)

    def label(self, value: Any) -> Any:
        """The label of a value. A value that is no choice is returned as a string, and None as None."""
        labels = (label for choice, label in self.pairs if value == choice)
        return next(labels, None if value is None else str(value))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_wrap_validator_function(self._check, handler(source))

    def _check(self, given: Any, validate: Any, info: core_schema.ValidationInfo[Any]) -> Any:
        try:
            value = validate(given)
        except ValidationError:  # a value of a wrong type is no choice either
            raise _error(info.field_name, given) from None
        if value is None or value in self:  # only a nullable field lets None pass the inner validation
            return value
        raise _error(info.field_name, given)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        nullable = [None] if {"type": "null"} in described.get("anyOf", ()) else []
        return {
            **described,
            "enum": to_jsonable_python([choice for choice, _ in self.pairs] + nullable, fallback=str),
        }


def _error(field: str | None, value: Any) -> PydanticCustomError:
    return PydanticCustomError(
        _ERROR_TYPE,
        "Invalid choice for field '{field}'. Input provided as '{value}'",
        {"field": field or "", "value": str(value)},
    )


def invalid_choice(error: ValidationError) -> str | None:
    """The message of the first error about a choice; None if there is no such error."""
    lines = error.errors(include_url=False, include_context=False, include_input=False)
    return next((line["msg"] for line in lines if line["type"] == _ERROR_TYPE), None)


def _flattened(declared: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    for item in declared:
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise _malformed(item)
        first, second = item
        if isinstance(second, list | tuple):
            yield from _group(second)
        else:
            yield first, second


def _group(pairs: list[Any] | tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or isinstance(pair[1], list | tuple):
            raise _malformed(pair)
        yield pair[0], pair[1]


def _items(declared: Any) -> tuple[Any, ...]:
    if isinstance(declared, str | bytes | dict) or not isinstance(declared, Iterable):
        raise _malformed(declared)
    return tuple(declared)


def _malformed(given: object) -> FieldDefinitionError:
    return FieldDefinitionError(
        f"choices are (value, label) pairs, or groups of them as (label, pairs); {given!r} is neither."
    )
