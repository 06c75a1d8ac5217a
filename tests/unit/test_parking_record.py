"""Records of parked deliveries: their lanes, their decoding, and the batches of their writes."""

import asyncio
import datetime as dt
import uuid

import bson
import pytest
from bson import Decimal128, Int64, ObjectId, Timestamp
from bson.binary import Binary, UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument

from dispatcher.core.batching import Batcher
from dispatcher.core.bson_codec import RAW
from dispatcher.core.events import Calls, Change, delivery_id_of
from dispatcher.core.state import CODEC_OPTIONS as STORED
from dispatcher.delivery.instances import key_of, originals_of, untouched
from dispatcher.parking.lane import lane_id
from dispatcher.parking.record import change_of, record_of
from dispatcher.stream.decode import decode
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.signals.receivers import Receiver


class Thing:
    """Stands for a document class."""


async def thing(sender, **kwargs):
    """Stands for a receiver."""


CALLS = Calls(Thing, "post_update", False, (), hops=3)
RECEIVER = Receiver(thing, "shop.thing", 1, id=b"12345678")


def lane(id_=1, *, group="g", receiver="r", document="d", namespace=("db", "coll")):
    return lane_id(group, receiver, document, namespace, id_)


@pytest.mark.parametrize("same", [1, 1.0, Int64(1), Decimal128("1.0")])
def test_keys_that_the_server_considers_equal_have_one_lane(same):
    assert lane(same) == lane(1)
    assert lane({"a": [same]}) == lane({"a": [1]})


def test_lanes_that_differ_in_one_part_are_different():
    parts = [
        lane(),
        lane(True),
        lane("1"),
        lane(group="h"),
        lane(receiver="s"),
        lane(document="e"),
        lane(namespace=("dbc", "oll")),
        lane(receiver="rd", document=""),
    ]
    assert len({*parts}) == len(parts)
    assert all(len(one) == 32 for one in parts)


def event(**fields) -> Change:
    data = {
        "_id": {"_data": "82AA"},
        "operationType": "update",
        "clusterTime": Timestamp(7, 1),
        "wallTime": dt.datetime(2024, 5, 6, 7, 8, 9),
        "ns": {"db": "d", "coll": "c"},
        "documentKey": {"_id": 1},
        "updateDescription": {"updatedFields": {"b": 1, "a.x": 2}, "removedFields": []},
        **fields,
    }
    return decode(RawBSONDocument(bson.encode(data), codec_options=RAW), CODEC_OPTIONS)


def again(change: Change, codec_options=CODEC_OPTIONS) -> Change:
    """Encodes a change as a record, then decodes it again."""
    fields, parts = record_of(change, CALLS, RECEIVER, term=1, group="g")
    stored = bson.encode(fields, codec_options=STORED)
    return change_of(RawBSONDocument(stored, codec_options=RAW), parts, codec_options)


IDS = [
    ObjectId(),
    "text",
    5,
    Int64(5),
    Decimal128("1.50"),
    dt.datetime(2020, 1, 2),
    None,
    {"a": [1, {"b": None}]},
    Binary(b"x", 128),
    Binary.from_uuid(uuid.uuid4()),
    Binary.from_uuid(uuid.uuid4(), UuidRepresentation.PYTHON_LEGACY),
    "long" * 50_000,
]


@pytest.mark.parametrize("id_", IDS, ids=lambda id_: type(id_).__name__)
def test_a_stored_change_equals_the_original(id_):
    document = {"_id": id_, "name": "Ada", "at": dt.datetime(2020, 1, 2), "n": Int64(3)}
    change = event(documentKey={"_id": id_}, fullDocument=document, fullDocumentBeforeChange={"_id": id_})
    same = again(change)
    assert same._replace(raw=b"", delivery_id="") == change._replace(raw=b"")
    assert delivery_id_of(same) == delivery_id_of(change)
    assert originals_of(same) == originals_of(change)
    assert bson.encode({"": key_of(same)}) == bson.encode({"": key_of(change)})
    assert same.key == change.key
    assert untouched(same, CODEC_OPTIONS).document == change.document


def test_a_stored_change_is_decoded_with_the_codec_of_the_application():
    aware: CodecOptions = CodecOptions(tz_aware=True)
    change = event(fullDocument={"_id": 1, "at": dt.datetime(2020, 1, 2)})
    same = again(change, aware)
    assert same.wall_time == dt.datetime(2024, 5, 6, 7, 8, 9, tzinfo=dt.UTC)
    assert same.document is not None
    assert same.document["at"].tzinfo is not None


def test_an_undecodable_document_stays_undecodable():
    document = bson.encode({"_id": 1, "at": Int64(2**60)}).replace(b"\x12at\0", b"\x09at\0")
    change = event(fullDocument=RawBSONDocument(document), fullDocumentBeforeChange=RawBSONDocument(document))
    assert (change.image, change.document, change.before) == ("post", None, None)
    assert again(change).fault == change.fault is not None
    lenient = CODEC_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
    assert again(change, lenient).document == {"_id": 1, "at": DatetimeMS(2**60)}
    assert again(change, lenient).fault is None


def test_a_record_of_an_earlier_version_with_a_key_only_is_delivered_with_the_key_only():
    document = bson.encode({"_id": 1, "at": Int64(2**60)}).replace(b"\x12at\0", b"\x09at\0")
    change = event(fullDocument=RawBSONDocument(document))._replace(image="key", fault=None)
    same = again(change)
    assert (same.image, same.document, same.before, same.fault) == ("key", None, None, None)
    assert originals_of(same).document == document


def test_a_looked_up_document_is_still_the_current_one_after_decoding():
    row = bson.encode({"_id": 1, "n": 2})
    change = event()._replace(looked_up=row, document=bson.decode(row), image="current")
    same = again(change)
    assert (same.image, same.document) == ("current", {"_id": 1, "n": 2})


async def test_the_next_batch_fills_during_a_write():
    batches: list[list[int]] = []
    gate = asyncio.Event()

    async def work(items: list[int]) -> list[int]:
        batches.append(items)
        await gate.wait()
        return [-item for item in items]

    batcher: Batcher[int, int] = Batcher(work, most=5, at_once=1)
    asked = [asyncio.create_task(batcher.add(item)) for item in range(3)]
    while not batches:
        await asyncio.sleep(0)
    asked += [asyncio.create_task(batcher.add(item)) for item in range(3, 11)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*asked) == [-item for item in range(11)]
    assert batches == [[0, 1, 2], [3, 4, 5, 6, 7], [8, 9, 10]]


async def test_a_failed_write_is_reported_to_its_callers():
    async def work(items: list[int]) -> list[int | Exception]:
        if 0 in items:
            raise OSError("all of them")
        return [ValueError(item) if item % 2 else item for item in items]

    batcher: Batcher[int, int] = Batcher(work, at_once=1)
    answers = await asyncio.gather(*(batcher.add(item) for item in (1, 2, 3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["1", "2", "3"]
    assert [type(answer) for answer in answers] == [ValueError, int, ValueError]
    for answer in await asyncio.gather(batcher.add(0), batcher.add(2), return_exceptions=True):
        assert isinstance(answer, OSError)
    assert await batcher.add(4) == 4


async def test_a_cancelled_caller_does_not_stop_the_batch():
    gate = asyncio.Event()

    async def work(items: list[int]) -> list[int]:
        await gate.wait()
        return items

    batcher: Batcher[int, int] = Batcher(work, at_once=1)
    first, second = (asyncio.create_task(batcher.add(item)) for item in (1, 2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    gate.set()
    assert await second == 2
