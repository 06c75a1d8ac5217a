"""Reads what a dispatcher needs from a record before its event is decoded: the token and the stamp. No I/O."""

from struct import Struct
from typing import Final

from dispatcher.core.bson_codec import RawEvent, StampedDelete
from dispatcher.core.resume_tokens import token_time
from dispatcher.kafka.envelope import Envelope, MalformedRecord, RecordKind, decode, token_in
from dispatcher.stream.source import RememberStamp
from mongoz.stamps import FIELD, Call, Stamp

# A plain event: the fields `v`, `term`, `n` and `event` of the envelope, and the beginning of the event, which is
# its token: {_id: {_data: "..."}}. The lengths of documents and of the text stand before them.
_PLAIN: Final = Struct("<i13sq3sq7si5si7si")
_HEAD: Final = b"\x10v\0\x01\0\0\0\x12term\0"
_NUMBER: Final = b"\x12n\0"
_EVENT: Final = b"\x03event\0"
_ID: Final = b"\x03_id\0"
_DATA: Final = b"\x02_data\0"
_BEGIN: Final = Struct("<i13sq3sq7s").size  # of the event
_REST: Final = 4 + len(_DATA) + 4 + 1  # bytes of the `_id` beside the text and its zero

_STAMP: Final = FIELD.encode() + b"\0"


def plain_event(value: bytes | None, term: int, number: int) -> tuple[str, bytes] | None:
    """The token and the event of a record that has this term and number, and needs no further look.

    This is the hot path of a reader. It makes no objects for nearly all records.

    Returns:
        None for every other record, also if it is malformed: `decode` and `token_in` read it.
    """
    if value is None or len(value) <= _PLAIN.size:
        return None
    size, head, term_, n, number_, event, inner, id_, length, data, characters = _PLAIN.unpack_from(value)
    if (
        number_ != number
        or term_ != term
        or size != len(value)
        or inner != size - _BEGIN - 1
        or length != characters + _REST
        or not 0 < characters <= size - _PLAIN.size
        or head != _HEAD
        or n != _NUMBER
        or event != _EVENT
        or id_ != _ID
        or data != _DATA
        or value[-1]
    ):
        return None
    return str(value[_PLAIN.size : _PLAIN.size + characters - 1], "ascii", "replace"), value[_BEGIN:-1]


def event_of(envelope: Envelope) -> RawEvent:
    """The event of a record."""
    return StampedDelete(envelope.event, envelope.stamp) if envelope.stamp else RawEvent(envelope.event)


def remember_stamp(envelope: Envelope, remember: RememberStamp) -> None:
    """Pass the stamp of a record to `remember`. That of a marker belongs to its delete, which has it too."""
    event = RawEvent(envelope.event)
    if envelope.stamp:
        remember(Stamp.unpack(envelope.stamp), event.get("wallTime"))
    elif _STAMP in envelope.event:
        operation = event.get("operationType")
        value = None
        if operation == "insert":
            value = (event.get("fullDocument") or {}).get(FIELD)
        elif operation == "update":
            value = ((event.get("updateDescription") or {}).get("updatedFields") or {}).get(FIELD)
        stamp = None if value is None else Stamp.unpack(value)
        if stamp is not None and not (operation == "update" and stamp.call is Call.DELETED):
            remember(stamp, event.get("wallTime"))


def recall_stamp(value: bytes | None, before: str, remember: RememberStamp, since: float) -> float:
    """Remember the stamp of a record up to a token.

    Returns:
        The time of the record, in seconds since 1970; `since` if it is unknown.
    """
    try:
        envelope = decode(value)
        token = token_in(envelope)
    except MalformedRecord:  # no dispatcher reads it any more
        return since
    if token <= before and envelope.kind is RecordKind.EVENT:
        remember_stamp(envelope, remember)
    return float(token_time(token).time)
