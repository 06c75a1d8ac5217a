"""Hostile documents, ids and receivers neither stop the dispatcher nor mix up deliveries."""

import asyncio
import contextlib
import re
import uuid
from types import SimpleNamespace
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pydantic import field_validator
from pymongo import UpdateOne
from pymongo.errors import DuplicateKeyError

import mongoz
from dispatcher.core.keys import document_key
from dispatcher.core.resume_tokens import DIGEST
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.exceptions import DocumentNotFound
from tests.support import dispatching, eventually

IMAGES = {"changeStreamPreAndPostImages": {"enabled": True}}


class Seen(list[SimpleNamespace]):
    async def wait(self, count: int) -> "Seen":
        await eventually(lambda: len(self) >= count, what=f"{count} deliveries")
        return self


@pytest.fixture
def Thing(dispatched: mongoz.Registry, database: str) -> Any:
    class Thing(mongoz.Document):
        id: Any = mongoz.Object(alias="_id", null=True)
        name: str = mongoz.String(default="")
        n: int = mongoz.Integer(default=0)
        data: Any = mongoz.Object(null=True)

        Meta = type("Meta", (), {"registry": dispatched, "database": database})

        @field_validator("name")
        @classmethod
        def check(cls, value: str) -> str:
            if value == "key error":
                raise KeyError(value)
            return value

        def __repr__(self) -> str:
            return f"<{self.n / 0}>"

    return Thing


@pytest.fixture
def seen(Thing: Any) -> Seen:
    calls = Seen()

    async def watcher(sender: Any, **kwargs: Any) -> None:
        calls.append(SimpleNamespace(**kwargs))

    for connect in (post_save, post_update, post_delete):
        connect(Thing, name="watcher")(watcher)
    return calls


BAD_DATE = {"when": DatetimeMS(2**55)}


def bad_text() -> dict[str, Any]:
    raw = bson.encode({"text": "AAAA"}).replace(b"AAAA", b"\xff\xfe\xff\xfe")
    return {"nested": RawBSONDocument(raw)}


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("bad", [BAD_DATE, bad_text()], ids=["date", "text"])
async def test_an_undecodable_document_becomes_a_dead_letter(Thing, seen, foreign, dispatched, bad, images):
    """Inserts and updates need the document and become dead letters. A delete is delivered with its key."""
    foreign.create_collection("things", **(IMAGES if images else {}))
    async with dispatching(dispatched) as running:
        foreign["things"].insert_one({"_id": 1, **bad})
        foreign["things"].update_one({"_id": 1}, {"$set": {"n": 2}})
        await eventually(lambda: running.stats.dead_letters == 2)
        foreign["things"].delete_one({"_id": 1})
        foreign["things"].insert_one({"_id": 2, "name": "good"})
        await seen.wait(2)
    assert [(c.delivery.signal, c.delivery.image) for c in seen if c.instance.id == 1] == [("post_delete", "key")]
    assert [c.instance.name for c in seen if c.instance.id == 2] == ["good"]
    assert (running.stats.invalid, running.stats.dead_letters) == (2, 2)


ODD_IDS = [
    {"tenant": uuid.UUID(int=5), "k": 1},
    {"a": {"b": [1, 2]}},
    uuid.UUID(int=7),
    "text",
    12,
    1.5,
    float("nan"),
    Decimal128("2.5"),
    True,
    b"bytes",
    None,
]


async def test_deletes_of_a_capped_collection_are_delivered(Thing, seen, foreign, dispatched):
    """A removal by the server is a delete like any other."""
    foreign.create_collection("things", capped=True, size=4096, max=3)
    async with dispatching(dispatched):
        foreign["things"].insert_many([{"_id": n, "name": f"{n}"} for n in range(6)])
        foreign["things"].update_one({"_id": 5}, {"$set": {"name": "x"}})
        await seen.wait(10)
    told = sorted((call.delivery.signal, call.instance.id) for call in seen)
    removed = [("post_delete", n) for n in range(3)]
    assert told == removed + [("post_save", n) for n in range(6)] + [("post_update", 5)]


async def test_ids_of_any_type_are_delivered(Thing, seen, foreign, dispatched):
    async with dispatching(dispatched):
        for id_ in ODD_IDS:
            foreign["things"].insert_one({"_id": id_})
            foreign["things"].update_one({"_id": id_}, {"$set": {"n": 1}})
            foreign["things"].delete_one({"_id": id_})
        await seen.wait(3 * len(ODD_IDS))
    kinds = ["post_save", "post_update", "post_delete"]
    assert [call.delivery.signal for call in sorted(seen, key=lambda c: c.delivery.cluster_time)] == kinds * len(
        ODD_IDS
    )


async def test_the_ids_one_and_true_belong_to_two_documents(Thing, seen, foreign, dispatched):
    foreign["things"].insert_many([{"_id": 1, "name": "one"}, {"_id": True, "name": "true"}])
    async with dispatching(dispatched):
        foreign["things"].bulk_write(
            [UpdateOne({"_id": 1}, {"$set": {"n": 1}}), UpdateOne({"_id": True}, {"$set": {"n": 1}})]
        )
        await seen.wait(2)
    assert sorted((call.instance.name, type(call.instance.id)) for call in seen) == [("one", int), ("true", bool)]


@pytest.mark.parametrize(
    "same", [(1, 1.0, Int64(1), Decimal128("1.0")), (float("nan"), Decimal128("NaN")), (0, -0.0)]
)
def test_ids_that_the_server_considers_equal_share_a_lane(same):
    assert len({document_key("ns", id_) for id_ in same}) == 1


def test_different_ids_do_not_share_a_lane():
    different = [1, True, "1", 1.5, None, b"1", {"a": 1}, {"a": True}, [1], {"a": 1, "b": 2}, {"b": 2, "a": 1}]
    assert len({document_key("ns", id_) for id_ in different}) == len(different)


async def test_changes_of_one_document_share_no_instance(Thing, foreign, dispatched):
    """Without post images, several changes get their document from one lookup."""
    found: list[dict[str, Any]] = []

    @post_update(Thing, name="changes")
    async def changes(sender, instance, **kwargs):
        found.append(dict(instance.data))
        instance.data["mine"] = True

    foreign["things"].insert_one({"_id": 1, "data": {"a": 1}})
    async with dispatching(dispatched):
        foreign["things"].bulk_write([UpdateOne({"_id": 1}, {"$inc": {"n": 1}})] * 3)
        await eventually(lambda: len(found) == 3)
    assert found == [{"a": 1}] * 3


async def test_a_validator_of_the_application_may_raise_any_error(Thing, seen, foreign, dispatched):
    async with dispatching(dispatched) as running:
        foreign["things"].insert_many([{"_id": 1, "name": "key error"}, {"_id": 2, "name": "good"}])
        await seen.wait(1)
        await eventually(lambda: running.stats.invalid == 1)
    assert seen[0].instance.id == 2


class Odd(BaseException):
    def __str__(self) -> str:
        raise ValueError("no text")


async def cancel_myself() -> None:
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def cancel_and_leave() -> None:
    asyncio.current_task().cancel()


async def cancel_and_swallow() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await cancel_myself()


async def raise_odd() -> None:
    raise Odd


async def interrupt() -> None:
    raise KeyboardInterrupt


async def hang() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("deed", [cancel_myself, cancel_and_leave, cancel_and_swallow, raise_odd, interrupt])
async def test_receivers_can_not_harm_the_task_of_the_worker(Thing, seen, foreign, dispatched, deed):
    """There is one worker.

    The worker must still make the next delivery, and must still end a delivery that hangs.
    """

    @post_save(Thing, name="harmful")
    async def harmful(sender, instance, **kwargs):
        await (hang() if instance.name == "hang" else deed())

    async with dispatching(dispatched, concurrency=1, attempts=1, timeout=0.3) as running:
        foreign["things"].insert_many([{"name": "a"}, {"name": "hang"}, {"name": "b"}])
        await seen.wait(3)
        await eventually(lambda: running.stats.delivered + running.stats.failed == 6)
        assert not running.task.done()


async def test_a_failing_repr_of_a_document_does_not_stop_the_dispatcher(Thing, foreign, dispatched):
    @post_delete(Thing, name="fails")
    async def fails(sender, **kwargs):
        raise Odd

    foreign["things"].insert_one({"_id": 1})
    async with dispatching(dispatched, attempts=1) as running:
        foreign["things"].delete_one({"_id": 1})
        await eventually(lambda: running.stats.failed == 1)


class Sticky:
    """A receiver that hangs on the document "stuck" while `holds` is true, and accepts others."""

    def __init__(self, document: Any) -> None:
        self.calls: list[str] = []
        self.holds = True
        post_save(document, name="sticky")(self)

    async def __call__(self, sender: Any, instance: Any, **kwargs: Any) -> None:
        self.calls.append(instance.name)
        if instance.name == "stuck" and self.holds:
            await hang()


async def test_changes_finished_ahead_stay_finished_over_two_restarts(Thing, foreign, dispatched):
    calls = (sticky := Sticky(Thing)).calls
    async with dispatching(dispatched, grace=0.05):
        foreign["things"].insert_one({"name": "stuck"})
        foreign["things"].insert_many([{"name": f"n{i}"} for i in range(400)])
        await eventually(lambda: len(calls) == 401)
    # This dispatcher stops before it has read most of the finished changes again.
    async with dispatching(dispatched, grace=0.05, max_queued=1, batch_size=5):
        await eventually(lambda: calls.count("stuck") == 2)
    sticky.holds = False
    async with dispatching(dispatched):
        foreign["things"].insert_one({"name": "last"})
        await eventually(lambda: "last" in calls)
    assert calls.count("stuck") == 3
    assert len(calls) == 400 + 3 + 1


async def test_changes_finished_ahead_stay_finished_if_the_next_process_is_killed(Thing, foreign, dispatched):
    """The killed process has read these changes again, and has finished another change.

    The saved position is older than all of these changes.
    """
    calls = (sticky := Sticky(Thing)).calls
    async with dispatching(dispatched, grace=0.05):
        foreign["things"].insert_one({"name": "stuck"})
        foreign["things"].insert_many([{"name": f"n{i}"} for i in range(40)])
        await eventually(lambda: len(calls) == 41)
    positions = foreign.client[f"{foreign.name}_state"]["positions"]
    async with dispatching(dispatched, grace=0.05, save_interval=0.05):
        foreign["things"].insert_one({"name": "more"})
        await eventually(lambda: "more" in calls)
        await eventually(lambda: len(positions.find_one({"partition": 0})["ahead"]) == 41 * DIGEST)
        as_it_was = positions.find_one({"partition": 0}, {"_id": 0, "token": 1, "ahead": 1, "until": 1})
    positions.update_one({"partition": 0}, {"$set": as_it_was})
    sticky.holds = False
    async with dispatching(dispatched):
        foreign["things"].insert_one({"name": "last"})
        await eventually(lambda: "last" in calls)
    assert calls.count("stuck") == 3
    assert len(calls) == 40 + 3 + 1 + 1


async def test_looked_up_documents_count_as_memory(Thing, foreign, dispatched):
    """There are 60 documents of one megabyte, and memory for five."""
    gate, calls = asyncio.Event(), 0

    @post_update(Thing, name="slow")
    async def slow(sender, **kwargs):
        nonlocal calls
        calls += 1
        await gate.wait()

    foreign["things"].insert_many([{"_id": i, "data": "x" * 1_000_000} for i in range(60)])
    async with dispatching(dispatched, max_queued_mb=5):
        foreign["things"].update_many({}, {"$inc": {"n": 1}})
        await eventually(lambda: calls >= 5)
        for _ in range(50):  # more deliveries could begin during these turns of the event loop
            await asyncio.sleep(0)
        assert calls <= 6
        gate.set()
        await eventually(lambda: calls == 60)


# The ODM


async def test_an_unsaved_instance_is_not_the_document_with_the_id_none(Thing, foreign):
    foreign["things"].insert_one({"_id": None, "name": "somebody else's"})
    for write in (lambda: Thing(name="new").delete(), lambda: Thing(name="new").update(name="x")):
        with pytest.raises(DocumentNotFound, match="never saved"):
            await write()
    assert foreign["things"].find_one({"_id": None})["name"] == "somebody else's"


async def test_a_failed_update_does_not_undo_a_concurrent_update(Thing, foreign):
    foreign["things"].create_index("name", unique=True)
    await Thing(id=ObjectId(), name="taken").create()
    thing = await Thing(id=ObjectId(), name="free").create()
    failed, done = await asyncio.gather(thing.update(name="taken"), thing.update(n=2), return_exceptions=True)
    assert isinstance(failed, DuplicateKeyError)
    assert done is thing
    assert (thing.name, thing.n) == ("free", 2)
    await thing.save()
    assert foreign["things"].find_one({"_id": thing.id})["n"] == 2


async def test_a_pattern_in_a_list_is_compared_as_a_value(Thing, foreign):
    foreign["things"].insert_many([{"_id": 1, "name": "abc"}, {"_id": 2, "name": "xyz"}])
    assert await Thing.objects.filter(name__in=[re.compile("^a")]).count() == 0
    assert await Thing.objects.filter(name__in=[bson.Regex("^a"), "xyz"]).count() == 1
    assert await Thing.objects.filter(name__not_in=[re.compile("^a")]).count() == 2
