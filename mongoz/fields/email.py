"""E-mail addresses: new values are validated in full; for loaded values an @-sign is enough."""

from functools import lru_cache
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.networks import validate_email
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

__all__ = ["LOADING", "EmailRule", "loading_schema"]

LOADING: Final = {"mongoz": "loading"}
"""The validation context of values from the database, and of values that were validated before.

Full validation takes tens of microseconds: nine tenths of the time to load a small document. The ODM has validated
an address before it wrote the address. So loading does not repeat the full validation.
"""


def _check(value: str, info: core_schema.ValidationInfo[Any]) -> str:
    if info.context is LOADING:
        if "@" in value[1:-1]:
            return value
        raise PydanticCustomError("value_error", "value is not a valid email address: it has no @-sign")
    # Full validation takes ten times as long as the rest of creating a small document. So if the local part
    # consists of plain words, joined by dots, only the domain is validated, and the result is cached.
    local, _, domain = value.partition("@")
    is_plain = not local.strip(_PLAIN) and ".." not in f".{local}."
    if is_plain and len(local) <= _LONGEST_LOCAL and len(value) <= _LONGEST and _is_normal(domain):
        return value
    return validate_email(value)[1]


_PLAIN: Final = "abcdefghijklmnopqrstuvwxyz0123456789_+-."
"""Characters that are valid in a local part, and that normalization does not change."""

# Maximum lengths of an address and of its local part, see RFC 5321, 4.5.3.1.
_LONGEST: Final = 254
_LONGEST_LOCAL: Final = 64

_HAS_AT_SIGN: Final = "(?s).@."
"""Matches an @-sign neither at the start nor at the end, in the syntax of pydantic's regex engine."""


@lru_cache(maxsize=1024)
def _is_normal(domain: str) -> bool:
    """Whether an address at this domain is valid and already normalized."""
    try:
        return validate_email(f"a@{domain}")[1] == f"a@{domain}"
    except PydanticCustomError:
        return False


class EmailRule:
    """The rule that makes pydantic treat an annotated `str` as an e-mail address."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(_check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "format": "email"}


def loading_schema(schema: Any) -> Any:
    """A schema for loading, which checks e-mail addresses without calling Python code.

    Args:
        schema: a schema of pydantic; it stays unchanged.
    """
    if isinstance(schema, list):
        return [loading_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "function-after" and schema["function"]["function"] is _check:
        text = loading_schema(schema["schema"])
        return {**text, "pattern": _HAS_AT_SIGN} if text == {"type": "str"} else schema
    return {name: loading_schema(value) for name, value in schema.items()}
