"""Sessions and transactions: joining, signals, rollback, and errors."""

import asyncio
import threading
from typing import Any

import pymongo
import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.monitoring import CommandListener

import mongoz
from dispatcher.embedded.server import embedded_mongo
from mongoz.exceptions import DocumentNotFound, ImproperlyConfigured, TransactionError
from mongoz.stamps import FIELD, Stamp
from tests.support import eventually


@pytest.fixture
async def registry(mongo, driver):
    async with mongoz.Registry(mongo.url, driver=driver) as made:
        yield made


def make(registry: mongoz.Registry, database: str) -> Any:
    options = {"registry": registry, "database": database}

    class Account(mongoz.Document):
        name: str = mongoz.String()
        balance: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), options)

    return Account


@pytest.fixture
async def Account(registry: mongoz.Registry, database: str, foreign: Any) -> Any:
    foreign.create_collection("accounts")
    return make(registry, database)


@pytest.fixture
def fired(Account: Any) -> list[tuple[str, str]]:
    """The calls of `post_*` receivers, in order."""
    log: list[tuple[str, str]] = []

    def receiver(name: str) -> Any:
        async def receive(sender: Any, instance: Any, **kwargs: Any) -> None:
            log.append((name, instance.name))

        return receive

    for name in ("post_save", "post_update", "post_delete"):
        getattr(Account.signals, name).connect(receiver(name))
    return log


async def test_a_transaction_commits_all_writes_and_then_runs_the_receivers(registry, Account, fired, foreign):
    kept = await Account.objects.create(name="kept")
    fired.clear()
    async with registry.transaction() as session:
        assert session.in_transaction
        ada = await Account.objects.create(name="ada")
        await ada.update(balance=5)
        ada.balance = 6
        await ada.save()
        await Account.create_many([Account(name="b"), Account(name="c")])
        await Account.objects.filter(name="b").update_count(balance=1)
        await kept.delete()
        assert fired == []
        assert foreign.accounts.count_documents({}) == 1  # other sessions see no write
        assert await Account.objects.count() == 3  # this session sees its writes
        assert {a.name async for a in Account.objects} == {"ada", "b", "c"}
    assert fired == [
        ("post_save", "ada"),
        ("post_update", "ada"),
        ("post_save", "ada"),
        ("post_save", "b"),
        ("post_save", "c"),
        ("post_update", "b"),
        ("post_delete", "kept"),
    ]
    assert sorted((row["name"], row["balance"]) for row in foreign.accounts.find()) == [
        ("ada", 6),
        ("b", 1),
        ("c", 0),
    ]


async def test_an_abort_drops_signals_and_resets_instances(registry, Account, fired, foreign):
    ada = await Account.objects.create(name="ada")
    fired.clear()
    with pytest.raises(ZeroDivisionError):
        async with registry.transaction():
            ada.balance = 7
            await ada.save()
            new = Account(name="new")
            await new.save()
            await Account.objects.filter(name="ada").delete()
            raise ZeroDivisionError
    assert fired == []
    assert [row["name"] for row in foreign.accounts.find()] == ["ada"]
    assert new.id is None
    await ada.save()  # this save still writes 7
    assert foreign.accounts.find_one()["balance"] == 7
    await new.save()
    assert foreign.accounts.count_documents({}) == 2
    assert fired == [("post_save", "ada"), ("post_save", "new")]


async def test_only_the_task_that_begins_a_transaction_joins_it(registry, Account, foreign):
    async def elsewhere():
        await Account.objects.create(name="other task")

    with pytest.raises(ZeroDivisionError):
        async with registry.transaction():
            await Account.objects.create(name="dropped")
            await asyncio.create_task(elsewhere())
            raise ZeroDivisionError
    assert [row["name"] for row in foreign.accounts.find()] == ["other task"]


async def test_the_session_can_be_passed_to_another_task(registry, Account, fired, foreign):
    """Another task can use the session explicitly. The receivers of its writes wait for the commit, too."""

    async def helper(session):
        await Account(name="helper").create(session=session)
        found = await Account.objects.using_session(session).get(name="helper")
        await found.update(balance=3, session=session)
        await found.refresh(session=session)
        assert found.balance == 3

    async with registry.transaction() as session:
        await asyncio.create_task(helper(session))
        assert fired == []
    assert fired == [("post_save", "helper"), ("post_update", "helper")]
    assert foreign.accounts.find_one()["balance"] == 3


async def test_receivers_after_the_commit_write_outside_of_the_transaction(registry, Account, foreign):
    @Account.signals.post_save.connect
    async def follow(sender, instance, **kwargs):
        if instance.name == "first":
            assert foreign.accounts.count_documents({}) == 1
            await Account.objects.create(name="second")

    async with registry.transaction():
        await Account.objects.create(name="first")
    assert foreign.accounts.count_documents({}) == 2


async def test_all_receivers_run_after_the_commit_before_errors_are_raised(registry, Account, foreign):
    ran = []

    @Account.signals.post_save.connect
    async def fail(sender, instance, **kwargs):
        ran.append(instance.name)
        raise ValueError(instance.name)

    with pytest.raises(ExceptionGroup) as caught:
        async with registry.transaction():
            await Account.objects.create(name="a")
            await Account.objects.create(name="b")
    assert [str(error) for error in caught.value.exceptions] == ["a", "b"]
    assert ran == ["a", "b"]
    assert foreign.accounts.count_documents({}) == 2


async def test_nesting_is_an_error(registry, Account):
    async with registry.transaction():
        with pytest.raises(TransactionError, match="in a transaction of this registry already"):
            async with registry.transaction():
                pass
        with pytest.raises(TransactionError, match="already"):
            await registry.run_transaction(lambda: Account.objects.create(name="x"))
        await Account.objects.create(name="still usable")
    assert await Account.objects.count() == 1


async def test_transactions_of_two_registries_can_be_open_at_the_same_time(registry, Account, mongo, database):
    async with mongoz.Registry(mongo.url) as second:
        Other = make(second, f"{database}_state")
        async with registry.transaction(), second.transaction():
            await Account.objects.create(name="one")
            await Other.objects.create(name="two")
        assert (await Account.objects.count(), await Other.objects.count()) == (1, 1)


async def test_a_conflict_repeats_the_whole_function(registry, Account, fired, foreign):
    ada = await Account.objects.create(name="ada")
    fired.clear()
    attempts = []

    async def fn(session):
        assert session.in_transaction
        attempts.append(session)
        found = await Account.objects.get(name="ada")
        if len(attempts) == 1:  # another client is faster
            foreign.accounts.update_one({"_id": ada.id}, {"$set": {"balance": 10}})
        await found.update(balance=found.balance + 1)
        await Account.objects.create(name=f"attempt {len(attempts)}")
        return len(attempts)

    assert await registry.run_transaction(fn) == 2
    assert foreign.accounts.find_one({"name": "ada"})["balance"] == 11
    assert fired == [("post_update", "ada"), ("post_save", "attempt 2")]


async def test_an_instance_from_outside_of_the_function_is_written_again_by_the_second_attempt(
    registry, Account, foreign
):
    ada = await Account.objects.create(name="ada")
    attempts = []

    async def fn():
        attempts.append(1)
        if len(attempts) == 1:
            foreign.accounts.update_one({"_id": ada.id}, {"$set": {"name": "changed"}})
        ada.balance = 4
        await Account.objects.count()
        await ada.save()
        if len(attempts) == 1:
            foreign.client.admin.command("ping")
            error = OperationFailure("pretended", 112, {"errorLabels": ["TransientTransactionError"]})
            raise error

    await registry.run_transaction(fn)
    assert len(attempts) == 2
    assert foreign.accounts.find_one()["balance"] == 4


async def test_an_error_of_the_function_aborts_and_is_raised(registry, Account, fired, foreign):
    foreign.accounts.create_index("name", unique=True)
    await Account.objects.create(name="taken")
    fired.clear()

    async def fn():
        await Account.objects.create(name="new")
        await Account.objects.create(name="taken")

    with pytest.raises(DuplicateKeyError):
        await registry.run_transaction(fn)
    assert fired == []
    assert foreign.accounts.count_documents({}) == 1


async def test_options_reach_the_driver(registry, Account):
    async with registry.transaction(max_commit_time_ms=5000) as session:
        inner = session if registry.driver == "pymongo" else session.delegate
        assert inner._transaction.opts.max_commit_time_ms == 5000
        await Account.objects.create(name="x")
    with pytest.raises(TypeError):
        async with registry.transaction(nonsense=1):
            pass


async def test_a_session_of_another_client_is_refused(registry, Account, client):
    async with client.start_session() as session:
        for call in (
            lambda: Account(name="x").create(session=session),
            lambda: Account.objects.using_session(session).create(name="x"),
            lambda: Account.objects.using_session(session).count(),
            lambda: Account.objects.using_session(session).delete(),
        ):
            with pytest.raises(ImproperlyConfigured, match=r"not started by the client of .*transaction"):
                await call()
    assert await Account.objects.count() == 0


async def test_writes_in_a_session_without_a_transaction_fire_immediately(registry, Account, fired):
    async with registry.new_session() as session:
        ada = await Account(name="ada").create(session=session)
        assert fired == [("post_save", "ada")]
        await ada.delete(session=session)
    assert fired == [("post_save", "ada"), ("post_delete", "ada")]


def transaction_of_the_driver(registry: mongoz.Registry) -> Any:
    class Block:
        async def __aenter__(self) -> Any:
            self.block: Any = registry.new_session()
            self.session = await self.block.__aenter__()
            await registry.adapter.start_transaction(self.session, {})
            return self.session

        async def __aexit__(self, *exc: Any) -> None:
            await self.session.commit_transaction()
            await self.block.__aexit__(*exc)

    return Block()


async def test_in_a_transaction_of_the_driver_receivers_run_immediately_without_a_dispatcher(
    registry, Account, fired
):
    async with transaction_of_the_driver(registry) as session:
        await Account(name="ada").create(session=session)
        assert fired == [("post_save", "ada")]


async def test_in_a_transaction_of_the_driver_receivers_are_left_to_the_dispatcher(dispatched, database, foreign):
    Account = make(dispatched, database)
    ran = []

    async def receive(sender: Any, instance: Any, **kwargs: Any) -> None:
        ran.append(instance.name)

    Account.signals.post_save.connect(receive, name="receive")
    foreign.create_collection("accounts")
    async with transaction_of_the_driver(dispatched) as session:
        ada = await Account(name="ada").create(session=session)
        ada.balance = 1
        await ada.save(session=session)
    assert ran == []
    stamp = Stamp.unpack(foreign.accounts.find_one()[FIELD])
    assert stamp is not None
    assert stamp.receivers == frozenset()


async def test_a_document_that_a_transaction_has_deleted_is_not_found_afterwards(registry, Account):
    ada = await Account.objects.create(name="ada")
    async with registry.transaction():
        await ada.delete()
        with pytest.raises(DocumentNotFound):
            await ada.refresh()
    with pytest.raises(DocumentNotFound):
        await ada.save()


@pytest.fixture(scope="session")
def standalone():
    with embedded_mongo(replica_set=False) as server:
        yield server


async def test_the_error_without_a_replica_set_names_the_remedy(standalone, driver):
    async with mongoz.Registry(standalone.url, driver=driver) as registry:
        Account = make(registry, "standalone")
        with pytest.raises(TransactionError, match=r"need a replica set .*--replSet") as caught:
            async with registry.transaction():
                await Account.objects.create(name="x")
        assert isinstance(caught.value.__cause__, pymongo.errors.OperationFailure)
        with pytest.raises(TransactionError, match="need a replica set"):
            await registry.run_transaction(lambda: Account.objects.create(name="x"))
        assert await Account.objects.count() == 0


class _HoldsInserts(CommandListener):
    """Delays the thread of an insert until the server has answered the abort, at most half a second."""

    def __init__(self) -> None:
        self.began, self.aborted = threading.Event(), threading.Event()

    def started(self, event: Any) -> None:
        if event.command_name == "insert":
            self.began.set()
            self.aborted.wait(0.5)

    def succeeded(self, event: Any) -> None:
        if event.command_name == "abortTransaction":
            self.aborted.set()

    def failed(self, event: Any) -> None:
        self.succeeded(event)


async def test_a_command_of_motor_does_not_outlive_its_transaction(mongo, database, foreign):
    """A thread continues when its awaiting task is cancelled."""
    foreign.create_collection("accounts")
    holding = _HoldsInserts()
    client = AsyncIOMotorClient(mongo.url, event_listeners=[holding], io_loop=asyncio.get_running_loop())
    registry = mongoz.Registry(client)
    Account = make(registry, database)

    async def work() -> None:
        async with registry.transaction():
            await Account.objects.create(name="gone")

    task = asyncio.create_task(work())
    await eventually(holding.began.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = [{"$currentOp": {"idleSessions": True}}, {"$match": {"transaction": {"$exists": True}}}]
    assert [one for one in foreign.client.admin.aggregate(left) if one["type"] == "idleSession"] == []
    assert foreign.accounts.count_documents({}) == 0
    await registry.close()
    client.close()
