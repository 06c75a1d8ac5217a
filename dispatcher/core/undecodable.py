"""Finds the undecodable value in a document: its place, its type, the reason and the remedy.

The driver refuses the whole document, so this module decodes it again, value by value.
"""

from typing import Any, Final, NamedTuple

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions

from dispatcher.core.bson_elements import ARRAY, DOCUMENT, TYPES, Element, elements, joined, keyed, readable
from dispatcher.core.error_text import words_of

AFTER: Final = "the document after the change"
BEFORE: Final = "the document before the change"
KEY: Final = "the key of the document"
NAMES: Final = "the names of the changed fields"

# Maximum number of values that a search looks at, because a search blocks the event loop.
_MOST: Final = 100_000

# Maximum characters of a path, and of a reason, in a message.
_LONGEST: Final = 500

_STANDARD: Final = CodecOptions[dict[str, Any]](uuid_representation=UuidRepresentation.STANDARD)

_BINARY: Final = 5
_DATE: Final = 9
_TEXTS: Final = frozenset({2, 11, 12, 13, 14, 15})
_UUID: Final = 4
_OLD_BINARY: Final = 2

_TEXT_REMEDY: Final = (
    "Correct the text, or let the driver replace invalid bytes: add unicode_decode_error_handler=replace to the "
    "URL"
)
_DATE_REMEDY: Final = (
    "Correct the date, or let the driver return it as a bson.DatetimeMS: add datetime_conversion=DATETIME_AUTO to "
    "the URL"
)


class Fault(NamedTuple):
    """A value that can't be decoded.

    Attributes:
        where: the part of the change that holds the value, such as `AFTER`.
        path: the dotted path of the value's field; items of arrays have numbers. Empty if the value was not found.
    """

    where: str
    path: str
    type: str
    why: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.path!r} in {self.where}" if self.path else f"a value in {self.where}"
        return (
            f"{place} can't be decoded. It is of type {self.type}: {self.why}. {self.remedy}; restart the "
            "dispatcher if the URL has changed, and retry the dead letter."
        )


class Undecodable(Exception):
    """A change event can't be read. The error has the event's token: the stream can continue after this token."""

    def __init__(self, token: str, key: Any, reason: str) -> None:
        super().__init__(reason)
        self.token = token
        self.key = key


class UndecodableValue(ValueError):
    """A document of a change can't be decoded, so no receiver can get it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class UndecodedKey:
    """Represents an `_id` that can't be decoded.

    Attributes:
        raw: the `_id` as BSON: {"": _id}.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def __repr__(self) -> str:
        return repr(readable(self.raw)[""])


def decoded(raw: bytes, codec_options: CodecOptions[Any], where: str) -> dict[str, Any]:
    """Decode a document.

    Raises:
        UndecodableValue: it can't be decoded; the error names the value and the remedy.
    """
    try:
        return bson.decode(raw, codec_options=codec_options)
    except Exception as error:  # the driver, or a decoder of the application, may raise anything
        raise UndecodableValue(_Search(codec_options, where).fault_in(raw, error)) from error


def exact_key(raw: bytes) -> Any:
    """The value of an `_id`, if every client reads and writes it unchanged; otherwise an `UndecodedKey`.

    Args:
        raw: the `_id` as BSON: {"": _id}.
    """
    try:
        bson.decode(raw, codec_options=_STANDARD)
        id_ = bson.decode(raw)[""]
        return id_ if bson.encode({"": id_}) == raw else UndecodedKey(raw)
    except Exception:  # the driver raises several types
        return UndecodedKey(raw)


class _Search:
    """Searches for the value that can't be decoded."""

    def __init__(self, codec_options: CodecOptions[Any], where: str) -> None:
        self._options = codec_options
        self._where = where
        self._decoders = bool(codec_options.type_registry._decoder_map)
        self._left = _MOST

    def fault_in(self, raw: bytes, error: Exception) -> Fault:
        """Find the fault of a document whose decoding raised this error."""
        fault = self._look(raw, "")
        if fault is not None:
            return fault
        return Fault(self._where, "", "document", _reason(error), "Correct the document")

    def _look(self, raw: bytes, path: str, *, named: bool = True) -> Fault | None:
        for one in elements(raw):
            self._left -= 1
            if self._left < 0:
                return None
            name = one.name.decode("utf-8", "backslashreplace")
            inside = f"{path}.{name}" if path else name
            if named and not one.name.isascii() and (error := self._refused(joined(Element(one.name, 10, b"")))):
                return self._fault(inside, "name of a field", error, _TEXT_REMEDY)
            if one.kind in (DOCUMENT, ARRAY):
                fault = self._look(one.value, inside, named=one.kind == DOCUMENT)
                if fault is not None:
                    return fault
            elif self._may_fail(one) and (error := self._refused(keyed(one))):
                return self._fault(inside, *_judged(one, error))
        return None

    def _may_fail(self, one: Element) -> bool:
        return self._decoders or one.kind in _TEXTS or one.kind in (_BINARY, _DATE)

    def _refused(self, raw: bytes) -> Exception | None:
        try:
            bson.decode(raw, codec_options=self._options)
        except Exception as error:
            return error
        return None

    def _fault(self, path: str, type_: str, why: Exception | str, remedy: str) -> Fault:
        shown = path if len(path) <= _LONGEST else f"{path[:_LONGEST]}..."
        return Fault(self._where, shown, type_, why if isinstance(why, str) else _reason(why), remedy)


def _judged(one: Element, error: Exception) -> tuple[str, Exception | str, str]:
    """The type of a value, the reason and the remedy."""
    kind = TYPES[one.kind]
    if one.kind == _DATE:
        return kind, error, _DATE_REMEDY
    if one.kind in _TEXTS:
        return kind, error, _TEXT_REMEDY
    if one.kind == _BINARY:
        size, subtype = len(one.value) - 5, one.value[4]
        if subtype == _UUID:
            return "binary (UUID)", f"it has {size} bytes, and a UUID has 16", "Store 16 bytes or another subtype"
        if subtype == _OLD_BINARY:
            why = "subtype 2 repeats the length of the value, and the two lengths disagree"
            return "binary (subtype 2)", why, "Store it with subtype 0"
        kind = f"binary (subtype {subtype})"
    return kind, error, "Correct the value"


def _reason(error: Exception) -> str:
    """The message of an error, without the driver's advice."""
    return words_of(error).partition(" (Consider Using")[0].rstrip(". ")[:_LONGEST]
