"""Records of a topic: BSON, in one form only."""

import bson
import pytest
from bson.binary import USER_DEFINED_SUBTYPE, Binary
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.kafka.envelope import (
    Envelope,
    GapNotice,
    LargeEvent,
    MalformedRecord,
    RecordKind,
    decode,
    encode,
    encode_gap,
    encode_large,
    gap_in,
    large_event_in,
    token_in,
)

TERMS = st.integers(1, 2**63 - 1)
NUMBERS = st.integers(0, 2**63 - 1)
EVENTS = st.dictionaries(st.text().filter(lambda name: "\0" not in name), st.binary() | st.text()).map(bson.encode)
STAMPS = st.binary(max_size=300)

EVENT = bson.encode({"_id": {"_data": "8265"}, "operationType": "insert", "fullDocument": {"a": 1}})
STAMP = b"\x01\x04\x00" + b"s" * 30
LARGE = LargeEvent("8265", b"\x01" * 16, 20_000_000)
GAP = GapNotice("8265.", "oversize", "8264", "8266")


@given(TERMS, NUMBERS, EVENTS, STAMPS)
def test_a_record_keeps_the_bytes_of_its_event(term: int, number: int, event: bytes, stamp: bytes) -> None:
    assert decode(encode(term, number, event, stamp)) == Envelope(term, number, stamp, event)


@given(TERMS, NUMBERS, EVENTS, STAMPS)
def test_every_tool_can_read_a_record(term: int, number: int, event: bytes, stamp: bytes) -> None:
    expected = {"v": 1, "term": term, "n": number, "event": bson.decode(event)}
    if stamp:
        expected["stamp"] = Binary(stamp, USER_DEFINED_SUBTYPE)
    read = bson.decode(encode(term, number, event, stamp))
    assert read == expected
    assert list(read)[-1] == "event"


def test_other_kinds_of_records_keep_their_documents() -> None:
    large = decode(encode_large(3, 0, LARGE, STAMP))
    assert (large.kind, large.stamp, large_event_in(large), token_in(large)) == (
        RecordKind.LARGE,
        STAMP,
        LARGE,
        "8265",
    )
    gap = decode(encode_gap(3, 1, GAP))
    assert (gap.term, gap.number, gap.kind) == (3, 1, RecordKind.GAP)
    assert (gap_in(gap), token_in(gap)) == (GAP, "8265.")


def test_the_token_of_an_event_is_its_id() -> None:
    assert token_in(decode(encode(1, 0, EVENT))) == "8265"


VALUE = encode(7, 3, EVENT)
STAMPED = encode(7, 3, EVENT, STAMP)


@given(st.binary(max_size=200) | EVENTS)
def test_a_value_that_no_relay_has_written_is_refused(value: bytes) -> None:
    with pytest.raises(MalformedRecord, match="no change event of a relay"):
        decode(value)


@given(st.sampled_from([VALUE, STAMPED]), st.data())
def test_a_value_that_ends_early_or_late_is_refused(value: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(value) - 1))
    for other in (value[:end], value + value[:end] + b"\0"):
        with pytest.raises(MalformedRecord):
            decode(other)


@given(st.sampled_from([VALUE, STAMPED, encode_gap(1, 0, GAP)]), st.data())
def test_a_changed_byte_gives_a_record_or_an_error(value: bytes, data: st.DataObject) -> None:
    changed = bytearray(value)
    changed[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    try:
        record = decode(bytes(changed))
        token_in(record)
    except MalformedRecord:
        return
    assert record.term >= 1
    assert record.number >= 0


@pytest.mark.parametrize(
    "document",
    [
        {"v": 1, "term": bson.Int64(1), "n": bson.Int64(0)},
        {"v": 1, "term": bson.Int64(0), "n": bson.Int64(0), "event": {}},
        {"v": 1, "term": bson.Int64(1), "n": bson.Int64(-1), "event": {}},
        {"v": 1, "term": 1, "n": 0, "event": {"a": "b" * 50}},
        {"v": 1, "term": bson.Int64(1), "n": bson.Int64(0), "event": []},
        {"v": 1, "term": bson.Int64(1), "n": bson.Int64(0), "other": {}},
        {"v": 1, "term": bson.Int64(1), "n": bson.Int64(0), "event": {}, "stamp": Binary(b"s", 128)},
        {"v": 1, "term": bson.Int64(1), "n": bson.Int64(0), "stamp": Binary(b"s", 0), "event": {}},
        {"v": 1, "term": bson.Int64(1), "n": bson.Int64(0), "stamp": Binary(b"", 128), "event": {}},
    ],
)
def test_a_document_of_another_form_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(MalformedRecord, match="no change event of a relay"):
        decode(bson.encode(document))


def test_errors_show_the_beginning_of_the_value() -> None:
    with pytest.raises(MalformedRecord) as error:
        decode(b'{"order": 1, "customer": "' + b"x" * 5_000)
    assert 'value of 5026 bytes is b\'{"order": 1' in str(error.value)
    assert len(str(error.value)) < 200
    with pytest.raises(MalformedRecord, match="has no value"):
        decode(None)


def test_the_error_for_a_later_version_names_the_version() -> None:
    later = bson.encode({"v": 2, "term": bson.Int64(1), "n": bson.Int64(0), "event": {}})
    with pytest.raises(MalformedRecord, match="version 2"):
        decode(later)


@pytest.mark.parametrize(
    "document",
    [{}, {"token": 5, "kind": "oversize", "after": "", "until": "", "policy": ""}],
)
def test_a_gap_without_all_its_fields_is_refused(document: dict[str, object]) -> None:
    value = bson.encode({"v": 1, "term": bson.Int64(1), "n": bson.Int64(0), "gap": document})
    with pytest.raises(MalformedRecord):
        gap_in(decode(value))


def test_an_event_without_a_token_is_refused() -> None:
    with pytest.raises(MalformedRecord):
        token_in(decode(encode(1, 0, bson.encode({"a": 1}))))
