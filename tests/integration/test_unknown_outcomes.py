"""Writes with a lost answer: their receivers run exactly once if the write is committed, otherwise never."""

import asyncio
from typing import Any

import bson
import pymongo
import pymongo.common
import pytest
from pymongo.errors import AutoReconnect, BulkWriteError, OperationFailure, PyMongoError, WriteConcernError

import mongoz
from mongoz import U
from tests.conftest import DRIVER
from tests.proxy import Proxy, proxied
from tests.support import eventually, without_transactions

QUICK = "&connectTimeoutMS=500&heartbeatFrequencyMS=500&serverMonitoringMode=poll"
NAMES = ("post_save", "post_update", "post_delete")
AWAY = pytest.mark.parametrize("patience", [150], indirect=True)  # server selection gives up soon


@pytest.fixture(autouse=True)
def quick_monitors(monkeypatch) -> None:
    """After a lost connection the driver checks the server immediately, not after half a second."""
    monkeypatch.setattr(pymongo.common, "MIN_HEARTBEAT_INTERVAL", 0.02)


@pytest.fixture
async def proxy(mongo):
    async with proxied(mongo.url) as made:
        yield made


@pytest.fixture
def patience(request) -> int:
    """The server selection timeout in milliseconds."""
    return getattr(request, "param", 5_000)


@pytest.fixture
def driver(request) -> str:
    """One driver; `make test-motor` runs these tests on the other driver."""
    return getattr(request, "param", DRIVER)


@pytest.fixture
async def registry(proxy, driver, database, patience):
    url = f"{proxy.url}{QUICK}&serverSelectionTimeoutMS={patience}"
    async with mongoz.Registry(url, driver=driver, dispatched=database) as made:
        yield made


@pytest.fixture
async def User(registry, database, foreign):
    foreign.create_collection("users")

    class User(mongoz.Document):
        name: str = mongoz.String()
        age: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    return User


@pytest.fixture
def told(User) -> list[tuple[str, Any, int]]:
    """Signal, `_id` and age of each delivery."""
    log: list[tuple[str, Any, int]] = []

    def receiver(name: str) -> Any:
        async def receive(sender: Any, instance: Any, **kwargs: Any) -> None:
            log.append((name, instance.id, instance.age))

        return receive

    for name in NAMES:
        getattr(User.signals, name).connect(receiver(name), name=f"told.{name}")
    return log


async def create(User: Any, user: Any) -> None:
    await User(name="new", age=1).create()


async def update(User: Any, user: Any) -> None:
    await user.update(age=1)


async def operate(User: Any, user: Any) -> None:
    await user.update(U.inc(age=1))


async def save(User: Any, user: Any) -> None:
    user.age = 1
    await user.save()


async def get_or_create(User: Any, user: Any) -> None:
    await User.objects.get_or_create({"age": 1}, name="new")


async def create_many(User: Any, user: Any) -> None:
    await User.create_many([User(name="new", age=1), User(name="newer", age=1)])


async def update_many(User: Any, user: Any) -> None:
    await User.objects.update_count(age=1)


async def update_alone(User: Any, user: Any) -> None:
    """As `update_many`, on a server without transactions."""
    with without_transactions():
        await User.objects.update_count(age=1)


async def delete(User: Any, user: Any) -> None:
    await user.delete()


async def delete_many(User: Any, user: Any) -> None:
    await User.objects.delete()


WRITES = {
    create: ("insert", "post_save", 1),
    update: ("update", "post_update", 1),
    operate: ("findAndModify", "post_update", 1),
    save: ("update", "post_save", 1),
    get_or_create: ("update", "post_save", 1),
    create_many: ("insert", "post_save", 2),
    update_many: ("commitTransaction", "post_update", 1),
    update_alone: ("findAndModify", "post_update", 1),
    delete: ("commitTransaction", "post_delete", 1),
    delete_many: ("commitTransaction", "post_delete", 1),
}


@pytest.fixture(params=WRITES, ids=lambda write: write.__name__)
def write(request) -> Any:
    return request.param


def lose(proxy: Proxy, command: str, times: int, *, executed: bool, then_refuse: bool = False) -> None:
    how = proxy.cut_after_request if executed else proxy.cut_before_request
    how(command, times=times, then_refuse=then_refuse)


async def written(User: Any, told: list[Any]) -> Any:
    user = await User.objects.create(name="Ada")
    told.clear()
    return user


def has_changed(foreign: Any, before: dict[str, Any]) -> bool:
    """Whether the stored documents differ from the document `before`, apart from stamps."""
    rows = [{k: v for k, v in row.items() if k != "_mongoz"} for row in foreign.users.find()]
    return rows != [{k: v for k, v in before.items() if k != "_mongoz"}]


@pytest.mark.parametrize("executed", [True, False])
async def test_receivers_run_once_although_the_driver_repeats_the_write(User, told, proxy, write, executed):
    user = await written(User, told)
    command, signal, count = WRITES[write]
    lose(proxy, command, 1, executed=executed)
    await write(User, user)
    assert [name for name, *_ in told] == [signal] * count
    assert proxy.lost == 1


def notes(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", ()))


@pytest.mark.parametrize("executed", [True, False])
async def test_receivers_run_if_and_only_if_the_write_is_committed(
    User, told, proxy, write, executed, foreign, registry
):
    user = await written(User, told)
    before = foreign.users.find_one()
    command, signal, count = WRITES[write]
    times = 6 if command == "commitTransaction" else 2  # the number of sends, including retries of the driver
    lose(proxy, command, times, executed=executed)
    with pytest.raises(PyMongoError) as caught:
        await write(User, user)
    assert proxy.lost == times
    if command == "commitTransaction":
        # The search for the outcome sends the commit again, and then the commit takes effect.
        await eventually(lambda: not registry._unsettled, what="the outcome is known")
        executed = True
    elif executed and count == 1:
        assert "took effect despite this error" in notes(caught.value)
    assert has_changed(foreign, before) is executed
    assert [name for name, *_ in told] == [signal] * count * executed
    if not executed and write in (update, operate):
        assert user.age == 0
        await user.update(age=1)
        assert [name for name, *_ in told] == ["post_update"]


@pytest.mark.parametrize("driver", ["motor"], indirect=True)
@pytest.mark.parametrize("write", [create, delete, update_many], indirect=True)
async def test_receivers_run_if_and_only_if_the_write_is_committed_with_motor(
    User, told, proxy, write, foreign, registry
):
    await test_receivers_run_if_and_only_if_the_write_is_committed(
        User, told, proxy, write, True, foreign, registry
    )


@AWAY
@pytest.mark.parametrize("executed", [True, False])
async def test_receivers_run_later_if_the_server_is_away(User, told, proxy, write, executed, foreign, registry):
    user = await written(User, told)
    before = foreign.users.find_one()
    command, signal, count = WRITES[write]
    lose(proxy, command, 1, executed=executed, then_refuse=True)
    with pytest.raises(PyMongoError) as caught:
        await write(User, user)
    assert "is not known yet whether" in notes(caught.value)
    assert told == []
    assert has_changed(foreign, before) is executed
    if write in (update, operate):
        assert user.age == 0  # the instance is reset
    if command == "commitTransaction" and not executed:
        foreign.client.admin.command("killAllSessions", [])  # the server would end the transaction after a minute
    proxy.accept()
    await eventually(lambda: not registry._unsettled, what="the outcome is known")
    assert [name for name, *_ in told] == [signal] * count * executed
    assert has_changed(foreign, before) is executed
    if executed and signal != "post_delete":
        assert {age for *_, age in told} == {1}  # the written values, although the caller's instance was reset
        assert {id_ for _, id_, _ in told} <= {row["_id"] for row in foreign.users.find()}


@AWAY
async def test_closing_the_registry_ends_the_search(User, told, proxy, registry):
    user = await written(User, told)
    proxy.cut_after_request("update", then_refuse=True)
    with pytest.raises(PyMongoError):
        await user.update(age=1)
    (task,) = registry._unsettled
    await registry.close()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    assert told == []


@AWAY
async def test_a_write_that_was_never_sent_fails_immediately(User, told, proxy, registry):
    user = await written(User, told)
    proxy.refuse()
    with pytest.raises(PyMongoError):
        await user.update(age=1)
    proxy.accept()
    await eventually(lambda: not registry._unsettled)
    assert told == []
    assert user.age == 0


@AWAY
async def test_receivers_that_run_later_get_a_copy_of_the_instance(User, told, proxy, registry, foreign):
    user = User(name="Ada", age=3)
    await written(User, told)
    foreign.users.delete_many({})
    proxy.cut_after_request("insert", then_refuse=True)
    with pytest.raises(PyMongoError):
        await user.create()
    assert user.id is None
    proxy.accept()
    await user.create()  # the caller repeats the call
    second = user.id
    await eventually(lambda: not registry._unsettled)
    assert user.id == second
    first = next(row["_id"] for row in foreign.users.find() if row["_id"] != second)
    assert sorted(told) == sorted([("post_save", second, 3), ("post_save", first, 3)])


async def test_the_stamp_of_an_earlier_write_does_not_prove_a_later_write(User, told, proxy, foreign):
    """Both writes happen in one second, in one process."""
    for n in range(2):
        user = await written(User, told)
        proxy.cut_before_request("update", times=2)
        with pytest.raises(AutoReconnect):
            await user.update(age=n + 1)
        assert told == []
        assert foreign.users.find_one(user.id)["age"] == 0


@pytest.mark.parametrize("stamped", [True, False])
async def test_existing_documents_do_not_count_as_inserted(User, told, proxy, foreign, stamped):
    user = await written(User, told)
    if not stamped:
        foreign.users.update_one({}, {"$unset": {"_mongoz": ""}})
    proxy.cut_before_request("insert", times=2)
    with pytest.raises(AutoReconnect):
        await User.create_many([User(id=bson.ObjectId(), name="a"), User(name="b")])
    assert told == []
    assert foreign.users.count_documents({}) == 1
    assert user.id


@pytest.mark.parametrize("write", [create, update, save, operate, create_many, update_alone])
async def test_receivers_run_although_the_write_concern_is_not_satisfied(
    User, told, proxy, foreign, driver, database, write, registry
):
    user = await written(User, told)
    _, signal, count = WRITES[write]
    foreign.client.admin.command(
        {
            "configureFailPoint": "failCommand",
            "mode": {"times": 1},
            "data": {
                "failCommands": ["insert", "update", "findAndModify"],
                "writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"},
                "namespace": f"{database}.users",
            },
        }
    )
    with pytest.raises((WriteConcernError, BulkWriteError)) as caught:
        await write(User, user)
    assert [name for name, *_ in told] == [signal] * count
    if isinstance(caught.value, WriteConcernError):
        assert caught.value.__notes__ == ["The write took effect despite this error, and its receivers have run."]
    assert foreign.users.count_documents({"age": 1}) == count
    assert not registry._unsettled


# -- another client writes first ------------------------------------------------------------------------


def deleted(foreign: Any) -> None:
    foreign.users.delete_many({})


def replaced(foreign: Any) -> None:
    for row in list(foreign.users.find()):
        foreign.users.replace_one({"_id": row["_id"]}, {"name": "theirs", "age": 7})


def unstamped(foreign: Any) -> None:
    foreign.users.update_many({}, {"$unset": {"_mongoz": ""}})


@AWAY
@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize(
    ("write", "meanwhile"),
    [
        (create, deleted),
        (create, replaced),
        (create_many, deleted),
        (operate, replaced),
        (save, deleted),
        (get_or_create, deleted),
        (update_many, replaced),
        (update_many, unstamped),
        (update_alone, replaced),
        (update_alone, unstamped),
    ],
)
async def test_a_later_write_of_another_client_does_not_hide_the_outcome(
    User, told, proxy, write, executed, foreign, registry, meanwhile
):
    user = await written(User, told)
    command, signal, count = WRITES[write]
    lose(proxy, command, 1, executed=executed, then_refuse=True)
    with pytest.raises(PyMongoError):
        await write(User, user)
    if command == "commitTransaction" and not executed:
        foreign.client.admin.command("killAllSessions", [])
    meanwhile(foreign)
    proxy.accept()
    await eventually(lambda: not registry._unsettled, what="the outcome is known")
    assert [name for name, *_ in told] == [signal] * count * executed
    assert {age for *_, age in told} <= {1}  # as written, not as stored now


@AWAY
@pytest.mark.parametrize("place", [("", "log{2}"), ("_{1,2}", "users"), ("_{1}", "it's{3}")])
@pytest.mark.parametrize("executed", [True, False])
async def test_the_change_stream_finds_names_that_look_like_regular_expressions(
    registry, proxy, foreign, database, place, executed
):
    class Log(mongoz.Document):
        name: str = mongoz.String()

        Meta = type("Meta", (), {"registry": registry, "database": database + place[0], "collection": place[1]})

    told: list[str] = []

    async def receive(sender: Any, instance: Any, **kwargs: Any) -> None:
        told.append(instance.name)

    Log.signals.post_save.connect(receive, name="receive")
    collection = foreign.client[database + place[0]][place[1]]
    try:
        await Log(name="first").create()
        lose(proxy, "insert", 1, executed=executed, then_refuse=True)
        with pytest.raises(PyMongoError):
            await Log(name="second").create()
        collection.delete_many({})  # so only the change stream has the answer
        proxy.accept()
        await eventually(lambda: not registry._unsettled, what="the outcome is known")
        assert told == ["first", *["second"] * executed]
    finally:
        foreign.client.drop_database(collection.database.name)


@AWAY
@pytest.mark.parametrize("write", [update, update_many])
async def test_a_later_write_of_the_odm_does_not_prove_an_earlier_write(
    User, told, proxy, write, foreign, registry, mongo, database
):
    user = await written(User, told)
    lose(proxy, "update", 1, executed=False, then_refuse=True)
    with pytest.raises(PyMongoError):
        await write(User, user)
    async with mongoz.Registry(mongo.url, dispatched=database) as other:

        class Other(mongoz.Document):
            name: str = mongoz.String()

            Meta = type("Meta", (), {"registry": other, "database": database, "collection": "users"})

        async with other.transaction():
            await (await Other.objects.get(id=user.id)).save()
    assert foreign.users.find_one(user.id)["_mongoz"]
    proxy.accept()
    await eventually(lambda: not registry._unsettled, what="the outcome is known")
    assert told == []
    # The transaction of the refused connection is still open, and would delay the drop of the database by a
    # minute.
    foreign.client.admin.command("killAllSessions", [])


@AWAY
@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("executed", [True, False])
async def test_the_outcome_of_a_delete_without_a_marker_is_found(User, proxy, foreign, registry, many, executed):
    """Only this process runs the receiver, so the ODM writes no marker."""
    told = []

    async def receive(sender: Any, instance: Any, **kwargs: Any) -> None:
        told.append(instance.name)

    User.signals.post_delete.connect(receive, name="receive", delivery="process")
    user = await User(name="Ada").create()
    before = foreign.users.find_one()
    lose(proxy, "commitTransaction" if many else "delete", 1, executed=executed, then_refuse=True)
    with pytest.raises(PyMongoError) as caught:
        await (User.objects.delete() if many else user.delete())
    assert "is not known yet whether" in notes(caught.value)
    assert told == []
    if many and not executed:
        foreign.client.admin.command("killAllSessions", [])
    if executed and not many:
        foreign.users.insert_one(before)
    proxy.accept()
    await eventually(lambda: not registry._unsettled, what="the outcome is known")
    assert told == ["Ada"] * executed


async def test_the_document_shows_the_outcome_without_access_to_the_change_stream(
    User, told, proxy, foreign, monkeypatch
):
    """Without the privilege for the change stream, the stored document shows whether the write took effect."""
    user = await written(User, told)
    foreign.client.admin.command(
        {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn",
            "data": {"failCommands": ["aggregate"], "errorCode": 13, "namespace": f"{foreign.name}.users"},
        }
    )
    try:
        for executed in (True, False):
            lose(proxy, "update", 2, executed=executed)
            with pytest.raises(AutoReconnect):
                await user.update(age=user.age + 1)
    finally:
        foreign.client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
    assert [name for name, *_ in told] == ["post_update"]


async def test_an_error_of_a_receiver_is_in_the_notes(User, told, proxy):
    async def fail(sender: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    user = await written(User, told)
    User.signals.post_update.connect(fail, name="fail")
    proxy.cut_after_request("update", times=2)
    with pytest.raises(AutoReconnect) as caught:
        await user.update(age=1)
    assert "ZeroDivisionError" in notes(caught.value)
    assert len(told) == 1
    assert user.age == 1


# -- transactions --------------------------------------------------------------------------------------


async def last_is_single(User: Any, user: Any) -> None:
    await user.update(age=1)


async def last_is_delete(User: Any, user: Any) -> None:
    await user.update(age=1)
    await user.delete()


async def last_is_bulk(User: Any, user: Any) -> None:
    await User.objects.update_count(age=1)


async def last_is_many(User: Any, user: Any) -> None:
    await User.create_many([User(name="a"), User(name="b")])


async def last_is_bulk_delete(User: Any, user: Any) -> None:
    await User.objects.delete()


BODIES = [last_is_single, last_is_delete, last_is_bulk, last_is_many, last_is_bulk_delete]


@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("body", BODIES)
async def test_commits_are_repeated_after_lost_connections(User, told, proxy, registry, body, executed):
    user = await written(User, told)
    lose(proxy, "commitTransaction", 5, executed=executed)  # the driver repeats each of three attempts
    async with registry.transaction():
        await body(User, user)
    assert told != []
    assert proxy.lost == 5


@AWAY
@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("body", BODIES)
async def test_the_outcome_of_an_unknown_commit_is_found_later(
    User, told, proxy, registry, foreign, body, executed
):
    user = await written(User, told)
    before = foreign.users.find_one()
    lose(proxy, "commitTransaction", 1, executed=executed, then_refuse=True)
    with pytest.raises(PyMongoError) as caught:
        async with registry.transaction() as session:
            await body(User, user)
    assert "is not known yet whether" in notes(caught.value)
    assert told == []
    if not executed:
        foreign.client.admin.command("killSessions", [session.session_id])
    elif body is not last_is_many:  # the document is no proof, because another client changed it
        foreign.users.delete_many({})
        foreign.users.insert_one(before)
    proxy.accept()
    await eventually(lambda: not registry._unsettled, what="the outcome is known")
    assert bool(told) is executed


@AWAY
async def test_the_odm_does_not_look_for_the_outcome_of_a_commit_without_receivers(User, proxy, registry):
    lose(proxy, "commitTransaction", 1, executed=True, then_refuse=True)
    with pytest.raises(PyMongoError) as caught:
        async with registry.transaction():
            await User.objects.create(name="Ada")
    assert "found out" not in notes(caught.value)
    assert not registry._unsettled


# -- assumptions of the fence --------------------------------------------------------------------------


def test_the_server_refuses_transaction_numbers_below_the_latest_number_of_a_session(foreign, mongo):
    # This test needs a new client. A client reuses its sessions, and a reused session has had higher transaction
    # numbers than the numbers of this test.
    with pymongo.MongoClient(mongo.url) as client, client.start_session() as session:

        def send(number: int, command: dict[str, Any]) -> Any:
            return client[foreign.name].command({**command, "txnNumber": bson.Int64(number)}, session=session)

        send(1, {"insert": "users", "documents": [{"_id": 1}]})
        nothing = {"q": {"_id": 0, "_mongoz": {"$type": "minKey"}}, "u": {"$unset": {"_mongoz": ""}}}
        assert send(3, {"update": "users", "updates": [nothing]})["n"] == 0
        with pytest.raises(OperationFailure) as refused:
            send(2, {"insert": "users", "documents": [{"_id": 2}]})
    assert refused.value.code == 225  # TransactionTooOld
    assert [row["_id"] for row in foreign.users.find()] == [1]
