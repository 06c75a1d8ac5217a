"""Rules for the annotations of fields. Pydantic has no constraints that do the same."""

import base64
import binascii
import decimal
import re
from typing import Any, NamedTuple

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

__all__ = ["BytesRule", "DigitsRule", "NotNone", "PatternRule"]


class PatternRule(NamedTuple):
    """A pattern for values that are no strings: `str(value)` must match.

    Attributes:
        pattern: a regular expression that must match a part of `str(value)`; with `^` and `$`, all of it.
    """

    pattern: re.Pattern[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if self.pattern.search(str(value)):
            return value
        raise PydanticKnownError("string_pattern_mismatch", {"pattern": self.pattern.pattern})


class DigitsRule(NamedTuple):
    """The limits of a float's digits, as in the arguments of `Double`; None is no limit."""

    max_digits: int | None
    decimal_places: int | None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: float) -> float:
        shown = decimal.Decimal(str(value))
        if not shown.is_finite():
            raise PydanticKnownError("finite_number")
        _, digits, exponent = shown.normalize().as_tuple()
        places = max(-int(exponent), 0)
        if self.decimal_places is not None and places > self.decimal_places:
            raise PydanticKnownError("decimal_max_places", {"decimal_places": self.decimal_places})
        whole = max(len(digits) + int(exponent), 0) if shown else 0
        if self.max_digits is None:
            return value
        whole_digits = self.max_digits - (self.decimal_places or 0)
        if whole > whole_digits:
            raise PydanticKnownError("decimal_whole_digits", {"whole_digits": whole_digits})
        if whole + places > self.max_digits:
            raise PydanticKnownError("decimal_max_digits", {"max_digits": self.max_digits})
        return value


class BytesRule:
    """The rule that makes bytes base64 in JSON."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            _from_base64,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: base64.b64encode(value).decode(), when_used="json-unless-none"
            ),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "contentEncoding": "base64"}


def _from_base64(value: Any) -> Any:
    # Web frameworks parse JSON themselves, and pass Python strings. So every string is read as base64, as in JSON.
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PydanticCustomError("base64", "Input should be base64: {reason}", {"reason": str(error)}) from None


class NotNone:
    """Refuses None for types that accept it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(_not_none, handler(source))


def _not_none(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("none_not_allowed", "Input should not be None; declare the field with null=True")
    return value
