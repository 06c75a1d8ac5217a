"""Codec options: how Python values become BSON in every database of a registry, and how BSON is decoded."""

import datetime
import decimal
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import bson
from bson.binary import UUID_SUBTYPE, Binary, UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion, TypeDecoder, TypeEncoder, TypeRegistry
from bson.decimal128 import Decimal128
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument

__all__ = [
    "CODEC_OPTIONS",
    "LenientRow",
    "StoredDecimal",
    "as_stored_literal",
    "decode_leniently",
    "decode_raw",
    "raw_options",
    "with_encoders",
]


class StoredDecimal(decimal.Decimal):
    """A Decimal that is stored as a `bson.Decimal128`, and equals a `bson.Decimal128` of the same value.

    Examples:
        >>> StoredDecimal("28.0") == Decimal128("28")
        True
    """

    __slots__ = ()

    def to_decimal(self) -> decimal.Decimal:
        """The plain Decimal; `bson.Decimal128` has the same method."""
        return decimal.Decimal(self)

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other.to_decimal() if isinstance(other, Decimal128) else other)

    def __ne__(self, other: object) -> bool:  # `Decimal.__ne__` does not know Decimal128
        return not self == other

    __hash__ = decimal.Decimal.__hash__


class _DateEncoder(TypeEncoder):
    """A date is stored as midnight UTC, because BSON has no type for days."""

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
    """The driver looks up the exact type, so a subclass needs its own encoder."""

    @property
    def python_type(self) -> type:
        return StoredDecimal


class _TimeEncoder(TypeEncoder):
    """A time of day is stored as its ISO string, which sorts in order of time."""

    @property
    def python_type(self) -> type:
        return datetime.time

    def transform_python(self, value: Any) -> Any:
        return value.isoformat()


_REGISTRY = TypeRegistry([_DateEncoder(), _DecimalEncoder(), _StoredDecimalEncoder(), _TimeEncoder()])


def with_encoders(options: CodecOptions[Any]) -> CodecOptions[Any]:
    """The options with standard UUIDs, and with encoders for dates, times and decimals."""
    return options.with_options(uuid_representation=UuidRepresentation.STANDARD, type_registry=_REGISTRY)


class _UuidDecoder(TypeDecoder):
    """Decodes UUIDs. A binary that has the subtype of UUIDs but another length stays a binary."""

    @property
    def bson_type(self) -> Any:
        return Binary

    def transform_bson(self, value: Any) -> Any:
        return UUID(bytes=bytes(value)) if value.subtype == UUID_SUBTYPE and len(value) == 16 else value


_UUIDS: Final = TypeRegistry([_UuidDecoder()])


class LenientRow(dict[str, Any]):
    """A document that was decoded leniently, with its BSON.

    Attributes:
        raw: the original BSON. If the decoded values are encoded again, the bytes may differ.
    """

    __slots__ = ("raw",)

    raw: bytes


def as_stored_literal(row: dict[str, Any]) -> Any:
    """A row for a command that compares the row with the stored document: the original BSON, if the row has it."""
    return RawBSONDocument(row.raw) if isinstance(row, LenientRow) else row


def raw_options(options: CodecOptions[Any]) -> CodecOptions[Any]:
    """The options for reading undecoded documents, which `decode_raw` decodes.

    Other clients may have written values that the usual options refuse.
    """
    return options.with_options(document_class=RawBSONDocument)


def decode_raw(document: RawBSONDocument, options: CodecOptions[Any]) -> LenientRow:
    """Decode a document leniently.

    Args:
        document: the undecoded document, as the driver returns it with `raw_options`.
        options: the usual options.
    """
    raw = bytes(document.raw)
    lenient = _lenient_options(options.tz_aware, options.tzinfo, options.datetime_conversion)
    row = LenientRow(decode_leniently(raw, lenient))
    row.raw = raw
    return row


@lru_cache(maxsize=16)
def _lenient_options(
    tz_aware: bool, tzinfo: datetime.tzinfo | None, conversion: int
) -> CodecOptions[dict[str, Any]]:
    if conversion == DatetimeConversion.DATETIME:
        conversion = DatetimeConversion.DATETIME_AUTO
    return _LENIENT.with_options(tz_aware=tz_aware, tzinfo=tzinfo, datetime_conversion=conversion)


def decode_leniently(raw: bytes, options: CodecOptions[Any] | None = None) -> dict[str, Any]:
    """Decode a document that may contain invalid values of another client.

    A date beyond the year 9999 becomes a `bson.DatetimeMS`. A UUID of the wrong length becomes a `bson.Binary`.
    Invalid Unicode is replaced.
    """
    options = options or _LENIENT
    try:
        return bson.decode(raw, options)
    except InvalidBSON:
        unspecified = UuidRepresentation.UNSPECIFIED
        return bson.decode(raw, options.with_options(uuid_representation=unspecified, type_registry=_UUIDS))


CODEC_OPTIONS: CodecOptions[dict[str, Any]] = with_encoders(CodecOptions())

_LENIENT: Final[CodecOptions[dict[str, Any]]] = CODEC_OPTIONS.with_options(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)
