"""Writes of the ODM: their commands with and without a dispatcher, and the deliveries of these writes."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import bson
import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient, monitoring

import mongoz
from mongoz.connection import clock
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals import muted
from mongoz.stamps import FIELD
from tests.integration.test_operation_matrix import CASES
from tests.integration.test_operation_matrix import make as make_user
from tests.support import dispatching, eventually

IMAGES = {"changeStreamPreAndPostImages": {"enabled": True}}
SIGNALS = (post_save, post_update, post_delete)

# -- commands --------------------------------------------------------------------------------------------


class Commands(monitoring.CommandListener):
    """The commands of a client, without sessions and times."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def started(self, event: Any) -> None:
        if event.command_name not in ("hello", "endSessions", "killCursors"):
            self.sent.append(comparable(bson.decode(bson.encode(event.command))))

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        varying = ("lsid", "$clusterTime", "txnNumber")
        return {name: comparable(part) for name, part in value.items() if name not in varying}
    if isinstance(value, list):
        return [comparable(part) for part in value]
    return "an id" if isinstance(value, ObjectId) else value


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
async def listened(mongo: Any, commands: Commands) -> Any:
    async with AsyncMongoClient(mongo.url, event_listeners=[commands]) as client:
        yield client


def connect_all(document: Any, delivery: str) -> None:
    async def ignore(sender: Any, **kwargs: Any) -> None:
        pass

    for connect in SIGNALS:
        connect(document, delivery=delivery, name=f"ignore.{delivery}")(ignore)


@pytest.fixture
def sent_by(listened: AsyncMongoClient[Any], commands: Commands, database: str) -> Callable[..., Any]:
    """Returns a function that makes a call on two existing documents, and returns the commands of the call."""

    async def run(call: Any, *deliveries: str, dispatched: str | bool = False) -> list[Any]:
        await listened.drop_database(database)
        User = make_user(mongoz.Registry(listened, dispatched=dispatched), database)
        ada = await User.objects.create(name="Ada", age=1)
        await User.objects.create(name="Bob", age=2)
        for delivery in deliveries:
            connect_all(User, delivery)
        commands.sent.clear()
        await call(User, ada)
        return list(commands.sent)

    return run


def fields_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from fields_of(part)
    elif isinstance(value, list):
        for part in value:
            yield from fields_of(part)


@pytest.mark.parametrize(("call", "expected"), CASES)
async def test_writes_without_receivers_send_no_extra_data(request, sent_by, database, call, expected):
    plain = await sent_by(call)
    # The save of an existing document always has a stamp: the server reports an update, and the stamp says that
    # the call was a save.
    if expected.get("post_save") != [False]:
        assert await sent_by(call, dispatched=database) == plain
        assert await sent_by(call, "dispatcher", dispatched=database) == plain
    heard = await sent_by(call, "any", "process")
    assert FIELD not in set(fields_of(heard))
    if request.node.callspec.id.startswith("instance: "):
        assert heard == plain  # no additional byte


RAW = ("bulk_write", "aggregate")  # calls of the driver, not of the ODM


@pytest.mark.parametrize(
    ("call", "expected"), [one for one in CASES if not any(raw in str(one.id) for raw in RAW)]
)
async def test_writes_of_the_odm_update_with_operators(sent_by, database, call, expected):
    """These writes are neither replaces nor pipelines.

    Replaces always count as foreign, and the server reports some updates by pipelines as replaces.
    """
    for command in await sent_by(call, "any", dispatched=database):
        updates = [one["u"] for one in command.get("updates", ())]
        if "findAndModify" in command:
            updates.append(command["update"])
        for update in updates:
            assert isinstance(update, dict)
            assert all(name.startswith("$") for name in update)


# -- deliveries ------------------------------------------------------------------------------------------


class Told(list[Any]):
    """Records the calls of receivers: the name of the receiver and the keywords of each call."""

    def listen(self, document: Any, name: str = "watcher", **options: Any) -> None:
        async def receive(sender: Any, **kwargs: Any) -> None:
            shown = kwargs["instance"].model_dump()  # the caller may change the instance later
            self.append(SimpleNamespace(sender=sender, by=name, shown=shown, **kwargs))

        for connect in SIGNALS:
            connect(document, name=name, **options)(receive)

    def of(self, id_: Any) -> list[tuple[str, str, str]]:
        return [(c.by, c.delivery.origin, c.delivery.signal) for c in self if c.instance.id == id_]

    async def up_to_now(self, users: Any, id_: Any) -> list[tuple[str, str, str]]:
        """Waits until earlier writes are finished. Returns the deliveries of a document, and forgets all calls."""
        end = f"end-{ObjectId()}"
        users.replace_one({"_id": id_}, {"name": end}, upsert=True)
        await eventually(lambda: any(getattr(c.instance, "name", None) == end for c in self), what=end)
        told = [c for c in self if c.instance.id == id_ and getattr(c.instance, "name", None) != end]
        self.clear()
        return [(c.by, c.delivery.origin, c.delivery.signal) for c in told]


@pytest.fixture
def User(dispatched: mongoz.Registry, database: str, foreign: Any) -> Any:
    foreign.create_collection("users", **IMAGES)
    return make_user(dispatched, database)


@pytest.fixture
def told(User: Any) -> Told:
    told = Told()
    told.listen(User)
    return told


HERE = [("watcher", "process", name) for name in ("post_save", "post_update", "post_save", "post_delete")]


async def write_all(User: Any, id_: ObjectId) -> None:
    ada = await User.objects.create(id=id_, name="Ada")
    await ada.update(age=1)
    ada.age = 2
    await ada.save()
    await ada.delete()


@pytest.mark.parametrize("skew", [3600.0, -3600.0])
async def test_own_writes_are_recognized_although_the_clock_is_wrong_by_an_hour(
    User, told, foreign, dispatched, monkeypatch, skew
):
    """The writes of the application count as own, and copies of these writes as foreign."""
    right = clock.time
    monkeypatch.setattr(clock, "time", lambda: right() + skew)
    id_, other = ObjectId(), ObjectId()
    async with dispatching(dispatched):
        await write_all(User, id_)
        assert await told.up_to_now(foreign.users, id_) == HERE
        await User.objects.create(id=other, name="Bob")
        row = foreign.users.find_one({"_id": other})
        foreign.users.delete_one({"_id": other})
        foreign.users.insert_one(row)
        assert (await told.up_to_now(foreign.users, other))[1:] == [
            ("watcher", "stream", "post_delete"),
            ("watcher", "stream", "post_save"),
        ]


async def test_own_writes_are_recognized_after_a_clock_change(User, told, foreign, dispatched, monkeypatch):
    right = clock.time
    async with dispatching(dispatched):
        for skew in (0.0, 3600.0, -60.0):
            monkeypatch.setattr(clock, "time", lambda skew=skew: right() + skew)
            id_ = ObjectId()
            await write_all(User, id_)
            assert await told.up_to_now(foreign.users, id_) == HERE


async def test_copies_of_an_own_document_are_delivered(User, told, foreign, dispatched):
    """The copies have the stamp of the ODM. The dispatcher delivers the copies, but not the original."""
    id_, other = ObjectId(), ObjectId()
    async with dispatching(dispatched):
        await User.objects.create(id=id_, name="Ada")
        row = foreign.users.find_one({"_id": id_})
        assert FIELD in row
        foreign.users.delete_one({"_id": id_})
        foreign.users.insert_one(row)
        assert await told.up_to_now(foreign.users, id_) == [
            ("watcher", "process", "post_save"),
            ("watcher", "stream", "post_delete"),
            ("watcher", "stream", "post_save"),
        ]
        foreign.users.insert_one({**row, "_id": other})
        assert await told.up_to_now(foreign.users, other) == [("watcher", "stream", "post_save")]


async def test_a_restored_whole_document_is_delivered(User, told, foreign, dispatched):
    id_ = ObjectId()
    async with dispatching(dispatched):
        ada = await User.objects.create(id=id_, name="Ada")
        old = foreign.users.find_one({"_id": id_})
        await ada.update(age=1)
        foreign.users.update_one({"_id": id_}, {"$set": {k: v for k, v in old.items() if k != "_id"}})
        assert await told.up_to_now(foreign.users, id_) == [
            ("watcher", "process", "post_save"),
            ("watcher", "process", "post_update"),
            ("watcher", "stream", "post_update"),
        ]


async def test_two_applications_on_one_database_see_each_others_writes(User, told, foreign, dispatched, database):
    """Each application runs its receivers in process.

    The dispatcher of each application delivers the writes of the other application.
    """
    async with mongoz.Registry(dispatched.url, dispatched=f"{database}_b") as theirs:
        Theirs, told_theirs = make_user(theirs, database), Told()
        told_theirs.listen(Theirs)
        mine, other = ObjectId(), ObjectId()
        async with dispatching(dispatched), dispatching(theirs, state_database=f"{database}_state"):
            await write_all(User, mine)
            with muted():
                ada = await Theirs.objects.create(id=other, name="Ada")
            await ada.update(age=1)
            for document in (mine, other):
                foreign.users.insert_one({"_id": document, "name": "end"} if document is mine else {})
            # Delete markers of one group do not affect the other group.
            expected = ["post_save", "post_update", "post_update", "post_delete", "post_save"]
            await eventually(
                lambda: len(told_theirs.of(mine)) >= len(expected), what="the deliveries of their group"
            )
            await eventually(lambda: len(told.of(other)) >= 2, what="the deliveries of my group")
            # This delivery waits for the claims of the application's own writes to this document.
            await eventually(lambda: ("watcher", "stream", "post_save") in told.of(mine), what="the last delivery")
        assert [name for _, _, name in told_theirs.of(mine)] == expected
        assert {origin for _, origin, _ in told_theirs.of(mine)} == {"stream"}
        assert told.of(mine) == [*HERE, ("watcher", "stream", "post_save")]
        assert told.of(other) == [("watcher", "stream", "post_save"), ("watcher", "stream", "post_update")]
        assert told_theirs.of(other) == [("watcher", "process", "post_update")]


async def test_muted_writes_and_writes_of_receivers_are_delivered_to_other_groups(
    User, told, dispatched, database
):
    """Muting and hops count only in the group of the writing application."""
    async with mongoz.Registry(dispatched.url, dispatched=f"{database}_b") as theirs:
        Theirs, told_theirs = make_user(theirs, database), Told()
        told_theirs.listen(Theirs)
        id_ = ObjectId()

        async def echo(sender: Any, instance: Any, **kwargs: Any) -> None:
            await User.objects.filter(id=instance.id).update(age=9)

        post_save(User, name="echo", delivery="dispatcher")(echo)
        async with dispatching(dispatched), dispatching(theirs, state_database=f"{database}_state"):
            with muted():
                ada = await User.objects.create(id=id_, name="Ada")
                await ada.update(name="Bea")
                await ada.delete()
            await eventually(lambda: len(told_theirs.of(id_)) == 3, what="the deliveries of the muted writes")
            assert told.of(id_) == []
            other = await User.objects.create(id=ObjectId(), name="Cleo")
            await eventually(
                lambda: len(told_theirs.of(other.id)) == 2, what="the delivery of the receiver's write"
            )
            await eventually(lambda: len(told.of(other.id)) == 2, what="the write comes back to its own group")
        names = ["post_save", "post_update", "post_delete"]
        assert told_theirs.of(id_) == [("watcher", "stream", name) for name in names]
        assert told_theirs.of(other.id) == [("watcher", "stream", name) for name in names[:2]]
        assert told.of(other.id) == [("watcher", "process", "post_save"), ("watcher", "stream", "post_update")]


async def test_the_dispatcher_runs_only_the_receivers_that_the_process_does_not_import(
    User, told, foreign, dispatched, database
):
    """The process imports all receivers except `watcher`. It knows `renamed` by its earlier name."""
    told.listen(User, "late")
    told.listen(User, "renamed", formerly="earlier")
    async with mongoz.Registry(dispatched.url, dispatched=database) as elsewhere:
        Twin = make_user(elsewhere, database)
        told_there = Told()
        told_there.listen(Twin, "earlier")
        told_there.listen(Twin, "late")
        id_ = ObjectId()
        async with dispatching(dispatched):
            await write_all(Twin, id_)
            seen = await told.up_to_now(foreign.users, id_)
    assert seen == [("watcher", "stream", name) for _, _, name in HERE]
    assert [(by, name) for by, _, name in told_there.of(id_)] == [
        (by, name) for _, _, name in HERE for by in ("earlier", "late")
    ]


async def test_a_receiver_of_two_classes_on_one_collection_runs_once_for_each_class(dispatched, database, foreign):
    """The receiver runs in process for the writing class, and in the dispatcher for the other class."""

    class Base(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            abstract = True

    told = Told()
    told.listen(Base)
    told.listen(Base, "renamed", formerly="before")
    place = {"registry": dispatched, "database": database, "collection": "users"}

    class Person(Base):
        Meta = type("Meta", (), place)

    class Customer(Base):
        Meta = type("Meta", (), place)

    id_ = ObjectId()
    async with dispatching(dispatched):
        ada = await Person.objects.create(id=id_, name="Ada")
        await ada.delete()
        await eventually(lambda: len(told.of(id_)) >= 8, what="all deliveries")
        foreign.users.insert_one({"_id": id_, "name": "Bob"})
        await eventually(lambda: len(told.of(id_)) >= 12, what="the last delivery")
    by_class = {
        origin: [(c.sender.__name__, c.by, c.delivery.signal) for c in told[:8] if c.delivery.origin == origin]
        for origin in ("process", "stream")
    }
    both = [(by, name) for name in ("post_save", "post_delete") for by in ("watcher", "renamed")]
    assert by_class["process"] == [("Person", *one) for one in both]
    assert by_class["stream"] == [("Customer", *one) for one in both]


def attributes(delivery: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(delivery)]


async def test_keywords_are_the_same_in_process_and_in_the_dispatcher(User, dispatched, foreign):
    """A receiver in the process and a receiver in the dispatcher get the same writes."""
    here, there = Told(), Told()
    here.listen(User, "here", delivery="process")
    there.listen(User, "there", delivery="dispatcher")
    id_ = ObjectId()
    async with dispatching(dispatched):
        await write_all(User, id_)
        await eventually(lambda: len(there) >= 4)
    for one, other in zip(here, there, strict=True):
        mine, its = vars(one) | {"by": 0}, vars(other) | {"by": 0}
        assert mine.keys() == its.keys()
        assert one.delivery.signal == other.delivery.signal
        for name in mine.keys() - {"delivery", "previous", "instance"}:
            assert mine[name] == its[name], name
            assert type(mine[name]) is type(its[name])
        assert attributes(one.delivery) == attributes(other.delivery)
        assert (one.delivery.cluster_time, one.delivery.wall_time, one.delivery.session) == (None, None, None)
        assert isinstance(other.delivery.cluster_time, bson.Timestamp)
        assert one.delivery.image == other.delivery.image
        assert (one.delivery.origin, other.delivery.origin) == ("process", "stream")
    assert [getattr(call, "previous", None) and call.previous.age for call in there] == [None, 0, 1, None]
    assert [getattr(call, "previous", None) and call.previous.age for call in here] == [None, 0, 1, None]


async def test_writes_during_a_downtime_are_delivered_once(User, told, foreign, dispatched):
    """Many tasks write at the same time while no dispatcher runs."""
    told.listen(User, "later", delivery="dispatcher")
    ids = [ObjectId() for _ in range(20)]
    async with dispatching(dispatched):
        pass
    await asyncio.gather(*(write_all(User, id_) for id_ in ids))
    async with dispatching(dispatched):
        await eventually(lambda: len(told) >= 8 * len(ids))
    for id_ in ids:
        assert [one for one in told.of(id_) if one[0] == "watcher"] == HERE
        assert [name for by, _, name in told.of(id_) if by == "later"] == [name for _, _, name in HERE]
