"""`run_sync` blocks, with and without a running loop."""

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from pymongo import MongoClient

import mongoz
from mongoz import run_sync
from mongoz.exceptions import DocumentNotFound
from mongoz.signals import muted
from tests.support import eventually_sync

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def User(mongo: Any, database: str, driver: str) -> Any:
    options = {
        "registry": mongoz.Registry(f"{mongo.url}&appName={database}", driver=driver),
        "database": database,
    }

    class User(mongoz.Document):
        name: str = mongoz.String()
        Meta = type("Meta", (), options)

    return User


@pytest.fixture(params=["no loop", "a running loop"])
def sync(request: pytest.FixtureRequest) -> Any:
    """Runs a synchronous function directly or inside of a running loop."""

    def call(function: Any) -> Any:
        if request.param == "no loop":
            return function()

        async def main() -> Any:
            return function()

        return asyncio.run(main())

    return call


def test_documents_and_queries_work_synchronously(User: Any, sync: Any) -> None:
    def work() -> list[Any]:
        user = run_sync(User(name="Ada").create())
        run_sync(User.objects.create(name="Grace"))
        assert run_sync(User.objects.count()) == 2
        assert run_sync(User.get_document_by_id(user.id)) == user
        assert [found.name for found in run_sync(User.query(User.name == "Ada"))] == ["Ada"]
        assert len(run_sync(User.query.all())) == 2
        return [found.name for found in run_sync(User.objects.filter(name="Grace"))]

    assert sync(work) == ["Grace"]
    assert User.meta.registry._clients == {}


def test_the_awaitable_runs_once_and_its_result_is_returned(sync: Any) -> None:
    ran = []

    async def once() -> object:
        ran.append(threading.get_ident())
        await asyncio.sleep(0)
        return ran

    assert sync(lambda: run_sync(once())) is ran
    assert len(ran) == 1


def test_errors_are_raised_unchanged(User: Any, sync: Any) -> None:
    error = ZeroDivisionError("as it is")

    async def fail() -> None:
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        sync(lambda: run_sync(fail()))
    assert caught.value is error
    with pytest.raises(DocumentNotFound):
        sync(lambda: run_sync(User.objects.get(name="nobody")))


def test_awaitables_other_than_coroutines_are_accepted(sync: Any) -> None:
    class Once:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return 5

    assert sync(lambda: run_sync(Once())) == 5


def test_context_variables_are_carried_over(User: Any, sync: Any) -> None:
    fired = []

    async def receiver(sender: Any, **kwargs: Any) -> None:
        fired.append(sender)

    User.signals.post_save.connect(receiver)

    async def read() -> str:
        return variable.get()

    def work() -> str:
        token = variable.set("set")
        try:
            with muted():
                run_sync(User(name="Ada").create())
            return run_sync(read())
        finally:
            variable.reset(token)

    assert sync(work) == "set"
    assert fired == []
    sync(lambda: run_sync(User(name="Ada").create()))
    assert fired == [User]


def test_run_sync_may_be_nested(sync: Any) -> None:
    async def inner() -> int:
        return 1

    async def outer() -> int:
        return run_sync(inner()) + 1

    assert sync(lambda: run_sync(outer())) == 2


@pytest.mark.parametrize("wrong", [None, 5, len, asyncio.sleep])
def test_values_that_are_not_awaitable_are_refused(sync: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"run_sync\(\) takes a coroutine") as caught:
        sync(lambda: run_sync(wrong))
    assert ("Call it" in str(caught.value)) == callable(wrong)


async def test_futures_and_tasks_belong_to_their_loop() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    for bound in (task, asyncio.get_running_loop().create_future()):
        with pytest.raises(TypeError, match="belongs to one event loop already"):
            run_sync(bound)
    await task


def test_run_sync_leaves_no_connection_open(mongo: Any, User: Any, database: str, sync: Any) -> None:
    sync(lambda: [run_sync(User.objects.count()) for _ in range(20)])
    operations = {"$currentOp": {"allUsers": True, "idleConnections": True, "idleSessions": False}}
    with MongoClient(mongo.url) as server:
        eventually_sync(
            lambda: not list(server.admin.aggregate([operations, {"$match": {"appName": database}}])),
            what="the connections are closed",
        )
    assert User.meta.registry._clients == {}
