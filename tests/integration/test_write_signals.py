"""Signals around real writes: keywords, aborts, written values, and the origin stamp."""

import asyncio
from typing import Any

import bson
import pytest
from pydantic import ValidationError
from pymongo.errors import DuplicateKeyError

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update, pre_save, pre_update
from mongoz.exceptions import DocumentNotFound, InvalidKeyError
from mongoz.signals import muted
from mongoz.stamps import FIELD, Call, Stamp, key_hash, receiver_id

NAMES = ("pre_save", "post_save", "pre_update", "post_update", "pre_delete", "post_delete")


class Address(mongoz.EmbeddedDocument):
    city: str = mongoz.String()


def make(registry: mongoz.Registry, database: str) -> Any:
    options = {"registry": registry, "database": database}

    class User(mongoz.Document):
        name: str = mongoz.String(max_length=20)
        age: int = mongoz.Integer(default=0)
        tags: list[str] = mongoz.Array(str, default=list)
        payload: Any = mongoz.Object(null=True)
        address: Any = mongoz.Embed(Address, null=True)
        family: str = mongoz.String(null=True, alias="last_name")

        Meta = type("Meta", (), options)

    return User


@pytest.fixture
def User(registry: mongoz.Registry, database: str) -> Any:
    return make(registry, database)


@pytest.fixture
def Stamped(dispatched: mongoz.Registry, database: str) -> Any:
    return make(dispatched, database)


class Log(list[tuple[str, dict[str, Any]]]):
    """The calls of a receiver connected to all six signals: the signal's name and the keywords."""

    def __init__(self, document: Any) -> None:
        for name in NAMES:
            options = {"name": f"log.{name}"} if name.startswith("post_") else {}
            getattr(document.signals, name).connect(self._receiver(name), **options)

    def _receiver(self, name: str) -> Any:
        async def receive(sender: Any, **kwargs: Any) -> None:
            self.append((name, {"sender": sender, **kwargs}))

        return receive

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]


def raising(error: Exception) -> Any:
    async def receive(sender: Any, **kwargs: Any) -> None:
        raise error

    return receive


def stamp_of(row: dict[str, Any]) -> Stamp | None:
    return Stamp.unpack(row.get(FIELD))


# -- keywords ----------------------------------------------------------------------------------------


def check_delivery(delivery: Any, signal: str, image: str = "post") -> None:
    assert bson.ObjectId.is_valid(delivery.id)
    assert (delivery.signal, delivery.receiver, delivery.origin) == (signal, f"log.{signal}", "process")
    assert (delivery.attempt, delivery.image, delivery.replayed) == (1, image, False)
    assert delivery.cluster_time is delivery.wall_time is delivery.session is None


async def test_create_passes_all_keywords_to_receivers(User: Any) -> None:
    log = Log(User)
    user = await User.objects.create(name="Ada")
    (before, pre), (after, post) = log
    assert (before, after) == ("pre_save", "post_save")
    assert pre == {"sender": User, "instance": user, "created": True}
    check_delivery(post.pop("delivery"), "post_save")
    assert post == {"sender": User, "instance": user, "created": True, "previous": None}
    assert pre["instance"] is post["instance"] is user


async def test_save_passes_all_keywords_to_receivers(User: Any) -> None:
    user = await User.objects.create(name="Ada", tags=["x"])
    log = Log(User)
    user.name = "Lovelace"
    user.tags.append("y")
    await user.save()
    (before, pre), (after, post) = log
    assert (before, after) == ("pre_save", "post_save")
    assert pre == {"sender": User, "instance": user, "created": False}
    check_delivery(post.pop("delivery"), "post_save")
    previous = post.pop("previous")
    assert isinstance(previous, User)
    assert (previous.id, previous.name, previous.tags) == (user.id, "Ada", ["x"])
    assert post == {"sender": User, "instance": user, "created": False}


async def test_update_passes_all_keywords_to_receivers(User: Any) -> None:
    user = await User.objects.create(name="Ada", age=1)
    log = Log(User)
    await user.update(age=2, last_name="Lovelace")
    (before, pre), (after, post) = log
    assert (before, after) == ("pre_update", "post_update")
    fields = frozenset({"age", "family"})
    assert pre == {"sender": User, "instance": user, "update_fields": fields}
    check_delivery(post.pop("delivery"), "post_update")
    previous = post.pop("previous")
    assert (previous.age, previous.family) == (1, None)
    assert post == {"sender": User, "instance": user, "update_fields": fields}
    assert type(pre["update_fields"]) is type(post["update_fields"]) is frozenset
    assert user.age == 2


async def test_delete_passes_all_keywords_to_receivers(User: Any) -> None:
    user = await User.objects.create(name="Ada")
    log = Log(User)
    assert await user.delete() == 1
    (before, pre), (after, post) = log
    assert (before, after) == ("pre_delete", "post_delete")
    assert pre == {"sender": User, "instance": user}
    check_delivery(post.pop("delivery"), "post_delete", image="pre")
    assert {"sender": User, "instance": user}.items() <= post.items()
    assert post.get("previous") is None


async def test_save_without_an_id_fires_like_create(User: Any) -> None:
    log = Log(User)
    await User(name="Ada").save()
    assert [(name, kwargs["created"]) for name, kwargs in log] == [("pre_save", True), ("post_save", True)]


async def test_post_receivers_see_the_written_document(User: Any, foreign: Any) -> None:
    seen = []

    @post_save(User)
    @post_update(User)
    @post_delete(User)
    async def look(sender: Any, instance: Any, **kwargs: Any) -> None:
        seen.append(foreign.users.find_one(instance.id))

    user = await User.objects.create(name="Ada")
    await user.update(age=5)
    await user.delete()
    assert [row and row["age"] for row in seen] == [0, 5, None]


async def test_a_change_of_previous_by_a_receiver_does_not_affect_the_instance(User: Any, foreign: Any) -> None:
    @post_update(User)
    async def meddle(sender: Any, previous: Any, **kwargs: Any) -> None:
        previous.payload["a"] = 2
        previous.tags.append("y")

    user = await User.objects.create(name="Ada", payload={"a": 1}, tags=["x"])
    await user.update(age=1)
    # If the snapshot changed too, this save would write nothing.
    user.payload["a"] = 2
    user.tags.append("y")
    await user.save()
    row = foreign.users.find_one()
    assert (row["payload"], row["tags"]) == ({"a": 2}, ["x", "y"])


# -- aborting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pre_save", "pre_update", "pre_delete"])
async def test_an_error_of_a_pre_receiver_reaches_the_caller_and_prevents_the_write(
    User: Any, foreign: Any, name: str
) -> None:
    user = await User.objects.create(name="Ada")
    rows = list(foreign.users.find())
    log, error = Log(User), ZeroDivisionError()
    getattr(User.signals, name).connect(raising(error))
    getattr(User.signals, name).connect(late := raising(KeyError("the first stops")))
    assert late in getattr(User.signals, name)
    user.age = 1
    calls = {
        "pre_save": [
            User(name="Eve").create,
            User(name="Eve").save,
            user.save,
            lambda: User.query.create(name="E"),
        ],
        "pre_update": [lambda: user.update(name="Eve")],
        "pre_delete": [user.delete],
    }[name]
    for call in calls:
        with pytest.raises(ZeroDivisionError) as caught:
            await call()
        assert caught.value is error
    assert list(foreign.users.find()) == rows
    assert set(log.names) == {name}
    assert (user.name, user.age) == ("Ada", 1)


@pytest.mark.parametrize("mute", [False, True])
async def test_a_failed_write_fires_no_post_signal(User: Any, mute: bool) -> None:
    user = await User.objects.create(name="Ada")
    copy = User(id=user.id, name="Copy")
    gone = await User.objects.create(name="Gone")
    await gone.delete()
    log = Log(User)
    calls = [
        (DuplicateKeyError, copy.create),
        (DocumentNotFound, gone.save),
        (DocumentNotFound, lambda: gone.update(age=1)),
        (DocumentNotFound, gone.delete),
    ]
    for error, call in calls:
        with pytest.raises(error):
            await call()
    assert log.names == ["pre_save", "pre_save", "pre_update", "pre_delete"]


# -- changing the instance ---------------------------------------------------------------------------


async def test_changes_by_a_pre_save_receiver_are_written(User: Any, foreign: Any) -> None:
    @pre_save(User)
    async def change(sender: Any, instance: Any, **kwargs: Any) -> None:
        instance.name = instance.name.upper()
        instance.tags.append("seen")
        instance.undeclared = {"kept": True}

    user = await User.objects.create(name="Ada")
    expected = {"name": "ADA", "tags": ["seen"], "undeclared": {"kept": True}}
    assert expected.items() <= foreign.users.find_one().items()
    user.age = 1
    await user.save()
    expected |= {"tags": ["seen", "seen"], "age": 1}
    assert expected.items() <= foreign.users.find_one().items()


async def test_invalid_changes_by_a_pre_save_receiver_are_not_written(User: Any, foreign: Any) -> None:
    @pre_save(User)
    async def change(sender: Any, instance: Any, **kwargs: Any) -> None:
        instance.tags.append(object())  # no assignment, so pydantic does not validate it

    with pytest.raises(ValidationError) as caught:
        await User.objects.create(name="Ada")
    assert caught.value.errors()[0]["loc"] == ("tags", 0)
    assert foreign.users.find_one() is None


async def test_changes_by_a_pre_update_receiver_are_written_with_the_update(User: Any, foreign: Any) -> None:
    user = await User.objects.create(
        name="Ada", tags=["x"], payload={"n": [1]}, extra="undeclared", address={"city": "Bonn"}
    )
    seen: list[Any] = []

    @pre_update(User)
    async def change(sender: Any, instance: Any, update_fields: Any, **kwargs: Any) -> None:
        seen.append((instance.age, instance.name))
        instance.name = "Lovelace"
        instance.tags.append("y")
        instance.payload["n"].append(2)
        instance.address.city = "Berlin"
        instance.added = 1
        del instance.extra

    log = Log(User)
    foreign.users.update_one({}, {"$set": {"last_name": "from elsewhere"}})
    await user.update(age=7)
    assert seen == [(7, "Ada")], "the receiver sees the new values"
    row = foreign.users.find_one()
    assert row.pop("_id") == user.id
    assert row == {
        "name": "Lovelace", "age": 7, "tags": ["x", "y"], "payload": {"n": [1, 2]}, "address": {"city": "Berlin"},
        "added": 1, "last_name": "from elsewhere",
    }  # fmt: skip
    written = {"age", "name", "tags", "payload", "address", "added", "extra"}
    assert log[-1][0] == "post_update"
    assert log[-1][1]["update_fields"] == written


# -- update restores the instance --------------------------------------------------------------------


async def test_a_failed_update_does_not_change_the_instance(User: Any, foreign: Any) -> None:
    user = await User.objects.create(name="Ada", tags=["x"], payload={"n": [1]}, address={"city": "Bonn"}, extra=1)
    user.age = 3  # an unsaved change, which must stay
    before, fields_set = user.model_dump(), set(user.model_fields_set)

    async def change_and_raise(sender: Any, instance: Any, **kwargs: Any) -> None:
        instance.name = "changed"
        instance.tags.append("y")
        instance.payload["n"].append(2)
        instance.address.city = "Berlin"
        instance.extra = instance.added = 2
        raise ZeroDivisionError

    async def make_invalid(sender: Any, instance: Any, **kwargs: Any) -> None:
        instance.tags.append(5)

    async def change(sender: Any, instance: Any, **kwargs: Any) -> None:
        instance.tags.append("z")

    async def cancel(sender: Any, instance: Any, **kwargs: Any) -> None:
        instance.tags.append("z")
        raise asyncio.CancelledError

    def unchanged() -> bool:
        return user.model_dump() == before and user.model_fields_set == fields_set

    for receiver, error in [
        (change_and_raise, ZeroDivisionError),
        (make_invalid, ValidationError),
        (cancel, asyncio.CancelledError),
    ]:
        User.signals.pre_update.connect(receiver)
        with pytest.raises(error):
            await user.update(name="Eve", family="x")
        User.signals.pre_update.disconnect(receiver)
        assert unchanged(), receiver
    for values, error in [
        ({"name": "x" * 21, "family": "fine"}, ValidationError),
        ({"name": "fine", "nmae": "Eve"}, InvalidKeyError),
        ({"id": bson.ObjectId()}, InvalidKeyError),
    ]:
        with pytest.raises(error):
            await user.update(**values)
        assert unchanged(), values
    assert foreign.users.find_one()["name"] == "Ada"

    foreign.users.delete_many({})
    User.signals.pre_update.connect(change)
    with pytest.raises(DocumentNotFound):
        await user.update(name="Eve")
    assert unchanged()


# -- errors of post receivers ------------------------------------------------------------------------


async def test_all_post_receivers_run_and_then_their_errors_reach_the_caller(User: Any, foreign: Any) -> None:
    first, second = ZeroDivisionError(), KeyError()
    User.signals.post_save.connect(raising(first))
    log = Log(User)
    with pytest.raises(ZeroDivisionError) as caught:
        await User.objects.create(name="Ada")
    assert caught.value is first
    assert log.names == ["pre_save", "post_save"]

    User.signals.post_save.connect(raising(second))
    user = await User.objects.get()
    user.name = "the write stands"
    with pytest.raises(ExceptionGroup) as group:
        await user.save()
    assert group.value.exceptions == (first, second)
    assert foreign.users.find_one()["name"] == "the write stands"


async def test_an_instance_whose_post_receiver_raised_is_stored(User: Any, foreign: Any) -> None:
    User.signals.post_save.connect(raising(ZeroDivisionError()))
    user = User(name="Ada")
    with pytest.raises(ZeroDivisionError):
        await user.create()
    assert user.id == foreign.users.find_one()["_id"]
    User.signals.post_update.connect(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        await user.update(age=4)
    assert user.age == foreign.users.find_one()["age"] == 4


# -- muting ------------------------------------------------------------------------------------------


async def test_muted_writes_fire_nothing_and_are_written(User: Any, foreign: Any) -> None:
    log = Log(User)
    with muted():
        user = await User.objects.create(name="Ada")
        await user.update(age=1)
        user.name = "Eve"
        await user.save()
        assert foreign.users.find_one()["name"] == "Eve"
        await user.delete()
    assert log == []
    await User.objects.create(name="Ada")
    assert log.names == ["pre_save", "post_save"]


async def test_only_the_named_signals_are_muted(User: Any) -> None:
    log = Log(User)
    with muted(User, "post_save"):
        await (await User.objects.create(name="Ada")).delete()
    assert log.names == ["pre_save", "pre_delete", "post_delete"]


# -- the stamp ---------------------------------------------------------------------------------------


async def test_without_a_dispatcher_not_a_byte_is_added(User: Any, foreign: Any) -> None:
    Log(User)
    user = await User.objects.create(name="Ada")
    await user.update(age=1)
    user.name = "Eve"
    with muted():
        await user.save()
    row = {
        "_id": user.id, "name": "Eve", "age": 1, "tags": [], "payload": None, "address": None, "last_name": None,
    }  # fmt: skip
    raw = foreign.get_collection(
        "users", codec_options=bson.CodecOptions(document_class=bson.raw_bson.RawBSONDocument)
    )
    stored = raw.find_one()
    assert bson.decode(stored.raw) == row
    assert len(stored.raw) == len(bson.encode(row))


async def test_writes_without_receivers_have_no_stamp(Stamped: Any, foreign: Any) -> None:
    user = await Stamped.objects.create(name="Ada")
    await user.update(age=1)
    assert FIELD not in foreign.users.find_one()


async def test_receivers_of_the_dispatcher_alone_need_no_stamp(Stamped: Any, foreign: Any) -> None:
    called = []

    @post_save(Stamped, delivery="dispatcher", name="later")
    @post_update(Stamped, delivery="dispatcher", name="later")
    async def later(sender: Any, **kwargs: Any) -> None:
        called.append(kwargs)

    user = await Stamped.objects.create(name="Ada")
    await user.update(age=1)
    assert FIELD not in foreign.users.find_one()
    assert called == []


async def test_a_write_with_only_a_pre_receiver_has_no_stamp(Stamped: Any, foreign: Any) -> None:
    Stamped.signals.pre_save.connect(seen := idle_receiver())
    assert seen in Stamped.signals.pre_save
    await Stamped.objects.create(name="Ada")
    assert FIELD not in foreign.users.find_one()


def idle_receiver() -> Any:
    async def receive(sender: Any, **kwargs: Any) -> None:
        pass

    return receive


async def test_save_is_always_stamped_because_the_server_sees_an_update(
    Stamped: Any, foreign: Any, database: str
) -> None:
    user = await Stamped.objects.create(name="Ada")
    user.name = "Eve"
    await user.save()
    stamp = stamp_of(foreign.users.find_one())
    assert stamp is not None
    assert stamp.call is Call.SAVED
    assert stamp.receivers == frozenset()
    assert not stamp.muted


async def test_the_stamp_names_the_receivers_that_this_process_runs(
    Stamped: Any, foreign: Any, database: str
) -> None:
    log = Log(Stamped)

    @post_save(Stamped, delivery="process", name="here")
    @post_update(Stamped, delivery="process", name="here")
    async def here(sender: Any, **kwargs: Any) -> None:
        pass

    @post_save(Stamped, delivery="dispatcher", name="there")
    @post_update(Stamped, delivery="dispatcher", name="there")
    async def there(sender: Any, **kwargs: Any) -> None:
        pass

    user = await Stamped.objects.create(name="Ada")
    calls = [
        (Call.CREATED, "post_save", lambda: asyncio.sleep(0)),
        (Call.UPDATED, "post_update", lambda: user.update(age=1)),
        (Call.SAVED, "post_save", user.save),
    ]
    tokens = set()
    for call, signal, write in calls:
        await write()
        stamp = stamp_of(foreign.users.find_one())
        assert stamp is not None
        sender = f"{Stamped.__module__}.{Stamped.__qualname__}"
        assert stamp == Stamp(
            group=database,
            call=call,
            token=bson.ObjectId(log[-1][1]["delivery"].id),
            key=key_hash(f"{database}.users", user.id),
            receivers=frozenset(receiver_id((sender, signal, name)) for name in (f"log.{signal}", "here")),
            muted=False,
        )
        tokens.add(stamp.token)
    assert len(tokens) == 3


async def test_the_stamp_of_a_muted_write_says_that_it_is_muted(Stamped: Any, foreign: Any) -> None:
    Log(Stamped)
    with muted():
        user = await Stamped.objects.create(name="Ada")
        created = stamp_of(foreign.users.find_one())
        await user.update(age=1)
        updated = stamp_of(foreign.users.find_one())
        await user.save()
        saved = stamp_of(foreign.users.find_one())
    assert [(s.call, s.muted, s.receivers) for s in (created, updated, saved) if s] == [
        (call, True, frozenset()) for call in (Call.CREATED, Call.UPDATED, Call.SAVED)
    ]


async def test_muting_other_signals_does_not_mute_post_save(Stamped: Any, foreign: Any) -> None:
    Log(Stamped)
    with muted("post_delete", "pre_save"):
        await Stamped.objects.create(name="Ada")
    stamp = stamp_of(foreign.users.find_one())
    assert stamp is not None
    assert not stamp.muted
    assert len(stamp.receivers) == 1


async def test_no_instance_shows_the_stamp(Stamped: Any, foreign: Any) -> None:
    log = Log(Stamped)
    created = await Stamped.objects.create(name="Ada")
    await created.update(age=1)
    created.name = "Eve"
    await created.save()
    assert FIELD in foreign.users.find_one()
    instances = [
        created,
        await Stamped.objects.get(),
        await Stamped.get_document_by_id(created.id),
        *[user async for user in Stamped.query()],
        *(kwargs["instance"] for _, kwargs in log),
        *(kwargs["previous"] for _, kwargs in log if kwargs.get("previous")),
    ]
    for instance in instances:
        assert FIELD not in instance.model_dump()
        assert FIELD not in instance.model_dump_json()
        assert FIELD not in dict(instance)
        assert FIELD not in repr(instance)
        assert FIELD not in instance.model_fields_set
        assert not hasattr(instance, FIELD)
    assert instances[0] == instances[1] == instances[2]
    for _, kwargs in log:
        assert FIELD not in kwargs.get("update_fields", ())


async def test_the_stamp_of_another_write_is_neither_written_back_nor_removed(Stamped: Any, foreign: Any) -> None:
    with muted():
        await Stamped.objects.create(name="Ada")
    before = foreign.users.find_one()[FIELD]
    await (await Stamped.objects.get()).update(age=1)
    assert foreign.users.find_one()[FIELD] == before
