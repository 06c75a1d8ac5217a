"""Bulk writes: one command without receivers, bounded batches with receivers, and errors."""

import asyncio
import warnings
from typing import Any

import bson
import pytest
from pydantic import ValidationError
from pymongo import monitoring
from pymongo.errors import AutoReconnect, BulkWriteError, DuplicateKeyError

import mongoz
from mongoz import U
from mongoz.exceptions import InvalidKeyError, MultipleDocumentsReturned, OperatorInvalid
from mongoz.persistence.bulk.selection import BATCH
from mongoz.signals import muted
from mongoz.stamps import FIELD, Stamp


class Commands(monitoring.CommandListener):
    """The names and sizes of the commands that a client sends."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.sizes: list[int] = []

    def started(self, event: Any) -> None:
        if event.command_name not in ("hello", "endSessions"):
            self.sent.append(event.command_name)
            self.sizes += [len(event.command[k]) for k in ("documents", "updates") if k in event.command]

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


class Address(mongoz.EmbeddedDocument):
    city: str = mongoz.String()


def make(registry: mongoz.Registry, database: str) -> Any:
    class User(mongoz.Document):
        name: str = mongoz.String(max_length=20)
        age: int = mongoz.Integer(default=0)
        tags: list[str] = mongoz.Array(str, default=list)
        nick: str = mongoz.String(null=True, alias="nickname")
        address: Any = mongoz.Embed(Address, null=True)
        seen: Any = mongoz.DateTime(auto_now=True)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    return User


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
async def User(mongo: Any, database: str, commands: Commands) -> Any:
    from pymongo import AsyncMongoClient

    async with AsyncMongoClient(mongo.url, event_listeners=[commands], uuidRepresentation="standard") as client:
        yield make(mongoz.Registry(client), database)


async def ignore(sender: Any, **kwargs: Any) -> None:
    pass


# -- one round trip ----------------------------------------------------------------------------------


async def test_without_receivers_each_bulk_call_is_one_command(User, commands, foreign):
    models = [User(name=f"u{n}") for n in range(1500)]
    assert await User.create_many(models) == models
    assert all(isinstance(model.id, bson.ObjectId) for model in models)
    assert await User.objects.filter(age=0).update_count(age=1) == 1500
    assert await User.objects.filter(age=1).delete() == 1500
    assert commands.sent == ["insert", "update", "delete"]
    assert foreign.users.count_documents({}) == 0


async def test_update_without_receivers_loads_the_documents_that_matched(User, commands):
    await User.create_many([User(name="a", age=1), User(name="b", age=1), User(name="c", age=2)])
    commands.sent.clear()
    updated = await User.objects.filter(age=1).sort("name", -1).update(age=5, nick="x")
    assert [(u.name, u.age, u.nick) for u in updated] == [("b", 5, "x"), ("a", 5, "x")]
    assert commands.sent == ["find", "update", "find"]


# -- batches -----------------------------------------------------------------------------------------


async def test_with_receivers_batches_are_bounded(User, commands):
    count = 2 * BATCH + 10
    in_memory: set[int] = set()
    most = 0

    async def watch(sender: Any, instance: Any, **kwargs: Any) -> None:
        nonlocal most
        in_memory.add(id(instance))
        most = max(most, len(in_memory))

    async def written(sender: Any, instance: Any, **kwargs: Any) -> None:
        in_memory.discard(id(instance))

    await User.create_many([User(name=f"u{n}") for n in range(count)])
    User.signals.pre_update.connect(watch)
    User.signals.post_update.connect(written)
    commands.sizes.clear()
    assert await User.objects.update_count(age=1) == count
    assert most <= BATCH
    assert commands.sizes == [BATCH, BATCH, 10]


async def test_an_update_of_the_filtered_field_writes_each_document_once(User, foreign):
    foreign.users.create_index("age")
    await User.create_many([User(name=f"u{n}", age=n) for n in range(BATCH + 50)])
    visited: list[Any] = []

    async def push(sender: Any, instance: Any, **kwargs: Any) -> None:
        visited.append(instance.id)
        instance.age += 10_000

    User.signals.pre_update.connect(push)
    await User.objects.filter(age__gte=0).update_count(nick="x")
    assert len(visited) == len(set(visited)) == BATCH + 50


async def test_creating_with_receivers_is_batched(User, commands):
    User.signals.post_save.connect(ignore)
    await User.create_many([User(name=f"u{n}") for n in range(BATCH + 1)])
    assert commands.sizes == [BATCH, 1]


# -- written values ----------------------------------------------------------------------------------


async def test_an_invalid_value_prevents_the_write(User, foreign):
    await User.objects.create(name="a")
    for bad in ({"age": "x"}, {"name": "x" * 21}, {"address": {"town": "Bonn"}}, {"name": None}):
        with pytest.raises(ValidationError) as caught:
            await User.objects.update(**bad)
        assert caught.value.errors()[0]["loc"][0] == next(iter(bad))
    assert foreign.users.find_one()["name"] == "a"


async def test_unknown_names_are_refused(User, foreign):
    await User.objects.create(name="a")
    before = foreign.users.find_one()
    with pytest.raises(InvalidKeyError, match=r"no field 'agee'.*'age'"):
        await User.objects.update(agee=3, name="b")
    with pytest.raises(InvalidKeyError, match="The id of a User can't be updated"):
        await User.objects.update_count(id=3)
    assert foreign.users.find_one() == before


async def test_update_count_takes_aliases_and_dicts_and_sets_auto_now(User, foreign):
    await User.objects.create(name="a")
    before = foreign.users.find_one()["seen"]
    foreign.users.update_one({}, {"$set": {"seen": before.replace(year=2000)}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await User.objects.update_count(nickname="n", address={"city": "Bonn"})
    row = foreign.users.find_one()
    assert (row["nickname"], row["address"]) == ("n", {"city": "Bonn"})
    assert row["seen"] >= before


@pytest.mark.parametrize("heard", [False, True])
async def test_operations_change_all_documents_of_a_query(User, foreign, heard):
    if heard:
        User.signals.post_update.connect(ignore)
    await User.create_many([User(name="a", age=1, tags=["x", "y", "x"]), User(name="b", age=5, tags=["z"])])
    users = await User.objects.sort("name").update(U.inc(User.age, 2), U.push("tags", "p", "q"), U.unset("nick"))
    assert [(u.age, u.tags, u.nick) for u in users] == [
        (3, ["x", "y", "x", "p", "q"], None),
        (7, ["z", "p", "q"], None),
    ]
    assert all("nickname" not in row for row in foreign.users.find())
    assert await User.objects.filter(name="a").update_count(U.pull("tags", "x", "q"), U.min(age=2)) == 1
    row = foreign.users.find_one({"name": "a"})
    assert (row["tags"], row["age"]) == (["y", "p"], 2)
    await User.objects.filter(name="a").update_count(U.add_to_set("tags", "y", "new"), U.max(age=9))
    row = foreign.users.find_one({"name": "a"})
    assert (row["tags"], row["age"]) == (["y", "p", "new"], 9)


async def test_operations_change_the_stored_values_and_the_instance(User, foreign):
    told = []

    async def updated(sender: Any, instance: Any, update_fields: Any, **kwargs: Any) -> None:
        told.append((update_fields, instance.age, list(instance.tags)))

    User.signals.post_update.connect(updated)
    ada = await User.objects.create(name="ada", age=1, nick="a")
    foreign.users.update_one({}, {"$set": {"age": 10}})
    await ada.update(U.inc(age=1), U.push(tags="t"), U.unset(User.nick), name="Ada")
    assert (ada.name, ada.age, ada.tags, ada.nick) == ("Ada", 11, ["t"], None)
    assert told == [(frozenset({"name", "age", "tags", "nick", "seen"}), 11, ["t"])]
    await ada.save()
    assert foreign.users.find_one()["age"] == 11


async def test_invalid_operations_are_refused(User, foreign):
    ada = await User.objects.create(name="ada")
    for change, error in (
        (U.inc(agee=1), InvalidKeyError),
        (U.inc(id=1), InvalidKeyError),
        (U.unset("name"), InvalidKeyError),
        (U.inc(age="1"), OperatorInvalid),
        (U.inc(age=0.5), OperatorInvalid),
        (U.push(tags=3), ValidationError),
        (U.max(age="x"), ValidationError),
        ({"$inc": {"age": 1}}, OperatorInvalid),
    ):
        with pytest.raises(error):
            await ada.update(change)
        with pytest.raises(error):
            await User.objects.update(change)
    with pytest.raises(InvalidKeyError, match="twice"):
        await ada.update(U.inc(age=1), U.max(age=1))
    assert foreign.users.find_one()["age"] == 0


@pytest.mark.parametrize("value", [{"$each": ["x"]}, {"$gt": ""}, {"a": 1}, ["$x"]])
async def test_values_of_operations_are_literal(registry, database, foreign, value):
    class Thing(mongoz.Document):
        items: list[Any] = mongoz.Array(Any, default=list)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    thing = await Thing.objects.create(items=["keep"])
    await thing.update(U.push(items=value))
    await thing.update(U.add_to_set(items=value))
    assert foreign.things.find_one()["items"] == ["keep", value]
    await thing.update(U.pull(items=value))
    assert foreign.things.find_one()["items"] == ["keep"]


# -- failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("heard", [False, True])
async def test_a_duplicate_key_error_has_the_number_of_written_documents(User, foreign, heard):
    told = []

    async def saved(sender: Any, instance: Any, **kwargs: Any) -> None:
        told.append(instance.name)

    if heard:
        User.signals.post_save.connect(saved)
    foreign.users.create_index("name", unique=True)
    models = [User(name=name) for name in ("a", "b", "a", "c")]
    with pytest.raises(BulkWriteError) as caught:
        await User.create_many(models)
    assert "Before this error 2 documents were created" in " ".join(caught.value.__notes__)
    assert [model.id is not None for model in models] == [True, True, False, False]
    assert told == (["a", "b"] if heard else [])
    assert foreign.users.count_documents({}) == 2


async def test_an_error_in_a_transaction_reports_no_written_documents(registry, database, foreign):
    User = make(registry, database)
    foreign.users.create_index("name", unique=True)
    with pytest.raises(BulkWriteError) as caught:
        async with registry.transaction():
            await User.create_many([User(name="a"), User(name="a")])
    assert getattr(caught.value, "__notes__", []) == []
    assert foreign.users.count_documents({}) == 0


async def test_an_update_also_unsets_an_undeclared_key_that_a_receiver_has_removed(registry, database, foreign):
    User = make(registry, database)

    async def remove(sender: Any, instance: Any, **kwargs: Any) -> None:
        instance.__pydantic_extra__.pop("undeclared", None)

    User.signals.pre_update.connect(remove)
    for update in (lambda ada: ada.update(U.unset("nick")), lambda ada: User.objects.update(U.unset("nick"))):
        foreign.users.delete_many({})
        foreign.users.insert_one({"name": "ada", "nickname": "n", "undeclared": 1})
        await update(await User.objects.get())
        row = foreign.users.find_one()
        assert "nickname" not in row
        assert "undeclared" not in row


async def test_values_that_are_not_instances_are_refused_before_any_write(User, foreign):
    for wrong in ({"name": "a"}, None, Address(city="x")):
        with pytest.raises(TypeError, match=r"create_many\(\) takes instances of User"):
            await User.create_many([User(name="ok"), wrong])
    assert foreign.users.count_documents({}) == 0
    assert await User.create_many([]) == []


def lose_connections(foreign: Any, command: str, times: int) -> None:
    data = {"failCommands": [command], "closeConnection": True, "appName": "victim"}
    foreign.client.admin.command("configureFailPoint", "failCommand", mode={"times": times}, data=data)


@pytest.fixture
async def victim(mongo: Any, database: str, foreign: Any) -> Any:
    """A document class whose client is the only target of the fail point."""
    async with mongoz.Registry(f"{mongo.url}&appName=victim") as registry:
        yield make(registry, database)
    foreign.client.admin.command("configureFailPoint", "failCommand", mode="off")


async def test_an_error_of_a_lost_connection_has_the_number_of_written_documents(victim, foreign):
    told = []

    async def saved(sender: Any, instance: Any, **kwargs: Any) -> None:
        told.append(instance.name)
        if len(told) == BATCH:
            lose_connections(foreign, "insert", 2)  # the driver sends the insert twice

    victim.signals.post_save.connect(saved)
    models = [victim(name=f"u{n}") for n in range(BATCH + 5)]
    with pytest.raises(AutoReconnect) as caught:
        await victim.create_many(models)
    assert f"Before this error {BATCH} documents were created" in " ".join(caught.value.__notes__)
    assert len(told) == foreign.users.count_documents({}) == BATCH
    assert [model.id is None for model in models[-6:]] == [False, True, True, True, True, True]


async def test_a_cursor_closed_by_the_server_is_opened_again(victim, foreign):
    """The server closes an idle cursor after ten minutes; receivers may need that long for a batch."""
    ids = [
        *range(BATCH - 10),
        *(f"s{number:03}" for number in range(20)),
        *(bson.ObjectId() for _ in range(BATCH)),
    ]
    foreign.users.insert_many([{"_id": id_, "name": "u"} for id_ in ids])
    told = []

    async def updated(sender: Any, instance: Any, **kwargs: Any) -> None:
        told.append(instance.id)
        if len(told) in (BATCH, 2 * BATCH):
            gone = {"failCommands": ["getMore"], "errorCode": 43, "appName": "victim"}
            foreign.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=gone)

    class AnyId(victim):
        id: Any = mongoz.Object(alias="_id", default=None)

        class Meta:
            collection = "users"

    AnyId.signals.post_update.connect(updated)
    assert await AnyId.objects.filter(age__neq=1).update_count(age=1) == len(ids)
    assert told == ids
    assert foreign.users.count_documents({"age": 1}) == len(ids)


async def test_an_error_of_a_receiver_does_not_stop_its_calls_for_other_documents(User, foreign):
    told = []

    async def fail(sender: Any, instance: Any, **kwargs: Any) -> None:
        told.append(instance.name)
        raise ValueError(instance.name)

    User.signals.post_save.connect(fail)
    with pytest.raises(ExceptionGroup) as caught:
        await User.create_many([User(name="a"), User(name="b")])
    assert [str(error) for error in caught.value.exceptions] == ["a", "b"]
    assert told == ["a", "b"]


# -- stamps ------------------------------------------------------------------------------------------


async def test_a_bulk_write_stamps_each_document_if_a_receiver_runs_or_the_write_is_muted(
    dispatched, database, foreign
):
    User = make(dispatched, database)
    await User.create_many([User(name="a"), User(name="b")])
    await User.objects.update_count(age=1)
    assert all(FIELD not in row for row in foreign.users.find())  # no receiver runs here
    User.signals.post_update.connect(ignore, name="ignore")
    await User.objects.update_count(age=2)
    stamps = [Stamp.unpack(row[FIELD]) for row in foreign.users.find()]
    assert len({stamp.token for stamp in stamps}) == len({stamp.key for stamp in stamps}) == 2
    with muted():
        await User.objects.update_count(age=3)
    assert all(Stamp.unpack(row[FIELD]).muted for row in foreign.users.find())


# -- get_or_create -----------------------------------------------------------------------------------


async def test_get_or_create_finds_one_document_or_creates_it(User, foreign):
    made = await User.objects.filter(name="a", **{"address.city": "Bonn"}).get_or_create(
        {User.age: 4, "nick": "n"}
    )
    row = foreign.users.find_one()
    assert (row["name"], row["age"], row["nickname"], row["address"]) == ("a", 4, "n", {"city": "Bonn"})
    again = await User.query({User.name: "a"}).get_or_create({User.age: 9})
    assert (again.id, again.age) == (made.id, 4)
    assert again == await User.objects.get_or_create(defaults={"age": 1}, name="a")
    by_expression = await User.query(User.name == "b").get_or_create()
    assert by_expression.name == "b"
    with pytest.raises(ValidationError):
        await User.objects.get_or_create({"age": "x"}, name="c")
    await User.objects.create(name="b")
    with pytest.raises(MultipleDocumentsReturned):
        await User.objects.get_or_create(name="b")


async def test_get_or_create_is_atomic_with_a_unique_index(User, foreign):
    foreign.users.create_index("name", unique=True)
    saved = []

    async def count(sender: Any, instance: Any, **kwargs: Any) -> None:
        saved.append(instance.id)

    User.signals.post_save.connect(count)
    made = await asyncio.gather(*(User.objects.get_or_create({"age": n}, name="one") for n in range(20)))
    assert len({user.id for user in made}) == 1
    assert saved == [made[0].id]


async def test_get_or_create_raises_a_duplicate_key_error_of_another_field(User, foreign):
    foreign.users.create_index("age", unique=True)
    await User.objects.create(name="a", age=1)
    with pytest.raises(DuplicateKeyError):
        await User.objects.get_or_create({"age": 1}, name="b")


async def test_a_collection_may_be_an_object_of_mongoz_or_of_the_driver(User, foreign):
    elsewhere = User.meta.database.get_collection("elsewhere")
    await User(name="a").create(elsewhere)
    await User.create_many([User(name="b")], collection=elsewhere._collection)
    assert sorted(row["name"] for row in foreign.elsewhere.find()) == ["a", "b"]
    with pytest.raises(TypeError, match="not 'elsewhere'"):
        await User(name="c").create("elsewhere")
