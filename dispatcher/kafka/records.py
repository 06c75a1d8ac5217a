"""Reads what a dispatcher needs from a record before its event is decoded: the token and the stamp. No I/O."""

from collections.abc import Iterator
from struct import Struct
from typing import Final

from dispatcher.core.bson_codec import RawEvent, StampedDelete
from dispatcher.core.resume_tokens import token_time
from dispatcher.kafka.acceptance import LogPosition
from dispatcher.kafka.envelope import Envelope, MalformedRecord, RecordKind, decode, head_of_term, token_in
from dispatcher.kafka.log import TopicRecord
from dispatcher.stream.source import RememberStamp
from mongoz.stamps import FIELD, Call, Stamp

# A plain event: the size of the record, the bytes that all records of its term share (`head_of_term`), the number
# of the record, the field `event`, and the beginning of the event, which is its token: {_id: {_data: "..."}}. Each
# document begins with its length. The text of the token begins with its length, too.
_PLAIN: Final = Struct("<i24sq7si5si7si")
_EVENT: Final = b"\x03event\0"
_ID: Final = b"\x03_id\0"
_DATA: Final = b"\x02_data\0"
_BEGIN: Final = Struct("<i24sq7s").size  # the offset of the event in the record
_REST: Final = 4 + len(_DATA) + 4 + 1  # bytes of the `_id` without the text and its final zero

_STAMP: Final = FIELD.encode() + b"\0"


def take_plain(
    records: Iterator[TopicRecord], position: LogPosition, events: list[RawEvent]
) -> tuple[LogPosition, TopicRecord | None]:
    """Accept plain events, up to the first other record. This is the hot path of a reader.

    Each of these records is the next one of the term, and has a later token than the record before. `accept` in
    `kafka/acceptance.py` would deliver the same records. This function also stops at malformed records: `decode`
    and `token_in` then report them.

    Args:
        position: the position before the records.
        events: gets the events.

    Returns:
        The position after the events, and the record at which the function stopped; None for the record if the
        function took all records.
    """
    offset, term, number, before = position
    head, token, unpack, smallest = head_of_term(term), before.encode(), _PLAIN.unpack_from, _PLAIN.size
    stopped = None
    for record in records:
        at, value = record
        if at != offset or value is None or len(value) <= smallest:
            stopped = record
            break
        size, head_, number_, event, inner, id_, length, data, characters = unpack(value)
        text = value[smallest : smallest + characters - 1]
        if (
            head_ != head
            or number_ != number + 1
            or text <= token
            or size != len(value)
            or inner != size - _BEGIN - 1
            or length != characters + _REST
            or not 0 < characters <= size - smallest
            or event != _EVENT
            or id_ != _ID
            or data != _DATA
            or value[-1]
        ):
            stopped = record
            break
        offset, number, token = offset + 1, number_, text
        events.append(RawEvent(value[_BEGIN:-1]))
    return LogPosition(offset, term, number, str(token, "ascii", "replace")), stopped


def event_of(envelope: Envelope) -> RawEvent:
    """The event of a record."""
    return StampedDelete(envelope.event, envelope.stamp) if envelope.stamp else RawEvent(envelope.event)


def remember_stamp(envelope: Envelope, remember: RememberStamp) -> None:
    """Pass the stamp of a record to `remember`. A marker is left out, because its delete has the same stamp."""
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
    """Pass the stamp of a record to `remember`, if the token of the record is not after `before`.

    Returns:
        The time of the record, in seconds since 1970; `since` if it is unknown.
    """
    try:
        envelope = decode(value)
        token = token_in(envelope)
    except MalformedRecord:  # no dispatcher reads this record any more
        return since
    if token <= before and envelope.kind is RecordKind.EVENT:
        remember_stamp(envelope, remember)
    return float(token_time(token).time)
