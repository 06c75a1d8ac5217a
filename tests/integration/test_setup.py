"""The effects of `setup`, and the warnings of `run` without a setup."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import BulkWriteError, WriteError

import mongoz
from dispatcher.exceptions import (
    AccessDenied,
    ApplicationError,
    CannotConnect,
    GroupTaken,
    NothingToDeliver,
    ServerError,
)
from dispatcher.operate.setup import set_up
from mongoz.core.signals import post_delete, post_save, post_update
from tests.support import dispatching, eventually, settings_for

IMAGES = {"changeStreamPreAndPostImages": {"enabled": True}}
CLOSED = {
    "$jsonSchema": {
        "bsonType": "object",
        "additionalProperties": False,
        "properties": {"_id": {}, "name": {"bsonType": "string"}},
    }
}


def make_user(registry: mongoz.Registry, database: str, *, connects: Any = None, **meta: Any) -> Any:
    class User(mongoz.Document):
        name: str = mongoz.String(max_length=40)

        Meta = type("Meta", (), {"registry": registry, "database": database, **meta})

    User.seen = []

    async def watcher(sender: Any, **kwargs: Any) -> None:
        User.seen.append(SimpleNamespace(sender=sender, **kwargs))

    for connect in (post_save, post_update, post_delete) if connects is None else connects:
        connect(User, name="watcher")(watcher)
    return User


@pytest.fixture
def prepare(dispatched: mongoz.Registry) -> Any:
    async def call(**options: Any) -> Any:
        return await set_up(dispatched, settings_for(dispatched), **options)

    return call


def images_of(foreign: Any) -> dict[str, bool]:
    return {
        entry["name"]: entry["options"].get("changeStreamPreAndPostImages", {}).get("enabled", False)
        for entry in foreign.list_collections()
    }


def position_of(foreign: Any) -> Any:
    return foreign.client[f"{foreign.name}_state"]["positions"].find_one({"partition": 0})


@contextlib.contextmanager
def failing(client: MongoClient, command: str, code: int):
    """The server refuses every call of one command by the dispatcher."""
    data = {"failCommands": [command], "errorCode": code, "appName": "mongoz-dispatcher"}
    client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
    try:
        yield
    finally:
        client.admin.command("configureFailPoint", "failCommand", mode="off")


async def test_setup_turns_on_only_the_images_that_are_off(dispatched, database, foreign, prepare):
    make_user(dispatched, database, watch=[f"{database}.old_*", f"{database}.missing"])
    foreign.create_collection("users")
    foreign.create_collection("old_on", **IMAGES)
    foreign.create_collection("old_off", changeStreamPreAndPostImages={"enabled": False})
    foreign.create_collection("others")
    foreign.command("create", "old_view", viewOn="users", pipeline=[])
    prepared = await prepare()
    view = prepared.images.pop(f"{database}.old_view")
    assert prepared.images == {
        f"{database}.missing": "created",
        f"{database}.old_off": "turned on",
        f"{database}.old_on": "on already",
        f"{database}.users": "turned on",
    }
    assert "left alone: it is a view" in view
    on = images_of(foreign)
    assert {name for name in on if on[name]} == {"missing", "old_off", "old_on", "users"}
    again = await prepare()
    assert {done for name, done in again.images.items() if "view" not in name} == {"on already"}
    for name in ("deliveries", "claims"):
        assert "expiry" in foreign.client[f"{database}_state"][name].index_information()


async def test_changes_between_setup_and_the_first_run_are_delivered(dispatched, database, foreign, prepare):
    user = make_user(dispatched, database)
    prepared = await prepare()
    assert (prepared.group, prepared.position) == (database, "recorded")
    id_ = foreign["users"].insert_one({"name": "Ada"}).inserted_id
    foreign["users"].update_one({"_id": id_}, {"$set": {"name": "Bea"}})
    foreign["users"].delete_one({"_id": id_})
    recorded = position_of(foreign)
    assert (recorded["term"], "owner" in recorded) == (0, False)
    assert (await prepare()).position == "recorded already"
    assert position_of(foreign) == recorded
    async with dispatching(dispatched):
        await eventually(lambda: len(user.seen) == 3)
    assert [call.delivery.image for call in user.seen] == ["post", "post", "pre"]
    assert user.seen[1].previous.name == "Ada"
    assert {call.delivery.term for call in user.seen} == {1}


async def test_setup_does_not_disturb_running_dispatchers(dispatched, database, foreign, prepare):
    user = make_user(dispatched, database)
    async with dispatching(dispatched) as running:
        before = position_of(foreign)
        assert (await prepare()).position == "recorded already"
        assert position_of(foreign)["owner"] == before["owner"]
        id_ = foreign["users"].insert_one({"name": "Ada"}).inserted_id
        foreign["users"].delete_one({"_id": id_})
        await eventually(lambda: len(user.seen) == 2)
        assert not running.task.done()
    assert [call.delivery.image for call in user.seen] == ["post", "pre"]


async def test_setup_can_keep_images_unchanged(dispatched, database, foreign, prepare):
    make_user(dispatched, database)
    prepared = await prepare(images=False)
    assert (prepared.images, prepared.position) == ({}, "recorded")
    assert images_of(foreign) == {}


async def test_collections_without_change_events_are_refused(dispatched, database, foreign, prepare):
    make_user(dispatched, database)
    foreign.create_collection("users", timeseries={"timeField": "at"})
    with pytest.raises(ServerError, match=f"{database}.users is a timeseries"):
        await prepare()
    foreign.drop_collection("users")
    foreign.command("create", "users", viewOn="others", pipeline=[])
    with pytest.raises(ServerError, match=f"{database}.users is a view") as caught:
        await prepare()
    assert "Meta.collection" in caught.value.remedy
    assert position_of(foreign) is None


WATCHING = ("changeStream", "find")


def allowed(guarded: MongoClient, name: str, *actions: str, state: bool = True) -> mongoz.Registry:
    """The registry of a user with these privileges in the database and, with `state`, readWrite on the state."""
    rights = [{"resource": {"db": name, "collection": ""}, "actions": list(actions)}]
    roles = [{"role": "readWrite", "db": f"{name}_state"}] if state else []
    guarded.admin.command("createRole", name, privileges=rights, roles=roles)
    guarded.admin.command("createUser", name, pwd="secret", roles=[name])
    host, port = guarded.address
    return mongoz.Registry(f"mongodb://{name}:secret@{host}:{port}/?replicaSet=rs0", dispatched=name)


@pytest.mark.parametrize(
    ("actions", "exists", "wanted"),
    [
        ((*WATCHING, "listCollections"), True, "Grant collMod on {}.users"),
        ((*WATCHING, "listCollections", "collMod"), False, "Grant createCollection on {}.users"),
        ((*WATCHING, "createCollection", "collMod"), True, "Grant listCollections on"),
    ],
)
async def test_a_missing_right_is_named(guarded, database, actions, exists, wanted):
    registry = allowed(guarded, database, *actions)
    make_user(registry, database)
    if exists:
        guarded[database].create_collection("users")
    with pytest.raises(AccessDenied) as caught:
        await set_up(registry, settings_for(registry))
    assert caught.value.remedy.startswith(wanted.format(database))
    assert "--no-images" in caught.value.remedy
    assert "secret" not in caught.value.message
    assert position_of(guarded[database]) is None
    # The setup without images succeeds. After the grant of the privilege, the setup with images succeeds, too.
    assert (await set_up(registry, settings_for(registry), images=False)).position == "recorded"
    missing = wanted.split()[1]
    right = {"resource": {"db": database, "collection": ""}, "actions": [missing]}
    guarded.admin.command("grantPrivilegesToRole", database, privileges=[right])
    done = (await set_up(registry, settings_for(registry))).images
    assert done == {f"{database}.users": "turned on" if exists else "created"}


async def test_the_state_must_be_writable(guarded, database):
    registry = allowed(guarded, database, *WATCHING, state=False)
    make_user(registry, database)
    with pytest.raises(AccessDenied) as caught:
        await set_up(registry, settings_for(registry), images=False)
    assert "readWrite on the state database" in caught.value.remedy


@pytest.mark.parametrize("role", ["read", "read and positions"])
async def test_a_dispatcher_without_write_access_to_its_state_does_not_start(guarded, database, role):
    registry = allowed(guarded, database, *WATCHING, state=False)
    user = make_user(registry, database)
    state = f"{database}_state"
    guarded.admin.command("grantRolesToUser", database, roles=[{"role": "read", "db": state}])
    if "positions" in role:
        right = {
            "resource": {"db": state, "collection": "positions"},
            "actions": ["find", "insert", "update", "remove"],
        }
        guarded.admin.command("grantPrivilegesToRole", database, privileges=[right])
    with pytest.raises(AccessDenied, match=f"may not insert, update, remove in .*{state}.held") as caught:
        async with dispatching(registry):
            pass
    assert (f"{state}.positions" in caught.value.message) is (role == "read")
    assert f"readWrite on the database {state}" in caught.value.remedy
    assert guarded[state].list_collection_names() == []
    assert user.seen == []


async def test_an_error_of_the_server_is_passed_on(dispatched, database, foreign, prepare):
    make_user(dispatched, database)
    foreign.create_collection("users")
    with failing(foreign.client, "collMod", 20), pytest.raises(ServerError, match=f"{database}.users") as caught:
        await prepare()
    assert caught.value.remedy


async def test_applications_that_can_not_be_set_up_are_refused(mongo, registry, database):
    make_user(registry, database)
    with pytest.raises(ApplicationError, match="not dispatched"):
        await set_up(registry, settings_for(registry))
    with pytest.raises(NothingToDeliver):
        await set_up(mongoz.Registry(mongo.url, dispatched=True), settings_for(registry))
    nowhere = mongoz.Registry("mongodb://127.0.0.1:1/", dispatched=True)
    make_user(nowhere, database)
    with pytest.raises(CannotConnect):
        await set_up(nowhere, settings_for(nowhere, connect_timeout=0.2))


async def test_a_group_belongs_to_one_application(dispatched, database, foreign):
    make_user(dispatched, database)
    settings = settings_for(dispatched)
    assert (await set_up(dispatched, settings, "shop.models:registry")).position == "recorded"
    layout = {"_id": database, "group": database, "partitions": 1, "application": "shop.models:registry"}
    assert foreign.client[f"{database}_state"].positions.find_one({"_id": database}) == layout
    assert (await set_up(dispatched, settings, "shop.models:registry")).position == "recorded already"
    with pytest.raises(GroupTaken, match="and this application is 'crm:registry'") as caught:
        await set_up(dispatched, settings, "crm:registry", images=False)
    assert "--adopt" in caught.value.remedy
    # Without a name, the application is not checked. With `adopt`, a renamed application keeps the group.
    await set_up(dispatched, settings)
    await set_up(dispatched, settings_for(dispatched, adopt=True), "shop:registry")
    with pytest.raises(GroupTaken, match=r"'shop:registry', and this application is 'shop\.models:registry'"):
        await set_up(dispatched, settings, "shop.models:registry")


# -- warnings of `run` -------------------------------------------------------------------------------


async def said(capsys: Any, action: str, *, within: float = 5.0) -> str:
    """The log line with this action."""
    lines: list[str] = []

    def found() -> list[str]:
        lines.extend(capsys.readouterr().out.splitlines())
        return [line for line in lines if action in line]

    return (await eventually(found, within=within, what=action))[0]


async def test_collections_without_images_are_named_at_the_start(dispatched, database, foreign, capsys):
    make_user(dispatched, database, watch=[f"{database}.old_*"])
    foreign.create_collection("users")
    foreign.create_collection("old_on", **IMAGES)
    foreign.create_collection("old_off")
    async with dispatching(dispatched):
        line = await said(capsys, "collections.without_images")
    assert f"'{database}.old_off', '{database}.users'" in line
    assert "old_on" not in line
    assert "dispatcher setup" in line
    assert "warning" in line


@pytest.mark.parametrize("reason", ["no receiver of updates", "images are on"])
async def test_the_start_does_not_warn_about_images_that_are_on_or_not_needed(
    dispatched, database, foreign, capsys, reason
):
    user = make_user(dispatched, database, connects=(post_save,) if "receiver" in reason else None)
    foreign.create_collection("users", validator=CLOSED, **(IMAGES if "on" in reason.split() else {}))
    async with dispatching(dispatched):
        # Validators are checked after images, so this line follows any warning about images.
        line = await said(capsys, "collections.")
    assert "refuse_stamps" in line
    assert user.seen == []


@pytest.mark.parametrize("rows", [[], [{"name": "Ada"}]], ids=["empty", "with a document"])
async def test_a_validator_that_refuses_the_stamp_is_named(dispatched, database, foreign, capsys, rows):
    user = make_user(dispatched, database, watch=[f"{database}.open_*", f"{database}.warns", f"{database}.other"])
    foreign.create_collection("users", validator=CLOSED, **IMAGES)
    allowed = {**CLOSED["$jsonSchema"], "properties": {"_id": {}, "name": {}, "_mongoz": {"bsonType": "binData"}}}
    foreign.create_collection("open_1", validator={"$jsonSchema": allowed}, **IMAGES)
    foreign.create_collection("open_2", validator={"name": {"$type": "string"}}, **IMAGES)
    foreign.create_collection("warns", validator=CLOSED, validationAction="warn", **IMAGES)
    # This validator is no schema (it refuses a third field), so only a trial on a stored document finds it.
    few = {"$expr": {"$lte": [{"$size": {"$objectToArray": "$$ROOT"}}, 2]}}
    foreign.create_collection("other", validator=few, **IMAGES)
    for name in ("users", "open_1", "open_2", "warns", "other") if rows else ():
        foreign[name].insert_many([dict(row) for row in rows])
    async with dispatching(dispatched):
        line = await said(capsys, "collections.refuse_stamps")
    named = [f"{database}.other", f"{database}.users"] if rows else [f"{database}.users"]
    assert f"collections={named}" in line
    assert "_mongoz: {bsonType: 'binData'}" in line
    # The server refuses the write, and the error has the reason.
    with pytest.raises(WriteError) as caught:
        await user(name="Bea").create()
    assert "validator refuses '_mongoz'" in caught.value.__notes__[0]
    with pytest.raises(BulkWriteError) as several:
        await user.create_many([user(name="Bea")])
    assert "validator refuses '_mongoz'" in several.value.__notes__[0]


async def test_a_start_does_not_need_the_right_to_list_collections(guarded, database, capsys):
    registry = allowed(guarded, database, *WATCHING)
    user = make_user(registry, database)
    async with dispatching(registry):
        line = await said(capsys, "collections.not_checked")
        guarded[database]["users"].insert_one({"name": "Ada"})
        await eventually(lambda: user.seen)
    assert "warning" not in line
