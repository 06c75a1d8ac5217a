"""Records are made from the bytes of events: partition, number, key, stamp."""

from datetime import datetime
from typing import Any

import bson
import pytest
from bson import Binary, Int64, ObjectId, Timestamp

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.partitions import HASH
from dispatcher.kafka.envelope import GapNotice, LargeEvent, RecordKind, decode, gap_in, large_event_in
from dispatcher.relay.records import Packed, Packer, event_of, key_of
from mongoz.stamps import FIELD, Call, Stamp

TIME = Timestamp(1_700_000_000, 1)


def stamp(call: Call, group: str = "any") -> Binary:
    return Stamp(group, call, ObjectId(), b"k" * 8).pack()


def event(
    operation: str, id_: Any = 1, *, hashed: int | None = 0, time: Timestamp = TIME, **fields: Any
) -> RawEvent:
    """An event as the server sends it, with the hash at the end."""
    made = {
        "_id": {"_data": f"82{time.time:08X}{time.inc:08X}"},
        "operationType": operation,
        "clusterTime": time,
        "wallTime": datetime(2026, 1, 1),
        **fields,
        "ns": {"db": "shop", "coll": "orders"},
    }
    if hashed is not None:
        made |= {"documentKey": {"_id": id_}, HASH: Int64(hashed)}
    return RawEvent(bson.encode(made))


def transaction(number: int = 1) -> dict[str, Any]:
    return {"lsid": {"id": Binary(b"l" * 16, 4), "uid": Binary(b"u" * 32)}, "txnNumber": Int64(number)}


def marker(id_: Any = 1, *, time: Timestamp = TIME, number: int = 1, **updated: Any) -> RawEvent:
    fields = {"updatedFields": {FIELD: stamp(Call.DELETED), **updated}, "removedFields": [], "truncatedArrays": []}
    return event("update", id_, time=time, updateDescription=fields, **transaction(number))


def delete(id_: Any = 1, *, time: Timestamp = TIME, number: int = 1) -> RawEvent:
    return event("delete", id_, time=time, **transaction(number))


def packer(largest: int = 1_000_000) -> Packer:
    return Packer(9, 4, largest)


def envelopes(packed: Packed, partition: int = 0) -> list[Any]:
    return [decode(one["value"]) for one in packed.records[partition]]


def stamp_in(raw: RawEvent) -> bytes:
    return bytes(raw["updateDescription"]["updatedFields"][FIELD])


@pytest.mark.parametrize(("hashed", "partition"), [(0, 0), (5, 1), (-5, 1), (-(2**63), 0), (2**63 - 1, 3)])
def test_the_hash_decides_the_partition(hashed: int, partition: int) -> None:
    packed = packer().pack([event("insert", hashed=hashed, fullDocument={"a": 1})], {})
    assert [part.partition for part in packed.parts] == [partition]


def test_records_are_numbered_by_partition_and_hold_the_event_without_its_hash() -> None:
    one = packer()
    events = [event("insert", number, hashed=number, fullDocument={"a": number}) for number in range(10)]
    first, second = one.pack(events[:6], {}), one.pack(events[6:], {})
    assert [(part.partition, part.records, part.last) for part in first.parts] == [
        (0, 2, 1), (1, 2, 1), (2, 1, 0), (3, 1, 0)
    ]  # fmt: skip
    assert [(part.partition, part.records, part.last) for part in second.parts] == [
        (0, 1, 2), (1, 1, 2), (2, 1, 1), (3, 1, 1)
    ]  # fmt: skip
    read = envelopes(first, 1) + envelopes(second, 1)
    assert [(one.term, one.number) for one in read] == [(9, 0), (9, 1), (9, 2)]
    expected = bson.decode(events[5].raw)
    del expected[HASH]
    assert read[1].event == bson.encode(expected) == event_of(events[5])
    assert first.size == sum(len(record["value"]) for some in first.records for record in some)


def test_a_hash_that_is_not_at_the_end_counts_too() -> None:
    moved = bson.decode(event("insert", hashed=5, fullDocument={}).raw)
    moved = {HASH: moved.pop(HASH), **moved}
    packed = packer().pack([RawEvent(bson.encode(moved))], {})
    del moved[HASH]
    assert [one.event for one in envelopes(packed, 1)] == [bson.encode(moved)]


def test_events_of_collections_are_in_partition_0_and_an_invalidate_event_is_not_published() -> None:
    some = [event(name, hashed=None) for name in ("drop", "rename", "dropDatabase", "invalidate")]
    packed = packer().pack(some, {})
    assert [bson.decode(one.event)["operationType"] for one in envelopes(packed)] == [
        "drop",
        "rename",
        "dropDatabase",
    ]
    assert [record["key"] for record in packed.records[0]] == [None] * 3


def test_a_delete_gets_the_stamp_of_its_marker_and_the_marker_is_not_published() -> None:
    one, announced = packer(), [marker(1), marker(2)]
    first = one.pack(announced, {})
    assert first.parts == []
    assert one.stamps.open
    second = one.pack([delete(2), delete(1), delete(3)], {})
    assert [each.stamp for each in envelopes(second)] == [stamp_in(announced[1]), stamp_in(announced[0]), b""]
    assert not one.stamps.open


def test_a_marker_without_a_delete_ends_with_its_transaction() -> None:
    later = Timestamp(TIME.time, 2)
    one = packer()
    one.pack([marker(1)], {})
    packed = one.pack([delete(1, time=later, number=2)], {})
    assert [each.stamp for each in envelopes(packed)] == [b""]
    one.pack([marker(1, time=Timestamp(TIME.time, 3))], {})
    assert one.stamps.open
    one.stamps.give_up()
    assert not one.stamps.open


@pytest.mark.parametrize(
    "other",
    [
        marker(1, name="changed"),
        event("update", updateDescription={"updatedFields": {FIELD: stamp(Call.SAVED)}}, **transaction()),
        event("update", updateDescription={"updatedFields": {FIELD: b"garbage"}}, **transaction()),
        event("update", updateDescription={"updatedFields": {FIELD: stamp(Call.DELETED)}}),
        event(
            "update",
            updateDescription={"updatedFields": {FIELD: stamp(Call.DELETED)}, "removedFields": ["a"]},
            **transaction(),
        ),
        event("insert", fullDocument={FIELD: stamp(Call.CREATED)}, **transaction()),
        event("insert", fullDocument={FIELD: stamp(Call.CREATED), "text": "\x12txnNumber\0"}),
    ],
)
def test_events_with_stamps_that_are_no_markers_are_published(other: RawEvent) -> None:
    one = packer()
    packed = one.pack([other, delete(1)], {})
    assert [(each.event, each.stamp) for each in envelopes(packed)] == [
        (event_of(other), b""),
        (event_of(delete(1)), b""),
    ]


def test_the_stamp_of_another_transaction_or_document_does_not_count() -> None:
    one = packer()
    packed = one.pack([marker(1), delete(1, number=2), delete(2), delete(1)], {})
    assert [bool(each.stamp) for each in envelopes(packed)] == [False, False, True]


def test_the_record_of_a_large_event_names_its_file() -> None:
    one = packer(largest=3_000)
    small, big = event("insert", fullDocument={"a": "x" * 500}), event("insert", fullDocument={"a": "x" * 5_000})
    assert one.large_among([small, big]) == [big]
    file = LargeEvent(big["_id"]["_data"], b"i" * 16, 5_000)
    packed = one.pack([small, big], {file.token: file})
    first, second = envelopes(packed)
    assert (first.kind, second.kind, second.number) == (RecordKind.EVENT, RecordKind.LARGE, 1)
    assert large_event_in(second) == file


def test_the_record_of_a_delete_that_fits_only_without_its_stamp_names_its_file() -> None:
    many = frozenset(number.to_bytes(8, "big") for number in range(1_000))
    stamped = Stamp("any", Call.DELETED, ObjectId(), b"k" * 8, receivers=many).pack()
    announced = event(
        "update", updateDescription={"updatedFields": {FIELD: stamped}, "removedFields": []}, **transaction()
    )
    image = event("delete", fullDocumentBeforeChange={"text": "x" * 15_000}, **transaction())
    one = packer(largest=20_000)
    assert one.large_among([announced, image]) == [image]
    file = LargeEvent(image["_id"]["_data"], b"i" * 16, len(image.raw))
    [named] = envelopes(one.pack([announced, image], {file.token: file}))
    assert (named.kind, named.stamp, large_event_in(named)) == (RecordKind.LARGE, bytes(stamped), file)


def test_a_gap_is_a_numbered_record_in_each_partition() -> None:
    one, gap = packer(), GapNotice("82.", "oversize", "82", "83")
    one.pack([event("insert", hashed=1, fullDocument={})], {})
    packed = one.pack_gap(gap, [0, 1])
    assert [(part.partition, part.records, part.last) for part in packed.parts] == [(0, 1, 0), (1, 1, 1)]
    assert [gap_in(each) for each in envelopes(packed, 1)] == [gap]


@pytest.mark.parametrize(
    ("id_", "key"),
    [
        (ObjectId("65a1b2c3d4e5f60718293a4b"), b'{"$oid":"65a1b2c3d4e5f60718293a4b"}'),
        ('a "b" é', '"a \\"b\\" é"'.encode()),
        (5, b"5"),
        (Int64(5), b"5"),
        ({"a": [1, None]}, b'{"a": [1, null]}'),
        ("x" * 2_000, None),
        (b"x" * 2_000, None),
        ("", b'""'),
    ],
)
def test_the_key_of_a_record_is_readable(id_: Any, key: bytes | None) -> None:
    assert key_of(event_of(event("delete", id_))) == key


def test_an_event_without_a_document_has_no_key() -> None:
    assert key_of(event("drop", hashed=None).raw) is None
