"""A broken stream is opened again, or ends the dispatcher with an error. A real server provokes every error."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

import mongoz
from dispatcher.exceptions import AccessDenied, PositionError
from dispatcher.runtime.service import Service
from mongoz.core.signals import post_save
from tests.integration.deliveries import State, make_account
from tests.proxy import proxied
from tests.support import PATIENCE, dispatching, eventually, settings_for


def names_told(account: Any) -> list[str]:
    told: list[str] = []

    @post_save(account, name="told")
    async def save(sender, instance, **kwargs):
        told.append(instance.name)

    return told


@pytest.fixture
def names(dispatched, database) -> list[str]:
    """The names of the inserted documents, in the order of the deliveries."""
    return names_told(make_account(dispatched, database))


@contextlib.contextmanager
def failing(client: MongoClient, *commands: str, mode: Any = "alwaysOn", **data: Any) -> Iterator[None]:
    """The server fails commands of the dispatcher."""
    point = {"failCommands": [*commands], "appName": "mongoz-dispatcher", **data}
    client.admin.command("configureFailPoint", "failCommand", mode=mode, data=point)
    try:
        yield
    finally:
        client.admin.command("configureFailPoint", "failCommand", mode="off")


@pytest.mark.parametrize("code", [43, 222, 11600, 999_999])
async def test_a_stream_is_reopened_after_transient_errors(foreign, dispatched, names, code):
    """The process is not ready meanwhile. Afterwards each change is delivered once."""
    async with dispatching(dispatched) as running:
        with failing(foreign.client, "getMore", "aggregate", errorCode=code):
            await eventually(lambda: not running.service.ready and running.stats.reconnects >= 2)
            foreign["accounts"].insert_many([{"name": "1"}, {"name": "2"}])
        await eventually(lambda: len(names) == 2)
        assert running.service.ready
    assert names == ["1", "2"]


async def test_a_killed_cursor_is_reopened(foreign, dispatched, names):
    admin = foreign.client.admin
    async with dispatching(dispatched) as running:
        everything = [{"$currentOp": {"idleCursors": True, "allUsers": True}}]

        def kill() -> int:
            cursors = [
                op["cursor"]["cursorId"]
                for op in admin.aggregate(everything)
                if op.get("ns", "").startswith(f"{foreign.name}.") and "cursor" in op
            ]
            return (
                foreign.command("killCursors", "$cmd.aggregate", cursors=cursors)["cursorsKilled"]
                if cursors
                else 0
            )

        await eventually(kill, what="a cursor is killed")
        foreign["accounts"].insert_one({"name": "1"})
        await eventually(lambda: names == ["1"])
        await eventually(lambda: running.stats.reconnects >= 1)


async def test_a_dispatcher_continues_after_a_time_without_a_primary(foreign, dispatched, names, monkeypatch):
    monkeypatch.setattr("dispatcher.core.clients._SELECTION_TIMEOUT_MS", 300)
    admin, address = foreign.client.admin, foreign.client.address
    async with dispatching(dispatched) as running:
        admin.command("replSetStepDown", 60, force=True)
        try:
            await eventually(lambda: not running.service.ready and running.stats.reconnects >= 2)
        finally:
            with MongoClient(*address, directConnection=True) as direct:
                direct.admin.command("replSetFreeze", 0)
        foreign["accounts"].insert_one({"name": "1"})
        await eventually(lambda: names == ["1"])
        assert running.service.ready


# -- silence -----------------------------------------------------------------------------------------


@pytest.fixture
async def proxy(mongo):
    async with proxied(mongo.url) as made:
        yield made


@pytest.fixture
def behind(proxy, database) -> mongoz.Registry:
    """A registry that connects through the proxy."""
    return mongoz.Registry(proxy.url, dispatched=database)


async def test_a_silent_connection_is_abandoned(foreign, behind, proxy, database, monkeypatch):
    """Only the connection of the stream is silent; the driver's monitor sees no error."""
    monkeypatch.setattr("dispatcher.stream.cursor._PATIENCE", 2.0)
    monkeypatch.setattr("dispatcher.stream.cursor._SILENCE", 1.2)  # the server answers after a second
    names = names_told(make_account(behind, database))
    async with dispatching(behind) as running:
        proxy.hang_after_request("getMore")
        await eventually(lambda: proxy.lost)
        await eventually(lambda: not running.service.ready, what="the dispatcher is not ready")
        foreign["accounts"].insert_one({"name": "1"})
        await eventually(lambda: names == ["1"])
        await eventually(lambda: running.service.ready)
        assert running.stats.reconnects == 1


async def test_a_dispatcher_continues_after_a_time_without_answers(foreign, behind, proxy, database, monkeypatch):
    """The driver notices the silence long before the time limit of the stream ends."""
    monkeypatch.setattr("dispatcher.core.clients._CONNECT_TIMEOUT_MS", 300)
    monkeypatch.setattr("dispatcher.core.clients._HEARTBEAT_MS", 500)
    monkeypatch.setattr("dispatcher.core.clients._SELECTION_TIMEOUT_MS", 300)
    names = names_told(make_account(behind, database))
    async with dispatching(behind) as running:
        proxy.stall()
        await eventually(lambda: not running.service.ready and running.stats.reconnects >= 1)
        foreign["accounts"].insert_one({"name": "1"})
        proxy.flow()
        await eventually(lambda: names == ["1"])
        await eventually(lambda: running.service.ready)


async def test_receivers_are_freed_from_dead_connections(foreign, behind, proxy, database, monkeypatch):
    """Connections of the application's client detect a dead network long before the receivers' timeout."""
    monkeypatch.setattr("dispatcher.core.clients._CONNECT_TIMEOUT_MS", 300)
    monkeypatch.setattr("dispatcher.core.clients._HEARTBEAT_MS", 500)
    account, told, began = make_account(behind, database), [], asyncio.Event()

    @post_save(account, name="reader", retry=3)
    async def reader(sender, instance, delivery, **kwargs):
        if instance.name == "stranded" and delivery.attempt == 1:
            proxy.strand()
            began.set()
        await behind.client[database]["accounts"].find_one({})
        told.append(instance.name)

    async with dispatching(behind, timeout=60):
        foreign["accounts"].insert_one({"name": "first"})  # opens a connection
        await eventually(lambda: told == ["first"])
        foreign["accounts"].insert_one({"name": "stranded"})
        await eventually(began.is_set)
        await eventually(lambda: told == ["first", "stranded"])


async def test_the_time_limit_of_the_stream_grows_with_each_attempt(foreign, dispatched, names, monkeypatch):
    """A server that reads a long oplog answers in a later attempt."""
    monkeypatch.setattr("dispatcher.stream.cursor._PATIENCE", 0.1)
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "1"})
        # An idle stream answers after a second. The time limit begins at 0.1 s, so a few attempts are needed.
        await eventually(lambda: names == ["1"])
        await eventually(lambda: running.stats.reconnects >= 3)
        await eventually(lambda: running.service.ready)


@pytest.mark.slow
async def test_reconnecting_leaves_no_sockets_and_no_tasks(foreign, dispatched, names, monkeypatch):
    monkeypatch.setattr("dispatcher.stream.change_stream.pause_after", lambda failures: 0.0)
    process, seen = psutil.Process(), []
    async with dispatching(dispatched) as running:
        with failing(foreign.client, "getMore", errorCode=43):
            for times in (50, 300):
                await eventually(lambda times=times: running.stats.reconnects >= times)
                seen.append((len(process.net_connections()), len(asyncio.all_tasks())))
        foreign["accounts"].insert_one({"name": "1"})
        await eventually(lambda: names == ["1"])
    (sockets, tasks), (sockets_later, tasks_later) = seen
    assert sockets_later <= sockets + 2
    assert tasks_later <= tasks + 2


# -- permanent errors --------------------------------------------------------------------------------


async def test_an_unknown_token_ends_the_dispatcher(foreign, dispatched, names, database):
    """The server answers with error 280, as if the state came from another deployment."""
    with foreign.watch([]) as everything:
        foreign["nobody_watches"].insert_one({})
        token = everything.next()["_id"]["_data"]
    async with dispatching(dispatched):
        pass
    State(foreign).rewind(token)
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "1"})
        with pytest.raises(PositionError, match="not found") as caught:
            await asyncio.wait_for(running.task, PATIENCE)
    assert caught.value.remedy
    assert "full error" not in caught.value.message


async def test_a_token_of_an_invalidate_event_ends_the_dispatcher(foreign, dispatched, names, database):
    """Only streams of one collection have this event.

    Here the test writes the token of the event into the state.
    """
    foreign.create_collection("gone")
    async with dispatching(dispatched):
        pass
    with foreign["gone"].watch([]) as stream:
        foreign["gone"].drop()
        while (event := stream.next())["operationType"] != "invalidate":
            pass
    with pytest.raises(OperationFailure) as refused:
        foreign.watch([], resume_after=event["_id"])
    assert refused.value.code == 260
    State(foreign).rewind(event["_id"]["_data"])
    foreign["accounts"].insert_one({"name": "1"})
    for _ in range(2):  # each start ends with the error, and the position stays
        with pytest.raises(PositionError, match="does not accept the saved position") as caught:
            await asyncio.wait_for(Service(dispatched, settings_for(dispatched)).run(asyncio.Event()), PATIENCE)
        assert "position reset" in caught.value.remedy
    assert (names, State(foreign).token) == ([], event["_id"]["_data"])


@pytest.fixture
def let_in(guarded, database) -> mongoz.Registry:
    """The registry of a user with the privileges of a dispatcher."""
    watching = {"resource": {"db": database, "collection": ""}, "actions": ["changeStream", "find"]}
    roles = [{"role": "readWrite", "db": f"{database}_state"}]
    guarded.admin.command("createRole", database, privileges=[watching], roles=roles)
    guarded.admin.command("createUser", database, pwd="secret", roles=[database])
    host, port = guarded.address
    return mongoz.Registry(f"mongodb://{database}:secret@{host}:{port}/?replicaSet=rs0", dispatched=database)


async def test_revoked_privileges_end_the_dispatcher(guarded, let_in, database, capsys):
    names_told(make_account(let_in, database))
    async with dispatching(let_in) as running:
        guarded.admin.command("revokeRolesFromUser", database, roles=[database])
        with pytest.raises(AccessDenied) as caught:
            await asyncio.wait_for(running.task, PATIENCE)
    assert "changeStream" in caught.value.remedy
    assert "secret" not in caught.value.message + "".join(capsys.readouterr())


async def test_a_changed_password_ends_the_dispatcher_at_the_next_connection(guarded, let_in, database):
    """Open connections stay open. The process ends, so a supervisor can start it with the new password."""
    names = names_told(make_account(let_in, database))
    async with dispatching(let_in) as running:
        guarded.admin.command("updateUser", database, pwd="another")
        guarded[database]["accounts"].insert_one({"name": "1"})
        await eventually(lambda: names == ["1"])
        with (
            failing(guarded, "getMore", mode={"times": 1}, closeConnection=True),
            pytest.raises(AccessDenied) as caught,
        ):
            await asyncio.wait_for(running.task, PATIENCE)
    assert "rejects the login" in caught.value.message
    assert "password" in caught.value.remedy
