"""Validity of origin stamps, and delete markers, without a server."""

import datetime
from typing import Any

import bson
import pytest
from bson import Int64, ObjectId, Timestamp
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.events import Change
from dispatcher.stream.decode import decode
from dispatcher.stream.delete_markers import DeleteMarkers
from dispatcher.stream.origins import Origins, SeenTokens
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.stamps import FIELD, Call, Claim, Stamp, key_hash

ID = ObjectId()
GROUP = "tests"
NOW = 1_700_000_000
TRANSACTION = {"lsid": {"id": bson.Binary(b"1" * 16, 4), "uid": b"2"}, "txnNumber": Int64(1)}


def token(seconds: float = NOW) -> ObjectId:
    return ObjectId(int(seconds).to_bytes(4, "big") + ObjectId().binary[4:])


def stamp(call: Call = Call.CREATED, *, at: float = NOW, id_: Any = ID, **more: Any) -> Stamp:
    return Stamp(GROUP, call, token(at), key_hash("shop.things", id_), **more)


def change(
    operation: str = "insert", by: Any = None, *, wall: float = NOW, id_: Any = ID, time: int = 1, **more: Any
) -> Change:
    """A change with this value as its stamp, as the reader returns it."""
    packed = by.pack() if isinstance(by, Stamp) else by
    brought = {} if by is None else {FIELD: packed}
    plain: dict[str, Any] = {
        "_id": {"_data": f"82{time:08X}00000012"},
        "operationType": operation,
        "clusterTime": Timestamp(time, 1),
        "wallTime": datetime.datetime.fromtimestamp(wall, datetime.UTC),
        "ns": {"db": "shop", "coll": "things"},
        "documentKey": {"_id": id_},
    }
    if operation == "update":
        updated = {**brought, **more.pop("updated", {})}
        plain["updateDescription"] = {"updatedFields": updated, "removedFields": more.pop("removed", [])}
    elif operation != "delete":
        plain["fullDocument"] = {"_id": id_, **brought}
    return decode(RawBSONDocument(bson.encode({**plain, **more})), CODEC_OPTIONS)


def counts(one: Change, origins: Origins | None = None) -> bool:
    return (origins or Origins(GROUP)).judge(one).origin is not None


@pytest.mark.parametrize(
    ("operation", "call", "fits"),
    [
        ("insert", Call.CREATED, True),
        ("update", Call.SAVED, True),
        ("update", Call.UPDATED, True),
        ("insert", Call.SAVED, False),
        ("insert", Call.UPDATED, False),
        ("insert", Call.DELETED, False),
        ("update", Call.CREATED, False),
        ("update", Call.DELETED, False),  # outside of a transaction
        ("replace", Call.CREATED, False),
        ("replace", Call.SAVED, False),
    ],
)
def test_a_stamp_counts_only_for_its_kind_of_event(operation, call, fits):
    assert counts(change(operation, stamp(call))) == fits


@pytest.mark.parametrize("transaction", [{}, TRANSACTION], ids=["alone", "transaction"])
@given(st.integers(-100_000, 200_000))
def test_a_stamp_counts_only_near_its_own_time(transaction, milliseconds):
    late, own = milliseconds / 1000, stamp(receivers=frozenset([b"12345678"]))
    judged = Origins(GROUP).judge(change(by=own, wall=NOW + late, **transaction))
    timely = -10 <= late <= (71 if transaction else 11)
    assert (judged.origin == own) == timely
    if not timely and 0 < late <= 75:
        assert judged.origin == own._replace(
            receivers=frozenset()
        )  # delivered to all receivers, with the signal of the call
        assert judged.delivery_id == str(own.token)
    else:
        assert judged.delivery_id == ""
        assert timely or judged.origin is None


def late(origins: Origins, by: Stamp, seconds: float = 20, **more: Any) -> str:
    """The delivery id of a write with a late stamp; "" if the stamp does not count."""
    return origins.judge(change(by=by, wall=NOW + seconds, **more)).delivery_id


CONTEXT = '{"user":"ada"}'


def test_only_a_stamp_of_this_write_and_group_gives_a_context():
    """A late stamp gives its context too, because it certainly belongs to this write."""
    claim = Claim(b"12345678", 1, frozenset([b"12345678"]))
    for more in ({}, {"receivers": claim.receivers}, {"receivers": claim.receivers, "claim": claim}):
        for wait, context in ((0, CONTEXT), (20, CONTEXT), (76, "")):
            origins, own = Origins(GROUP), stamp(context=CONTEXT, **more)
            assert origins.judge(change(by=own, wall=NOW + wait)).context == context
            assert origins.judge(change(by=own, wall=NOW + wait)).context == ""  # a copy
            assert origins.judge(change(by=stamp(context=CONTEXT, id_=7))).context == ""
            assert origins.judge(change("replace", stamp(Call.SAVED, context=CONTEXT))).context == ""
    assert Origins("others").judge(change(by=stamp(context=CONTEXT))).context == ""


def test_only_the_first_write_of_the_document_gets_the_token_of_a_late_stamp():
    origins, own = Origins(GROUP), stamp()
    assert late(origins, own) == str(own.token)
    assert late(origins, own) == ""  # a copy
    assert late(origins, stamp(id_=7)) == ""
    assert late(Origins("others"), stamp()) == ""
    assert late(origins, stamp(Call.UPDATED)) == ""  # the stamp of an update, in an insert
    timely = stamp()
    assert counts(change(by=timely), origins)
    assert late(origins, timely) == ""


def test_a_late_stamp_from_before_the_remembered_tokens_does_not_count():
    origins, own, younger = Origins(GROUP), stamp(at=NOW), stamp(at=NOW + 10)
    origins.since = NOW + 5
    assert late(origins, own) == ""
    assert late(origins, younger, 30) == str(younger.token)


def test_a_late_stamp_does_not_mute_its_write():
    judged = Origins(GROUP).judge(change(by=stamp(muted=True), wall=NOW + 20))
    assert judged.origin is not None
    assert not judged.origin.muted


def test_an_update_of_only_the_stamp_is_no_change():
    own, other = stamp(Call.SAVED), stamp(Call.SAVED, id_=7)
    judge = Origins(GROUP).judge
    assert change("update", removed=[FIELD]).operation == "untouched"
    assert change("update", updated={f"{FIELD}.t": 1}).operation == "untouched"
    assert judge(change("update", other)).operation == "untouched"
    assert Origins("others").judge(change("update", own)).operation == "untouched"
    assert judge(change("update", own)).operation == "update"  # a save without changes reaches the receivers
    assert judge(change("update", own)).operation == "untouched"
    assert change("update", updated={"": 1}).operation == "update"


def test_a_stamp_counts_once():
    origins, own = Origins(GROUP), stamp()
    assert counts(change(by=own), origins)
    assert not counts(change(by=own), origins)
    assert counts(change(by=stamp()), origins)


def test_a_stamp_that_was_seen_at_a_wrong_time_never_counts_afterwards():
    origins, own = Origins(GROUP), stamp()
    assert not counts(change(by=own, wall=NOW - 30), origins)
    assert not counts(change(by=own), origins)


def test_a_stamp_from_before_the_position_does_not_count():
    origins, own = Origins(GROUP), stamp()
    assert origins.remember(own, datetime.datetime.fromtimestamp(NOW, datetime.UTC))
    assert not counts(change(by=own), origins)


@pytest.mark.parametrize("other", [ObjectId(), None, 1, {"a": 1}])
def test_a_stamp_counts_for_its_document_only(other):
    assert not counts(change(by=stamp(id_=other)))
    assert counts(change(by=stamp(id_=other), id_=other))


def test_stamps_of_other_groups_are_ignored():
    origins = Origins("others")
    assert not counts(change(by=stamp()), origins)
    assert len(origins.seen) == 0


@given(st.one_of(st.binary(max_size=80), st.text(), st.integers(-(2**63), 2**63 - 1), st.none(), st.booleans()))
def test_garbage_instead_of_a_stamp_is_ignored(garbage):
    for operation in ("insert", "update", "replace"):
        assert not counts(change(operation, garbage))


@given(st.data())
def test_a_damaged_stamp_is_ignored(data):
    packed = bytearray(stamp(receivers=frozenset([b"12345678"])).pack())
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    origins = Origins(GROUP)
    assert origins.judge(change(by=bson.Binary(bytes(packed), 0x80))).operation == "insert"


@pytest.mark.parametrize(
    "wall",
    [
        datetime.datetime.fromtimestamp(NOW, datetime.UTC),
        datetime.datetime.fromtimestamp(NOW, datetime.UTC).replace(tzinfo=None),
        datetime.datetime.fromtimestamp(NOW, datetime.timezone(datetime.timedelta(hours=5))),
        DatetimeMS(NOW * 1000),
    ],
    ids=["aware", "naive", "elsewhere", "milliseconds"],
)
def test_the_wall_time_is_read_with_every_codec(wall):
    assert counts(change(by=stamp())._replace(wall_time=wall))


@pytest.mark.parametrize("wall", [None, "noon"])
def test_a_stamp_does_not_count_if_its_change_has_no_wall_time(wall):
    assert not counts(change(by=stamp())._replace(wall_time=wall))


@given(st.lists(st.integers(0, 70), min_size=1, max_size=60))
def test_tokens_are_remembered_while_they_are_valid(pauses):
    seen, wall, written = SeenTokens(), float(NOW), []
    for pause in pauses:
        wall += pause
        one = token(wall)
        assert seen.add(one.binary, wall)
        written.append((wall, one))
        assert not any(seen.add(other.binary, wall) for made, other in written if wall - made <= 86)


def test_remembered_tokens_are_bounded_in_time_and_in_number(monkeypatch):
    seen = SeenTokens()
    for second in range(2_000):
        assert seen.add(token(NOW + second).binary, NOW + second)
    assert len(seen) < 200
    monkeypatch.setattr("dispatcher.stream.origins._MOST", 50)
    seen, first = SeenTokens(), token(NOW)
    seen.add(first.binary, NOW)
    for tenth in range(1_000):
        assert seen.add(token(NOW + tenth / 10).binary, NOW + tenth / 10)
        assert len(seen) <= 100
    assert not seen.add(first.binary, NOW + 100)  # forgotten, so it may be a repetition


def test_new_stamps_count_after_the_clock_was_set_back(monkeypatch):
    monkeypatch.setattr("dispatcher.stream.origins._MOST", 2)
    seen = SeenTokens()
    for wall in [NOW + 3600] * 8:
        seen.add(token(wall).binary, wall)
    assert seen.add(token(NOW).binary, NOW)


# Markers


def marker(**more: Any) -> Change:
    one = change("update", stamp(Call.DELETED, id_=more.get("id_", ID)), **{**TRANSACTION, **more})
    return Origins(GROUP).judge(one)


def delete(**more: Any) -> Change:
    return change("delete", **{**TRANSACTION, **more})


def update(**more: Any) -> Change:
    return change("update", **{"updated": {"a": 1}, **TRANSACTION, **more})


def operations(markers: DeleteMarkers, *changes: Change) -> list[str]:
    return [one.operation for one in markers.settle([*changes])]


def test_a_marker_is_an_update_of_only_the_stamp_in_a_transaction():
    assert marker().operation == "marker"
    assert marker(updated={"name": "x"}).operation == "update"
    assert marker(removed=["name"]).operation == "update"
    assert change("update", stamp(Call.DELETED), txnNumber=Int64(1)).transaction is None
    assert Origins(GROUP).judge(change("update", stamp(Call.DELETED))).operation == "untouched"


@pytest.mark.parametrize(
    "other",
    [
        {"id_": ObjectId()},
        {"txnNumber": Int64(2)},
        {"lsid": {"id": bson.Binary(b"2" * 16, 4), "uid": b"2"}},
        {"lsid": {"id": bson.Binary(b"1" * 16, 4), "uid": b"3"}},
    ],
    ids=["document", "transaction", "session", "user"],
)
def test_a_delete_has_the_stamp_of_the_marker_of_its_document_in_its_transaction(other):
    markers, announcing = DeleteMarkers(), marker()
    placed, foreign = markers.settle([announcing, delete(**other)])
    assert (placed.operation, placed.token) == ("marker", announcing.token)
    assert (foreign.origin, foreign.marker) == (None, "")
    ours, another = markers.settle([delete(), delete()])
    assert (ours.origin, ours.marker) == (announcing.origin, announcing.token)
    assert (another.origin, another.marker) == (None, "")
    assert not markers


def test_a_delete_is_delivered_under_the_id_of_its_late_marker():
    announcing = marker()._replace(delivery_id="late")
    _, ours = DeleteMarkers().settle([announcing, delete()])
    assert ours.delivery_id == "late"


def test_a_list_of_changes_without_markers_is_not_copied():
    changes = [change(), update(), delete()]
    assert DeleteMarkers().settle(changes) is changes


def test_ids_are_compared_as_the_server_compares_them():
    _, boolean, number = DeleteMarkers().settle([marker(id_=1), delete(id_=True), delete(id_=1.0)])
    assert boolean.origin is None
    assert number.origin is not None


def test_a_marker_without_a_delete_is_untouched_after_its_transaction():
    markers, first, second = DeleteMarkers(), marker(), marker(id_=7)
    assert operations(markers, first, second, delete(id_=9)) == ["marker", "marker", "delete"]
    later = change(id_=9, time=2)
    settled = markers.settle([later])
    assert [one.operation for one in settled] == ["untouched", "untouched", "insert"]
    assert [one.token for one in settled] == [first.token, second.token, later.token]
    assert not markers


def test_open_markers_are_released_at_the_end_of_the_stream():
    markers, changed = DeleteMarkers(), update()
    assert operations(markers, marker(), changed) == ["marker", "deferred"]
    assert [one.operation for one in markers.give_up()] == ["untouched", "update"]
    assert not markers


def test_the_later_of_two_markers_counts():
    first, second = marker()._replace(token="first"), marker()._replace(token="second")
    *settled, ours = DeleteMarkers().settle([first, second, delete()])
    assert [(one.operation, one.token) for one in settled] == [
        ("marker", "first"),
        ("untouched", "first"),
        ("marker", "second"),
    ]
    assert ours.marker == "second"


def test_deferred_changes_come_before_the_delete():
    markers, changed = DeleteMarkers(), update()
    assert operations(markers, marker(), changed, update(id_=7)) == ["marker", "deferred", "update"]
    again, ours = markers.settle([delete()])
    assert again is changed
    assert ours.origin is not None


def test_the_number_of_deferred_changes_is_bounded():
    markers, changed = DeleteMarkers(), update()
    assert operations(markers, marker(), *[changed] * 100) == ["marker", *["deferred"] * 100]
    assert operations(markers, changed) == ["untouched", *["update"] * 101]


@pytest.mark.parametrize("operation", ["finished", "untouched", "drop"])
def test_only_changes_for_receivers_are_deferred(operation):
    other = update()._replace(operation=operation)
    assert operations(DeleteMarkers(), marker(), other) == ["marker", operation]


def test_a_marker_keeps_only_the_needed_data():
    (kept,) = DeleteMarkers().settle([marker(fullDocument={"_id": ID, "text": "x" * 10_000})])
    assert (kept.raw, kept.document, kept.key) == (b"", None, delete().key)
