"""One module-global registry serves many event loops, in sequence and concurrently."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import uvloop
from pymongo import MongoClient

import mongoz
from tests.support import PATIENCE, eventually_sync


@pytest.fixture
def server(mongo: Any) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient(mongo.url) as client:
        yield client


@pytest.fixture
def registry(mongo: Any, database: str, driver: str) -> mongoz.Registry:
    """A registry; the test runs once with each driver. The `appName` of the registry is the database name."""
    return mongoz.Registry(f"{mongo.url}&appName={database}", driver=driver)


@pytest.fixture
def User(registry: mongoz.Registry, database: str) -> Any:
    options = {"registry": registry, "database": database}

    class User(mongoz.Document):
        name: str = mongoz.String()
        Meta = type("Meta", (), options)

    return User


def connections_of(server: MongoClient[dict[str, Any]], name: str) -> int:
    operations = {"$currentOp": {"allUsers": True, "idleConnections": True, "idleSessions": False}}
    return len(list(server.admin.aggregate([operations, {"$match": {"appName": name}}])))


def sockets() -> int:
    return len(psutil.Process().net_connections(kind="tcp"))


async def write_and_count(User: Any) -> int:
    await User(name="Ada").create()
    return int(await User.objects.count())


RUNS: dict[str, Callable[[Any], int]] = {"asyncio.run": asyncio.run, "uvloop.run": uvloop.run}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_hundred_loops_leave_no_socket_open(
    registry: mongoz.Registry, User: Any, server: MongoClient[dict[str, Any]], database: str, run: str
) -> None:
    connections_of(server, database)
    before = sockets()
    assert [RUNS[run](write_and_count(User)) for _ in range(100)] == list(range(1, 101))
    assert registry._clients == {}
    # Motor's monitors are threads that close their sockets within half a second.
    eventually_sync(lambda: connections_of(server, database) == 0, what="the server's connections are closed")
    # The monitors of the fixtures' clients open some connections. A leak would leave a hundred.
    eventually_sync(lambda: sockets() < before + 10, what=f"about {before} sockets, as before")


def test_each_thread_may_have_its_own_loop(registry: mongoz.Registry, User: Any) -> None:
    together = threading.Barrier(8)

    async def work() -> list[str]:
        async def one(number: int) -> str:
            user = await User(name=f"{threading.get_ident()}-{number}").create()
            return str((await User.get_document_by_id(user.id)).name)

        return list(await asyncio.gather(*map(one, range(5))))

    def in_a_thread(_: int) -> list[list[str]]:
        together.wait(PATIENCE)
        return [asyncio.run(work()) for _ in range(5)]

    with ThreadPoolExecutor(8) as executor:
        results = list(executor.map(in_a_thread, range(8)))
    names = [name for runs in results for run in runs for name in run]
    assert len(names) == 8 * 5 * 5
    assert registry._clients == {}
    assert asyncio.run(write_and_count(User)) == len(names) + 1


def test_two_loops_may_alternate(registry: mongoz.Registry, User: Any) -> None:
    with asyncio.Runner() as one, asyncio.Runner(loop_factory=uvloop.new_event_loop) as two:
        assert [runner.run(write_and_count(User)) for runner in (one, two, one, two)] == [1, 2, 3, 4]
        assert len(registry._clients) == 2
    assert registry._clients == {}


CARELESS = """
import asyncio, gc, json, sys, threading, time
import psutil, mongoz
from pymongo import MongoClient

url, name, driver, kind = sys.argv[1:]
if kind == "uvloop":
    import uvloop
    new_event_loop = uvloop.new_event_loop
else:
    new_event_loop = asyncio.new_event_loop
registry = mongoz.Registry(f"{url}&appName={name}", driver=driver)

class User(mongoz.Document):
    name: str = mongoz.String()

    class Meta:
        registry = registry
        database = name

async def write_and_count():
    await User(name="Ada").create()
    return await User.objects.count()

gc.disable()  # the garbage collector must not close anything by chance
counts = []
for _ in range(40):
    loop = new_event_loop()
    counts.append(loop.run_until_complete(write_and_count()))
    loop.close()  # without shutdown_asyncgens()
deadline, pause = time.monotonic() + 10, threading.Event()
while (sockets := len(psutil.Process().net_connections(kind="tcp"))) > 8 and time.monotonic() < deadline:
    pause.wait(0.05)  # Motor's monitors are threads that close their sockets later
print(json.dumps([counts, sockets, len(registry._clients)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_loops_may_be_closed_without_a_shutdown(mongo: Any, database: str, driver: str, kind: str) -> None:
    # The loops run in a separate process, because asyncio warns of their pending tasks.
    arguments = [mongo.url, database, driver, kind]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CARELESS, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts, sockets, clients = json.loads(done.stdout)
    assert counts == list(range(1, 41))
    assert clients == 1, "the connection of the last loop"
    assert sockets <= 8, "only the connections of the last two loops"
