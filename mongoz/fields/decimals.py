"""The rule of Decimal fields: accepted values, rounding and limits."""

import decimal
import struct
from typing import Any, Final, Literal, NamedTuple, NoReturn

from bson import Decimal128
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from mongoz.connection.codec import StoredDecimal
from mongoz.fields.stored_schema import NATIVE

__all__ = ["DecimalRule", "decimal_of"]

_STORABLE: Final = 34
"""The maximum number of digits in a Decimal128."""

_HALVES: Final = struct.Struct("<QQ").unpack

# Arithmetic must not round: Python's default context has 28 digits.
_EXACT: Final = decimal.Context(prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


class DecimalRule(NamedTuple):
    """The rule that makes pydantic treat an annotated type as decimals of MongoDB.

    Attributes:
        max_digits: the largest number of digits, before and after the point together.
        decimal_places: the number of digits kept after the point. Further digits are cut off, toward zero. None
            keeps all digits.
        minimum, maximum, multiple_of: limits of the value after the cut; None is no limit.
    """

    max_digits: int = _STORABLE
    decimal_places: int | None = None
    minimum: decimal.Decimal | None = None
    maximum: decimal.Decimal | None = None
    multiple_of: decimal.Decimal | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        checked = core_schema.decimal_schema(ge=self.minimum, le=self.maximum, multiple_of=self.multiple_of)
        return core_schema.no_info_wrap_validator_function(
            lambda value, check: StoredDecimal(check(self.cut(_parsed(value)))),
            checked,
            serialization=core_schema.plain_serializer_function_ser_schema(_dumped, info_arg=True),
            metadata=NATIVE,
        )

    def cut(self, value: decimal.Decimal) -> decimal.Decimal:
        """Cut off surplus digits after the point.

        Raises:
            PydanticKnownError: the value is no number, or has too many digits.
        """
        if not value.is_finite():
            _refuse("finite_number")
        whole_digits = self.max_digits - (self.decimal_places or 0)
        if value and value.adjusted() >= whole_digits:
            _refuse("decimal_whole_digits", whole_digits=whole_digits)
        exponent = int(value.as_tuple().exponent)
        wanted = min(exponent, 0) if self.decimal_places is None else max(min(exponent, 0), -self.decimal_places)
        if wanted != exponent:
            value = value.quantize(decimal.Decimal((0, (1,), wanted)), decimal.ROUND_DOWN, _EXACT)
        may_be_too_long = self.decimal_places is None or self.max_digits > _STORABLE
        if may_be_too_long and len(value.as_tuple().digits) > _STORABLE:
            _refuse("decimal_max_digits", max_digits=_STORABLE)
        return value


def _parsed(value: Any) -> decimal.Decimal:
    """The Decimal of a value. A float means the digits that Python prints: 0.1 is a tenth."""
    if isinstance(value, decimal.Decimal):
        return value
    if isinstance(value, Decimal128):
        return decimal_of(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        _refuse("decimal_type")
    try:
        return decimal.Decimal(str(value) if isinstance(value, float) else value)
    except decimal.InvalidOperation:
        _refuse("decimal_parsing")


def decimal_of(value: Decimal128) -> decimal.Decimal:
    """Like `value.to_decimal()`, but four times as fast. It is called for each decimal that is loaded."""
    low, high = _HALVES(value.bid)
    if high >> 61 & 3 == 3:  # infinite, not a number, or too long to be valid
        return value.to_decimal()
    coefficient = decimal.Decimal((high & (1 << 49) - 1) << 64 | low)
    exact = coefficient.scaleb((high >> 49 & 0x3FFF) - 6176, _EXACT)
    # The operator - would round to the 28 digits of the context.
    return exact.copy_negate() if high >> 63 else exact


def _refuse(
    kind: Literal[
        "decimal_max_digits", "decimal_parsing", "decimal_type", "decimal_whole_digits", "finite_number"
    ],
    **context: Any,
) -> NoReturn:
    raise PydanticKnownError(kind, context or None)


def _dumped(value: Any, info: core_schema.FieldSerializationInfo) -> Any:
    if info.mode == "json":
        return str(value)
    return Decimal128(value) if isinstance(value, decimal.Decimal) else value
