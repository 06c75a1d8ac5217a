"""Change events over 16 MB: the server can't send them whole, but the dispatcher does not stop.

The change is delivered, or becomes a dead letter, or is recorded as a gap.

The expectation depends on the server: 6.0.9 and later split events, the embedded 6.0.5 does not.
"""

import gc
from types import SimpleNamespace
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne

import mongoz
from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import EventBatch
from dispatcher.stream import large_events
from dispatcher.stream.large_events import joined
from mongoz.core.signals import post_delete, post_save, post_update
from tests.integration.deliveries import IMAGES, State, actions, decoded
from tests.support import dispatching, eventually

LARGE = 9_000_000


@pytest.fixture
def splits(foreign) -> bool:
    """Whether this server can split events."""
    return tuple(foreign.client.server_info()["versionArray"][:3]) >= (6, 0, 9)


@pytest.fixture
def Thing(dispatched: mongoz.Registry, database: str) -> Any:
    class Thing(mongoz.Document):
        id: Any = mongoz.Object(alias="_id", null=True)
        n: int = mongoz.Integer(default=0)
        data: str = mongoz.String(default="")

        Meta = type("Meta", (), {"registry": dispatched, "database": database})

    return Thing


@pytest.fixture
def seen(Thing: Any) -> list[SimpleNamespace]:
    calls: list[SimpleNamespace] = []

    async def watcher(sender: Any, instance: Any, delivery: Any, previous: Any = None, **kwargs: Any) -> None:
        known = delivery.image != "key"
        n, first = (instance.n, instance.data[:1]) if known else (None, None)
        calls.append(
            SimpleNamespace(
                id=instance.id,
                n=n,
                first=first,
                signal=delivery.signal,
                image=delivery.image,
                previous=previous and (previous.n, previous.data[:1]),
                names=kwargs.get("update_fields"),
            )
        )

    for connect in (post_save, post_update, post_delete):
        connect(Thing, name="watcher")(watcher)
    return calls


def large(letter: str) -> str:
    return letter * LARGE


async def test_an_event_too_large_with_its_images_is_delivered(foreign, dispatched, Thing, seen, splits, capsys):
    """Other changes are delivered once and in order, with images.

    Large changes have only the images that the server can send.
    """
    things = foreign.create_collection("things", **IMAGES)
    things.insert_many([{"_id": "large", "data": large("a")}, {"_id": "small"}])
    async with dispatching(dispatched) as running:
        numbered = [UpdateOne({"_id": "small"}, {"$set": {"n": n}}) for n in range(1, 6)]
        things.bulk_write(numbered)
        things.update_one({"_id": "large"}, {"$set": {"data": large("b")}})  # 27 MB
        things.update_one({"_id": "large"}, {"$set": {"n": 1}})  # 18 MB
        things.bulk_write([UpdateOne({"_id": "small"}, {"$set": {"n": n}}) for n in range(6, 11)])
        things.update_one({"_id": "large"}, {"$set": {"data": "c"}})  # 9 MB
        things.delete_one({"_id": "large"})
        await eventually(lambda: len(seen) >= 14)
        # On a slow disk these writes may have blocked the loop for long.
        await eventually(lambda: running.service.ready)
    small = [call for call in seen if call.id == "small"]
    assert [call.n for call in small] == [*range(1, 11)]
    assert {(call.image, call.previous is not None) for call in small} == {("post", True)}
    first, second, third, deleted = [call for call in seen if call.id == "large"]
    # The first event is over 16 MB even without its pre image. Its document is looked up, and the lookup may
    # return any later version.
    assert first.names == {"data"}
    assert (second.n, second.first, second.image) == (1, "b", "post")
    assert second.names == {"n"}
    if splits:
        assert (first.first, first.image, first.previous) == ("b", "post", (0, "a"))
        assert second.previous == (0, "b")
    else:
        assert first.image in ("current", "key")
        assert (first.previous, second.previous) == (None, None)
        assert actions(capsys)().count("event.too_large") == 2
    assert (third.image, third.previous) == ("post", (1, "b"))
    assert (deleted.signal, deleted.image) == ("post_delete", "pre")
    assert len(seen) == 14


async def test_a_dispatcher_resumes_after_a_large_event(foreign, dispatched, Thing, seen):
    things = foreign.create_collection("things", **IMAGES)
    things.insert_one({"_id": "large", "data": large("a")})
    async with dispatching(dispatched):
        things.update_one({"_id": "large"}, {"$set": {"n": 1}})
        await eventually(lambda: len(seen) == 1)
    things.update_one({"_id": "large"}, {"$set": {"n": 2}})
    async with dispatching(dispatched):
        await eventually(lambda: len(seen) == 2)
    async with dispatching(dispatched):
        things.insert_one({"_id": "last"})
        await eventually(lambda: len(seen) == 3)
    assert [(call.id, call.n, call.image) for call in seen] == [
        ("large", 1, "post"),
        ("large", 2, "post"),
        ("last", 0, "post"),
    ]


async def test_an_event_with_a_large_key_becomes_a_dead_letter_with_the_key(foreign, dispatched, Thing, seen):
    """The event has the key four times, so the server can't send the event. The dead letter has the key."""
    key = "k" * 4_500_000
    async with dispatching(dispatched) as running:
        foreign["things"].insert_one({"_id": key})
        foreign["things"].insert_one({"_id": "after"})
        letter = await State(foreign).letter()
        await eventually(lambda: len(seen) == 1)
        assert running.service.ready
    assert seen[0].id == "after"
    assert (letter["reason"], letter["receiver"], letter["attempts"]) == ("undecodable", None, 0)
    assert "larger than 16 MB" in letter["error"]["message"]
    kept = b"".join(chunk["data"] for chunk in State(foreign).database["held.chunks"].find().sort("n"))
    assert decoded(kept)["documentKey"]["_id"] == key


async def test_an_event_with_a_very_large_key_is_a_gap(foreign, dispatched, Thing, seen):
    """The server can't even send the token of the event, so the event becomes a gap."""
    async with dispatching(dispatched) as running:
        foreign["things"].insert_one({"_id": "before"})
        foreign["things"].insert_one({"_id": "k" * 6_000_000})
        await eventually(lambda: running.stats.gaps == 1)
        foreign["things"].insert_one({"_id": "after"})
        await eventually(lambda: len(seen) == 2)
        assert running.service.ready
    assert [call.id for call in seen] == ["before", "after"]
    gaps = list(State(foreign).database["gaps"].find())
    assert len(gaps) == 1
    assert (gaps[0]["kind"], gaps[0]["namespace"]) == ("oversize", None)
    assert gaps[0]["from_time"] <= gaps[0]["to_time"]


async def test_an_event_that_the_server_refuses_only_once_as_too_large_is_delivered(
    foreign, dispatched, Thing, seen
):
    """The server reports the error once. The second request returns the event unchanged."""
    point = {"failCommands": ["getMore"], "errorCode": 10334, "appName": "mongoz-dispatcher"}
    async with dispatching(dispatched) as running:
        foreign.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=point)
        foreign["things"].insert_many([{"_id": n} for n in range(5)])
        await eventually(lambda: len(seen) == 5)
        assert running.stats.reconnects == 0
    assert [call.id for call in seen] == [*range(5)]


async def test_a_change_whose_required_image_is_missing_is_delivered(
    foreign, dispatched, Thing, seen, monkeypatch, capsys
):
    """In this test, the change stream requires post images.

    If the image is missing, the server reports error 47, and the event counts as large.
    """
    required = {"fullDocument": "required", "fullDocumentBeforeChange": "whenAvailable"}
    for shape in ("WHOLE", "SINGLY", "SPLIT"):
        shaped = getattr(large_events, shape)._replace(options=required)
        monkeypatch.setattr(f"dispatcher.stream.change_stream.{shape}", shaped)
    things = foreign.create_collection("things", **IMAGES)
    things.insert_one({"_id": "a"})

    def images(*, on: bool) -> None:
        foreign.command("collMod", "things", changeStreamPreAndPostImages={"enabled": on})

    async with dispatching(dispatched) as running:
        things.update_one({"_id": "a"}, {"$set": {"n": 1}})
        images(on=False)
        things.update_one({"_id": "a"}, {"$set": {"n": 2}})
        images(on=True)
        things.update_one({"_id": "a"}, {"$set": {"n": 3}})
        await eventually(lambda: len(seen) == 3)
        assert running.service.ready
    assert [(call.signal, call.n, call.image) for call in seen] == [
        ("post_update", 1, "post"),
        ("post_update", 3, "current"),  # the version at the time of the lookup
        ("post_update", 3, "post"),
    ]
    # The server may read the event once more when a stream resumes after it.
    assert actions(capsys)().count("event.too_large") in (1, 2)


def _is_large(one: object) -> bool:
    return type(one) is RawEvent and len(one.raw) > 1_000_000


def bytes_of_events() -> int:
    return sum(len(one.raw) for one in gc.get_objects() if type(one) is RawEvent)


async def test_a_large_event_does_not_stay_in_memory(foreign, dispatched, Thing, seen):
    """Reference cycles of errors and frames do not keep the event either."""
    things = foreign.create_collection("things", **IMAGES)
    gc.collect()
    before = bytes_of_events()  # these events are left from earlier tests
    gc.disable()
    try:
        async with dispatching(dispatched):
            for n in range(3):
                things.insert_one({"_id": n, "data": large("a")})
                things.update_one({"_id": n}, {"$set": {"n": 1}})
                things.delete_one({"_id": n})
            await eventually(lambda: len(seen) == 9)
            things.insert_one({"_id": "after"})
            await eventually(lambda: len(seen) == 10)
            await eventually(lambda: bytes_of_events() - before < 1_000)
    finally:
        gc.enable()


# -- fragments, on any server ------------------------------------------------------------------------

TOKEN = "826B06411C000000142B042C0100296E5A1004AA461E5F6964002B020000"


def event(token: str, **fields: Any) -> RawBSONDocument:
    return RawBSONDocument(bson.encode({"_id": {"_data": token}, **fields}))


async def test_the_split_stream_ends_if_there_is_nothing_to_split():
    ended = []

    async def stream():
        try:
            yield EventBatch([], f"{TOKEN}03")
            yield EventBatch([event(f"{TOKEN}2904", splitEvent={"fragment": 1, "of": 2}, ns="n")], f"{TOKEN}2904")
            yield EventBatch([], f"{TOKEN}2904")
            yield EventBatch(
                [event(f"{TOKEN}2B0204", splitEvent={"fragment": 2, "of": 2}, big="x")], f"{TOKEN}2B0204"
            )
            yield EventBatch([event("82FF", whole=True)], "82FF")
            raise AssertionError("asked for more")
        finally:
            ended.append(True)

    # The first batch is empty, so there is nothing to split.
    assert [batch async for batch in joined(stream())] == []
    assert ended == [True]


async def test_fragments_become_one_event_and_the_split_stream_ends_after_a_whole_event():
    async def stream():
        yield EventBatch([event(f"{TOKEN}2904", splitEvent={"fragment": 1, "of": 2}, ns="n")], f"{TOKEN}2904")
        yield EventBatch([event(f"{TOKEN}2B0204", splitEvent={"fragment": 2, "of": 2}, big="x")], f"{TOKEN}2B0204")
        yield EventBatch([event("82FF", whole=True)], "82FF")
        raise AssertionError("asked for more")

    first, second = [batch async for batch in joined(stream())]
    assert bson.decode(first.events[0].raw) == {"_id": {"_data": f"{TOKEN}04"}, "ns": "n", "big": "x"}
    assert (first.token, second.token) == (f"{TOKEN}04", "82FF")
