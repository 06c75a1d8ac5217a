"""`Meta.watch` on a real server: documents in several collections and databases, and images of their changes."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient, UpdateOne

import mongoz
from dispatcher.stream.scope import scope_of
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.exceptions import ImproperlyConfigured
from tests.support import dispatching, eventually

IMAGES = {"changeStreamPreAndPostImages": {"enabled": True}}


class Seen(list[SimpleNamespace]):
    """The calls of the receivers, in order."""

    async def wait(self, count: int) -> "Seen":
        await eventually(lambda: len(self) >= count, what=f"{count} deliveries")
        return self

    async def wait_for_end(self, name: str = "end") -> None:
        await eventually(lambda: any(self.name_of(call) == name for call in self), what=f"{name!r} is delivered")

    @staticmethod
    def name_of(call: SimpleNamespace) -> Any:
        return call.instance.__dict__.get("name")

    def names(self) -> list[Any]:
        return [self.name_of(call) for call in self]


def make_user(registry: mongoz.Registry, database: str, seen: Seen, *, delivery: Any = "any", **meta: Any) -> Any:
    class User(mongoz.Document):
        name: str = mongoz.String(max_length=40)
        age: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), {"registry": registry, "database": database, **meta})

    async def watcher(sender: Any, **kwargs: Any) -> None:
        seen.append(SimpleNamespace(sender=sender, **kwargs))

    for connect in (post_save, post_update, post_delete):
        connect(User, name="watcher", delivery=delivery)(watcher)
    return User


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def server(_sync_client: MongoClient, database: str) -> Iterator[MongoClient]:
    """The server through a plain client; removes further databases of the test afterwards."""
    yield _sync_client
    for name in _sync_client.list_database_names():
        if name.startswith(f"{database}_"):
            _sync_client.drop_database(name)


async def test_matching_collections_of_one_database_are_watched(dispatched, database, server, seen):
    make_user(dispatched, database, seen, watch=[f"{database}.users_*", f"{database}.old.members"])
    home = server[database]
    async with dispatching(dispatched) as running:
        assert scope_of(running.service.routes).database == database  # no change stream on the whole deployment
        for collection in ("users", "users_2024", "users_a.b", "old.members"):
            home[collection].insert_one({"name": collection})
        for collection in ("users2", "my_users_1", "old.members2", "oldxmembers"):
            home[collection].insert_one({"name": collection})
        await seen.wait(4)
        home["users"].insert_one({"name": "end"})
        await seen.wait_for_end()
    assert sorted(seen.names()) == ["end", "old.members", "users", "users_2024", "users_a.b"]


async def test_matching_databases_are_watched(dispatched, database, server, seen):
    make_user(dispatched, database, seen, watch=[f"{database}_t.*", f"{database}_x*", f"{database}_arch.people"])
    async with dispatching(dispatched, state_database=f"{database}_xstate"):
        # The pattern matches the state database, but changes of that database must not be delivered.
        server[f"{database}_xstate"]["users"].insert_one({"name": "state"})
        server[f"{database}_y"]["users"].insert_one({"name": "another database"})
        server[f"{database}_x1"]["people"].insert_one({"name": "another collection"})
        wanted = [
            (database, "users"),
            (f"{database}_x1", "users"),
            (f"{database}_x2", "users"),
            (f"{database}_t", "a.b"),
            (f"{database}_arch", "people"),
        ]
        for place in wanted:
            server[place[0]][place[1]].insert_one({"name": "Ada"})
        await seen.wait(5)
        server[f"{database}_x1"]["users"].insert_one({"name": "end"})
        await seen.wait_for_end()
    assert seen.names() == ["Ada"] * 5 + ["end"]


async def test_a_save_in_a_receiver_goes_to_the_collection_of_the_change(dispatched, database, server, seen):
    user = make_user(dispatched, database, seen, watch=[f"{database}_t*"])
    own, tenant = server[database]["users"], server[f"{database}_t1"]["users"]
    id_ = ObjectId()

    async def mark(sender: Any, instance: Any, **kwargs: Any) -> None:
        if instance.age == 0:
            instance.age = 1
            await instance.save()

    post_save(user, name="mark")(mark)
    async with dispatching(dispatched):
        for collection in (own, tenant):
            collection.insert_one({"_id": id_, "name": "Ada"})
        await eventually(lambda: all(c.find_one({"_id": id_, "age": 1}) for c in (own, tenant)))
        tenant.delete_one({"_id": id_})
        await eventually(lambda: any(call.delivery.signal == "post_delete" for call in seen))
    # Only the id and the collection of a deleted document are known.
    (deleted,) = [call for call in seen if call.delivery.signal == "post_delete"]
    tenant.insert_one({"_id": id_, "name": "again"})
    assert await deleted.instance.delete() == 1
    # One _id in two collections means two documents.
    assert [own.count_documents({"age": 1}), tenant.count_documents({})] == [1, 0]


async def test_previous_and_deleted_instances_know_their_collection(dispatched, database, server, seen):
    make_user(dispatched, database, seen, watch=[f"{database}_t.users"])
    tenant = server[f"{database}_t"]
    tenant.create_collection("users", **IMAGES)
    async with dispatching(dispatched):
        id_ = tenant["users"].insert_one({"name": "Ada"}).inserted_id
        tenant["users"].update_one({"_id": id_}, {"$set": {"name": "Bea"}})
        tenant["users"].delete_one({"_id": id_})
        _, updated, deleted = await seen.wait(3)
    tenant["users"].insert_one({"_id": id_, "name": "again"})
    updated.previous.age = 7
    await updated.previous.save()
    assert tenant["users"].find_one({"_id": id_})["age"] == 7
    assert deleted.instance.name == "Bea"
    assert await deleted.instance.delete() == 1
    assert server[database]["users"].count_documents({}) == 0


async def test_own_writes_to_a_watched_collection_are_not_delivered_twice(dispatched, database, server, seen):
    user = make_user(dispatched, database, seen, watch=[f"{database}_t*"])
    tenant = dispatched.get_database(f"{database}_t1").get_collection("users")
    async with dispatching(dispatched):
        ada = await user(name="Ada").create(collection=tenant)
        ada.age = 36
        await ada.save()
        server[f"{database}_t1"]["users"].update_one({"_id": ada.id}, {"$set": {"name": "end"}})
        await seen.wait_for_end()
    assert [call.delivery.origin for call in seen] == ["process", "process", "stream"]


CALLS = {
    "create": lambda query, user: query.create(name="Bea"),
    "create_many": lambda query, user: query.create_many([user(name="Bea"), user(name="Cleo")]),
    "bulk_create": lambda query, user: query.bulk_create([user(name="Bea")]),
    "get_or_create": lambda query, user: query.filter(name="Bea").get_or_create({"age": 1}),
    "update_or_create": lambda query, user: query.filter(name="Bea").update_or_create({"age": 1}),
    "update": lambda query, user: query.update(age=1),
    "update_many": lambda query, user: query.update_many(age=1),
    "update_count": lambda query, user: query.update_count(age=1),
    "delete": lambda query, user: query.delete(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_writes_to_an_unwatched_collection_are_refused(dispatched, database, server, seen, call):
    user = make_user(dispatched, database, seen, delivery="dispatcher", watch=[f"{database}_t*"])
    elsewhere, watched = server[f"{database}_z"]["users"], server[f"{database}_t1"]["users"]
    for collection in (elsewhere, watched):
        collection.insert_one({"name": "Ada", "age": 0})
    with pytest.raises(ImproperlyConfigured, match=rf"{database}_z\.users.*'watcher'.*Meta\.watch"):
        await CALLS[call](user.objects.using(f"{database}_z"), user)
    assert [(row["name"], row["age"]) for row in elsewhere.find()] == [("Ada", 0)]
    async with dispatching(dispatched):
        await CALLS[call](user.objects.using(f"{database}_t1"), user)
        (told, *_) = await seen.wait(1)
    assert told.delivery.origin == "stream"


async def test_instances_of_an_unwatched_collection_are_not_written(dispatched, database, server, seen):
    user = make_user(dispatched, database, seen, delivery="dispatcher")
    elsewhere = dispatched.get_database(f"{database}_z").get_collection("users")
    with pytest.raises(ImproperlyConfigured, match=r"Meta\.watch"):
        await user(name="Ada").create(collection=elsewhere)
    with pytest.raises(ImproperlyConfigured, match=r"Meta\.watch"):
        await user(name="Ada").save(collection=elsewhere)
    assert f"{database}_z" not in server.list_database_names()
    server[f"{database}_z"]["users"].insert_one({"name": "Ada", "age": 0})
    ada = await user.objects.using(f"{database}_z").get()
    for change in (ada.save, ada.delete):
        ada.age = 5
        with pytest.raises(ImproperlyConfigured, match=r"Meta\.watch"):
            await change()
    with pytest.raises(ImproperlyConfigured, match=r"Meta\.watch"):
        await ada.update(age=1)
    assert server[f"{database}_z"]["users"].find_one()["age"] == 0


async def test_drops_of_matching_databases_are_reported(dispatched, database, server, seen, capsys):
    make_user(dispatched, database, seen, watch=[f"{database}_t*"])
    for name in (f"{database}_t1", f"{database}_y"):
        server[name]["users"].insert_one({"name": "Ada"})
    async with dispatching(dispatched):
        for name in (f"{database}_t1", f"{database}_y"):
            server.drop_database(name)
        server[database]["users"].insert_one({"name": "end"})
        await seen.wait_for_end()
    said = [line for line in capsys.readouterr().out.splitlines() if "gap.recorded" in line]
    assert any(f"{database}_t1.users" in line for line in said)
    assert not any(f"{database}_y" in line for line in said)


ODD = [
    "log{2024}",
    "a{1,2}b",
    "é{2,}",
    "a.b*",
    "x|y",
    "(x)?",
    "^x",
    "[x]+",
    "x\\y",
    "x{",
    "it's",
    'say "x"',
    "x\ny",
    "\\Qa{2}\\E",
]


async def test_collection_names_that_look_like_regular_expressions_are_literal(dispatched, database, server, seen):
    """Change streams build regular expressions from names."""
    for name in ODD:
        make_user(dispatched, database, seen, collection=name)
    async with dispatching(dispatched) as running:
        assert scope_of(running.service.routes).database == database
        for name in ODD:
            server[database][name].insert_one({"name": name})
        server[database]["loggg"].insert_one({"name": "nobody's"})
        await seen.wait(len(ODD))
    assert sorted(seen.names()) == sorted(ODD)


@pytest.mark.parametrize("name", ["{2}", "'{1,}", "(x)+"])
async def test_database_names_that_look_like_regular_expressions_are_literal(
    dispatched, database, server, seen, name
):
    odd = f"{database}_{name}"
    make_user(dispatched, odd, seen, collection=name)
    async with dispatching(dispatched):
        server[odd][name].insert_one({"name": "Ada"})
        await seen.wait(1)
        server.drop_database(odd)
        await eventually(lambda: [gap["kind"] for gap in _gaps(server, database)] == ["drop", "dropDatabase"])


@pytest.mark.parametrize("name", ["log{2024}", "it's"])
async def test_renames_and_replacements_of_oddly_named_collections_are_gaps(
    dispatched, database, server, seen, name
):
    make_user(dispatched, database, seen, collection=name)
    home = server[database]
    async with dispatching(dispatched):
        home["others"].insert_one({"name": "Ada"})
        home["others"].rename(name)
        await eventually(lambda: [gap["kind"] for gap in _gaps(server, database)] == ["rename"])
        home[name].rename("elsewhere")
        await eventually(lambda: [gap["kind"] for gap in _gaps(server, database)] == ["rename"] * 2)
        list(home["elsewhere"].aggregate([{"$out": name}]))
        await eventually(lambda: [gap["kind"] for gap in _gaps(server, database)] == ["rename"] * 2 + ["out"])


async def test_patterns_with_special_characters_are_literal(dispatched, database, server, seen):
    make_user(
        dispatched,
        database,
        seen,
        watch=[f"{database}.log{{2024}}*", f"{database}.it's_*", f"{database}_d{{2}}*.x"],
    )
    places = [
        (database, "log{2024}"),
        (database, "log{2024}-05"),
        (database, "it's_x"),
        (f"{database}_d{{2}}", "x"),
    ]
    async with dispatching(dispatched):
        for db, collection in places:
            server[db][collection].insert_one({"name": f"{db}.{collection}"})
        server[database]["loggg"].insert_one({"name": "nobody's"})
        await seen.wait(len(places))
        server[database]["users"].insert_one({"name": "end"})
        await seen.wait_for_end()
    assert sorted(seen.names()) == sorted([*(f"{db}.{collection}" for db, collection in places), "end"])


def _gaps(server: MongoClient, database: str) -> list[dict[str, Any]]:
    return list(server[f"{database}_state"]["gaps"].find().sort("from_time"))


# -- images ------------------------------------------------------------------------------------------


async def test_a_replace_has_its_pre_image(dispatched, database, foreign, seen):
    make_user(dispatched, database, seen)
    foreign.create_collection("users", **IMAGES)
    async with dispatching(dispatched):
        id_ = foreign["users"].insert_one({"name": "Ada", "age": 1}).inserted_id
        foreign["users"].replace_one({"_id": id_}, {"name": "Bea"})
        inserted, replaced = await seen.wait(2)
    assert (inserted.previous, inserted.delivery.image) == (None, "post")
    assert (replaced.created, replaced.delivery.image) == (False, "post")
    assert (replaced.previous.name, replaced.previous.age) == ("Ada", 1)
    assert (replaced.instance.name, replaced.instance.age) == ("Bea", 0)


async def test_without_pre_and_post_images_every_delivery_says_which_image_it_has(
    dispatched, database, foreign, seen
):
    make_user(dispatched, database, seen)
    id_ = foreign["users"].insert_one({"name": "Ada", "age": 1}).inserted_id
    async with dispatching(dispatched):
        # One command makes both updates, so both are committed before the lookup of the document.
        foreign["users"].bulk_write(
            [UpdateOne({"_id": id_}, {"$set": {"name": "Bea"}}), UpdateOne({"_id": id_}, {"$set": {"age": 2}})]
        )
        await seen.wait(2)
        foreign["users"].replace_one({"_id": id_}, {"name": "Cleo"})
        foreign["users"].delete_one({"_id": id_})
        first, second, replaced, deleted = await seen.wait(4)
    # The first delivery has a later version of the document, so its image is "current". Each delivery has the
    # changed fields of its own change.
    assert (first.update_fields, second.update_fields) == ({"name"}, {"age"})
    for call in (first, second):
        assert (call.delivery.image, call.previous) == ("current", None)
        assert (call.instance.name, call.instance.age) == ("Bea", 2)
    assert (replaced.delivery.image, replaced.instance.name, replaced.previous) == ("post", "Cleo", None)
    assert (deleted.delivery.image, deleted.instance.__dict__) == ("key", {"id": id_})
    with pytest.raises(AttributeError):
        _ = deleted.instance.name


async def test_images_exist_for_changes_after_images_were_enabled(dispatched, database, foreign, seen):
    make_user(dispatched, database, seen)
    early, late = foreign["users"].insert_many([{"name": "Ada"}, {"name": "Bob"}]).inserted_ids
    async with dispatching(dispatched):
        pass  # the position is recorded
    foreign["users"].update_one({"_id": early}, {"$set": {"age": 1}})
    foreign["users"].delete_one({"_id": early})
    foreign.command({"collMod": "users", **IMAGES})
    foreign["users"].update_one({"_id": late}, {"$set": {"age": 1}})
    foreign["users"].delete_one({"_id": late})
    async with dispatching(dispatched):
        await seen.wait(4)
    shown = {
        id_: [(call.delivery.signal, call.delivery.image) for call in seen if call.instance.id == id_]
        for id_ in (early, late)
    }
    assert shown[early] == [("post_update", "key"), ("post_delete", "key")]
    assert shown[late] == [("post_update", "post"), ("post_delete", "pre")]
    updated = next(call for call in seen if call.instance.id == late)
    assert (updated.previous.age, updated.instance.age) == (0, 1)


async def test_documents_with_one_id_in_two_collections_do_not_wait_for_each_other(
    dispatched, database, server, seen
):
    """The `_id` alone does not identify a document: changes of different collections don't wait for each other."""
    user = make_user(dispatched, database, seen, watch=[f"{database}_t*"])
    gate, waiting = asyncio.Event(), []

    async def slow(sender: Any, instance: Any, **kwargs: Any) -> None:
        waiting.append(instance.name)
        if instance.name == "first":
            await gate.wait()

    post_save(user, name="slow")(slow)
    id_ = ObjectId()
    async with dispatching(dispatched):
        server[f"{database}_t1"]["users"].insert_one({"_id": id_, "name": "first"})
        await eventually(lambda: waiting == ["first"])
        server[f"{database}_t2"]["users"].insert_one({"_id": id_, "name": "second"})
        await eventually(lambda: waiting == ["first", "second"])
        gate.set()
