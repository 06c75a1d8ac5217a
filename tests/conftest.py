"""Fixtures for all tests: a real mongod per worker process, a database per test."""

import contextlib
import fcntl
import gc
import importlib
import itertools
import logging
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest
import structlog
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from pymongo import AsyncMongoClient, MongoClient

from dispatcher.core.output.logs import log
from dispatcher.embedded.broker import EmbeddedBroker, embedded_broker
from dispatcher.embedded.server import EmbeddedMongo, embedded_mongo
from dispatcher.exceptions import EmbeddedError
from mongoz import Registry
from tests.kafka.server import KafkaServer
from tests.kafka.server import missing as missing_for_kafka
from tests.kafka.server import running as running_kafka

# A traceback with all local variables takes a tenth of a second to print.
structlog.get_config()["processors"][-1].exception_formatter = structlog.dev.plain_traceback

# Objects of the start stay until the end, so the garbage collector need not scan them.
gc.disable()

# The duration of an example depends on the machine, so it has no deadline. Every run draws other examples:
# `make test` draws few, and `make test-slow` draws many.
for profile, examples in {"few": 25, "many": 100}.items():
    hypothesis_settings.register_profile(
        profile, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
hypothesis_settings.load_profile("few")

# A dispatcher without HTTP requests needs no port. Tests with requests set --http.
os.environ.setdefault("DISPATCHER_HTTP", "off")

mongoz_settings = importlib.import_module("mongoz.settings")  # `mongoz.settings` is an object, not the module

_databases = itertools.count()

DRIVER = os.environ.get("MONGOZ_TEST_DRIVER", "pymongo")
"""The driver of registries in tests without a driver of their own; `make test-motor` runs these tests on Motor."""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """One worker compiles a test module, and the others load the compiled file."""
    if sys.dont_write_bytecode or not isinstance(collector, pytest.Module):
        return (yield)
    with collector.path.open() as module:
        fcntl.flock(module, fcntl.LOCK_EX)
        return (yield)


def pytest_collection_finish() -> None:
    """Enables the garbage collector again. It does not scan the loaded modules."""
    gc.freeze()
    gc.enable()


_LARGE_FAMILY, _EACH = 30, 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests on Apache Kafka and on the second driver as slow, and most of a large family as exhaustive.

    Of a family of integration tests with many parameters, `make test` runs each fourth one, and `make test-slow`
    runs the others. Tests that take minutes without a cache run first, so no worker runs them alone at the end.
    """
    families = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        words = {one for one in (*getattr(item, "fixturenames", ()), *parameters) if type(one) is str}
        if words & {"kafka_server", "motor"}:
            item.add_marker(pytest.mark.slow)
        if "integration" in item.path.parts:
            families[item.nodeid.partition("[")[0]].append(item)
    for family in families.values():
        if len(family) > _LARGE_FAMILY:
            for place, item in enumerate(sorted(family, key=lambda one: one.nodeid)):
                if place % _EACH:
                    item.add_marker(pytest.mark.exhaustive)
    items.sort(key=lambda item: "typing" not in item.path.parts)


_MEMORY = Path("/dev/shm")  # Linux keeps files here in memory
_ROOM = 1 << 30  # bytes; a worker's server takes about 100 MB


@contextlib.contextmanager
def _server(*arguments: str) -> Iterator[EmbeddedMongo]:
    """A server with its data in memory, if there is room, because each new collection makes two new files."""
    roomy = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM
    with contextlib.ExitStack() as stack:
        with mock.patch.object(tempfile, "tempdir", str(_MEMORY) if roomy else tempfile.gettempdir()):
            server = stack.enter_context(
                embedded_mongo(extra_args=("--setParameter", "enableTestCommands=1", *arguments))
            )
        yield server


@pytest.fixture(scope="session")
def mongo() -> Iterator[EmbeddedMongo]:
    """A single-node replica set, shared by the tests of one worker."""
    try:
        with _server() as server:
            yield server
    except EmbeddedError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no mongod: {error}")


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    """The embedded Kafka broker, shared by the tests of one worker. Topics need names of their own."""
    try:
        with embedded_broker() as running:
            yield running
    except EmbeddedError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Kafka broker: {error}")


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[KafkaServer]:
    """Apache Kafka, shared by the tests of one worker: for times, sizes, retention, watermarks and security."""
    need_kafka()
    with running_kafka() as server:
        yield server


@pytest.fixture(scope="session")
def _sync_client(mongo: EmbeddedMongo) -> Iterator[MongoClient]:
    with MongoClient(mongo.url, uuidRepresentation="standard") as client:
        yield client


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoClient]:
    """The client of an administrator, on a server with authentication."""
    key = tmp_path_factory.mktemp("guarded") / "key"
    key.write_text("k" * 64)
    key.chmod(0o600)
    with _server("--auth", "--keyFile", str(key)) as server:
        with MongoClient(server.url) as first:  # as long as there is no user, localhost may create one
            first.admin.command("createUser", "admin", pwd="secret", roles=["root"])
        with MongoClient(server.url, username="admin", password="secret") as administrator:
            yield administrator


@pytest.fixture
def database(_sync_client: MongoClient) -> Iterator[str]:
    """The name of the test's own database, dropped afterwards."""
    name = f"test_{os.getpid()}_{next(_databases)}"
    yield name
    for one in (name, f"{name}_state"):
        _sync_client.drop_database(one)


@pytest.fixture
def foreign(_sync_client: MongoClient, database: str):
    """The test's database, through a client without mongoz."""
    return _sync_client[database]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Restores logging after a test. A command in the process of the tests makes the log write to its stderr."""
    own, last = log.own, logging.lastResort
    yield
    log.own, logging.lastResort = own, last


@pytest.fixture(params=["pymongo", "motor"])
def driver(request: pytest.FixtureRequest) -> str:
    """The name of each driver."""
    return request.param


@pytest.fixture
async def registry(mongo: EmbeddedMongo) -> AsyncIterator[Registry]:
    """A plain registry."""
    async with Registry(mongo.url, driver=DRIVER) as made:
        yield made


@pytest.fixture
async def dispatched(mongo: EmbeddedMongo, database: str) -> AsyncIterator[Registry]:
    """A dispatched registry; its group has the name of the test's database, so tests don't share positions."""
    state = f"{database}_state"
    async with Registry(mongo.url, driver=DRIVER, dispatched=database, state=state) as made:
        yield made


@pytest.fixture
def javascript_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allows JavaScript in keyword filters."""
    monkeypatch.setattr(mongoz_settings._load(), "allow_javascript", True)


@pytest.fixture
async def client(mongo: EmbeddedMongo) -> AsyncIterator[AsyncMongoClient]:
    """PyMongo's asynchronous client on the test's event loop."""
    async with AsyncMongoClient(mongo.url) as made:
        yield made


def need(program: str) -> str:
    """The path of a program. If it is missing, the test is skipped; in CI the test fails."""
    path = shutil.which(program)
    if path is None:
        _lack(f"{program} is not installed")
    return path


def need_kafka() -> None:
    """Requires Apache Kafka. If it is missing, the test is skipped; in CI the test fails."""
    if trouble := missing_for_kafka():
        _lack(trouble)


def _lack(trouble: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{trouble}; .ci/run should have done that")
    pytest.skip(trouble)
