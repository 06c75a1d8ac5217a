"""`check` says whether processes of the application claim their receivers, and prints the rights for claims."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

import mongoz
from dispatcher.operate.check import check, role_for
from dispatcher.operate.claim_checks import warn_about_claims
from dispatcher.operate.findings import Finding
from dispatcher.operate.privileges import application_role_name, role_name
from mongoz.stamps import Stamp
from tests.books import book
from tests.integration.claiming import claim_in
from tests.integration.test_check import roles_in
from tests.integration.test_setup import IMAGES, make_user
from tests.support import dispatching, eventually, settings_for


def of_claims(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if one.topic == "claims"]


@pytest.fixture
def look(database: str) -> Callable[..., Any]:
    async def call(registry: mongoz.Registry, **changes: Any) -> Finding:
        (found,) = of_claims([one async for one in check(registry, settings_for(registry, **changes))])
        return found

    return call


def announce(state: Any, database: str, **fields: Any) -> None:
    state.positions.insert_one({"_id": database, "partitions": 1, "group": database, **fields})


async def test_claims_in_another_database_are_named(mongo, database, look, caplog, capsys):
    registry = mongoz.Registry(mongo.url, dispatched=database)
    make_user(registry, database)
    found = await look(registry)
    assert found.level == "warning"
    assert "'mongoz_dispatcher'" in found.text
    assert f"Registry(..., state='{database}_state')" in found.remedy
    assert "--state-database mongoz_dispatcher" in found.remedy
    warn_about_claims(registry, f"{database}_state")
    assert "claims.elsewhere" in capsys.readouterr().out


async def test_check_says_nothing_of_claims_if_only_dispatchers_run_receivers(mongo, database):
    registry = mongoz.Registry(mongo.url, dispatched=database)
    user = make_user(registry, database, connects=())

    async def listen(sender: Any, **kwargs: Any) -> None: ...

    user.meta.signals.post_save.connect(listen, name="durable", delivery="dispatcher")
    assert of_claims([one async for one in check(registry, settings_for(registry))]) == []


async def test_check_accepts_claims_that_are_turned_off(mongo, database, look):
    registry = mongoz.Registry(mongo.url, dispatched=database, claims=False)
    make_user(registry, database)
    found = await look(registry)
    assert (found.level, "claims=False" in found.text) == ("ok", True)
    assert application_role_name(database) not in role_for(registry, settings_for(registry))


async def test_a_group_that_has_not_announced_takeovers_is_named(dispatched, database, state, look):
    make_user(dispatched, database)
    assert "begin to claim after a dispatcher has run" in (await look(dispatched)).text
    announce(state, database)
    found = await look(dispatched)
    assert (found.level, "has announced" in found.text) == ("warning", True)
    assert "dispatchers of this version" in found.remedy


async def test_a_dispatcher_without_claims_is_named(dispatched, database, state, look):
    make_user(dispatched, database)
    announce(state, database, claims=True)
    state.members.insert_one({"_id": "new", "group": database, "claims": True})
    assert (await look(dispatched)).level == "ok"
    state.members.insert_one({"_id": "old", "group": database, "host": "db7", "pid": 4711})
    found = await look(dispatched)
    assert (found.level, "pid 4711 on db7" in found.text) == ("warning", True)


async def test_processes_that_claim_are_counted(dispatched, database, state, look):
    make_user(dispatched, database)
    announce(state, database, claims=True)
    assert (await look(dispatched)).text == "No process of the application has claimed yet"
    state.claims.insert_many([book(database, 1, silent=700), book(database, 2, open=[1]), book("other", 3)])
    found = await look(dispatched)
    assert (found.level, "claims were last recorded 11 min" in found.text) == ("ok", True)
    ended = {"fenced_at": datetime.now(UTC), "fenced_by": "process"}
    state.claims.insert_many([book(database, 4), book(database, 5, **ended)])
    found = await look(dispatched)
    assert (found.level, found.text) == ("ok", "1 process of the application can claim now")


async def test_a_write_without_a_claim_is_named(mongo, dispatched, database, foreign, state, look):
    """The newest write counts, because an earlier write may come from a process of a version without claims."""
    user = make_user(dispatched, database)
    announce(state, database, claims=True)
    async with mongoz.Registry(mongo.url, dispatched=database, claims=False) as earlier:
        await make_user(earlier, database).query.create(name="Ada")
    stamp = Stamp.unpack(foreign.users.find_one()["_mongoz"])
    assert (len(stamp.receivers), stamp.claim) == (1, None)
    an_hour_ago = ObjectId.from_datetime(datetime.now(UTC) - timedelta(hours=1))
    foreign.users.update_one({}, {"$set": {"_mongoz": stamp._replace(token=an_hour_ago).pack()}})
    found = await look(dispatched)
    assert (found.level, f"{database}.users" in found.text) == ("warning", True)
    assert "has claimed yet" in found.text
    assert "--role" in found.remedy
    await user.query.create(name="Bea")
    found = await look(dispatched)
    assert (found.level, found.text) == ("ok", "1 process of the application can claim now")


async def test_writes_whose_stamps_name_no_receivers_are_ignored(mongo, dispatched, database, state, look):
    user = make_user(dispatched, database)
    announce(state, database, claims=True)
    with mongoz.signals.muted():
        await user.query.create(name="Ada")
    assert (await look(dispatched)).level == "ok"


# -- rights of the application ------------------------------------------------------------------------


def application(guarded: MongoClient, database: str, role: dict[str, Any]) -> mongoz.Registry:
    """A registry whose user has this role, and may read and write the documents."""
    guarded.admin.command("createRole", f"{database}_claims", **role)
    roles = [f"{database}_claims", {"role": "readWrite", "db": database}]
    guarded.admin.command("createUser", f"{database}_app", pwd="secret", roles=roles)
    return registry_of(guarded, database, f"{database}_app", claims=3.0)


def registry_of(guarded: MongoClient, database: str, user: str, **options: Any) -> mongoz.Registry:
    host, port = guarded.address
    url = f"mongodb://{user}:secret@{host}:{port}/?replicaSet=rs0"
    return mongoz.Registry(url, dispatched=database, state=f"{database}_state", **options)


def printed_roles(database: str) -> dict[str, dict[str, Any]]:
    registry = mongoz.Registry("mongodb://localhost", dispatched=database)
    make_user(registry, database)
    return roles_in(role_for(registry, settings_for(registry)))


async def test_the_printed_role_is_enough_to_claim(guarded, database):
    announce(guarded[f"{database}_state"], database, claims=True)
    role = printed_roles(database)[application_role_name(database)]
    async with application(guarded, database, role) as registry:
        await make_user(registry, database).query.create(name="Ada")
        claim = claim_in(guarded[database].users.find_one())
        assert claim is not None
        assert registry.claims.unclaimed == {}
        books = guarded[f"{database}_state"].claims
        await eventually(lambda: books.find_one({"high": 1, "open": []}), what="a later beat")
    assert books.find_one({"_id": claim.incarnation.hex()})["fenced_by"] == "process"


@pytest.mark.parametrize("lacking", ["positions find", "members find", "claims insert", "claims update"])
async def test_without_a_right_of_the_printed_role_writes_work_and_the_log_names_the_remedy(
    guarded, database, caplog, lacking
):
    announce(guarded[f"{database}_state"], database, claims=True)
    role = printed_roles(database)[application_role_name(database)]
    collection, action = lacking.split()
    for privilege in role["privileges"]:
        if privilege["resource"]["collection"] == collection:
            privilege["actions"].remove(action)
    role["privileges"] = [privilege for privilege in role["privileges"] if privilege["actions"]]
    async with application(guarded, database, role) as registry:
        user = make_user(registry, database)
        await user.query.create(name="Ada")
        await user.query.create(name="Bea")
        assert len(user.seen) == 2
        assert registry.claims.unclaimed == {"unauthorized": 2}
    (logged,) = [one.getMessage() for one in caplog.records if one.name == "mongoz.claims"]
    assert f"'{database}_state'" in logged
    assert "dispatcher check APP --role" in logged
    assert "secret" not in logged


async def test_application_and_dispatcher_work_together_with_the_printed_roles(guarded, database):
    roles = printed_roles(database)
    guarded.admin.command("createRole", role_name(database), **roles[role_name(database)])
    guarded.admin.command("createUser", database, pwd="secret", roles=[role_name(database)])
    guarded[database].create_collection("users", **IMAGES)
    serving = registry_of(guarded, database, database)
    make_user(serving, database)
    async with dispatching(serving):
        layouts = guarded[f"{database}_state"].positions
        await eventually(lambda: layouts.find_one({"claims": True}), what="the announcement")
        async with application(guarded, database, roles[application_role_name(database)]) as registry:
            await make_user(registry, database).query.create(name="Ada")
            assert registry.claims.unclaimed == {}
            found = of_claims([one async for one in check(serving, settings_for(serving))])
            assert found == [Finding("ok", "claims", "1 process of the application can claim now")]
