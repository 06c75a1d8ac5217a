"""A stamp suppresses the delivery of its own write, once. The server is real, the stamps are made by hand."""

import contextlib
import datetime
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import bson
import pytest
from bson import ObjectId
from pymongo import MongoClient

import mongoz
from dispatcher.core.resume_tokens import DIGEST
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals.options import Retry
from mongoz.stamps import FIELD, Call, Stamp, key_hash
from tests.support import dispatching, eventually

IMAGES = {"changeStreamPreAndPostImages": {"enabled": True}}


def make_user(registry: mongoz.Registry, database: str) -> Any:
    class User(mongoz.Document):
        name: str = mongoz.String(null=True)
        age: int = mongoz.Integer(null=True)
        nick: str = mongoz.String(null=True, alias="nickname")

        class Meta:
            abstract = False

        Meta.registry = registry  # type: ignore[attr-defined]
        Meta.database = database  # type: ignore[attr-defined]

    return User


class World:
    """A watched collection, its receivers, and an application that stamps its writes."""

    def __init__(self, registry: mongoz.Registry, database: str, client: MongoClient) -> None:
        self.registry, self.group, self.client = registry, database, client
        self.users = client[database]["users"]
        self.user = make_user(registry, database)
        client[database].create_collection("users", **IMAGES)  # each instance is as its own write left it
        self.calls: list[SimpleNamespace] = []
        self.listen("watcher")

    def listen(self, name: str, *signals: Any, **options: Any) -> None:
        async def receiver(sender: Any, **kwargs: Any) -> None:
            self.calls.append(SimpleNamespace(sender=sender, by=name, **kwargs))

        for connect in signals or (post_save, post_update, post_delete):
            connect(self.user, name=name, **options)(receiver)

    def stamp(
        self, call: Call, id_: Any, *names: str, age: float = 0, group: str = "", **more: Any
    ) -> bson.Binary:
        """A stamp as the application makes it; `names` are the receivers that the application runs itself."""
        signal = {Call.UPDATED: "post_update", Call.DELETED: "post_delete"}.get(call, "post_save")
        ids = frozenset(r.id for r in getattr(self.user.signals, signal).receivers if r.name in names)
        token = ObjectId(int(time.time() - age).to_bytes(4, "big") + ObjectId().binary[4:])
        key = key_hash(f"{self.users.database.name}.{self.users.name}", id_)
        return Stamp(group or self.group, call, token, key, ids, **more).pack()

    def insert(self, id_: Any, **values: Any) -> dict[str, Any]:
        """An insert whose receiver runs in the application."""
        row = {"_id": id_, **values, FIELD: self.stamp(Call.CREATED, id_, "watcher")}
        self.users.insert_one(row)
        return row

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        with self.client.start_session() as session, session.start_transaction():
            yield session

    def mark(self, id_: Any, session: Any, *names: str, **more: Any) -> None:
        stamp = self.stamp(Call.DELETED, id_, *names, **more)
        self.users.update_one({"_id": id_}, {"$set": {FIELD: stamp}}, session=session)

    def delete(self, id_: Any, session: Any, *names: str, **more: Any) -> None:
        """A delete as the application makes it: a marker, then the delete itself."""
        self.mark(id_, session, *names, **more)
        self.users.delete_one({"_id": id_}, session=session)

    async def told(self, id_: Any) -> list[str]:
        """Waits for the deliveries of a document so far, forgets them, and returns their signals."""
        end = f"end-{ObjectId()}"
        self.users.replace_one({"_id": id_}, {"name": end}, upsert=True)
        await eventually(lambda: any(getattr(c.instance, "name", None) == end for c in self.calls), what=end)
        calls = [call for call in self.calls if call.instance.id == id_]
        self.calls[:] = [call for call in self.calls if call.instance.id != id_]
        assert all(FIELD not in call.instance.model_dump() for call in calls if call.delivery.image != "key")
        return [call.delivery.signal for call in calls if getattr(call.instance, "name", None) != end]


@pytest.fixture
def world(dispatched: mongoz.Registry, database: str, foreign: Any) -> World:
    return World(dispatched, database, foreign.client)


async def test_an_own_write_is_not_delivered(world):
    id_ = ObjectId()
    async with dispatching(world.registry):
        world.insert(id_, name="Ada")
        for call in (Call.UPDATED, Call.SAVED):
            names = {"name": call.name, FIELD: world.stamp(call, id_, "watcher")}
            world.users.update_one({"_id": id_}, {"$set": names})
        assert await world.told(id_) == []


@pytest.mark.parametrize("how", ["inserted again", "replaced", "set whole", "merged"])
async def test_a_copy_with_the_stamp_of_the_original_is_delivered(world, how):
    """The copy has the stamp of the original, and follows within milliseconds."""
    id_ = ObjectId()
    expected = {
        "inserted again": ["post_delete", "post_save"],
        "replaced": ["post_update", "post_save"],
        "set whole": ["post_update", "post_update"],
        "merged": ["post_delete", "post_save"],
    }
    async with dispatching(world.registry):
        row = world.insert(id_, name="Ada")
        if how == "inserted again":
            world.users.delete_one({"_id": id_})
            world.users.insert_one(row)
        elif how == "replaced":
            world.users.update_one({"_id": id_}, {"$set": {"name": "Bob"}})
            world.users.replace_one({"_id": id_}, row)
        elif how == "set whole":
            own = {"name": "Bob", FIELD: world.stamp(Call.UPDATED, id_, "watcher")}
            world.users.update_one({"_id": id_}, {"$set": own})
            world.users.update_one({"_id": id_}, {"$set": {"name": "Cleo", FIELD: b"theirs"}})
            world.users.update_one({"_id": id_}, {"$set": own})
        else:
            backup = world.users.database["backup"]
            world.users.aggregate([{"$merge": backup.name}])
            world.users.delete_one({"_id": id_})
            backup.aggregate([{"$merge": world.users.name}])
        assert await world.told(id_) == expected[how]


async def test_a_document_restored_to_another_collection_is_delivered(world, dispatched, database):
    class Copy(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            abstract = False

        Meta.registry = dispatched  # type: ignore[attr-defined]
        Meta.database = database  # type: ignore[attr-defined]

    copies: list[Any] = []

    @post_save(Copy, name="watcher")
    async def watcher(sender, instance, **kwargs):
        copies.append(instance.id)

    id_, other = ObjectId(), ObjectId()
    async with dispatching(world.registry):
        # The stamp is new, but it was made for the document `id_` in the collection `users`.
        stray = {"name": "Ada", FIELD: world.stamp(Call.CREATED, id_, "watcher", muted=True)}
        world.users.insert_one({"_id": other, **stray})
        world.users.database["copys"].insert_one({"_id": id_, **stray})
        assert await world.told(other) == ["post_save"]
        await eventually(lambda: copies == [id_])


@pytest.mark.parametrize("age", [3600, 90, 30, -30, -3600])
async def test_writes_with_an_old_or_a_future_stamp_are_delivered(world, age):
    """A stamp of 30 s ago is too old to suppress the delivery, but its write is certainly no copy.

    So only this delivery has the token of the stamp as its id.
    """
    id_ = ObjectId()
    async with dispatching(world.registry) as running:
        stamp = world.stamp(Call.CREATED, id_, "watcher", age=age)
        world.users.insert_one({"_id": id_, "name": "Ada", FIELD: stamp})
        await eventually(lambda: world.calls)
        token = Stamp.unpack(stamp).token
        assert (world.calls[0].delivery.id == str(token)) == (age == 30)
        assert await world.told(id_) == ["post_save"]
        assert running.service.stats.late_stamps == (age == 30)


async def test_a_late_save_is_delivered_as_a_save_and_its_copy_as_an_update(world):
    id_ = ObjectId()
    world.users.insert_one({"_id": id_, "name": "Ada"})
    async with dispatching(world.registry):
        stamp = world.stamp(Call.SAVED, id_, "watcher", age=30)
        for name in ("Bob", "Cleo"):
            world.users.update_one({"_id": id_}, {"$set": {"name": name, FIELD: stamp}})
        await eventually(lambda: len(world.calls) == 2)
        own = str(Stamp.unpack(stamp).token)
        assert [call.delivery.id == own for call in world.calls] == [True, False]
        assert await world.told(id_) == ["post_save", "post_update"]


async def test_a_failed_late_delivery_keeps_its_id(world, database):
    """Each attempt has the same id, and so has the retry of the dead letter."""
    ids: list[str] = []

    async def fails(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        ids.append(delivery.id)
        if len(ids) < 3:
            raise ValueError("not yet")

    post_save(world.user, name="fails", retry=Retry(2, base=0.01))(fails)
    letters = world.client[f"{database}_state"]["held"]
    id_ = ObjectId()
    stamp = world.stamp(Call.CREATED, id_, "fails", age=30)
    async with dispatching(world.registry):
        world.users.insert_one({"_id": id_, "name": "Ada", FIELD: stamp})
        await eventually(letters.find_one)
        letters.update_one({}, {"$set": {"retry_requested_at": datetime.datetime.now()}})
        await eventually(lambda: len(ids) == 3)
    assert set(ids) == {str(Stamp.unpack(stamp).token)}


UNTOUCHED = {
    "a stamp of another group": lambda world, id_: {"$set": {FIELD: world.stamp(Call.SAVED, id_, group="others")}},
    "garbage": lambda world, id_: {"$set": {FIELD: 1}},
    "no stamp any more": lambda world, id_: {"$unset": {FIELD: 1}},
    "no stamp any more, by a pipeline": lambda world, id_: [{"$unset": FIELD}],
    "something inside of it": lambda world, id_: {"$set": {f"{FIELD}.t": 1}},
    "another document's stamp": lambda world, id_: {"$set": {FIELD: world.stamp(Call.UPDATED, 7, "watcher")}},
}


@pytest.mark.parametrize("kind", UNTOUCHED)
async def test_a_write_of_only_the_stamp_is_not_a_change(world, kind):
    id_ = ObjectId()
    row = {"_id": id_, "name": "Ada", FIELD: {"t": 0} if "inside" in kind else world.stamp(Call.CREATED, id_)}
    world.users.insert_one(row)
    async with dispatching(world.registry) as running:
        world.users.update_many({}, UNTOUCHED[kind](world, id_))
        position = world.client[f"{world.group}_state"]["positions"].find_one({"partition": 0})["token"]
        assert await world.told(id_) == []
        assert running.service.stats.untouched == 1
        await eventually(
            lambda: (
                world.client[f"{world.group}_state"]["positions"].find_one({"partition": 0})["token"] > position
            )
        )


async def test_suppressed_changes_are_counted_by_reason(world):
    id_ = ObjectId()
    async with dispatching(world.registry) as running:
        world.insert(id_, name="Ada")
        muted = world.stamp(Call.UPDATED, id_, muted=True)
        world.users.update_one({"_id": id_}, {"$set": {"name": "Bob", FIELD: muted}})
        with world.transaction() as session:
            world.delete(id_, session, "watcher")
        assert await world.told(id_) == []
        figures = running.service.stats.receivers
    withheld = {signal: one.withheld for (_, signal), one in figures.items()}
    assert withheld == {
        "post_save": {"ran": 1, "muted": 0},
        "post_update": {"ran": 0, "muted": 1},
        "post_delete": {"ran": 1, "muted": 0},
    }


async def test_an_old_stamp_suppresses_a_delivery_only_inside_of_a_transaction(world):
    alone, together = ObjectId(), ObjectId()
    async with dispatching(world.registry):
        for id_ in (alone, together):
            row = {"_id": id_, FIELD: world.stamp(Call.CREATED, id_, "watcher", age=40)}
            with world.transaction() if id_ is together else contextlib.nullcontext() as session:
                world.users.insert_one(row, session=session)
        assert await world.told(alone) == ["post_save"]
        assert await world.told(together) == []


GARBAGE = {
    "bytes": b"garbage",
    "string": "garbage",
    "document": {"t": 1},
    "date": datetime.datetime(2026, 1, 1),
    "none": None,
    "empty": bson.Binary(b"", 0x80),
    "later version": bson.Binary(b"\x09" + b"x" * 40, 0x80),
    "much": bson.Binary(b"\x01" * 100_000, 0x80),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_writes_with_garbage_as_stamp_are_delivered(world, kind):
    id_ = ObjectId()
    async with dispatching(world.registry):
        world.users.insert_one({"_id": id_, "name": "Ada", FIELD: GARBAGE[kind]})
        world.users.update_one({"_id": id_}, {"$set": {"name": "Bob", FIELD: 1}})
        world.users.update_one({"_id": id_}, {"$set": {"name": "Cleo", FIELD: GARBAGE[kind]}})
        assert await world.told(id_) == ["post_save", "post_update", "post_update"]
    async with dispatching(world.registry):  # the read of earlier stamps meets the garbage as well
        assert await world.told(id_) == []


async def test_stamps_of_other_groups_are_ignored(world):
    id_ = ObjectId()
    async with dispatching(world.registry):
        stamp = world.stamp(Call.CREATED, id_, "watcher", group="others", muted=True)
        world.users.insert_one({"_id": id_, FIELD: stamp})
        with world.transaction() as session:
            world.delete(id_, session, group="others", muted=True)
        assert await world.told(id_) == ["post_save", "post_delete"]


@pytest.mark.parametrize("first_start", [True, False])
async def test_a_copy_is_delivered_although_its_original_was_read_before_a_restart(world, first_start):
    id_ = ObjectId()
    if first_start:
        row = world.insert(id_, name="Ada")  # no dispatcher has watched the collection yet
    else:
        async with dispatching(world.registry):
            row = world.insert(id_, name="Ada")
            assert await world.told(id_) == []
    async with dispatching(world.registry):
        world.users.delete_one({"_id": id_})
        world.users.insert_one(row)
        assert await world.told(id_) == ["post_delete", "post_save"]


async def test_a_copy_is_delivered_although_the_database_was_dropped_in_between(world):
    """A change stream ends at the drop. The read of earlier stamps continues after the drop."""
    id_ = ObjectId()
    world.users.database["other"].insert_one({})
    async with dispatching(world.registry):
        await world.told(id_)
    world.client.drop_database(world.users.database.name)
    async with dispatching(world.registry):
        row = world.insert(id_, name="Ada")
        assert await world.told(id_) == []
    async with dispatching(world.registry):
        world.users.delete_one({"_id": id_})
        world.users.insert_one(row)
        assert await world.told(id_) == ["post_delete", "post_save"]


@pytest.mark.parametrize(("code", "times"), [(286, 1), (286, 3), (91, 1)])
async def test_a_dispatcher_starts_although_earlier_stamps_can_not_be_read(world, code, times, capsys):
    """A dispatcher reads earlier stamps before other changes, so this read gets the errors."""
    id_ = ObjectId()
    row = world.insert(id_, name="Ada")
    async with dispatching(world.registry):
        await world.told(id_)
    admin, streams = world.client.admin, f"{world.users.database.name}.$cmd.aggregate"
    fails = {
        "failCommands": ["aggregate"],
        "errorCode": code,
        "namespace": streams,
        "appName": "mongoz-dispatcher",
    }
    admin.command("configureFailPoint", "failCommand", mode={"times": times}, data=fails)
    try:
        async with dispatching(world.registry):
            world.users.delete_one({"_id": id_})
            world.users.insert_one(row)
            heard = await world.told(id_)
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")
    said = capsys.readouterr()
    assert "stamps.not_read" in said.out + said.err
    # With the earlier stamps the copy is recognized; without these stamps the copy counts as the original.
    assert heard == (["post_delete", "post_save"] if times == 1 else ["post_delete"])


async def test_the_read_of_earlier_stamps_stops_at_the_position(world):
    """Changes after the position are delivered as usual."""
    id_ = ObjectId()
    async with dispatching(world.registry):
        assert await world.told(id_) == []
    for _ in range(30):
        world.insert(ObjectId(), name="own")
    other = ObjectId()
    world.users.insert_one({"_id": other, "name": "theirs"})
    async with dispatching(world.registry, batch_size=7):
        assert await world.told(other) == ["post_save"]
        assert await world.told(id_) == []
    assert not world.calls


async def test_a_start_without_earlier_changes_does_not_wait_for_a_change(world):
    async with dispatching(world.registry):
        pass
    took = []
    while not took or (min(took) >= 0.9 and len(took) < 10):  # a busy machine may delay some starts
        began = time.monotonic()
        async with dispatching(world.registry):
            took.append(time.monotonic() - began)
    assert min(took) < 0.9  # a read that waits for a change takes a second


# Deletes


async def test_a_marked_delete_goes_to_the_receivers_that_the_stamp_does_not_name(world):
    id_ = ObjectId()
    world.listen("there", post_delete, post_update, delivery="dispatcher")
    world.users.insert_one({"_id": id_, "name": "Ada"})
    async with dispatching(world.registry):
        with world.transaction() as session:
            world.delete(id_, session, "watcher")
        await eventually(lambda: world.calls)
        assert [(c.by, c.delivery.signal) for c in world.calls] == [("there", "post_delete")]
        assert await world.told(id_) == ["post_delete"]


async def test_a_muted_delete_is_not_delivered(world):
    id_ = ObjectId()
    world.users.insert_one({"_id": id_})
    async with dispatching(world.registry):
        with world.transaction() as session:
            world.delete(id_, session, muted=True)
        assert await world.told(id_) == []


async def test_the_instance_of_a_delete_does_not_show_the_stamp(world):
    id_ = ObjectId()
    world.users.insert_one({"_id": id_, "name": "Ada"})
    async with dispatching(world.registry):
        with world.transaction() as session:
            world.delete(id_, session)
        await eventually(lambda: world.calls)
        (call,) = world.calls
        assert (call.delivery.image, call.instance.name) == ("pre", "Ada")
        assert FIELD not in call.instance.model_dump()


async def test_each_of_many_markers_is_joined_with_its_delete(world):
    """The lanes hold at most 5 changes, and the position spans at most 10 changes. The 60 markers do not count."""
    ids = [ObjectId() for _ in range(60)]
    world.users.insert_many([{"_id": id_} for id_ in ids])
    async with dispatching(world.registry, max_queued=5, concurrency=2, batch_size=7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dispatcher.position.checkpoint._LONGEST_SPAN", 10)
            with world.transaction() as session:
                for id_ in ids:
                    world.mark(id_, session, *(["watcher"] if id_ != ids[7] else []))
                world.users.delete_many({"_id": {"$in": ids}}, session=session)
            await eventually(lambda: world.calls)
            for id_ in (ids[0], ids[7], ids[-1]):
                assert await world.told(id_) == (["post_delete"] if id_ == ids[7] else [])
    assert not world.calls


async def test_of_many_writes_in_a_transaction_only_the_foreign_writes_are_delivered(world):
    id_ = ObjectId()
    world.users.insert_one({"_id": id_, "name": "Ada"})
    async with dispatching(world.registry):
        with world.transaction() as session:
            own = {"name": "Bob", FIELD: world.stamp(Call.UPDATED, id_, "watcher")}
            world.users.update_one({"_id": id_}, {"$set": own}, session=session)
            world.delete(id_, session, "watcher")
            row = {"_id": id_, FIELD: world.stamp(Call.CREATED, id_, "watcher")}
            world.users.insert_one(row, session=session)
            world.delete(id_, session, "watcher")
            world.users.insert_one({"_id": id_, "name": "theirs"}, session=session)
            world.users.delete_one({"_id": id_}, session=session)
        assert await world.told(id_) == ["post_save", "post_delete"]


async def test_a_marker_belongs_to_the_delete_although_other_changes_lie_between(world):
    id_ = ObjectId()
    world.users.insert_one({"_id": id_})
    async with dispatching(world.registry):
        with world.transaction() as session:
            world.mark(id_, session, "watcher")
            world.users.update_one({"_id": id_}, {"$set": {"name": "theirs"}}, session=session)
            world.users.delete_one({"_id": id_}, session=session)
        assert await world.told(id_) == ["post_update"]


async def test_a_marker_at_the_end_of_the_stream_is_no_change(world):
    """No event follows the marker in the whole stream. The position passes the marker nevertheless."""
    id_ = ObjectId()
    world.users.insert_one({"_id": id_, "name": "Ada"})
    async with dispatching(world.registry):
        state = world.client[f"{world.group}_state"]["positions"]
        with world.transaction() as session:
            world.mark(id_, session, "watcher")
            written = session
        end = written.cluster_time["clusterTime"]
        await eventually(lambda: state.find_one({"partition": 0})["cluster_time"] >= end)
        assert await world.told(id_) == []


@pytest.mark.parametrize("follows", ["a delete outside", "an update inside", "a second marker"])
async def test_a_marker_without_a_delete_is_no_change(world, follows):
    id_ = ObjectId()
    world.users.insert_one({"_id": id_, "name": "Ada"})
    expected = {"a delete outside": ["post_delete"], "an update inside": ["post_update"], "a second marker": []}
    async with dispatching(world.registry):
        with world.transaction() as session:
            world.mark(id_, session, "watcher")
            if follows == "an update inside":
                world.users.update_one({"_id": id_}, {"$set": {"age": 1}}, session=session)
            if follows == "a second marker":
                world.delete(id_, session, "watcher")
        if follows == "a delete outside":
            world.users.delete_one({"_id": id_})
        assert await world.told(id_) == expected[follows]


async def test_a_marker_outside_of_a_transaction_is_no_change(world):
    id_ = ObjectId()
    world.users.insert_one({"_id": id_})
    async with dispatching(world.registry):
        world.delete(id_, None, "watcher")
        assert await world.told(id_) == ["post_delete"]


async def test_a_copy_of_a_marker_does_not_suppress_a_second_delete(world):
    id_ = ObjectId()
    world.users.insert_one({"_id": id_})
    async with dispatching(world.registry):
        stamp = world.stamp(Call.DELETED, id_, "watcher")
        for _ in range(2):
            with world.transaction() as session:
                world.users.update_one({"_id": id_}, {"$set": {FIELD: stamp}}, session=session)
                world.users.delete_one({"_id": id_}, session=session)
            world.users.insert_one({"_id": id_})
        assert await world.told(id_) == ["post_save", "post_delete", "post_save"]


async def test_after_a_restart_marker_and_delete_are_read_again(world, database):
    """One delivery of a delete hangs, so the position stays before the markers. Only this delivery is repeated."""
    ids, hanging = [ObjectId() for _ in range(5)], True
    deleted: list[Any] = []

    @post_delete(world.user, name="sticky", delivery="dispatcher")
    async def sticky(sender, instance, **kwargs):
        deleted.append(instance.id)
        if hanging and instance.id == ids[2]:
            await eventually(lambda: not hanging, within=60)

    world.users.insert_many([{"_id": id_} for id_ in ids])
    state = world.client[f"{database}_state"]["positions"]
    async with dispatching(world.registry, grace=0.05):
        begin = state.find_one({"partition": 0})["token"]
        with world.transaction() as session:
            for id_ in ids:
                world.mark(id_, session, "watcher")
            for id_ in ids:
                world.users.delete_one({"_id": id_}, session=session)
        await eventually(lambda: len(deleted) == 5)
    saved = state.find_one({"partition": 0})
    assert saved["token"] <= begin < saved["until"]
    assert len(saved["ahead"]) == 8 * DIGEST  # four markers and their deletes
    hanging = False
    async with dispatching(world.registry):
        assert await world.told(ids[2]) == []
        assert [await world.told(id_) for id_ in ids] == [[]] * 5
    assert sorted(deleted) == sorted([*ids, ids[2]])


# Receivers


async def test_a_renamed_receiver_is_recognized_by_its_earlier_names(world):
    id_ = ObjectId()
    world.listen("old", post_save)
    ran = world.stamp(Call.CREATED, id_, "watcher", "old")
    world.user.signals.post_save.disconnect(world.user.signals.post_save.receivers[-1].function)
    world.listen("new", post_save, formerly=["older", "old"])
    async with dispatching(world.registry):
        world.users.insert_one({"_id": id_, FIELD: ran})
        assert await world.told(id_) == []


async def test_a_write_by_a_receiver_is_delivered_with_the_signal_that_the_stamp_names(world):
    id_ = ObjectId()
    world.users.insert_one({"_id": id_, "name": "Ada"})
    async with dispatching(world.registry):
        hop = {"name": "Bob", FIELD: world.stamp(Call.SAVED, id_, hops=2)}
        world.users.update_one({"_id": id_}, {"$set": hop})
        with world.transaction() as session:
            world.delete(id_, session, hops=3)
        assert await world.told(id_) == ["post_save", "post_delete"]


async def test_a_receiver_with_the_option_fields_gets_only_changes_of_these_fields(world):
    id_ = ObjectId()
    world.user.signals.post_update.disconnect(world.user.signals.post_update.receivers[0].function)
    world.listen("picky", post_update, fields="nick")
    world.users.insert_one({"_id": id_})
    async with dispatching(world.registry):
        for values in ({"name": "x"}, {"nickname": "x"}, {"nick": "x"}, {"age": 1, "nickname": "y"}):
            world.users.update_one({"_id": id_}, {"$set": values})
        world.users.update_one({"_id": id_}, {"$unset": {"nickname": 1}})
        assert await world.told(id_) == ["post_update"] * 3


async def test_the_dispatcher_recognizes_the_stamps_of_the_odm_in_a_transaction(world):
    """The ODM makes the stamps. A transaction creates a document, deletes it, and creates it again."""
    id_ = ObjectId()
    world.listen("there", delivery="dispatcher")
    async with dispatching(world.registry):
        async with world.registry.transaction():
            ada = await world.user.objects.create(id=id_, name="Ada")
            await ada.update(name="Bob")
            await ada.delete()
            ada = await world.user.objects.create(id=id_, name="Cleo")
            await ada.delete()
        kinds = ["post_save", "post_update", "post_delete", "post_save", "post_delete"]
        await eventually(lambda: len(world.calls) >= 10)
        told = [(c.by, c.delivery.origin, c.delivery.signal) for c in world.calls]
    assert sorted(told) == sorted(
        [("watcher", "process", kind) for kind in kinds] + [("there", "stream", kind) for kind in kinds]
    )
    assert [kind for by, _, kind in told if by == "there"] == kinds
