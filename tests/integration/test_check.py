"""`check` names each problem of a deployment with its remedy."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from bson import Timestamp
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import OperationFailure

import mongoz
from dispatcher.core.oplog import look_at_oplog
from dispatcher.embedded.server import embedded_mongo
from dispatcher.operate.check import Finding, check, role_for
from dispatcher.operate.privileges import role_name
from mongoz.core.signals import post_delete, post_save, post_update
from tests.integration.test_setup import CLOSED, IMAGES, WATCHING, allowed, make_user
from tests.support import dispatching, eventually, settings_for

Look = Callable[..., Any]


@pytest.fixture
def look(dispatched: mongoz.Registry, database: str) -> Look:
    async def call(registry: mongoz.Registry = dispatched, **changes: Any) -> list[Finding]:
        found = [finding async for finding in check(registry, settings_for(registry, **changes))]
        # Documents of other tests in this process belong to other registries.
        return [one for one in found if one.topic != "receivers" or database in one.text]

    return call


def about(findings: list[Finding], topic: str, level: str = "") -> list[Finding]:
    return [one for one in findings if one.topic == topic and level in ("", one.level)]


def remember(foreign: Any, seconds_back: int, **fields: Any) -> None:
    """Saves a position of this age."""
    newest = foreign.client.local["oplog.rs"].find_one(sort=[("$natural", -1)])["ts"]
    time = Timestamp(newest.time - seconds_back, 1)
    token = f"82{time.time:08X}{time.inc:08X}2B"
    position = {"_id": f"{foreign.name}:0", "group": foreign.name, "partition": 0, "cluster_time": time}
    position |= {"token": token, "term": 1, **fields}
    foreign.client[f"{foreign.name}_state"].positions.insert_one(position)


async def test_a_correct_deployment_has_no_findings(dispatched, database, foreign, look):
    make_user(dispatched, database)
    foreign.create_collection("users", **IMAGES)
    before = set(foreign.client.list_database_names())
    found = await look()
    # The retention of the oplog depends on the writes of other tests.
    wrong = [one for one in found if one.level != "ok" and one.topic != "oplog"]
    assert [one for one in wrong if not one.text.startswith("MongoDB 6.0.5")] == []
    assert {one.topic for one in found} == {
        *("application", "server", "rights", "clock", "oplog", "position", "streams", "images", "claims")
    }
    assert set(foreign.client.list_database_names()) == before  # the check changes nothing


async def test_a_position_that_is_no_resume_token_is_named(dispatched, database, foreign, look):
    make_user(dispatched, database)
    remember(foreign, 1, token="nonsense")
    (found,) = about(await look(), "position")
    assert (found.level, "'nonsense'" in found.text, bool(found.remedy)) == ("error", True, True)


async def test_a_group_of_another_application_is_named(dispatched, database, foreign):
    make_user(dispatched, database)
    layout = {"_id": database, "group": database, "partitions": 1, "application": "billing.app:registry"}
    foreign.client[f"{database}_state"].positions.insert_one(layout)
    settings = settings_for(dispatched)
    (found,) = [one async for one in check(dispatched, settings, "shop.app:registry") if one.level == "error"]
    assert (found.topic, "'billing.app:registry'" in found.text) == ("application", True)
    assert "dispatched='name'" in found.remedy
    own = [one async for one in check(dispatched, settings, "billing.app:registry")]
    assert [one for one in own if one.level == "error"] == []


async def test_an_application_without_dispatched_receivers_is_named(registry, database, look, dispatched):
    (found,) = await look(mongoz.Registry("mongodb://localhost", dispatched=True))
    assert (found.level, "no documents" in found.text) == ("error", True)
    make_user(registry, database)
    found, *_ = await look(registry)
    assert found.level == "error"
    assert "not dispatched" in found.text
    assert "--deliver-everything" in found.remedy
    accepted = await look(registry, deliver_everything=True)
    assert about(accepted, "application", "ok")


async def test_an_unsuitable_server_is_named(database, look):
    nowhere = mongoz.Registry("mongodb://me:secret@127.0.0.1:1/", dispatched=True)
    make_user(nowhere, database)
    last = (await look(nowhere, connect_timeout=0.2))[-1]
    assert (last.level, last.topic) == ("error", "server")
    assert "secret" not in str(last)
    with embedded_mongo(replica_set=False) as standalone:
        alone = mongoz.Registry(standalone.url, dispatched=True)
        make_user(alone, database)
        last = (await look(alone))[-1]
    assert (last.level, "standalone" in last.text) == ("error", True)
    assert "--replSet" in last.remedy


async def test_disabled_images_are_named(dispatched, database, foreign, look):
    make_user(dispatched, database, watch=[f"{database}.missing"])
    foreign.create_collection("users")
    texts = {one.text: one for one in about(await look(), "images", "warning")}
    assert len(texts) == 2
    (off,) = [text for text in texts if f"{database}.users keeps no images" in text]
    assert "updates are delivered with the current document" in off
    assert "deletes are delivered with the id only" in off
    assert texts[off].remedy == "Run `dispatcher setup APP`."
    assert any(f"{database}.missing does not exist yet" in text for text in texts)


async def test_missing_images_that_no_receiver_needs_are_not_named(dispatched, database, foreign, look):
    make_user(dispatched, database, connects=(post_save,))
    foreign.create_collection("users")
    assert about(await look(), "images") == []


async def test_images_that_expire_before_their_delivery_are_named(dispatched, database, foreign, look):
    make_user(dispatched, database)
    foreign.create_collection("users", **IMAGES)
    remember(foreign, 0)
    admin = foreign.client.admin
    kept = {"preAndPostImages": {"expireAfterSeconds": 60}}
    admin.command("setClusterParameter", {"changeStreamOptions": kept})
    try:
        (found,) = about(await look(), "images", "warning")
    finally:
        off = {"preAndPostImages": {"expireAfterSeconds": "off"}}
        admin.command("setClusterParameter", {"changeStreamOptions": off})
    assert "keeps images for 1 min" in found.text
    assert "expireAfterSeconds" in found.remedy


@pytest.mark.parametrize(
    ("spare", "level", "says"),
    [
        (
            15_000_000.0,
            "warning",
            "too short for the lag",
        ),  # the oplog holds the position for less than twice its age
        (0.0, "error", "the changes in between are lost"),
        (60_000_000.0, "ok", "the oplog holds it for another"),
    ],
)
async def test_an_oplog_too_short_for_the_lag_is_named(
    dispatched, database, foreign, look, monkeypatch, spare, level, says
):
    """The time until the oplog loses the position is an estimate. This test gives a fixed time instead."""

    async def estimated(*_: Any) -> float:
        return spare

    monkeypatch.setattr("dispatcher.core.oplog._spare", estimated)
    make_user(dispatched, database)
    foreign.create_collection("users", **IMAGES)
    remember(foreign, 10_000_000)
    (found,) = about(await look(), "position")
    assert (found.level, says in found.text) == (level, True)


async def test_a_retention_shorter_than_the_oplog_is_named(dispatched, database, foreign, look, monkeypatch):
    async def pay(sender: Any, **kwargs: Any) -> None: ...

    user = make_user(dispatched, database)
    user.meta.signals.post_save.connect(pay, name="pay", transactional=True)
    monkeypatch.setattr("dispatcher.operate.check._SECONDS_PER_DAY", 0.0)
    foreign.create_collection("users", **IMAGES)
    monkeypatch.setattr("dispatcher.core.oplog.Oplog.window", property(lambda self: 1.0))
    (found,) = about(await look(), "oplog", "error")
    assert "--delivery-retention" in found.remedy


@pytest.mark.parametrize(("delivery", "level"), [("any", "warning"), ("dispatcher", "ok")])
async def test_claims_that_are_kept_for_a_shorter_time_than_the_oplog_are_named(
    dispatched, database, foreign, look, monkeypatch, delivery, level
):
    """A dispatcher takes over a claim whose book is deleted, even if the process has finished the claim."""
    user = make_user(dispatched, database, connects=())

    async def index(sender: Any, **kwargs: Any) -> None: ...

    user.meta.signals.post_save.connect(index, name="index", delivery=delivery)
    monkeypatch.setattr("dispatcher.operate.check._SECONDS_PER_DAY", 1.0)
    monkeypatch.setattr("dispatcher.core.oplog.Oplog.window", property(lambda self: 86_400.0))
    (found,) = about(await look(), "oplog")
    assert (found.level, "claims of processes that have ended" in found.text) == (level, level == "warning")


async def test_different_clocks_are_named(dispatched, database, look, monkeypatch):
    make_user(dispatched, database)
    monkeypatch.setattr("dispatcher.core.oplog.time", lambda: 1_000.0)
    (found,) = about(await look(), "clock")
    assert (found.level, "ahead of" in found.text, "NTP" in found.remedy) == ("warning", True, True)


async def test_a_validator_that_refuses_stamps_is_named(dispatched, database, foreign, look):
    make_user(dispatched, database)
    foreign.create_collection("users", validator=CLOSED, **IMAGES)
    (found,) = about(await look(), "validators")
    assert f"{database}.users" in found.text
    assert "binData" in found.remedy


async def test_receivers_that_never_run_are_named(dispatched, database, foreign, look):
    class Base(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            abstract = True
            registry = dispatched

    async def lonely(sender: Any, **kwargs: Any) -> None: ...

    user = make_user(dispatched, database)
    Base.meta.signals.post_save.connect(lonely, name=f"lonely-{database}")
    user.meta.signals.post_save.connect(lonely, name=f"misspelt-{database}", where={"nmae": "Ada", "$expr": True})
    user.meta.signals.post_update.connect(lonely, name=f"unchanging-{database}", fields=["id"])
    foreign.create_collection("users", **IMAGES)
    never = {one.text.split("-")[0]: one for one in about(await look(), "receivers", "warning")}
    assert {"lonely", "misspelt", "unchanging"} <= never.keys()
    assert "is abstract, and no imported document inherits" in never["lonely"].text
    assert "'nmae'" in never["misspelt"].text
    assert never["misspelt"].remedy == "Write 'name'."
    assert "the id, which never changes" in never["unchanging"].text

    class Child(Base):
        class Meta:
            registry = dispatched
            database = foreign.name

    assert "lonely" not in {one.text.split("-")[0] for one in about(await look(), "receivers")}
    foreign.drop_collection("users")
    foreign.command("create", "users", viewOn="others", pipeline=[])
    views = about(await look(), "receivers", "error")
    assert any(one.text.startswith("watcher") for one in views)
    assert "is a view" in views[0].text


async def test_a_receiver_of_another_registry_is_named(dispatched, database, mongo, look):
    make_user(dispatched, database)
    other = mongoz.Registry(mongo.url, dispatched="other")

    class Elsewhere(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            registry = other
            database = "elsewhere"

    @post_delete(Elsewhere, name=f"elsewhere {database}")
    async def listen(sender: Any, **kwargs: Any) -> None: ...

    found = [one for one in about(await look(), "receivers") if f"elsewhere {database}" in one.text]
    assert ["another registry" in one.text for one in found] == [True]


async def test_a_where_that_the_server_refuses_is_named(dispatched, database, foreign, look):
    async def picky(sender: Any, **kwargs: Any) -> None: ...

    user = make_user(dispatched, database, connects=(post_update,))
    user.meta.signals.post_save.connect(picky, name="picky", where={"name": {"$like": "A%"}})
    foreign.create_collection("users", **IMAGES)
    (found,) = about(await look(), "where")
    assert (found.level, "picky" in found.text) == ("error", True)


# -- rights ------------------------------------------------------------------------------------------


async def test_missing_rights_are_named(guarded, database):
    registry = allowed(guarded, database, "find", state=False)
    make_user(registry, database)
    found = [one async for one in check(registry, settings_for(registry))]
    lacking = [one.text for one in about(found, "rights", "error")]
    assert any(text.startswith(f'The user lacks changeStream on {{"db": "{database}"') for text in lacking)
    assert any("insert, update" in text and f"{database}_state" in text for text in lacking)
    assert all("--role" in one.remedy for one in about(found, "rights"))
    assert any("serverStatus on the deployment" in one.text for one in about(found, "rights", "warning"))
    assert about(found, "images") == []  # unknown facts are not reported
    assert "secret" not in str(found)


async def test_missing_optional_rights_are_warnings(guarded, database):
    registry = allowed(guarded, database, *WATCHING)
    make_user(registry, database)
    found = [one async for one in check(registry, settings_for(registry))]
    assert {one.level for one in found} == {"ok", "warning"}
    assert about(found, "oplog") == []


@pytest.mark.parametrize("scope", ["one database", "several"])
async def test_the_printed_role_is_enough_for_a_dispatcher(guarded: MongoClient, database: str, scope: str):
    host, port = guarded.address
    url = f"mongodb://{database}:secret@{host}:{port}/?replicaSet=rs0"
    registry = mongoz.Registry(url, dispatched=database)
    user = make_user(registry, database, **({"watch": [f"{database}_old.users"]} if scope == "several" else {}))
    settings = settings_for(registry)
    grant(guarded, database, role_for(registry, settings))
    guarded[database].create_collection("users", **IMAGES)
    found = [one async for one in check(registry, settings)]
    assert about(found, "rights") == [Finding("ok", "rights", "The user has all required privileges")]
    assert about(found, "oplog")
    async with dispatching(registry):
        guarded[database]["users"].insert_one({"name": "Ada"})
        await eventually(lambda: user.seen)


@pytest.mark.parametrize("scope", ["one database", "several"])
async def test_the_role_can_read_the_times_of_the_oplog_but_not_its_entries(
    guarded: MongoClient, database: str, scope: str
):
    printed = role_of(guarded, database, scope)
    grant(guarded, database, printed)
    host, port = guarded.address
    async with AsyncMongoClient(f"mongodb://{database}:secret@{host}:{port}/?replicaSet=rs0") as client:
        oplog = await look_at_oplog(client)
        for attempt in (
            client["local"]["oplog.rs"].find_one({}),
            client["local"].command("collStats", "startup_log"),
            client["config"]["transactions"].find_one({}),
            client["admin"]["system.users"].find_one({}),
        ):
            with pytest.raises(OperationFailure, match="not authorized"):
                await attempt
    assert oplog is not None
    newest = guarded["local"]["oplog.rs"].find_one(sort=[("$natural", -1)])["ts"].time
    oldest = guarded["local"]["oplog.rs"].find_one(sort=[("$natural", 1)])["ts"].time
    assert (oplog.begins, oplog.spare > 0) == (oldest, True)
    assert newest - 60 <= oplog.ends <= newest


def test_the_comments_of_the_role_tell_what_the_role_can_read(guarded: MongoClient, database: str):
    one = role_of(guarded, database, "one database")
    assert f'every collection of the database "{database}"' in one
    assert "every database" not in one
    several = role_of(guarded, database, "several")
    assert "can read every collection of every database except local and config" in several
    assert f'"{database}"' in several
    assert f'"{database}_old"' in several
    for printed in (one, several):
        comments, *commands = re.split(r"^db.getSiblingDB.*?^}\)$", printed, flags=re.MULTILINE | re.DOTALL)
        assert len(commands) == 2
        for line in "".join((comments, *commands)).splitlines():
            assert line.startswith("// ") or not line


def role_of(guarded: MongoClient, database: str, scope: str) -> str:
    """The output of `check --role` for an application in one or several databases."""
    host, port = guarded.address
    registry = mongoz.Registry(f"mongodb://{host}:{port}/?replicaSet=rs0", dispatched=database)
    make_user(registry, database, **({"watch": [f"{database}_old.users"]} if scope == "several" else {}))
    return role_for(registry, settings_for(registry))


def roles_in(printed: str) -> dict[str, dict[str, Any]]:
    """The roles that `check --role` creates, by name."""
    found = {}
    for part in printed.split("createRole(")[1:]:
        role, _ = json.JSONDecoder().raw_decode(part)
        found[role.pop("role")] = role
    return found


def grant(guarded: MongoClient, database: str, printed: str) -> None:
    """Creates the printed role, and a user with this role, named like the database. mongosh would do the same."""
    command = roles_in(printed)[role_name(database)]
    guarded.admin.command("createRole", role_name(database), **command)
    guarded.admin.command("createUser", database, pwd="secret", roles=[role_name(database)])
