"""The daemon on a real server calls the right receivers with the right keywords, and repeats no delivery."""

import asyncio
import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId, Timestamp
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne

import mongoz
from dispatcher.exceptions import AccessDenied, CannotConnect, HistoryLost, PositionError, ServerError
from dispatcher.runtime.service import Service
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals import muted
from tests.integration.deliveries import actions
from tests.support import dispatching, eventually, settings_for

IMAGES = {"changeStreamPreAndPostImages": {"enabled": True}}


class Seen(list[SimpleNamespace]):
    """The calls of the receivers, in order."""

    def of(self, id_: Any) -> list[SimpleNamespace]:
        return [call for call in self if call.instance.id == id_]

    async def wait(self, count: int, **options: Any) -> "Seen":
        await eventually(lambda: len(self) >= count, what=f"{count} deliveries", **options)
        return self


def make_user(registry: mongoz.Registry, database: str) -> Any:
    class User(mongoz.Document):
        name: str = mongoz.String(max_length=40)
        age: int = mongoz.Integer(default=0)
        tags: list[str] = mongoz.Array(str, default=list)
        nick: str = mongoz.String(null=True, alias="nickname")

        class Meta:
            abstract = False

        Meta.registry = registry  # type: ignore[attr-defined]
        Meta.database = database  # type: ignore[attr-defined]

    return User


def listen(document: Any, seen: Seen, *, name: str = "watcher", **options: Any) -> None:
    """Connects one receiver to the three `post_*` signals."""

    async def watcher(sender: Any, **kwargs: Any) -> None:
        seen.append(SimpleNamespace(sender=sender, **kwargs))

    for connect in (post_save, post_update, post_delete):
        connect(document, name=name, **options)(watcher)


@pytest.fixture
def user(dispatched: mongoz.Registry, database: str) -> Any:
    return make_user(dispatched, database)


@pytest.fixture
def seen(user: Any) -> Seen:
    calls = Seen()
    listen(user, calls)
    return calls


async def test_every_kind_of_foreign_write_is_delivered(user, seen, foreign, dispatched):
    a, b, c = ObjectId(), ObjectId(), ObjectId()
    async with dispatching(dispatched):
        users = foreign["users"]
        users.insert_one({"_id": a, "name": "Ada"})
        users.update_one({"_id": a}, {"$set": {"age": 36, "nickname": "A"}, "$unset": {"tags": 1}})
        users.replace_one({"_id": a}, {"name": "Ada Lovelace"})
        users.delete_one({"_id": a})
        users.bulk_write(
            [
                InsertOne({"_id": b, "name": "Bob"}),
                UpdateOne({"_id": b}, {"$set": {"name": "Bert"}}),
                ReplaceOne({"_id": b}, {"name": "Ben"}),
                DeleteOne({"_id": b}),
            ]
        )
        users.update_one({"_id": c}, {"$set": {"name": "Cleo"}}, upsert=True)
        users.update_many({"_id": c}, [{"$set": {"age": {"$add": [1, 1]}}}])
        await seen.wait(10)
    kinds = ["post_save", "post_update", "post_save", "post_delete"]
    for id_ in (a, b):
        calls = seen.of(id_)
        assert [call.delivery.signal for call in calls] == kinds
        assert [getattr(call, "created", None) for call in calls] == [True, None, False, None]
    inserted, updated, replaced, deleted = seen.of(a)
    assert all(call.sender is user and isinstance(call.instance, user) for call in seen)
    assert inserted.instance.name == "Ada"
    # `nick` is the name of the attribute; the stored name is `nickname`. The document had no tags to remove.
    assert updated.update_fields == {"age", "nick"}
    assert replaced.instance.name == "Ada Lovelace"
    assert deleted.delivery.image == "key"
    assert [call.delivery.signal for call in seen.of(c)] == ["post_save", "post_update"]
    assert seen.of(c)[1].update_fields == {"age"}
    assert len(seen) == 10


async def test_a_receiver_gets_all_keywords_of_a_delivery(user, seen, foreign, dispatched):
    async with dispatching(dispatched):
        foreign["users"].insert_one({"name": "Ada", "unknown": {"kept": 1}})
        (call,) = await seen.wait(1)
    assert set(vars(call)) == {"sender", "instance", "created", "previous", "delivery"}
    delivery = call.delivery
    assert (delivery.receiver, delivery.origin, delivery.attempt) == ("watcher", "stream", 1)
    assert (delivery.image, delivery.replayed, delivery.session, delivery.term) == ("post", False, None, 1)
    assert isinstance(delivery.cluster_time, Timestamp)
    assert delivery.wall_time is not None
    assert len(delivery.id) == 24
    assert call.previous is None
    assert call.instance.unknown == {"kept": 1}


async def test_images_are_used_if_the_collection_has_them(user, seen, foreign, dispatched):
    foreign.create_collection("users", **IMAGES)
    async with dispatching(dispatched):
        id_ = foreign["users"].insert_one({"name": "Ada", "tags": ["a", "b"]}).inserted_id
        foreign["users"].update_one({"_id": id_}, {"$set": {"name": "Bea"}, "$pop": {"tags": 1}})
        foreign["users"].update_one({"_id": id_}, {"$set": {"name": "Cleo"}})
        foreign["users"].delete_one({"_id": id_})
        _, first, second, deleted = await seen.wait(4)
    assert (first.instance.name, first.previous.name, first.delivery.image) == ("Bea", "Ada", "post")
    assert first.update_fields == {"name", "tags"}
    assert (second.instance.name, second.previous.name) == ("Cleo", "Bea")
    assert (deleted.instance.name, deleted.delivery.image) == ("Cleo", "pre")


async def test_without_images_the_current_document_is_looked_up(user, seen, foreign, dispatched):
    kept, gone = ObjectId(), ObjectId()
    foreign["users"].insert_many([{"_id": kept, "name": "Ada"}, {"_id": gone, "name": "Bob"}])
    async with dispatching(dispatched):
        # One command makes all updates, so all are committed before the lookup of a document.
        foreign["users"].bulk_write(
            [
                UpdateOne({"_id": kept}, {"$set": {"age": 1}}),
                UpdateOne({"_id": kept}, {"$set": {"age": 2}}),
                UpdateOne({"_id": gone}, {"$set": {"age": 1}}),
                DeleteOne({"_id": gone}),
            ]
        )
        await seen.wait(4)
    for call in seen.of(kept):
        assert (call.delivery.image, call.instance.name) == ("current", "Ada")
    assert seen.of(kept)[-1].instance.age == 2
    assert seen.of(kept)[0].instance is not seen.of(kept)[1].instance
    # If the document is deleted before its lookup, only its key is known, and `delivery.image` says so.
    vanished = seen.of(gone)[0]
    if vanished.delivery.image == "key":
        with pytest.raises(AttributeError):
            _ = vanished.instance.name
    assert seen.of(gone)[1].delivery.image == "key"


async def test_own_writes_are_not_delivered_twice(user, seen, dispatched):
    there = Seen()
    listen(user, there, name="there", delivery="dispatcher")
    async with dispatching(dispatched):
        ada = await user.objects.create(name="Ada")
        await ada.update(age=36)
        ada.name = "Ada Lovelace"
        await ada.save()
        await user.objects.create(name="the last one")
        await there.wait(4)
    assert [(c.delivery.origin, c.delivery.signal) for c in seen] == [
        ("process", "post_save"),
        ("process", "post_update"),
        ("process", "post_save"),
        ("process", "post_save"),
    ]
    # A receiver with delivery="dispatcher" gets the signal of the call, not of the event.
    assert [(c.delivery.origin, c.delivery.signal) for c in there] == [
        ("stream", "post_save"),
        ("stream", "post_update"),
        ("stream", "post_save"),
        ("stream", "post_save"),
    ]
    of_ada, of_last = ([c for c in there if (c.instance.id == ada.id) is same] for same in (True, False))
    assert [c.created for c in of_ada if c.delivery.signal == "post_save"] == [True, False]
    assert of_ada[1].update_fields == {"age"}
    assert [c.created for c in of_last] == [True]
    assert not any("_mongoz" in call.instance.model_dump() for call in there)


async def test_muted_writes_are_not_delivered(user, seen, foreign, dispatched):
    async with dispatching(dispatched):
        with muted(user):
            ada = await user.objects.create(name="Ada")
            await ada.update(age=1)
            await ada.save()
        foreign["users"].insert_one({"name": "after"})
        await seen.wait(1)
    assert [call.instance.name for call in seen] == ["after"]


async def test_a_process_that_does_not_import_the_receivers_leaves_them_to_the_dispatcher(
    seen, user, dispatched, database
):
    """The process imports only models, like a script, so the stamps of its writes name no receivers."""
    async with mongoz.Registry(dispatched.url, dispatched=database) as elsewhere:
        twin = make_user(elsewhere, database)
        async with dispatching(dispatched):
            ada = await twin.objects.create(name="Ada")
            await ada.update(age=1)
            ada.age = 2
            await ada.save()
            await seen.wait(3)
    assert [call.delivery.signal for call in seen] == ["post_save", "post_update", "post_save"]
    assert {call.delivery.origin for call in seen} == {"stream"}


async def test_the_stamp_of_another_group_is_ignored(user, seen, dispatched, database):
    async with mongoz.Registry(dispatched.url, dispatched=f"{database}-b") as other:
        twin, theirs = make_user(other, database), Seen()
        listen(twin, theirs)
        async with dispatching(dispatched):
            await twin.objects.create(name="Ada")
            await seen.wait(1)
    assert len(theirs) == 1
    assert seen[0].delivery.origin == "stream"


async def test_two_document_classes_of_one_collection_get_every_change(dispatched, database, foreign):
    """The receivers of a class run in the order of their connection."""
    first, second = make_user(dispatched, database), make_user(dispatched, database)
    order: list[str] = []

    def connect(document: Any, name: str) -> None:
        async def receiver(sender: Any, instance: Any, **kwargs: Any) -> None:
            order.append(name)
            instance.tags.append("changed by a receiver")

        post_save(document, name=name)(receiver)

    connect(first, "a")
    connect(second, "b")
    connect(first, "c")
    connect(mongoz.Document, "everything")
    try:
        async with dispatching(dispatched):
            foreign["users"].insert_one({"name": "Ada", "tags": []})
            await eventually(lambda: len(order) == 5)
    finally:
        for receiver in mongoz.Document.signals.post_save.receivers:
            mongoz.Document.signals.post_save.disconnect(receiver.function)
    assert order == ["a", "c", "everything", "b", "everything"]


async def test_an_invalid_document_does_not_stop_the_stream(user, seen, foreign, dispatched, capsys):
    async with dispatching(dispatched) as running:
        bad = foreign["users"].insert_one({"name": 5}).inserted_id
        foreign["users"].insert_one({"_id": "no ObjectId", "name": "x"})
        foreign["users"].insert_one({"name": "good"})
        await seen.wait(1)
    assert seen[0].instance.name == "good"
    assert running.stats.invalid == 2
    said = capsys.readouterr()
    assert f"{bad!r}" in said.out + said.err
    assert "change.invalid" in said.out + said.err


async def test_a_failing_receiver_is_retried_in_order(user, foreign, dispatched):
    seen: list[tuple[str, int]] = []

    @post_save(user, name="flaky")
    async def flaky(sender, instance, delivery, **kwargs):
        seen.append((instance.name, delivery.attempt))
        if instance.name == "a" and delivery.attempt == 1:
            raise RuntimeError("not yet")

    id_ = ObjectId()
    async with dispatching(dispatched) as running:
        foreign["users"].insert_one({"_id": id_, "name": "a"})
        foreign["users"].replace_one({"_id": id_}, {"name": "b"})
        foreign["users"].insert_one({"name": "other"})
        await eventually(lambda: len(seen) == 4)
    assert [call for call in seen if call[0] != "other"] == [("a", 1), ("a", 2), ("b", 1)]
    assert seen.index(("other", 1)) < seen.index(("a", 2))
    assert (running.stats.retried, running.stats.failed) == (1, 0)


@pytest.mark.parametrize("how", ["raise", "exit", "cancel", "hang", "swallow"])
async def test_a_receiver_that_always_fails_does_not_stop_the_next_receiver(user, foreign, dispatched, how):
    attempts: list[int] = []
    after: list[str] = []

    @post_save(user, name="broken")
    async def broken(sender, delivery, **kwargs):
        attempts.append(delivery.attempt)
        if how == "raise":
            raise ValueError("never")
        if how == "exit":
            raise SystemExit(3)
        if how == "cancel":
            raise asyncio.CancelledError
        if how == "swallow":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await asyncio.Event().wait()

    @post_save(user, name="next")
    async def next_one(sender, instance, **kwargs):
        after.append(instance.name)

    async with dispatching(dispatched, attempts=2, timeout=0.2) as running:
        foreign["users"].insert_one({"name": "Ada"})
        await eventually(lambda: after)
    assert attempts == [1, 2]
    assert after == ["Ada"]
    assert (running.stats.failed, running.stats.delivered) == (1, 1)


async def test_a_restart_causes_no_loss_and_no_repetition(user, seen, foreign, dispatched):
    async with dispatching(dispatched):
        foreign["users"].insert_one({"name": "1"})
        await seen.wait(1)
    foreign["users"].insert_one({"name": "2"})  # while no dispatcher runs
    async with dispatching(dispatched):
        foreign["users"].insert_one({"name": "3"})
        await seen.wait(3)
    assert [call.instance.name for call in seen] == ["1", "2", "3"]
    assert seen[1].delivery.term == seen[0].delivery.term + 1


async def test_changes_finished_ahead_are_not_repeated_after_a_stop(user, foreign, dispatched):
    """One delivery hangs, and deliveries of other documents end. A restart repeats only the hanging delivery."""
    calls: list[str] = []
    blocked = True

    @post_save(user, name="sticky")
    async def sticky(sender, instance, **kwargs):
        calls.append(instance.name)
        if instance.name == "stuck" and blocked:
            await asyncio.Event().wait()

    async with dispatching(dispatched, grace=0.05):
        foreign["users"].insert_one({"name": "stuck"})
        foreign["users"].insert_many([{"name": f"n{i}"} for i in range(50)])
        await eventually(lambda: len(calls) == 51)
    blocked = False
    async with dispatching(dispatched):
        foreign["users"].insert_one({"name": "last"})
        await eventually(lambda: "last" in calls)
    assert calls.count("stuck") == 2
    assert len(calls) == 51 + 2


async def test_an_idle_stream_saves_its_position(user, seen, foreign, dispatched, database):
    state = foreign.client[f"{database}_state"]["positions"]
    async with dispatching(dispatched):
        first = state.find_one({"partition": 0})
        other = foreign.client[f"{database}_other"]["noise"]
        await eventually(
            lambda: other.insert_one({}) and state.find_one({"partition": 0})["token"] > first["token"],
            what="the position moves without changes of watched documents",
        )
    foreign.client.drop_database(f"{database}_other")
    assert first["group"] == database
    assert set(first) >= {
        "owner",
        "term",
        "token",
        "cluster_time",
        "fingerprint",
        "ahead",
        "saved_at",
        "claimed_at",
    }


async def test_a_start_with_a_further_document_class_continues_at_the_position(
    user, seen, foreign, dispatched, database
):
    """Receivers of the old class miss and repeat nothing. Receivers of the new class begin at the position."""
    foreign["orders"].insert_one({"name": "before"})
    async with dispatching(dispatched):
        foreign["users"].insert_one({"name": "1"})
        await seen.wait(1)

    class Order(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            abstract = False

        Meta.registry = dispatched  # type: ignore[attr-defined]
        Meta.database = database  # type: ignore[attr-defined]

    orders = Seen()
    listen(Order, orders)
    foreign["users"].insert_one({"name": "2"})
    foreign["orders"].insert_one({"name": "after"})
    async with dispatching(dispatched):
        foreign["users"].insert_one({"name": "3"})
        await seen.wait(3)
        await orders.wait(1)
    assert [call.instance.name for call in seen] == ["1", "2", "3"]
    assert [call.instance.name for call in orders] == ["after"]


async def test_dropping_the_database_does_not_end_the_dispatcher(user, seen, foreign, dispatched):
    async with dispatching(dispatched):
        foreign["users"].insert_one({"name": "1"})
        await seen.wait(1)
        foreign.client.drop_database(foreign.name)
        foreign["users"].insert_one({"name": "2"})
        await eventually(lambda: any(call.instance.name == "2" for call in seen))


@pytest.mark.parametrize("command", ["getMore", "aggregate", "find"])
async def test_broken_connections_are_opened_again(user, seen, foreign, dispatched, command):
    admin = foreign.client.admin
    async with dispatching(dispatched):
        admin.command(
            "configureFailPoint",
            "failCommand",
            mode={"times": 4},
            data={"failCommands": [command, "getMore"], "closeConnection": True, "appName": "mongoz-dispatcher"},
        )
        try:
            id_ = foreign["users"].insert_one({"name": "1"}).inserted_id
            foreign["users"].update_one({"_id": id_}, {"$set": {"name": "2"}})
            await seen.wait(2, within=20)
        finally:
            admin.command("configureFailPoint", "failCommand", mode="off")
    assert [call.delivery.signal for call in seen] == ["post_save", "post_update"]


@pytest.mark.parametrize("code", [246, 189])  # SnapshotUnavailable, PrimarySteppedDown
async def test_a_start_waits_for_transient_errors_to_end(user, seen, foreign, dispatched, code):
    admin = foreign.client.admin
    failing = {"failCommands": ["aggregate", "find"], "errorCode": code, "appName": "mongoz-dispatcher"}
    admin.command("configureFailPoint", "failCommand", mode={"times": 3}, data=failing)
    try:
        async with dispatching(dispatched):
            foreign["users"].insert_one({"name": "1"})
            await seen.wait(1)
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")


async def test_a_start_fails_if_a_transient_error_lasts_longer_than_the_connect_timeout(
    user, seen, foreign, dispatched
):
    admin = foreign.client.admin
    failing = {"failCommands": ["find"], "errorCode": 246, "appName": "mongoz-dispatcher"}
    admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=failing)
    try:
        service = Service(dispatched, settings_for(dispatched, connect_timeout=0.3))
        with pytest.raises(CannotConnect, match="is not ready: OperationFailure"):
            await service.run(asyncio.Event())
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")


async def test_a_clock_that_differs_by_an_hour_is_named(user, seen, foreign, dispatched, monkeypatch, capsys):
    """Leases and due times use the server's clock. The lag uses the clock of this machine, with a correction."""
    monkeypatch.setattr("dispatcher.core.oplog.time", lambda: time.time() - 3_600)
    monkeypatch.setattr("dispatcher.operate.observer.time", lambda: time.time() - 3_600)
    said = actions(capsys)
    async with dispatching(dispatched) as running:
        await eventually(lambda: "clock.skewed" in said())
        foreign["users"].insert_one({"name": "1"})
        await seen.wait(1)
        assert 3_590 < running.stats.clock_offset < 3_610
        assert abs(running.service.observer.snapshot().server_now - time.time()) < 10
    assert said().count("clock.skewed") == 1


async def test_a_failed_save_of_the_position_is_repeated(user, seen, foreign, dispatched, database):
    admin, state = foreign.client.admin, foreign.client[f"{database}_state"]["positions"]
    async with dispatching(dispatched):
        before = state.find_one({"partition": 0})["token"]
        admin.command(
            "configureFailPoint",
            "failCommand",
            mode={"times": 2},
            data={"failCommands": ["update"], "errorCode": 112, "appName": "mongoz-dispatcher"},
        )
        try:
            foreign["users"].insert_one({"name": "1"})
            await seen.wait(1)
            await eventually(lambda: state.find_one({"partition": 0})["token"] > before)
        finally:
            admin.command("configureFailPoint", "failCommand", mode="off")


async def test_the_number_of_changes_read_ahead_is_bounded(user, foreign, dispatched):
    gate, calls = asyncio.Event(), 0

    @post_save(user, name="slow")
    async def slow(sender, **kwargs):
        nonlocal calls
        calls += 1
        await gate.wait()

    async with dispatching(dispatched, max_queued=50, concurrency=5, batch_size=20) as running:
        foreign["users"].insert_many([{"name": f"n{i}"} for i in range(500)])
        await eventually(lambda: calls == 5)
        capacity = running.service.held[0]._capacity
        await eventually(lambda: capacity.watched is not None, what="the reader waits for room")
        assert capacity.queued == 50
        assert running.stats.read <= 50 + 20 * 4  # in the lanes, in the queue, and in the reader
        gate.set()
        await eventually(lambda: calls == 500)


async def test_with_deliver_everything_own_writes_of_a_plain_registry_are_delivered_too(
    registry, database, foreign
):
    document = make_user(registry, database)
    seen = Seen()
    listen(document, seen)
    async with dispatching(registry, deliver_everything=True, state_database=f"{database}_state"):
        await document.objects.create(name="own")
        await seen.wait(2)
    assert sorted(call.delivery.origin for call in seen) == ["process", "stream"]
    assert "_mongoz" not in foreign["users"].find_one()


@pytest.mark.parametrize(
    ("command", "code", "expected"),
    [
        ("getMore", 286, HistoryLost),
        ("getMore", 136, HistoryLost),
        ("getMore", 280, PositionError),
        ("getMore", 13, AccessDenied),
        ("getMore", 10334, ServerError),
        ("find", 13, AccessDenied),
    ],
)
async def test_a_permanent_error_ends_the_dispatcher(
    user, seen, foreign, dispatched, database, command, code, expected
):
    """The next dispatcher delivers the unfinished change."""
    admin = foreign.client.admin
    id_ = foreign["users"].insert_one({"name": "before"}).inserted_id
    # A write in a new session makes the server run an internal find. If `find` fails, the dispatcher can't release
    # its lease, so the lease must end soon.
    async with dispatching(dispatched, lease=1) as running:
        admin.command(
            "configureFailPoint",
            "failCommand",
            mode="alwaysOn",
            data={"failCommands": [command], "errorCode": code, "appName": "mongoz-dispatcher"},
        )
        try:
            foreign["users"].update_one({"_id": id_}, {"$set": {"name": "after"}})
            with pytest.raises(expected) as caught:
                await running.task
        finally:
            admin.command("configureFailPoint", "failCommand", mode="off")
    assert caught.value.remedy
    async with dispatching(dispatched):
        await seen.wait(1)
    assert seen[0].instance.name == "after"
    assert len(seen) == 1


async def test_a_delete_with_an_invalid_pre_image_is_delivered(user, seen, foreign, dispatched):
    foreign.create_collection("users", **IMAGES)
    id_ = foreign["users"].insert_one({"name": 5}).inserted_id
    async with dispatching(dispatched):
        foreign["users"].delete_one({"_id": id_})
        (call,) = await seen.wait(1)
    assert (call.instance.id, call.delivery.image) == (id_, "key")


async def test_the_number_of_changes_finished_ahead_of_a_slow_document_is_bounded(
    user, foreign, dispatched, monkeypatch
):
    """Changes finished ahead of the position are kept in memory, so their number has a limit."""
    monkeypatch.setattr("dispatcher.position.checkpoint._LONGEST_SPAN", 60)
    gate, calls = asyncio.Event(), []

    @post_save(user, name="slow")
    async def slow(sender, instance, **kwargs):
        calls.append(instance.name)
        if instance.name == "slow":
            await gate.wait()

    async with dispatching(dispatched, batch_size=20) as running:
        foreign["users"].insert_one({"name": "slow"})
        foreign["users"].insert_many([{"name": f"n{i}"} for i in range(300)])
        await eventually(lambda: len(calls) == 60)
        reads = running.stats.read
        assert reads <= 60 + 20 * 4
        gate.set()
        await eventually(lambda: len(calls) == 301)


async def test_the_memory_of_changes_finished_ahead_is_bounded_with_long_ids(foreign, dispatched, database):
    """A resume token contains the `_id`, so a long `_id` makes a long token."""
    gate, calls = asyncio.Event(), []

    class Page(mongoz.Document):
        id: str = mongoz.String(alias="_id")
        number: int = mongoz.Integer(default=0)

        class Meta:
            abstract = False

        Meta.registry, Meta.database = dispatched, database

    @post_save(Page, name="slow")
    async def slow(sender, instance, **kwargs):
        calls.append(instance.id[:2])
        if instance.id.startswith("00"):
            await gate.wait()

    names = [f"{i:02}" for i in range(60)]
    async with dispatching(dispatched, batch_size=5, grace=0.1) as running:
        foreign["pages"].insert_many([{"_id": name * 50_000} for name in names])
        await eventually(lambda: running.service.held and running.service.held[0]._checkpoint.is_far_ahead)
        await eventually(lambda: len(calls) > 25)
        assert len(calls) <= 31  # each token has 200 kB, and 6 MB are allowed
    ahead = {*calls} - {"00"}
    calls.clear()
    gate.set()
    async with dispatching(dispatched):
        await eventually(lambda: {*calls} >= {*names} - ahead)
    assert not {*calls} & ahead
