"""Splits BSON into its elements without decoding it.

Servers store values that no driver decodes: text that is not UTF-8, UUIDs of three bytes, dates in the far future.
Some code must not fail on such values, for example the search for the `_id` of a document. Such code reads bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from struct import Struct, error
from typing import Any, Final, NamedTuple

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument

DOCUMENT: Final = 3
ARRAY: Final = 4

TYPES: Final[Mapping[int, str]] = {
    1: "double", 2: "string", 3: "document", 4: "array", 5: "binary", 6: "undefined", 7: "ObjectId", 8: "bool",
    9: "date", 10: "null", 11: "regular expression", 12: "DBPointer", 13: "JavaScript", 14: "symbol",
    15: "JavaScript with scope", 16: "int32", 17: "timestamp", 18: "int64", 19: "decimal128", 127: "MaxKey",
    255: "MinKey",
}  # fmt: skip
"""Names of the types of values."""

_SIZE: Final = Struct("<i")

# By type: the size of values of fixed length, in bytes.
_FIXED: Final = {1: 8, 6: 0, 7: 12, 8: 1, 9: 8, 10: 0, 16: 4, 17: 8, 18: 8, 19: 16, 127: 0, 255: 0}
# By type, for values with a length prefix: the number of bytes that this prefix does not count.
_MEASURED: Final = {2: 4, 3: 0, 4: 0, 5: 5, 12: 16, 13: 4, 14: 4, 15: 0}
_REGEX: Final = 11

_BINARY: Final = 5
_OLD_BINARY: Final = 2

# `_LENIENT` refuses only two kinds of values: UUIDs of a wrong length, and old binary values whose two lengths
# disagree. `_ANY_UUID` accepts all UUIDs, and refuses only the old binary values.
_LENIENT: Final = CodecOptions[dict[str, Any]](
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)
_ANY_UUID: Final = _LENIENT.with_options(uuid_representation=UuidRepresentation.UNSPECIFIED)
# By `tz_aware`, because making options takes longer than decoding a short document.
_BY_ZONE: Final = {
    aware: tuple(one.with_options(tz_aware=aware) for one in (_LENIENT, _ANY_UUID)) for aware in (False, True)
}


class Element(NamedTuple):
    """A field of a document, or an item of an array, undecoded.

    Attributes:
        name: the bytes of the name, usually UTF-8.
        kind: the type of the value, a key of TYPES.
        value: the bytes of the value.
        at: the offset of the value in the document.
    """

    name: bytes
    kind: int
    value: bytes
    at: int = 0

    def __bytes__(self) -> bytes:
        """The bytes of the element in a document."""
        return b"%c%b\0%b" % (self.kind, self.name, self.value)


def elements(raw: bytes) -> Iterator[Element]:
    """The fields of a document, in their order.

    Raises:
        InvalidBSON: the bytes are not BSON. No server stores them.
    """
    at, end = _SIZE.size, len(raw) - 1
    try:
        while at < end:
            kind = raw[at]
            ends = raw.index(0, at + 1)
            name, at = raw[at + 1 : ends], ends + 1
            if kind in _FIXED:
                size = _FIXED[kind]
            elif kind in _MEASURED:
                size = _SIZE.unpack_from(raw, at)[0] + _MEASURED[kind]
            elif kind == _REGEX:
                size = raw.index(0, raw.index(0, at) + 1) + 1 - at
            else:
                raise InvalidBSON(f"a value of the unknown type {kind}")
            if size < 0 or at + size > end:
                raise InvalidBSON("a value that is longer than its document")
            yield Element(name, kind, raw[at : at + size], at)
            at += size
    except (ValueError, error) as broken:
        raise InvalidBSON("a document that ends too early") from broken


def field(raw: bytes, name: str) -> Element | None:
    """The first field of this name; None if there is none."""
    wanted = name.encode()
    return next((one for one in elements(raw) if one.name == wanted), None)


def first_fields(raw: bytes, names: Sequence[str]) -> dict[str, Element | None]:
    """The first fields of these names, in one pass; None for an absent one."""
    found: dict[str, Element | None] = dict.fromkeys(names)
    missing = {name.encode() for name in names}
    for one in elements(raw):
        if one.name in missing:
            found[one.name.decode()] = one
            missing.remove(one.name)
            if not missing:
                break
    return found


def raw_field(raw: bytes, name: str) -> bytes | None:
    """The document in a field; None if the field is absent or holds another type."""
    found = field(raw, name)
    return found.value if found is not None and found.kind == DOCUMENT else None


def joined(*parts: Element) -> bytes:
    """A document with these fields."""
    body = b"".join(map(bytes, parts))
    return _SIZE.pack(_SIZE.size + len(body) + 1) + body + b"\0"


def keyed(found: Element, name: str = "") -> bytes:
    """A document with one field, which has this name and the value of the element."""
    body = b"%c%b\0%b" % (found.kind, name.encode(), found.value)
    return _SIZE.pack(_SIZE.size + len(body) + 1) + body + b"\0"


def readable(raw: bytes | RawBSONDocument, *, tz_aware: bool = False) -> dict[str, Any]:
    """Decode a document, even if it holds values that no driver decodes.

    Bytes that are not UTF-8 become U+FFFD. If a UUID has the wrong length, all UUIDs of the document stay
    `Binary`.
    """
    data = bytes(raw.raw) if isinstance(raw, RawBSONDocument) else raw
    for options in _BY_ZONE[tz_aware]:
        try:
            return bson.decode(data, options)
        except (InvalidBSON, ValueError, OverflowError):
            continue
    fixed = bytearray(data)
    _fix_old_binaries(data, fixed, 0)
    return bson.decode(bytes(fixed), _BY_ZONE[tz_aware][1])


def _fix_old_binaries(raw: bytes, fixed: bytearray, begin: int) -> None:
    """Change the old binary values of `raw` to subtype 0, in `fixed`.

    An old value holds two lengths, which may disagree.

    Args:
        raw: a document or an array.
        fixed: the bytes of the whole document.
        begin: the offset of `raw` in `fixed`.
    """
    for one in elements(raw):
        at = begin + one.at
        if one.kind == _BINARY and one.value[4] == _OLD_BINARY:
            fixed[at + 4] = 0
        elif one.kind in (DOCUMENT, ARRAY):
            _fix_old_binaries(one.value, fixed, at)
        elif one.kind == 15:  # the code comes first, then the scope
            skip = 4 + 4 + _SIZE.unpack_from(one.value, 4)[0]
            _fix_old_binaries(one.value[skip:], fixed, at + skip)
