"""Events whose heads are read without decoding them become the same changes as events that are decoded."""

import datetime as dt
from types import NoneType
from typing import Any

import bson
import pytest
from bson import Int64, ObjectId, Timestamp
from bson.codec_options import CodecOptions
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.bson_codec import RawEvent, StampedDelete
from dispatcher.core.bson_elements import elements
from dispatcher.core.events import Change, StreamChange
from dispatcher.core.undecodable import Undecodable
from dispatcher.stream import layout
from dispatcher.stream.decode import DecodedEvent, decode, decoded_together
from dispatcher.stream.layout import EventLayouts
from mongoz.connection.codec import CODEC_OPTIONS

AT = dt.datetime(2026, 5, 6, 7, 8, 9, 123_000)
AWARE: CodecOptions[dict[str, Any]] = CODEC_OPTIONS.with_options(tz_aware=True, tzinfo=dt.UTC)
STAMP = bytes(range(60))


def event(operation: str = "insert", **fields: Any) -> dict[str, Any]:
    """An event in the order of the fields that servers send."""
    head = {
        "_id": fields.pop("_id", {"_data": "826553F10000000001"}),
        "operationType": operation,
        "clusterTime": fields.pop("clusterTime", Timestamp(1_700_000_000, 1)),
        "wallTime": fields.pop("wallTime", AT),
    }
    key = fields.pop("documentKey", {"_id": 1})
    session = {name: fields.pop(name) for name in ("lsid", "txnNumber") if name in fields}
    document = {} if operation == "delete" else {"fullDocument": fields.pop("fullDocument", key)}
    place = {"ns": fields.pop("ns", {"db": "shop", "coll": "things"}), "documentKey": key}
    return {
        name: value
        for name, value in {**head, **session, **document, **place, **fields}.items()
        if value is not ...
    }


def whole(change: Change) -> tuple[Any, ...]:
    """The values of a change, with its times."""
    return tuple(getattr(change, name) for name in Change._fields)


def made(raw: RawEvent, codec_options: CodecOptions[Any], found: Any = None) -> Change | tuple[str, str]:
    """The change of an event; the token and the error if no receiver can get it."""
    try:
        return found if isinstance(found, Change) else decode(raw, codec_options, found)
    except Undecodable as error:
        return error.token, str(error)


def check(events: list[bytes], codec_options: CodecOptions[Any] = CODEC_OPTIONS) -> list[Change]:
    """Decodes events together, and compares each change with that of the event alone. Returns the changes."""
    layouts, changes = EventLayouts(), []
    raws = [RawEvent(one) for one in events]
    for _ in range(2):  # the second time, all forms are known
        changes.clear()
        for raw, found in zip(raws, decoded_together(raws, codec_options, layouts), strict=True):
            alone, change = made(raw, codec_options), made(raw, codec_options, found)
            if isinstance(alone, Change) and isinstance(change, Change):
                assert whole(change) == whole(alone)
                assert change.seconds == alone.cluster_time.time
                assert whole(change.without_documents()) == whole(alone.without_documents())
                changes.append(change)
            else:
                assert change == alone
    return changes


def test_only_the_document_of_an_insert_is_decoded():
    raws = [RawEvent(bson.encode(event(documentKey={"_id": ObjectId()}))) for _ in range(3)]
    together = decoded_together(raws, CODEC_OPTIONS, EventLayouts())
    assert [type(one) for one in together] == [StreamChange] * 3


def test_only_the_rest_of_an_update_is_decoded():
    update = event("update", updateDescription={"updatedFields": {"a": 1}, "removedFields": []})
    (found,) = decoded_together([RawEvent(bson.encode(update))], CODEC_OPTIONS, EventLayouts())
    assert isinstance(found, DecodedEvent)
    assert list(found.fields) == ["fullDocument", "ns", "documentKey", "updateDescription"]


@pytest.mark.parametrize("codec_options", [CODEC_OPTIONS, AWARE], ids=["naive", "aware"])
def test_the_times_are_those_of_the_event(codec_options):
    (change,) = check([bson.encode(event(clusterTime=Timestamp(7, 9)))], codec_options)
    assert isinstance(change, StreamChange)
    assert (change.cluster_time, change.seconds) == (Timestamp(7, 9), 7)
    assert change.wall_time == (AT if codec_options is CODEC_OPTIONS else AT.replace(tzinfo=dt.UTC))


def test_names_of_the_head_in_a_document_do_no_harm():
    inner = {
        "_id": 1,
        "wallTime": dt.datetime(2001, 1, 1),
        "clusterTime": Timestamp(1, 1),
        "fullDocument": {"_id": 2},
    }
    (change,) = check([bson.encode(event(fullDocument=inner))])
    assert (change.id, change.wall_time) == (1, AT)


EVENTS = [
    event(),
    event("replace"),
    event("replace", fullDocumentBeforeChange={"_id": 1, "a": 2}),
    event("update", updateDescription={"updatedFields": {"a": 1}, "removedFields": ["b"]}),
    event("update", fullDocument=..., updateDescription={"updatedFields": {"a": 1}, "removedFields": ["b"]}),
    event("delete"),
    event("delete", fullDocumentBeforeChange={"_id": 1}),
    event(lsid={"id": b"x"}, txnNumber=Int64(3)),
    event(documentKey={"shard": 2, "_id": 1}, fullDocument={"_id": 1, "shard": 2}),
    event(wallTime=...),
    event(_id={"_data": "826553F10000000001", "_typeBits": b"@"}),
    event("insert", fullDocument=...),
    event(fullDocument={"_id": 1, "_mongoz": STAMP}),
    event("replace", fullDocument={"_id": 1, "_mongoz": STAMP}),
    event(ns={"db": "shop", "coll": "others"}),
    event(**{"fullDocumentBeforeChange": None}),
    event("drop", documentKey=..., fullDocument=...),
    event("invalidate", documentKey=..., fullDocument=..., ns=...),
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(EVENTS),
            st.sampled_from([1, "text", ObjectId(), 2.5, {"a": [1]}, b"bytes", AT]),
            st.integers(0, 40),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_events_of_all_forms_become_the_same_changes(chosen: list[tuple[dict[str, Any], Any, int]]) -> None:
    events = []
    for one, id_, more in chosen:
        own = dict(one)
        own["_id"] = {**one["_id"], "_data": one["_id"]["_data"] + "0" * more}
        for name in ("documentKey", "fullDocument"):
            if own.get(name):
                own[name] = {**own[name], "_id": id_}
        events.append(bson.encode(own))
    check(events)


def test_more_namespaces_than_are_remembered_do_no_harm():
    check([bson.encode(event(ns={"db": "shop", "coll": f"things{number % 12}"})) for number in range(40)])


def test_a_document_that_can_not_be_decoded_harms_no_other_event():
    good = bson.encode(event())
    broken = bson.encode(event(fullDocument={"_id": 2, "text": "abcd"})).replace(b"abcd", b"ab\xffd")
    together = decoded_together([RawEvent(good), RawEvent(broken)], CODEC_OPTIONS, EventLayouts())
    assert list(together) == [None, None]
    assert decode(RawEvent(good), CODEC_OPTIONS).fault is None
    assert decode(RawEvent(broken), CODEC_OPTIONS).fault is not None


def test_events_after_one_with_a_long_token_are_decoded_together():
    short, long = event(), event(_id={"_data": "82" + "AB" * 500})
    layouts, raws = EventLayouts(), [RawEvent(bson.encode(one)) for one in (short, long, short)]
    for _ in range(2):
        assert [type(one) for one in decoded_together(raws[1:], CODEC_OPTIONS, layouts)] == [StreamChange] * 2
        assert isinstance(decoded_together(raws[:1], CODEC_OPTIONS, layouts)[0], StreamChange)
    check([bson.encode(one) for one in (short, long, short)])


@pytest.mark.parametrize("operation", ["insert", "replace"])
def test_a_receiver_that_modifies_the_key_in_its_document_does_not_modify_the_change(operation):
    key = {"_id": {"shop": 1, "place": {"shelf": 2}}}
    raw = bson.encode(event(operation, documentKey=key))
    (change,) = check([raw])
    assert change.document is not None
    change.document["_id"]["place"]["shelf"] = 3
    assert change.id == key["_id"]
    assert change.key == decode(RawEvent(raw), CODEC_OPTIONS).key


def test_a_namespace_that_is_not_utf8_is_refused_like_in_other_events():
    good = event(documentKey={"_id": 2})
    bad = bson.encode(event(ns={"db": "shop", "coll": "QQ"})).replace(b"QQ", b"\xff\xfe")
    (change,) = check([bad, bson.encode(good)])
    assert change.id == 2


REFERENCE = {"_id": 1, "$ref": "things", "$id": 2, "a": 3}


@pytest.mark.parametrize(
    "one",
    [
        event(fullDocument=REFERENCE),
        event(fullDocument=REFERENCE, lsid={"id": b"x"}, txnNumber=Int64(3)),
        event("replace", fullDocument=REFERENCE, fullDocumentBeforeChange={**REFERENCE, "_mongoz": STAMP}),
        event("delete", fullDocumentBeforeChange=REFERENCE),
        event(
            "update", fullDocument=REFERENCE, updateDescription={"updatedFields": REFERENCE, "removedFields": []}
        ),
    ],
    ids=["insert", "insert in a transaction", "replace", "delete", "update"],
)
def test_a_document_with_the_fields_of_a_reference_is_a_document(one):
    (change,) = check([bson.encode(one)])
    assert {type(value) for value in (change.document, change.before)} <= {dict, NoneType}
    assert (change.document or change.before) == REFERENCE
    assert change.fault is None
    if change.operation == "update":
        assert change.names == {"_id", "$ref", "$id", "a"}


def test_the_namespaces_of_events_with_other_fields_are_read_once(monkeypatch):
    calls = []
    monkeypatch.setattr(layout, "elements", lambda raw: calls.append(raw) or elements(raw))
    check([bson.encode(event("replace", fullDocumentBeforeChange={"_id": 1, "a": 2}))] * 5)
    assert len(calls) == 1


@pytest.mark.parametrize("document", [{}, {"a": 1}])
def test_a_document_without_an_id_does_not_end_the_stream(document):
    (change,) = check([bson.encode(event(documentKey={"_id": 1}, fullDocument=document))])
    assert change.id == 1


def test_events_that_end_too_early_are_decoded_as_a_whole():
    layouts = EventLayouts()
    decoded_together([RawEvent(bson.encode(event()))], CODEC_OPTIONS, layouts)
    assert list(decoded_together([RawEvent(b"\x05\0\0\0\0")], CODEC_OPTIONS, layouts)) == [DecodedEvent(None, {})]


def test_a_delete_has_the_stamp_of_its_marker():
    raw = StampedDelete(bson.encode(event("delete")), STAMP)
    (found,) = decoded_together([raw], CODEC_OPTIONS, EventLayouts())
    assert isinstance(found, DecodedEvent)
    assert decode(raw, CODEC_OPTIONS, found).stamp == decode(raw, CODEC_OPTIONS).stamp
