"""Canonical keys: equal bytes for `_id`s that the server takes for equal.

MongoDB compares numbers by value: 1, `NumberLong(1)`, 1.0 and `Decimal128("1.00")` are one `_id`, also inside of
documents and arrays. 0.0 and -0.0 are one `_id` too. All NaN are one `_id`. But equal numbers can have different
BSON, and then hashes of the BSON differ. So `canonical` encodes every number in the narrowest type that holds it.

`canonical` works on the bytes of BSON. Python values are not enough: Python compares them differently (1 == True),
and not every key can be decoded.
"""

import struct
from decimal import Context, Decimal
from typing import Any, Final

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from bson.decimal128 import Decimal128

__all__ = ["KEY_CODEC", "canonical", "canonical_of"]

KEY_CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)
"""The codec options for keys that the driver has decoded."""

_DOUBLE, _STRING, _DOCUMENT, _ARRAY, _REGEX, _SYMBOL, _CODE_WITH_SCOPE = 0x01, 0x02, 0x03, 0x04, 0x0B, 0x0E, 0x0F
_INT32, _INT64, _DECIMAL = 0x10, 0x12, 0x13

# The number of bytes of types with a fixed length.
_FIXED: Final = {
    _DOUBLE: 8, 0x06: 0, 0x07: 12, 0x08: 1, 0x09: 8, 0x0A: 0, _INT32: 4, 0x11: 8, _INT64: 8, _DECIMAL: 16,
    0x7F: 0, 0xFF: 0,
}  # fmt: skip

# A value of these types begins with a length in four bytes. The whole value has as many bytes as this length says,
# plus the number that stands here.
_COUNTED: Final = {
    _STRING: 4, _DOCUMENT: 0, _ARRAY: 0, 0x05: 5, 0x0C: 16, 0x0D: 4, _SYMBOL: 4, _CODE_WITH_SCOPE: 0,
}  # fmt: skip

_CHANGEABLE: Final = frozenset({_DOUBLE, _DOCUMENT, _ARRAY, _SYMBOL, _CODE_WITH_SCOPE, _INT64, _DECIMAL})

_LENGTH: Final = struct.Struct("<i")
_LONG: Final = struct.Struct("<q")
_FLOAT: Final = struct.Struct("<d")
_NAN: Final = _FLOAT.pack(float("nan"))
_EXACT: Final = Context(prec=34, Emin=-999_999, Emax=999_999, traps=[])  # digits of a Decimal128


def canonical(id_: Any, codec_options: CodecOptions[Any] = KEY_CODEC) -> bytes:
    """Encode an `_id`. All `_id`s that the server takes for equal have the same bytes, in every process.

    Args:
        id_: the `_id`, of any type that can be encoded.
        codec_options: the options for encoding. The default is enough for an `_id` that the driver decoded.

    Raises:
        bson.errors.InvalidDocument: the `_id` can't be encoded.
    """
    return canonical_of(bson.encode({"": id_}, codec_options=codec_options))


def canonical_of(encoded: bytes) -> bytes:
    """Like `canonical`, for an `_id` that is BSON already: `{"": _id}`."""
    return _document(encoded) if encoded[4] in _CHANGEABLE else encoded


def _document(data: bytes, *, is_array: bool = False) -> bytes:
    elements: list[bytes] = []
    at, end, count = 4, len(data) - 1, 0
    while at < end:
        value_at = data.index(0, at + 1) + 1
        type_, name = data[at], data[at + 1 : value_at]
        at = _end_of(type_, data, value_at)
        if is_array:  # the server ignores the names of array elements: "0", "1", ...
            name, count = b"%d\0" % count, count + 1
        narrow, value = _value(type_, data[value_at:at])
        elements += (bytes((narrow,)), name, value)
    body = b"".join(elements)
    return _LENGTH.pack(len(body) + 5) + body + b"\0"


def _end_of(type_: int, data: bytes, at: int) -> int:
    """The position after a value."""
    if type_ == _REGEX:
        return data.index(0, data.index(0, at) + 1) + 1
    length = _FIXED.get(type_)
    return at + (_COUNTED[type_] + _LENGTH.unpack_from(data, at)[0] if length is None else length)


def _value(type_: int, value: bytes) -> tuple[int, bytes]:
    """The canonical type and bytes of a value."""
    if type_ == _INT64:
        return _integer(_LONG.unpack(value)[0])
    if type_ == _DOUBLE:
        return _float(_FLOAT.unpack(value)[0])
    if type_ == _DECIMAL:
        return _decimal(value)
    if type_ in (_DOCUMENT, _ARRAY):
        return type_, _document(value, is_array=type_ == _ARRAY)
    if type_ == _CODE_WITH_SCOPE:
        scope_at = 8 + _LENGTH.unpack_from(value, 4)[0]
        scope = _document(value[scope_at:])
        return type_, _LENGTH.pack(scope_at + len(scope)) + value[4:scope_at] + scope
    return _STRING if type_ == _SYMBOL else type_, value


def _integer(number: int) -> tuple[int, bytes]:
    if -(1 << 31) <= number < 1 << 31:
        return _INT32, _LENGTH.pack(number)
    return _INT64, _LONG.pack(number)


def _float(number: float) -> tuple[int, bytes]:
    if number.is_integer() and -(1 << 63) <= number < 1 << 63:
        return _integer(int(number))
    return _DOUBLE, _FLOAT.pack(number) if number == number else _NAN  # noqa: PLR0124 - a NaN is unequal


def _decimal(value: bytes) -> tuple[int, bytes]:
    number = Decimal128.from_bid(value).to_decimal()
    if not number.is_finite() or number == Decimal(float(number)):
        return _float(float("nan") if number.is_nan() else float(number))
    if number == (whole := number.to_integral_value()) and -(1 << 63) <= whole < 1 << 63:
        return _integer(int(whole))
    return _DECIMAL, Decimal128(number.normalize(_EXACT)).bid
