"""Position documents: an invalid value is refused with its place, field and value."""

from datetime import UTC, datetime

import pytest

from dispatcher.core.events import LogPlace, Start
from dispatcher.exceptions import PositionError
from dispatcher.position.documents import SavedPositions, Topic, moved, recorded
from dispatcher.position.inherited import Fact

TOKEN = "826B03E05E000000122B0229296E04"
LATER = "826B03E06E000000122B0229296E04"


def position(**changes):
    values = {"_id": "shop:0", "group": "shop", "partition": 0, "term": 3, "token": TOKEN, "ahead": b""}
    return {**values, **changes}


def layout(**changes):
    return {"_id": "shop", "group": "shop", "partitions": 2, **changes}


def test_a_saved_position_is_read():
    now = datetime.now(UTC)
    saved = SavedPositions.read(
        [
            layout(application="app:registry"),
            position(
                owner="me",
                beat=7,
                lease_seconds=10,
                ahead=b"0123456789",
                until=LATER,
                version="v",
                version_since=now,
            ),
        ],
        "shop",
        "state",
    )
    assert (saved.layout.partitions, saved.layout.application) == (2, "app:registry")
    one = saved.positions[0]
    assert (one.owner, one.term, one.beat, one.lease) == ("me", 3, 7, 10)
    assert (one.token, one.ahead, one.until) == (TOKEN, b"0123456789", LATER)
    assert (one.version, one.version_since, one.partitions) == ("v", now, 0)


def test_the_position_of_an_earlier_version_is_read():
    """The position has no lease, and its group has no layout."""
    saved = SavedPositions.read([position(owner="me", host="h", pid=1)], "shop", "state")
    assert saved.layout is None
    assert (saved.positions[0].owner, saved.positions[0].beat, saved.positions[0].lease) == ("me", 0, None)
    assert not saved.positions[0].identity.is_dead


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (position(_id="shop:7", partition=7), "exists"),
        (position(_id="shop:1", partition=1, partitions=4), "is one of 4 partitions"),
    ],
)
def test_positions_of_another_layout_are_refused(wrong, said):
    """A process that ignores such a position loses changes. A process that reads such a position repeats some."""
    with pytest.raises(
        PositionError, match=f"'{wrong['_id']}' in state.positions {said}, but the .* 2 part"
    ) as caught:
        SavedPositions.read([wrong, layout(), position()], "shop", "state")
    assert "--partitions" in caught.value.remedy


FACT = {"partitions": 4, "partition": 3, "token": TOKEN, "until": TOKEN, "ahead": b"0123456789"}


def test_finished_changes_of_earlier_layouts_are_read():
    saved = SavedPositions.read([position(inherited=[FACT])], "shop", "state")
    assert saved.positions[0].inherited == (Fact(4, 3, TOKEN, TOKEN, b"0123456789"),)


@pytest.mark.parametrize(
    "change",
    [
        {"partitions": 3},
        {"partition": -1},
        {"token": "zz"},
        {"until": None},
        {"ahead": b"123"},
        {"ahead": [TOKEN]},
    ],
)
def test_invalid_records_of_earlier_layouts_are_refused(change):
    for nonsense in ([{**FACT, **change}], [{}], [5], {"0": FACT}):
        with pytest.raises(
            PositionError, match=r"has .* as inherited, not a list of finished changes of earlier layouts"
        ):
            SavedPositions.read([position(inherited=nonsense)], "shop", "state")


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("token", "zz", "a resume token"),
        ("token", TOKEN[:-1], "a resume token"),
        ("token", "99" + TOKEN, "a resume token"),
        ("token", {"_data": TOKEN}, "a string"),
        ("term", "three", "a whole number from 0 on"),
        ("term", -1, "a whole number from 0 on"),
        ("term", 1.5, "a whole number from 0 on"),
        ("term", float("nan"), "a whole number from 0 on"),
        ("term", True, "a whole number from 0 on"),
        ("beat", [], "a whole number from 0 on"),
        ("ahead", TOKEN, "binary data of 10 bytes per token"),
        ("ahead", [TOKEN], "binary data of 10 bytes per token"),
        ("ahead", b"123", "binary data of 10 bytes per token"),
        ("until", "later", "a resume token"),
        ("partition", 3, "0, as its _id says"),
        ("partitions", 0, "a whole number from 1 to 256"),
        ("partitions", 257, "a whole number from 1 to 256"),
        ("owner", 5, "a string"),
        ("fingerprint", 5, "a string"),
        ("lease_seconds", "ten", "a number of seconds"),
        ("lease_seconds", -1, "a number of seconds"),
        ("lease_seconds", float("inf"), "a number of seconds"),
        ("version_since", "today", "a date"),
    ],
)
def test_an_invalid_position_is_refused(field, value, wanted):
    with pytest.raises(PositionError) as caught:
        SavedPositions.read([position(**{field: value})], "shop", "state")
    assert (
        caught.value.message == f"The document 'shop:0' in state.positions has {value!r} as {field}, not {wanted}."
    )
    assert "delete the document while no dispatcher runs" in caught.value.remedy


@pytest.mark.parametrize("id_", ["shop:x", "shop:-1", "shop:", "shop:٣"])
def test_a_position_without_a_partition_is_refused(id_):
    with pytest.raises(PositionError, match=r"has .* as _id"):
        SavedPositions.read([position(_id=id_)], "shop", "state")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("partitions", None),
        ("partitions", "4"),
        ("partitions", -4),
        ("wanted", "2"),
        ("wanted", 0),
        ("application", 1),
    ],
)
def test_an_invalid_layout_is_refused(field, value):
    with pytest.raises(PositionError) as caught:
        SavedPositions.read([layout(**{field: value})], "shop", "state")
    assert caught.value.message.startswith(
        f"The document 'shop' in state.positions has {value!r} as {field}, not "
    )
    assert caught.value.remedy


def test_a_long_value_is_shortened():
    with pytest.raises(PositionError) as caught:
        SavedPositions.read([position(ahead="8" * 100_000)], "shop", "state")
    assert len(caught.value.message) < 400


LOG = {"topic_id": "id-1", "offset": 7, "term": 3, "number": 5}
TOPIC = {"cluster_id": "c", "name": "mongoz.changes"}


def test_a_position_in_a_topic_is_read_and_written():
    documents = [layout(topic=TOPIC), position(log=LOG, fingerprint="")]
    saved = SavedPositions.read(documents, "shop", "state")
    assert saved.layout.topic == Topic("c", "mongoz.changes")
    one = saved.positions[0]
    assert one.place == LogPlace("id-1", 7, 3, 5)
    assert one.start("") == Start(token=TOKEN, place=one.place)
    assert recorded(TOKEN, place=one.place)["log"] == LOG


def test_a_position_of_a_change_stream_has_no_place():
    saved = SavedPositions.read([layout(), position()], "shop", "state")
    assert (saved.layout.topic, saved.positions[0].place) == (None, None)
    assert "log" not in recorded(TOKEN)


def test_a_move_by_hand_forgets_the_place():
    one = SavedPositions.read([position(log=LOG)], "shop", "state").positions[0]
    assert "log" in moved(one, TOKEN, force=False)["$unset"]
    assert "log" in moved(one, None, force=False)["$unset"]


@pytest.mark.parametrize(
    "wrong",
    [
        "7",
        {**LOG, "offset": -1},
        {**LOG, "offset": True},
        {**LOG, "offset": 1.5},
        {**LOG, "offset": 2**63},
        {**LOG, "term": -1},
        {**LOG, "term": 0},
        {**LOG, "number": -1},
        {**LOG, "number": None},
        {**LOG, "topic_id": 1},
        {"offset": 7, "term": 3, "number": 5},
    ],
)
def test_a_malformed_place_is_refused(wrong):
    with pytest.raises(PositionError, match=r"'shop:0' in state\.positions has .* as log, not a place in a topic"):
        SavedPositions.read([position(log=wrong)], "shop", "state")


@pytest.mark.parametrize("wrong", ["t", {}, {"cluster_id": "c"}, {"cluster_id": "c", "name": ""}, {"name": "t"}])
def test_a_malformed_topic_is_refused(wrong):
    with pytest.raises(PositionError, match=r"'shop' in state\.positions has .* as topic, not a topic"):
        SavedPositions.read([layout(topic=wrong)], "shop", "state")
