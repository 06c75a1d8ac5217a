"""Origin stamps: packing, unpacking, and garbage."""

import datetime
import uuid
from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mongoz.stamps import Call, Claim, Stamp, key_hash, receiver_id
from tests.unit.stamp_strategies import eight_bytes, with_a_claim

object_ids = st.binary(min_size=12, max_size=12).map(bson.ObjectId)
groups = st.text(st.characters(exclude_categories=["Cs"]), max_size=63)
# A write reaches some receivers, or is muted, or comes from a receiver in a dispatcher.
kinds = st.one_of(
    st.fixed_dictionaries({"receivers": st.frozensets(eight_bytes, max_size=20)}),
    st.just({"muted": True}),
    st.fixed_dictionaries({"hops": st.integers(1, 255)}),
    with_a_claim(20),
)
stamps = st.builds(
    lambda kind, **fixed: Stamp(**fixed, **kind),
    kinds,
    group=groups,
    call=st.sampled_from(Call),
    token=object_ids,
    key=eight_bytes,
)


@given(stamps)
def test_a_stamp_is_unchanged_after_a_round_trip(stamp: Stamp) -> None:
    stored = bson.decode(bson.encode({"_mongoz": stamp.pack()}))["_mongoz"]
    assert Stamp.unpack(stored) == stamp
    # Drivers in raw mode and in other languages return plain bytes.
    assert Stamp.unpack(bytes(stored)) == stamp


@given(stamps)
def test_a_stamp_is_one_scalar_of_the_user_defined_subtype(stamp: Stamp) -> None:
    packed = stamp.pack()
    assert isinstance(packed, bson.Binary)
    assert packed.subtype == 0x80


@given(stamps)
def test_equal_stamps_are_equal_bytes(stamp: Stamp) -> None:
    again = stamp._replace(receivers=frozenset(sorted(stamp.receivers, reverse=True)))
    assert stamp.pack() == again.pack()


@given(st.binary(max_size=80))
def test_unpacking_any_bytes_gives_a_stamp_or_none(value: bytes) -> None:
    found = Stamp.unpack(value)
    assert found is None or isinstance(found, Stamp)


@given(stamps, st.data())
def test_unpacking_a_damaged_stamp_gives_a_stamp_or_none(stamp: Stamp, data: st.DataObject) -> None:
    # Random bytes rarely pass the version check; damaged stamps do.
    packed = bytearray(stamp.pack())
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] = data.draw(st.integers(0, 255))
    cut = bytes(packed[: data.draw(st.integers(0, len(packed)))])
    for value in (bytes(packed), cut):
        found = Stamp.unpack(value)
        assert found is None or isinstance(found, Stamp)


VALID = bytes(Stamp("group", Call.SAVED, bson.ObjectId(b"t" * 12), b"k" * 8, frozenset([b"r" * 8])).pack())


@pytest.mark.parametrize(
    "value",
    [
        None, 1, 1.5, True, "text", [], {}, [VALID], {"stamp": VALID}, bson.ObjectId(), uuid.uuid4(),
        datetime.datetime(2020, 1, 1), b"", VALID[:23], VALID[:-1], VALID + b"x",
        b"\2" + VALID[1:],
        VALID[:1] + b"\0" + VALID[2:],
        VALID[:1] + b"\5" + VALID[2:],
        VALID[:2] + b"\2" + VALID[3:],
        VALID[:23] + b"\xff" + VALID[24:],
        VALID[:24] + b"\xff\xff\xff\xff\xff" + VALID[29:],
    ],
)  # fmt: skip
def test_a_value_that_is_no_stamp_of_this_version_is_none(value: Any) -> None:
    assert Stamp.unpack(VALID) is not None
    assert Stamp.unpack(value) is None


def test_the_layout_is_version_1() -> None:
    # Dispatchers also read stamps that an earlier version of the code wrote.
    token = bson.ObjectId("0102030405060708090a0b0c")
    heard = Stamp("ab", Call.UPDATED, token, b"K" * 8, frozenset([b"R" * 8, b"Q" * 8]))
    assert bytes(heard.pack()) == b"\1\3\0" + token.binary + b"K" * 8 + b"\2ab" + b"Q" * 8 + b"R" * 8
    muted = Stamp("ab", Call.UPDATED, token, b"K" * 8, muted=True)
    assert bytes(muted.pack()) == b"\1\3\1" + token.binary + b"K" * 8 + b"\2ab"
    made_by_a_receiver = Stamp("ab", Call.UPDATED, token, b"K" * 8, hops=3)
    assert bytes(made_by_a_receiver.pack()) == b"\1\3\2" + token.binary + b"K" * 8 + b"\2ab" + b"\3"


def test_a_version_without_claims_does_not_find_the_claimed_receivers_in_a_stamp() -> None:
    """So a dispatcher of that version delivers the write to the claimed receivers, with the signal of the call."""
    token = bson.ObjectId("0102030405060708090a0b0c")
    claim = Claim(b"I" * 8, 7, frozenset([b"R" * 8, b"Q" * 8]))
    claimed = Stamp("ab", Call.SAVED, token, b"K" * 8, claim.receivers | {b"P" * 8}, claim=claim)
    inverted = b"\xae" * 8 + b"\xad" * 8  # Q, R
    listed = b"claims\0\2" + inverted + b"P" * 8 + b"I" * 8 + b"\0\0\0\0\0\0\0\7"
    packed = bytes(claimed.pack())
    assert packed == b"\1\2\0" + token.binary + b"K" * 8 + b"\2ab" + listed
    assert Stamp.unpack(packed) == claimed
    as_before = Stamp.unpack(packed.replace(b"claims", b"others"))
    assert as_before is not None
    assert (as_before.call, as_before.claim) == (Call.SAVED, None)
    assert as_before.receivers & claimed.receivers == {b"P" * 8}


@pytest.mark.parametrize(
    "rest", [b"claims\0\1", b"claims\0\0" + b"x" * 8, b"claims\0\1" + b"x" * 16, b"claims\0\2" + b"x" * 24]
)
def test_a_stamp_with_too_few_receivers_for_its_claim_is_none(rest: bytes) -> None:
    assert Stamp.unpack(VALID[:29] + rest) is None


@pytest.mark.parametrize("name", ["a" * 256, "ä" * 128])
def test_a_group_that_is_too_long_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="255 bytes"):
        Stamp(name, Call.SAVED, bson.ObjectId(), b"k" * 8).pack()


IDS: list[Any] = [
    1, 1.5, True, "1", b"1", None, bson.Int64(2), bson.Decimal128("1.1"), bson.ObjectId(b"1" * 12), "1" * 12,
    uuid.UUID(int=1), datetime.datetime(1970, 1, 1), {"a": 1, "b": 1}, {"b": 1, "a": 1}, {"a": True, "b": 1},
]  # fmt: skip


def test_every_document_has_its_own_key() -> None:
    keys = {key_hash(namespace, id_) for namespace in ("shop.users", "shop.orders", "other.users") for id_ in IDS}
    assert len(keys) == 3 * len(IDS)
    assert {len(key) for key in keys} == {8}


@given(st.text(max_size=20), object_ids)
def test_a_key_is_the_same_in_every_process(namespace: str, id_: bson.ObjectId) -> None:
    assert key_hash(namespace, id_) == key_hash(namespace, bson.ObjectId(str(id_)))


def test_the_key_of_a_document_is_fixed() -> None:
    # The writing process and the dispatcher may run different versions of this code.
    assert key_hash("shop.users", bson.ObjectId("0102030405060708090a0b0c")).hex() == "2bde5048dc2cb7f5"
    assert receiver_id(["shop.User", "post_save", "shop.mail"]).hex() == "f2d6c37aeacc84fc"


def test_receiver_ids_are_distinct() -> None:
    ids = {receiver_id(parts) for parts in (["ab", "c"], ["a", "bc"], ["abc"], ["a", "b", "c"])}
    assert len(ids) == 4
    assert {len(id_) for id_ in ids} == {8}
