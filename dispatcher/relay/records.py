"""Makes the records of a topic from change events. No I/O.

This is the hot path of the relay, so no event is decoded. This works because the server has computed the hash of
each document's `_id`.
"""

import json
from binascii import hexlify
from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

from bson import json_util

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.bson_elements import elements, joined, keyed, raw_field, readable
from dispatcher.core.bson_elements import field as field_of
from dispatcher.core.events import DELIVERABLE
from dispatcher.core.partitions import HASH, partition_of
from dispatcher.core.resume_tokens import token_of
from dispatcher.kafka.delete_stamps import IN_TRANSACTION, STAMPED, DeleteStamps
from dispatcher.kafka.envelope import (
    GapNotice,
    LargeEvent,
    encode,
    encode_gap,
    encode_large,
    encode_without,
    head_of_term,
)
from dispatcher.relay.ledger import Part

# The last bytes of an event: the field with the hash, and the byte that ends the document. The pipeline of the
# change stream has added this field.
_TAIL: Final = Struct(f"<{len(HASH) + 2}sqB")
_HASH: Final = b"\x12" + HASH.encode() + b"\0"
_LAST: Final = _TAIL.size - 1  # number of bytes of this field
_SIZE: Final = Struct("<i")

# Events of these operations are published. An `invalidate` event only ends the stream.
_PUBLISHED: Final = frozenset({*DELIVERABLE, "drop", "dropDatabase", "rename"})

# An event with one of these fields is no delete marker. In nearly all events, the field with the operation comes
# directly after the token, so the bytes after the token are compared with these fields.
_NO_MARKERS: Final = tuple(
    b"\x02operationType\0" + _SIZE.pack(len(name) + 1) + name.encode() + b"\0"
    for name in ("insert", "replace", "delete")
)
_TOKEN_AT: Final = 4 + len(b"\x03_id\0")

_DOCUMENT_KEY: Final = b"\x03documentKey\0"
_ID: Final = b"_id\0"
_OBJECT_ID: Final = 7
_STRING: Final = 2

LONGEST_KEY: Final = 1_000
"""Maximum bytes of the key of a record. Keys are for people. If a key would be longer, the record has no key."""

_FRAME: Final = 200
"""Maximum bytes that a record has in addition to its event, its stamp and its key."""

_LONGEST_STAMP: Final = 10_000
"""Maximum bytes of a stamp: a context of 1 kB, and eight bytes for each receiver that ran in process."""

Record = dict[str, Any]
"""A record for the client of Kafka: its value, and its key."""


class Packed(NamedTuple):
    """The records of a batch.

    Attributes:
        records: the records by partition.
        parts: for each partition with records: how many records it has, and the number of the last record.
        size: bytes of all values.
    """

    records: Sequence[list[Record]]
    parts: list[Part]
    size: int


class Packer:
    """Makes the records of one term.

    Args:
        partitions: the number of partitions of the topic.
        largest: maximum bytes of a record.
    """

    def __init__(self, term: int, partitions: int, largest: int) -> None:
        self._term = term
        self._head = head_of_term(term)
        self._partitions = partitions
        self._largest = largest - _FRAME - LONGEST_KEY
        self._largest_stamped = self._largest - _LONGEST_STAMP
        self._numbers = [0] * partitions
        self.stamps = DeleteStamps()

    def large_among(self, events: Sequence[RawEvent]) -> list[RawEvent]:
        """The events that do not fit into a record. For a delete, the record also needs room for a stamp."""
        largest, stamped = self._largest, self._largest_stamped
        return [
            event
            for event in events
            if len(event.raw) > stamped and (len(event.raw) > largest or event["operationType"] == "delete")
        ]

    def pack(self, events: Sequence[RawEvent], large: Mapping[str, LargeEvent]) -> Packed:
        """Make the records of some events.

        Args:
            events: the events in the order of the stream.
            large: the files of the events that do not fit into a record, by token.
        """
        records: list[list[Record]] = [[] for _ in range(self._partitions)]
        size, head, numbers, open_stamps = 0, self._head, self._numbers, self.stamps.open
        tail_of, end, size_at = _TAIL.unpack_from, _TAIL.size, _SIZE.unpack_from
        partitions, largest = self._partitions, self._largest
        for event in events:
            raw = event.raw
            length = len(raw)
            tail, hashed, _ = tail_of(raw, length - end)
            if (
                tail == _HASH
                and length <= largest
                and not open_stamps
                and (
                    raw.startswith(_NO_MARKERS, _TOKEN_AT + size_at(raw, _TOKEN_AT)[0])
                    or STAMPED not in raw  # slower, because it reads the whole event
                    or IN_TRANSACTION not in raw
                )
            ):
                partition = abs(hashed) % partitions
                value = encode_without(_LAST, head, numbers[partition], raw)
            else:
                packed = self._with_care(event, large)
                if packed is None:
                    continue
                partition, value = packed
            numbers[partition] += 1
            size += len(value)
            records[partition].append({"value": value, "key": key_of(raw)})
        return Packed(records, list(self._parts(records)), size)

    def pack_gap(self, gap: GapNotice, partitions: Sequence[int]) -> Packed:
        """Make one record for each of these partitions. The record says which changes are missing."""
        records: list[list[Record]] = [[] for _ in range(self._partitions)]
        for partition in partitions:
            value = encode_gap(self._term, self._numbers[partition], gap)
            self._numbers[partition] += 1
            records[partition].append({"value": value, "key": None})
        return Packed(records, list(self._parts(records)), sum(len(one[0]["value"]) for one in records if one))

    def _parts(self, records: Sequence[list[Record]]) -> Iterator[Part]:
        for partition, some in enumerate(records):
            if some:
                yield Part(partition, len(some), self._numbers[partition] - 1)

    def _with_care(self, event: RawEvent, large: Mapping[str, LargeEvent]) -> tuple[int, bytes] | None:
        """The partition and the record of an event whose bytes can't simply be copied into the record.

        Returns:
            None if the event is not published: a delete marker, or the end of a stream.
        """
        if event["operationType"] not in _PUBLISHED:
            return None
        stamp = self.stamps.take(event)
        if stamp is None:
            return None
        partition, raw = 0, event.raw  # events of whole collections are in partition 0
        if "documentKey" in event:
            partition, raw = partition_of(event[HASH], self._partitions), _without_hash(raw)
        number = self._numbers[partition]
        file = large.get(token_of(event["_id"])) if large else None
        if file is None:
            return partition, encode(self._term, number, raw, stamp)
        return partition, encode_large(self._term, number, file, stamp)


def event_of(event: RawEvent) -> bytes:
    """The bytes of an event without the hash. The pipeline of the change stream has added the hash."""
    return _without_hash(event.raw)


def _without_hash(raw: bytes) -> bytes:
    if _TAIL.unpack_from(raw, len(raw) - _TAIL.size)[0] == _HASH:
        return _SIZE.pack(len(raw) - _TAIL.size + 1) + raw[4 : -_TAIL.size] + b"\0"
    return joined(*(one for one in elements(raw) if one.name != HASH.encode()))


def key_of(raw: bytes) -> bytes | None:
    """The key of the record of an event: the `_id` of the document as extended JSON, for people.

    Returns None if there is no `_id`, or if the `_id` is too long or can't be decoded.

    The key may be wrong if the document contains bytes that look like a field of the event.
    """
    at = raw.rfind(_DOCUMENT_KEY) + len(_DOCUMENT_KEY)
    if at < len(_DOCUMENT_KEY):
        return None
    begin = at + 5 + len(_ID)  # after the size of the document, the type and the name of its field
    kind = raw[at + 4]
    if kind == _OBJECT_ID:
        return b'{"$oid":"%b"}' % hexlify(raw[begin : begin + 12])
    try:
        if kind == _STRING:
            size = _SIZE.unpack_from(raw, begin)[0]
            if size > LONGEST_KEY:
                return None
            key = json.dumps(raw[begin + 4 : begin + 3 + size].decode(), ensure_ascii=False)
        else:
            found = field_of(raw_field(raw, "documentKey") or b"", "_id")
            if found is None or len(found.value) > LONGEST_KEY:
                return None
            value = readable(keyed(found))[""]
            key = json_util.dumps(value, json_options=json_util.RELAXED_JSON_OPTIONS)
    except Exception:  # values that no driver decodes; the key is for people only
        return None
    encoded = key.encode()
    return encoded if len(encoded) <= LONGEST_KEY else None
