"""Decodes change events and documents, as late and as little as possible."""

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Any, Final

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument

from dispatcher.core.bson_elements import DOCUMENT, elements, field, keyed, readable

RAW: Final[CodecOptions[RawBSONDocument]] = CodecOptions(document_class=RawBSONDocument)
"""Documents stay undecoded, so an undecodable document does not affect the others."""


def lenient(codec_options: CodecOptions[Any]) -> CodecOptions[Any]:
    """Return these options, changed to accept dates beyond Python's range and strings that are not UTF-8."""
    return codec_options.with_options(
        datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
    )


class RawEvent(Mapping[str, Any]):
    """A change event as the server sent it, or a document in it. Fields are decoded when they are read.

    Its creation takes a tenth of the time that a `RawBSONDocument` needs.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def __getitem__(self, name: str) -> Any:
        found = field(self.raw, name)
        if found is None:
            raise KeyError(name)
        if found.kind == DOCUMENT:
            return RawEvent(found.value)
        return readable(keyed(found))[""]

    def __iter__(self) -> Iterator[str]:
        return (one.name.decode("utf-8", "replace") for one in elements(self.raw))

    def __len__(self) -> int:
        return sum(1 for _ in elements(self.raw))


class StampedDelete(RawEvent):
    """A delete, and the stamp of its marker.

    Attributes:
        stamp: the bytes of the stamp, undecoded.
    """

    __slots__ = ("stamp",)

    def __init__(self, raw: bytes, stamp: bytes) -> None:
        super().__init__(raw)
        self.stamp = stamp


_SIZE: Final = Struct("<i")
_EVENTS: Final = b"\x04nextBatch\x00"
_OBJECT: Final = 3


def events_of(cursor: RawBSONDocument) -> tuple[list[RawEvent], Mapping[str, Any]]:
    """Split the answer to a getMore into the undecoded events and the rest of the answer.

    The driver would make a `RawBSONDocument` of each event, which takes a twentieth of the time of a delivery.
    """
    raw = bytes(cursor.raw)
    begin = _SIZE.size
    if raw.startswith(_EVENTS, begin):  # servers write the events first
        at = begin + len(_EVENTS)
        end = at + _SIZE.unpack_from(raw, at)[0]
        events = _elements(raw, at + _SIZE.size, end - 1)
        if events is not None:
            rest = _SIZE.pack(begin + len(raw) - end) + raw[end:]
            return events, bson.decode(rest)
    return [RawEvent(bytes(event.raw)) for event in cursor["nextBatch"]], cursor


def _elements(raw: bytes, at: int, end: int) -> list[RawEvent] | None:
    """The documents of an array; None if the array does not have the layout that servers write."""
    elements: list[RawEvent] = []
    size_at, digits, ten = _SIZE.unpack_from, 1, 10
    while at < end:
        if len(elements) == ten:
            digits, ten = digits + 1, ten * 10
        # An element is its type, its index as a zero-terminated string, and its document.
        if raw[at] != _OBJECT or raw[at + digits + 1]:
            return None
        at += 2 + digits
        size = size_at(raw, at)[0]
        elements.append(RawEvent(raw[at : at + size]))
        at += size
    return elements
