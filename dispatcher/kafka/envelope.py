"""The form of the records in a topic: BSON around the bytes of a change event. No I/O.

    v        int32: the version of this form, 1
    term     int64: the term of the relay's producer, from 1
    n        int64: the number of the record among those of its term in this partition, from 0
    stamp    binary: only for a delete: the stamp of its marker

Then one of three fields follows:

    event    the change event, as the server sent it
    large    {token, id, size}: a change event that does not fit into a record. It is a file in the state database
    gap      {token, kind, after, until, policy}: the changes between two tokens are lost

All fields come in this order. `decode` accepts nothing else: a record in another form was written by another
program, or by a later version.
"""

from enum import StrEnum
from struct import Struct
from typing import Any, Final, Literal, NamedTuple

import bson
from bson.binary import USER_DEFINED_SUBTYPE
from bson.errors import BSONError

from dispatcher.core.bson_elements import raw_field
from dispatcher.core.resume_tokens import token_of

_VERSION: Final = 1

_V: Final = b"\x10v\0"
_TERM: Final = b"\x12term\0"
_NUMBER: Final = b"\x12n\0"
_STAMP: Final = b"\x05stamp\0"
_EVENT: Final = b"\x03event\0"
_LARGE: Final = b"\x03large\0"
_GAP: Final = b"\x03gap\0"

# The head of a record: its size, and the fields `v`, `term` and `n`. A field is its type, its name and its value.
_HEAD: Final = Struct("<i3si6sq3sq")
_HEAD_OF_TERM: Final = Struct("<3si6sq3s")
_HEAD_OF_EVENT: Final = Struct(f"<i{_HEAD_OF_TERM.size}sq{len(_EVENT)}si")
_ROOM: Final = _HEAD.size + len(_EVENT) + 1  # bytes of a record without its event
_SIZE: Final = Struct("<i")
_STAMP_HEAD: Final = Struct(f"<{len(_STAMP)}siB")

# The size of a BSON document without fields.
_SMALLEST: Final = 5

# Maximum bytes of a record in an error message.
_SHOWN: Final = 60


class RecordKind(StrEnum):
    """The kind of a record: the name of its last field."""

    EVENT = "event"
    LARGE = "large"
    GAP = "gap"


_KINDS: Final = {_EVENT: RecordKind.EVENT, _LARGE: RecordKind.LARGE, _GAP: RecordKind.GAP}


class Envelope(NamedTuple):
    """A record of a topic.

    Attributes:
        stamp: the stamp of the marker of a delete; empty for all other changes.
        event: the change event; in a record of another kind, the document that `large_event_in` or `gap_in` reads.
    """

    term: int
    number: int
    stamp: bytes
    event: bytes
    kind: RecordKind = RecordKind.EVENT


class LargeEvent(NamedTuple):
    """A change event that does not fit into a record.

    Attributes:
        token: the token of the event. A very long token is shortened, see `resume_tokens.shortened`.
        id: the id of the file with the event, see `dispatcher/kafka/large_events.py`.
        size: bytes of the event.
    """

    token: str
    id: bytes
    size: int


class GapNotice(NamedTuple):
    """Changes that are missing in the topic.

    Attributes:
        token: the notice comes after the events of its partition that have lower tokens.
        kind: the kind of the gap.
        after: the changes after this token are missing.
        until: the changes up to this token are missing.
        policy: `"resume"` if `kind` is `"history_lost"`; empty if it is `"oversize"`.
    """

    token: str
    kind: Literal["history_lost", "oversize"]
    after: str
    until: str
    policy: str = ""


class MalformedRecord(ValueError):
    """A record does not have the form of this module. The text of the error says how the record begins."""


def encode(term: int, number: int, event: bytes, stamp: bytes = b"") -> bytes:
    """Return the record of a change event.

    Args:
        event: as the server sent it.
        stamp: the stamp of the marker of a delete.
    """
    return _encoded(term, number, stamp, _EVENT, event)


def head_of_term(term: int) -> bytes:
    """Return the bytes that all records of a term have between their size and their number."""
    return _HEAD_OF_TERM.pack(_V, _VERSION, _TERM, term, _NUMBER)


def encode_without(last: int, head: bytes, number: int, event: bytes) -> bytes:
    """Return the record of a change event, without the last field of the event, which only the relay needs.

    This is the hot path of the relay.

    Args:
        last: the number of bytes of the last field, with its type and name.
        head: the result of `head_of_term`.
    """
    size = len(event) - last
    return b"".join((_HEAD_OF_EVENT.pack(_ROOM + size, head, number, _EVENT, size), event[4 : size - 1], b"\0\0"))


def encode_large(term: int, number: int, large: LargeEvent, stamp: bytes = b"") -> bytes:
    """Return the record of a change event that is a file in the state database."""
    return _encoded(term, number, stamp, _LARGE, bson.encode(large._asdict()))


def encode_gap(term: int, number: int, gap: GapNotice) -> bytes:
    """Return the record of missing changes."""
    return _encoded(term, number, b"", _GAP, bson.encode(gap._asdict()))


def _encoded(term: int, number: int, stamp: bytes, field: bytes, document: bytes) -> bytes:
    body = field + document + b"\0"
    if stamp:
        body = _STAMP_HEAD.pack(_STAMP, len(stamp), USER_DEFINED_SUBTYPE) + stamp + body
    return _HEAD.pack(_HEAD.size + len(body), _V, _VERSION, _TERM, term, _NUMBER, number) + body


def decode(value: bytes | None) -> Envelope:
    """Read a record.

    Args:
        value: the value of the message; None for a message without a value.

    Raises:
        MalformedRecord: the record does not have the form of this module. The caller adds topic, partition and
            offset.
    """
    if value is None or len(value) < _HEAD.size + _SMALLEST:
        raise _malformed(value)
    size, v, version, term_field, term, number_field, number = _HEAD.unpack_from(value)
    if size != len(value) or value[-1] or v != _V:
        raise _malformed(value)
    if version != _VERSION:
        raise MalformedRecord(f"the record has the version {version}, and this dispatcher knows {_VERSION}")
    if term_field != _TERM or number_field != _NUMBER or term < 1 or number < 0:
        raise _malformed(value)
    at, stamp = _HEAD.size, b""
    if value.startswith(_STAMP, at):
        at += len(_STAMP)
        length = _SIZE.unpack_from(value, at)[0] if at + 5 < size else -1
        at += 5
        if length < 1 or at + length > size or value[at - 1] != USER_DEFINED_SUBTYPE:
            raise _malformed(value)
        stamp = value[at : at + length]
        at += length
    begin = value.find(b"\0", at) + 1
    kind = _KINDS.get(value[at:begin])
    if kind is None or begin + _SMALLEST >= size or _SIZE.unpack_from(value, begin)[0] != size - 1 - begin:
        raise _malformed(value)
    return Envelope(term, number, stamp, value[begin:-1], kind)


def token_in(record: Envelope) -> str:
    """The token of a record. Tokens tell the order of records.

    Raises:
        MalformedRecord: the record has no token.
    """
    if record.kind is not RecordKind.EVENT:
        return str(_read(record, token=str)["token"])
    try:
        return token_of(bson.decode(raw_field(record.event, "_id") or b""))
    except (BSONError, KeyError, TypeError, ValueError) as error:
        raise _malformed(record.event) from error


def large_event_in(record: Envelope) -> LargeEvent:
    """The document of a large event.

    Raises:
        MalformedRecord: the record has no such document.
    """
    return LargeEvent(**_read(record, token=str, id=bytes, size=int))


def gap_in(record: Envelope) -> GapNotice:
    """The document of a gap.

    Raises:
        MalformedRecord: the record has no such document.
    """
    return GapNotice(**_read(record, token=str, kind=str, after=str, until=str, policy=str))


def _read(record: Envelope, **kinds: type) -> dict[str, Any]:
    """The fields of the document of a record."""
    try:
        document = bson.decode(record.event)
        found = {name: document[name] for name in kinds}
    except (BSONError, KeyError) as error:
        raise _malformed(record.event) from error
    if not all(isinstance(found[name], kind) for name, kind in kinds.items()):
        raise _malformed(record.event)
    return found


def _malformed(value: bytes | None) -> MalformedRecord:
    if value is None:
        return MalformedRecord("the record has no value, so it is no change event of a relay")
    shown = f"{value[:_SHOWN]!r}" + ("..." if len(value) > _SHOWN else "")
    return MalformedRecord(f"the record is no change event of a relay; its value of {len(value)} bytes is {shown}")
