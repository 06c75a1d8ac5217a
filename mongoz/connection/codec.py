"""How Python values become BSON: the options that every database of a registry uses."""

import datetime
import decimal
from typing import Any

from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion, TypeEncoder, TypeRegistry
from bson.decimal128 import Decimal128

__all__ = ["CODEC_OPTIONS", "StoredDecimal", "lenient", "with_our_types"]


class StoredDecimal(decimal.Decimal):
    """A Decimal that is stored as a `bson.Decimal128`, and equals one of the same value.

    Examples:
        >>> StoredDecimal("28.0") == Decimal128("28")
        True
    """

    __slots__ = ()

    def to_decimal(self) -> decimal.Decimal:
        """The plain Decimal, as `bson.Decimal128` has it."""
        return decimal.Decimal(self)

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other.to_decimal() if isinstance(other, Decimal128) else other)

    def __ne__(self, other: object) -> bool:  # Decimal has one of its own, which knows no Decimal128
        return not self == other

    __hash__ = decimal.Decimal.__hash__


class _DateEncoder(TypeEncoder):
    """A date is stored as midnight UTC, since BSON only has instants."""

    @property
    def python_type(self) -> type:
        return datetime.date

    def transform_python(self, value: Any) -> Any:
        return datetime.datetime(value.year, value.month, value.day)


class _DecimalEncoder(TypeEncoder):
    @property
    def python_type(self) -> type:
        return decimal.Decimal

    def transform_python(self, value: Any) -> Any:
        return Decimal128(value)


class _StoredDecimalEncoder(_DecimalEncoder):
    """The driver looks up the exact type, so a subclass needs an encoder of its own."""

    @property
    def python_type(self) -> type:
        return StoredDecimal


class _TimeEncoder(TypeEncoder):
    """A time of day is stored as its ISO string, which sorts as it should."""

    @property
    def python_type(self) -> type:
        return datetime.time

    def transform_python(self, value: Any) -> Any:
        return value.isoformat()


_REGISTRY = TypeRegistry([_DateEncoder(), _DecimalEncoder(), _StoredDecimalEncoder(), _TimeEncoder()])


def with_our_types(options: CodecOptions[Any]) -> CodecOptions[Any]:
    """These options with standard UUIDs, and with encoders for dates, times and decimals."""
    return options.with_options(uuid_representation=UuidRepresentation.STANDARD, type_registry=_REGISTRY)


def lenient(options: CodecOptions[Any]) -> CodecOptions[Any]:
    """These options, for documents that other clients wrote: what Python can't have is decoded as well as it can.

    A date beyond the year 9999 is a `bson.DatetimeMS`; what is no Unicode in a text is replaced.
    """
    if options.datetime_conversion == DatetimeConversion.DATETIME:
        options = options.with_options(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
    return options.with_options(unicode_decode_error_handler="replace")


CODEC_OPTIONS: CodecOptions[dict[str, Any]] = with_our_types(CodecOptions())
