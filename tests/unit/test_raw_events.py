"""`events_of` cuts events out of an answer of the server. The driver would decode the same events."""

import bson
import pytest
from bson.raw_bson import RawBSONDocument

from dispatcher.core.bson_codec import RAW, RawEvent, events_of
from dispatcher.stream.decode import DecodedEvent, decoded_together
from dispatcher.stream.layout import EventLayouts
from mongoz.connection.codec import CODEC_OPTIONS

TOKEN = {"_data": "8265"}


def event(number: int, **more: object) -> dict[str, object]:
    return {"_id": {"_data": f"82{number:08X}"}, "n": number, "text": "x" * (number % 40), **more}


def answer(events: list[dict[str, object]], *, first: bool = True) -> RawBSONDocument:
    batch, rest = {"nextBatch": events}, {"postBatchResumeToken": TOKEN, "id": 7, "ns": "shop.$cmd.aggregate"}
    return RawBSONDocument(bson.encode(batch | rest if first else rest | batch), codec_options=RAW)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 99, 100, 101, 1_001])
def test_the_events_equal_the_sent_ones(count, first):
    events = [event(number) for number in range(count)]
    found, rest = events_of(answer(events, first=first))
    assert [bson.decode(one.raw) for one in found] == events
    assert (rest["id"], rest["postBatchResumeToken"]["_data"]) == (7, "8265")


def test_an_array_with_unusual_indexes_is_read():
    raw = bytearray(answer([event(1), event(2)]).raw)
    at = raw.index(b"\x031\x00")  # the index of the second event
    raw[at : at + 3] = b"\x03ab"[:2] + b"b"
    raw[at + 3 : at + 3] = b"\x00"
    for begin in (0, 4 + len(b"\x04nextBatch\x00")):  # the sizes of the document and of the array
        size = int.from_bytes(raw[begin : begin + 4], "little") + 1
        raw[begin : begin + 4] = size.to_bytes(4, "little")
    found, rest = events_of(RawBSONDocument(bytes(raw), codec_options=RAW))
    assert [bson.decode(one.raw)["n"] for one in found] == [1, 2]
    assert rest["id"] == 7


def test_a_field_of_an_event_can_be_read_without_decoding():
    (found,), _ = events_of(answer([event(5, lsid={"id": 1})]))
    assert found["n"] == 5
    assert found["lsid"].raw == bson.encode({"id": 1})
    assert "txnNumber" not in found
    assert set(found) == {"_id", "n", "text", "lsid"}


def test_events_are_not_decoded_together_if_one_of_them_is_undecodable():
    good, broken = RawEvent(bson.encode(event(1))), RawEvent(b"\x05\x00\x00\x00\x01")
    together = decoded_together([good, good], CODEC_OPTIONS, EventLayouts())
    assert [isinstance(one, DecodedEvent) and one.fields["n"] for one in together] == [1, 1]
    assert list(decoded_together([good, broken], CODEC_OPTIONS, EventLayouts())) == [None, None]
