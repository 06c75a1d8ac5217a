"""Events are decoded from BSON and routed to receivers, without a server."""

import datetime
from typing import Any

import bson
import pytest
from bson import ObjectId, Timestamp
from bson.raw_bson import RawBSONDocument
from hypothesis import given
from hypothesis import strategies as st

import mongoz
from dispatcher.core.events import delivery_id, document_key
from dispatcher.delivery.routes import Routes
from dispatcher.stream.decode import decode
from dispatcher.stream.origins import Origins
from dispatcher.stream.scope import Scope
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.stamps import FIELD, Call, Claim, Stamp, key_hash

ID = ObjectId()
GROUP = "tests"
WALL = datetime.datetime(2026, 1, 1)
TOKEN = ObjectId.from_datetime(WALL)


def event(operation: str = "insert", /, *, collection: str = "things", **more: Any) -> RawBSONDocument:
    plain: dict[str, Any] = {
        "_id": {"_data": "826B03E05E00000012"},
        "operationType": operation,
        "clusterTime": Timestamp(7, 1),
        "wallTime": WALL,
        "ns": {"db": "shop", "coll": collection},
        "documentKey": {"_id": ID},
        **more,
    }
    return RawBSONDocument(bson.encode(plain))


def update(
    updated: dict[str, Any], removed: tuple[str, ...] = (), truncated: tuple[str, ...] = ()
) -> RawBSONDocument:
    description = {
        "updatedFields": updated,
        "removedFields": list(removed),
        "truncatedArrays": [{"field": name, "newSize": 1} for name in truncated],
    }
    return event("update", updateDescription=description)


def stamp(
    call: Call, *receivers: bytes, group: str = GROUP, id_: Any = ID, ns: str = "shop.things", **more: Any
) -> Any:
    return Stamp(group, call, TOKEN, key_hash(ns, id_), frozenset(receivers), **more).pack()


@pytest.fixture
def thing() -> type[mongoz.Document]:
    registry = mongoz.Registry("mongodb://localhost:1", dispatched=GROUP)

    class Thing(mongoz.Document):
        name: str = mongoz.String()
        nick: str = mongoz.String(null=True, alias="nickname")

        class Meta:
            database = "shop"

        Meta.registry = registry  # type: ignore[attr-defined]

    for signal in (post_save, post_update, post_delete):

        @signal(Thing, name="first")
        async def first(sender, **kwargs): ...

        @signal(Thing, name="second")
        async def second(sender, **kwargs): ...

    return Thing


def routed(document: Any, raw: RawBSONDocument) -> list[tuple[str, bool, list[str]]]:
    change = Origins(GROUP).judge(decode(raw, CODEC_OPTIONS))
    calls = Routes([document], GROUP).route(change)
    return [(c.signal, c.created, [r.name for r in c.receivers]) for c in calls]


@pytest.mark.parametrize(
    ("raw", "signal", "created"),
    [
        (event("insert", fullDocument={"_id": ID, "name": "x"}), "post_save", True),
        (event("replace", fullDocument={"_id": ID, "name": "x"}), "post_save", False),
        (update({"name": "x"}), "post_update", False),
        (event("delete"), "post_delete", False),
    ],
)
def test_a_foreign_change_has_the_signal_of_its_operation(thing, raw, signal, created):
    assert routed(thing, raw) == [(signal, created, ["first", "second"])]


def ids(document: Any, signal: str, *names: str) -> list[bytes]:
    return [r.id for r in getattr(document.signals, signal).receivers if r.name in names]


def test_a_receiver_named_in_the_stamp_does_not_run_again(thing):
    (first,) = ids(thing, "post_save", "first")
    inserted = event(fullDocument={"_id": ID, "name": "x", FIELD: stamp(Call.CREATED, first)})
    assert routed(thing, inserted) == [("post_save", True, ["second"])]
    everybody = stamp(Call.CREATED, *ids(thing, "post_save", "first", "second"))
    assert routed(thing, event(fullDocument={"_id": ID, FIELD: everybody})) == []


def test_a_stamp_distinguishes_save_from_update(thing):
    saved = update({"name": "x", FIELD: stamp(Call.SAVED)})
    assert routed(thing, saved) == [("post_save", False, ["first", "second"])]
    updated = update({"name": "x", FIELD: stamp(Call.UPDATED)})
    assert routed(thing, updated) == [("post_update", False, ["first", "second"])]


def test_a_muted_write_reaches_no_receiver(thing):
    assert routed(thing, update({FIELD: stamp(Call.SAVED, muted=True)})) == []


@pytest.mark.parametrize(
    "doubtful",
    [
        stamp(Call.CREATED, b"12345678", group="others"),
        stamp(Call.CREATED, muted=True, id_=ObjectId()),
        stamp(Call.CREATED, muted=True, ns="shop.copies"),
        stamp(Call.UPDATED, muted=True),  # the stamp of an update, copied into an insert
        b"garbage",
        "garbage",
        7,
        bytes([9]) + bytes(stamp(Call.CREATED, muted=True))[1:],  # a stamp of a later version
    ],
    ids=["group", "id", "namespace", "call", "bytes", "string", "int", "version"],
)
def test_a_change_with_a_doubtful_stamp_is_delivered(thing, doubtful):
    raw = event(fullDocument={"_id": ID, "name": "x", FIELD: doubtful})
    assert routed(thing, raw) == [("post_save", True, ["first", "second"])]


def test_a_replace_is_delivered_to_all_receivers_despite_its_stamp(thing):
    raw = event("replace", fullDocument={"_id": ID, FIELD: stamp(Call.SAVED, muted=True)})
    assert routed(thing, raw) == [("post_save", False, ["first", "second"])]


def test_a_renamed_receiver_is_recognized_by_its_earlier_name(thing):
    @post_save(thing, name="old")
    async def renamed(sender, **kwargs): ...

    old = ids(thing, "post_save", "old")
    thing.signals.post_save.disconnect(renamed)
    post_save(thing, name="new", formerly="old")(renamed)
    inserted = event(fullDocument={"_id": ID, FIELD: stamp(Call.CREATED, *old)})
    assert routed(thing, inserted) == [("post_save", True, ["first", "second"])]


def test_a_stamp_with_hops_names_no_receiver_and_passes_its_hops_on(thing):
    change = Origins(GROUP).judge(
        decode(event(fullDocument={"_id": ID, FIELD: stamp(Call.CREATED, hops=3)}), CODEC_OPTIONS)
    )
    (calls,) = Routes([thing], GROUP).route(change)
    assert ([r.name for r in calls.receivers], calls.hops) == (["first", "second"], 3)
    (copied,) = Routes([thing], GROUP).route(change._replace(origin=None))
    assert copied.hops == 0


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"nickname": "x"}, ["first", "second", "picky"]),
        ({"nickname.first": "x"}, ["first", "second", "picky"]),
        ({"name": "x"}, ["first", "second"]),
        ({"nick": "x"}, ["first", "second"]),
    ],
)
def test_fields_are_compared_by_their_stored_names(thing, changed, names):
    @post_update(thing, name="picky", fields=["nick"])
    async def picky(sender, **kwargs): ...

    assert routed(thing, update(changed)) == [("post_update", False, names)]
    removed = update({}, removed=tuple(changed))
    assert routed(thing, removed) == [("post_update", False, names)]


def test_a_dispatcher_calls_no_receiver_with_delivery_process(thing):
    @post_save(thing, name="here", delivery="process")
    async def here(sender, **kwargs): ...

    @post_save(thing, name="there", delivery="dispatcher")
    async def there(sender, **kwargs): ...

    (_, _, names) = routed(thing, event(fullDocument={"_id": ID}))[0]
    assert names == ["first", "second", "there"]


def claimed(document: Any, call: Call, raw: RawBSONDocument, *some: bytes) -> list[tuple[str, bool, list[str]]]:
    """The receivers that get a change because a claim lists them."""
    change = decode(raw, CODEC_OPTIONS)
    origin = Stamp(GROUP, call, TOKEN, b"12345678", frozenset(some), claim=Claim(b"incarnat", 1, frozenset(some)))
    calls = Routes([document], GROUP).claimed(change._replace(origin=origin), frozenset(some))
    return [(c.signal, c.created, [r.name for r in c.receivers]) for c in calls]


@pytest.mark.parametrize(
    ("call", "raw", "signal", "created"),
    [
        (Call.CREATED, event(fullDocument={"_id": ID}), "post_save", True),
        (Call.SAVED, update({"name": "x"}), "post_save", False),
        (Call.UPDATED, update({"name": "x"}), "post_update", False),
        (Call.DELETED, event("delete"), "post_delete", False),
    ],
)
def test_claimed_receivers_get_the_signal_of_the_call(thing, call, raw, signal, created):
    (second,) = ids(thing, signal, "second")
    assert claimed(thing, call, raw, second) == [(signal, created, ["second"])]
    assert claimed(thing, call, raw, *ids(thing, signal, "first", "second")) == [
        (signal, created, ["first", "second"])
    ]


def test_each_receiver_of_a_change_is_either_claimed_or_routed(thing):
    (first,) = ids(thing, "post_save", "first")
    inserted = event(fullDocument={"_id": ID, FIELD: stamp(Call.CREATED, first)})
    assert claimed(thing, Call.CREATED, inserted, first) == [("post_save", True, ["first"])]
    assert routed(thing, inserted) == [("post_save", True, ["second"])]


def test_receivers_of_another_signal_and_unknown_receivers_are_not_claimed(thing):
    inserted = event(fullDocument={"_id": ID})
    assert claimed(thing, Call.CREATED, inserted, *ids(thing, "post_update", "first"), b"unknown!") == []
    assert claimed(thing, Call.CREATED, inserted) == []


def test_claims_of_other_collections_have_no_receivers(thing):
    elsewhere = event(collection="others", fullDocument={"_id": ID})
    assert claimed(thing, Call.CREATED, elsewhere, *ids(thing, "post_save", "first")) == []


def test_a_renamed_receiver_is_claimed_by_its_earlier_name(thing):
    async def renamed(sender, **kwargs): ...

    post_save(thing, name="old")(renamed)
    old = ids(thing, "post_save", "old")
    thing.signals.post_save.disconnect(renamed)
    post_save(thing, name="new", formerly="old")(renamed)
    inserted = event(fullDocument={"_id": ID})
    assert claimed(thing, Call.CREATED, inserted, *old) == [("post_save", True, ["new"])]


@pytest.mark.parametrize(("delivery", "names"), [("dispatcher", ["moved"]), ("process", [])])
def test_a_claimed_receiver_runs_unless_it_has_delivery_process_now(thing, delivery, names):
    async def moved(sender, **kwargs): ...

    post_save(thing, name="moved", delivery=delivery)(moved)
    inserted = event(fullDocument={"_id": ID})
    found = claimed(thing, Call.CREATED, inserted, *ids(thing, "post_save", "moved"))
    assert [each for _, _, each in found] == ([names] if names else [])


def test_changes_of_other_collections_have_no_receivers(thing):
    assert routed(thing, event(collection="others", fullDocument={"_id": ID})) == []


def test_changed_fields_are_top_level_names_without_the_stamp():
    raw = update({"a.b.c": 1, "d": 2, FIELD: b"x"}, removed=("e.f", "g"), truncated=("h.i",))
    assert decode(raw, CODEC_OPTIONS).names == {"a", "d", "e", "g", "h"}


def test_an_undecodable_event_names_the_value_that_can_not_be_decoded():
    raw = bytearray(event(fullDocument={"_id": ID, "when": datetime.datetime(2026, 1, 1)}).raw)
    at = raw.index(b"when\0") + len(b"when\0")
    raw[at : at + 8] = (10**16).to_bytes(8, "little")  # the year 318857
    change = decode(RawBSONDocument(bytes(raw)), CODEC_OPTIONS)
    assert (change.token, change.id, change.document) == ("826B03E05E00000012", ID, None)
    assert change.fault is not None
    assert (change.fault.path, change.fault.type) == ("when", "date")
    assert "year 318857" in change.fault.why
    assert "datetime_conversion=DATETIME_AUTO" in change.fault.remedy


def broken(raw: RawBSONDocument, text: bytes) -> RawBSONDocument:
    """An event with a text that is not UTF-8."""
    data = bytes(raw.raw)
    assert text in data
    return RawBSONDocument(data.replace(text, b"\xff" + text[1:]))


def test_the_stamp_of_a_document_that_can_not_be_decoded_is_read():
    packed = stamp(Call.DELETED)
    description = {"updatedFields": {FIELD: packed}, "removedFields": [], "truncatedArrays": []}
    document = {"_id": ID, "name": "broken", FIELD: packed}
    change = decode(
        broken(event("update", updateDescription=description, fullDocument=document), b"broken"), CODEC_OPTIONS
    )
    assert (change.operation, change.document, change.image) == ("untouched", None, "post")
    assert change.stamp == Stamp.unpack(packed)
    assert change.fault is not None


@pytest.mark.parametrize(
    "raw",
    [update({"broken": 1}), update({}, removed=("broken",)), update({}, truncated=("broken",))],
    ids=["updated", "removed", "truncated"],
)
def test_a_change_of_a_field_whose_name_can_not_be_decoded_is_an_update(raw):
    change = decode(broken(raw, b"broken"), CODEC_OPTIONS)
    assert (change.operation, change.names) == ("update", {"\ufffdroken"})
    assert change.fault is not None


def test_events_of_whole_collections_have_no_document():
    raw = bson.encode(
        {
            "_id": {"_data": "82"},
            "operationType": "dropDatabase",
            "clusterTime": Timestamp(1, 1),
            "ns": {"db": "shop"},
        }
    )
    change = decode(RawBSONDocument(raw), CODEC_OPTIONS)
    assert (change.operation, change.namespace, change.id) == ("dropDatabase", ("shop", ""), None)


TOKEN_DATA = st.text(
    st.characters(exclude_characters=".")
)  # the server's token; the dispatcher adds the suffix after the dot


@given(TOKEN_DATA, TOKEN_DATA)
def test_delivery_ids_are_stable_and_distinct(a, b):
    assert (delivery_id(a) == delivery_id(b)) == (a == b)


@pytest.mark.parametrize("id_", [ObjectId(), 1, "x", None, {"a": 1}, [1], b"x", 1.5])
def test_every_id_has_a_key(id_):
    key = document_key(("d", "c"), id_)
    assert hash(key) == hash(document_key(("d", "c"), id_))
    assert key != document_key(("d", "other"), id_)


def test_the_scope_is_one_database_if_all_collections_are_in_it():
    assert Scope.of([("a", "x"), ("a", "y")]).database == "a"
    assert Scope.of([("a", "x"), ("b", "x")]).database is None


def test_the_fingerprint_depends_on_the_namespaces_and_not_on_their_order():
    one = Scope.of([("a", "x"), ("a", "y")])
    assert one.fingerprint == Scope.of([("a", "y"), ("a", "x")]).fingerprint
    assert one.fingerprint != Scope.of([("a", "x")]).fingerprint


@pytest.mark.parametrize(
    ("before", "after", "operation"),
    [
        ({"a": 1, FIELD: b"x"}, {"a": 1}, "untouched"),
        ({"a": 1}, {FIELD: b"x", "a": 1}, "untouched"),
        (
            {"a": 1, "u": bson.Binary(b"1" * 16, 4), FIELD: b"x"},
            {"a": 1, "u": bson.Binary(b"1" * 16, 4), FIELD: b"y"},
            "untouched",
        ),
        ({"a": 1, FIELD: b"x"}, {"a": 1.0}, "replace"),
        ({"a": 1, "b": 1, FIELD: b"x"}, {"b": 1, "a": 1}, "replace"),
        ({"a": 1, FIELD: b"x"}, {"a": 2}, "replace"),
        ({"a": 1}, {"a": 1}, "replace"),
        (None, {"a": 1}, "replace"),
    ],
)
def test_the_pre_image_shows_whether_a_replace_changes_only_the_stamp(before, after, operation):
    images = {"fullDocument": {"_id": 1, **after}}
    if before is not None:
        images["fullDocumentBeforeChange"] = {"_id": 1, **before}
    found = decode(event("replace", **images), CODEC_OPTIONS)
    assert found.operation == operation
