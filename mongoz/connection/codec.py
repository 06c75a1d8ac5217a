"""How Python values become BSON: the options that every database of a registry uses."""

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

__all__ = ["CODEC_OPTIONS", "Read", "StoredDecimal", "as_read", "decoded", "lenient", "read", "with_our_types"]


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


class _UuidDecoder(TypeDecoder):
    """Makes a UUID of what can be one, and leaves other binaries of that subtype as they are."""

    @property
    def bson_type(self) -> Any:
        return Binary

    def transform_bson(self, value: Any) -> Any:
        return UUID(bytes=bytes(value)) if value.subtype == UUID_SUBTYPE and len(value) == 16 else value


_UUIDS: Final = TypeRegistry([_UuidDecoder()])


class Read(dict[str, Any]):
    """A document that another client may have written, decoded as well as it can be.

    Attributes:
        raw: its BSON, which the decoded values may not tell.
    """

    __slots__ = ("raw",)

    raw: bytes


def as_read(row: dict[str, Any]) -> Any:
    """A document for a command that compares it with what is stored: nothing of it is lost in decoding."""
    return RawBSONDocument(row.raw) if isinstance(row, Read) else row


def lenient(options: CodecOptions[Any]) -> CodecOptions[Any]:
    """These options, for documents that other clients wrote: they are left undecoded, see `read`."""
    return options.with_options(document_class=RawBSONDocument)


def read(document: RawBSONDocument, options: CodecOptions[Any]) -> Read:
    """An undecoded document, decoded as well as it can be.

    Args:
        document: as the driver gives it with `lenient` options.
        options: those that documents are usually decoded with.
    """
    raw = bytes(document.raw)
    row = Read(decoded(raw, _decoding(options.tz_aware, options.tzinfo, options.datetime_conversion)))
    row.raw = raw
    return row


@lru_cache(maxsize=16)
def _decoding(tz_aware: bool, tzinfo: datetime.tzinfo | None, conversion: int) -> CodecOptions[dict[str, Any]]:
    if conversion == DatetimeConversion.DATETIME:
        conversion = DatetimeConversion.DATETIME_AUTO
    return _LENIENT.with_options(tz_aware=tz_aware, tzinfo=tzinfo, datetime_conversion=conversion)


def decoded(raw: bytes, options: CodecOptions[Any] | None = None) -> dict[str, Any]:
    """A document of which values that Python can't have are decoded as well as they can be.

    A date beyond the year 9999 is a `bson.DatetimeMS`, a UUID of the wrong length is a `bson.Binary`; what is no
    Unicode in a text is replaced.
    """
    options = options or _LENIENT
    try:
        return bson.decode(raw, options)
    except InvalidBSON:
        unspecified = UuidRepresentation.UNSPECIFIED
        return bson.decode(raw, options.with_options(uuid_representation=unspecified, type_registry=_UUIDS))


CODEC_OPTIONS: CodecOptions[dict[str, Any]] = with_our_types(CodecOptions())

_LENIENT: Final[CodecOptions[dict[str, Any]]] = CODEC_OPTIONS.with_options(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)
