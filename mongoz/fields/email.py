"""E-mail addresses: checked in full when they come in, and only looked at when they are loaded."""

from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.networks import validate_email
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

__all__ = ["LOADING", "EmailRule"]

LOADING: Final = {"mongoz": "loading"}
"""The validation context of values that come out of the database or were validated before.

Validating an address takes 20 us, nine tenths of what loading a small document costs, and the address was
checked when it was written.
"""


def _check(value: str, info: core_schema.ValidationInfo[Any]) -> str:
    if info.context is LOADING:
        if "@" in value[1:-1]:
            return value
        raise PydanticCustomError("value_error", "value is not a valid email address: it has no @-sign")
    return validate_email(value)[1]


class EmailRule:
    """Makes pydantic treat an annotated `str` as an e-mail address."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(_check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "format": "email"}
