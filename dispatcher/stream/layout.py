"""Reads the head of an event without decoding it, and finds the part of the event that must be decoded.

A server writes the fields of an event in this order: `_id`, `operationType`, `clusterTime`, `wallTime`, in a
transaction its session, then `fullDocument`, `ns`, `documentKey`, and all other fields. The first four fields are
the head. If the tokens of two events have the same length, their heads differ only in the token, the operation and
the times. So one call reads the head, and a comparison with an earlier head shows that it has the known form.

The part to decode is what follows the head. If only the namespace and the key follow the document, the part is the
document alone: the document has the key, and earlier events had the namespace. A key that is a document is decoded
separately.

An event with a head of another form is decoded as a whole, for example an event of a server before 6.0.
"""

import re
from collections.abc import Callable, Sequence
from struct import Struct, error
from typing import Any, Final, NamedTuple

import bson

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.bson_elements import DOCUMENT, elements
from dispatcher.core.events import Namespace

_SIZE: Final = Struct("<i")

# The head of an event: the token and the operation are groups. A size is four bytes, a time eight.
_HEAD: Final = re.compile(
    rb".{4}\x03_id\0.{4}\x02_data\0.{4}([0-9A-F]+)\0\0"
    rb"\x02operationType\0.{4}([a-zA-Z]+)\0\x11clusterTime\0.{8}\x09wallTime\0.{8}",
    re.DOTALL,
)
_TOKEN_AT: Final = 24  # the four bytes before the token have its length, which counts a zero at its end
_OPERATION_AFTER: Final = 20  # bytes from the end of the token to the operation

_DOCUMENT: Final = b"\x03fullDocument\0"
_DOCUMENT_AFTER: Final = len(_DOCUMENT)
_FIELDS: Final = [b"fullDocument", b"ns", b"documentKey"]

# Operations whose document has the whole key.
_WITH_KEY: Final = frozenset({"insert", "replace"})

# Maximum numbers of known forms, and of known namespaces. Tokens have few lengths.
_MOST_FORMS: Final = 1_000
_MOST_NAMESPACES: Final = 8


EventHead = tuple[str, str, int, Namespace | None]
"""The head of an event: the token, the operation, and the seconds of the cluster time. Then the namespace, if the
part to decode is the document alone; otherwise None."""


class _HeadForm(NamedTuple):
    """The form of the heads of one operation, whose tokens have the same length.

    Attributes:
        unpack: splits a head into the bytes before the token, the token, the bytes after it, the seconds of the
            cluster time, and the bytes between the times.
        size: the size of the head, in bytes.
        has_key: whether the document of the event has the whole key.
    """

    unpack: Callable[[bytes], tuple[Any, ...]]
    size: int
    before: bytes
    after: bytes
    between: bytes
    operation: str
    has_key: bool


class _End(NamedTuple):
    """The end of an event after its document, up to the value of the key: constant for a namespace."""

    found: bytes
    size: int
    namespace: Namespace


_NO_FORM: Final = _HeadForm(lambda _data: (None,) * 5, 0, b"", b"", b"", "", has_key=False)
_NO_END: Final = _End(b"\xff", 0, ("", ""))


class EventLayouts:
    """The forms of the events so far."""

    def __init__(self) -> None:
        self._form = _NO_FORM  # of the last event with a known form
        self._end = _NO_END  # of the last event with a known namespace
        # By the length of the token, and the first byte of the operation. None: the head is of another form.
        self._forms: dict[tuple[int, bytes], _HeadForm | None] = {}
        self._ends: list[_End] = []

    def split(self, events: Sequence[RawEvent]) -> tuple[list[EventHead | None], bytes]:
        """Read the heads of events.

        Returns:
            The heads, and the parts to decode. A head is None if the event must be decoded as a whole.

        Raises:
            Exception: an event is no change event, or its namespace is not UTF-8.
        """
        heads: list[EventHead | None] = []
        parts: list[bytes] = []
        size_at = _SIZE.unpack_from
        unpack, size, known_before, known_after, known_between, operation, has_key = self._form
        known_end, end_size, its_namespace = self._end
        for event in events:
            data = event.raw
            try:
                before, token, after, seconds, between = unpack(data)
            except error:  # the event is shorter than the known head, because that has a long token
                before = b""
            if before != known_before or after != known_after or between != known_between:
                form = self._form_of(data)
                if form is None:
                    heads.append(None)
                    parts.append(data)
                    continue
                self._form = form
                unpack, size, known_before, known_after, known_between, operation, has_key = form
                _, token, _, seconds, _ = unpack(data)
            namespace = None
            if has_key and data.startswith(_DOCUMENT, size):
                begin = size + _DOCUMENT_AFTER
                end = begin + size_at(data, begin)[0]
                if not data.startswith(known_end, end):
                    self._end = known_end, end_size, its_namespace = self._end_of(data, size, end)
                key = end + end_size
                # The first field of a document is its `_id`. A receiver may modify an `_id` that is a document, so
                # the change needs another copy of it.
                if end_size and data[begin + 4] != DOCUMENT and key + size_at(data, key)[0] + 1 == len(data):
                    namespace = its_namespace
            if namespace is None:
                parts.append(_SIZE.pack(_SIZE.size + len(data) - size))
                parts.append(data[size:])
            else:
                parts.append(data[begin:end])
            heads.append((token.decode(), operation, seconds, namespace))
        return heads, b"".join(parts)

    def _form_of(self, data: bytes) -> _HeadForm | None:
        """The form of an event; None if the event must be decoded as a whole."""
        length = int.from_bytes(data[_TOKEN_AT - 4 : _TOKEN_AT], "little")
        at = _TOKEN_AT + length + _OPERATION_AFTER
        kind = (length, data[at : at + 1])
        if kind not in self._forms:
            if len(self._forms) >= _MOST_FORMS:
                self._forms.clear()
            self._forms[kind] = _learned(data, length)
        form = self._forms[kind]
        if form is None or len(data) < form.size:
            return None
        before, _, after, _, between = form.unpack(data)
        return form if (before, after, between) == form[2:5] else None

    def _end_of(self, data: bytes, begin: int, at: int) -> _End:
        """The end of an event after its document. Other fields may follow the key.

        `_NO_END` if the end begins with other fields, or if its namespace is new and too many are known already.

        Args:
            begin: the size of the head.
            at: the offset of the end.
        """
        for end in self._ends:
            if data.startswith(end.found, at):
                return end
        if len(self._ends) < _MOST_NAMESPACES:
            rest = _SIZE.pack(_SIZE.size + len(data) - begin) + data[begin:]
            fields = list(elements(rest))
            if [one.name for one in fields[: len(_FIELDS)]] == _FIELDS:
                namespace, key = bson.decode(fields[1].value), fields[2]
                found = rest[fields[1].at - len(b"\x03ns\0") : key.at]
                self._ends.append(_End(found, len(found), (namespace["db"], namespace["coll"])))
                return self._ends[-1]
        return _NO_END


def _learned(data: bytes, length: int) -> _HeadForm | None:
    """The form of the head of an event.

    Args:
        length: the length of the token, as the event says.
    """
    found = _HEAD.match(data)
    if found is None or found.end(1) + 1 != _TOKEN_AT + length:
        return None
    operation = found[2].decode()
    after = found.end(2) + 1 + len(b"\x11clusterTime\0") - found.end(1)
    between = len(b"\x09wallTime\0")
    head = Struct(f"<4x{_TOKEN_AT - 4}s{length - 1}s{after}s4xI{between}s8x")
    before, _, then, _, middle = head.unpack_from(data)
    return _HeadForm(head.unpack_from, head.size, before, then, middle, operation, operation in _WITH_KEY)
