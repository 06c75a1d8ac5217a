"""E-mail addresses: checked in full when they come in, and only looked at when they are loaded."""

import re
from functools import lru_cache
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.networks import validate_email
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

__all__ = ["LOADING", "EmailRule", "loading_schema"]

LOADING: Final = {"mongoz": "loading"}
"""The validation context of values that come out of the database or were validated before.

Validating an address takes tens of microseconds, nine tenths of what loading a small document costs, and the
address was checked when it was written.
"""


def _check(value: str, info: core_schema.ValidationInfo[Any]) -> str:
    if info.context is LOADING:
        if "@" in value[1:-1]:
            return value
        raise PydanticCustomError("value_error", "value is not a valid email address: it has no @-sign")
    plain = _PLAIN.fullmatch(value)
    if plain is not None and len(value) <= _LONGEST and _is_normal(plain[1]):
        return value
    return validate_email(value)[1]


# What needs no look at its local part: lower-case letters and digits in words joined by dots. The full check of
# an address costs ten times what all the rest of making a small document does; that of a domain is remembered.
_PLAIN: Final = re.compile(r"(?=[^@]{1,64}@)[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*@([a-z0-9.-]+)")
_LONGEST: Final = 254

_HAS_AT_SIGN: Final = "(?s).@."
"""Has one neither at the beginning nor at the end; in the syntax of pydantic's own engine."""


@lru_cache(maxsize=1024)
def _is_normal(domain: str) -> bool:
    """Whether an address at this domain is valid, and stays as it is."""
    try:
        return validate_email(f"a@{domain}")[1] == f"a@{domain}"
    except PydanticCustomError:
        return False


class EmailRule:
    """Makes pydantic treat an annotated `str` as an e-mail address."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(_check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "format": "email"}


def loading_schema(schema: Any) -> Any:
    """A schema in which e-mail addresses are checked as they are when they are loaded, without a call of Python.

    Args:
        schema: of pydantic; it stays as it is.
    """
    if isinstance(schema, list):
        return [loading_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "function-after" and schema["function"]["function"] is _check:
        text = loading_schema(schema["schema"])
        return {**text, "pattern": _HAS_AT_SIGN} if text == {"type": "str"} else schema
    return {name: loading_schema(value) for name, value in schema.items()}
