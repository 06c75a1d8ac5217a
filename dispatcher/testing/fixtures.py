"""Fixtures for pytest: a MongoDB server for the test session, and a database for each test.

In the outermost `conftest.py`:

    pytest_plugins = ["dispatcher.testing.fixtures"]

| fixture | scope | value |
|---|---|---|
| `mongodb` | session | an embedded server: a replica set of one node; with pytest-xdist each worker has its own |
| `mongodb_url` | session | its URL |
| `mongodb_database` | function | the name of a database that no other test uses, dropped after the test |

If the environment variable `MONGOZ_TEST_URL` names a server, the tests use this server; otherwise they use an
embedded one. The named server must be a replica set. Without a `mongod`, the tests that need a server are skipped.
If the variable `CI` is set, these tests fail instead.
"""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from dispatcher.embedded.server import embedded_mongo
from dispatcher.exceptions import EmbeddedError

__all__ = ["TestServer", "mongodb", "mongodb_database", "mongodb_url"]

_VARIABLE: Final = "MONGOZ_TEST_URL"
_SELECTION: Final = "serverSelectionTimeoutMS"
_PATIENCE_MS: Final = 5_000


@dataclass(frozen=True, slots=True)
class TestServer:
    """The server of the test session.

    Attributes:
        url: the URL for clients.
        client: a synchronous client of PyMongo, for reads and writes without mongoz.
        embedded: whether the server was started for this session, and ends with it.
    """

    __test__ = False  # pytest collects classes whose names begin with Test

    url: str
    client: "MongoClient[dict[str, Any]]"
    embedded: bool


@pytest.fixture(scope="session")
def mongodb() -> Iterator[TestServer]:
    """A MongoDB server that is a replica set, shared by the tests of one process."""
    url = os.environ.get(_VARIABLE)
    if url:
        with _client(url) as client:
            _check(client)
            yield TestServer(url, client, embedded=False)
        return
    try:
        embedded = embedded_mongo()
        server = embedded.__enter__()
    except EmbeddedError as error:
        _give_up(f"no MongoDB server: {error.message}; {error.remedy}; or name one in {_VARIABLE}")
    try:
        with _client(server.url) as client:
            yield TestServer(server.url, client, embedded=True)
    finally:
        embedded.__exit__(None, None, None)


@pytest.fixture(scope="session")
def mongodb_url(mongodb: TestServer) -> str:
    """The URL of the server."""
    return mongodb.url


@pytest.fixture
def mongodb_database(mongodb: TestServer) -> Iterator[str]:
    """The name of a database for this test only. It is dropped afterwards."""
    name = f"test_{secrets.token_hex(8)}"
    yield name
    mongodb.client.drop_database(name)


def _client(url: str) -> "MongoClient[dict[str, Any]]":
    patience: dict[str, Any] = {} if _SELECTION in url else {_SELECTION: _PATIENCE_MS}
    return MongoClient(url, uuidRepresentation="standard", **patience)


def _check(client: "MongoClient[dict[str, Any]]") -> None:
    """Fail if the server that the user has named can't be used. The tests are not skipped, even without CI."""
    try:
        hello = client.admin.command("hello")
    except PyMongoError as error:
        pytest.fail(f"{_VARIABLE} names a server that can't be used: {error}", pytrace=False)
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        pytest.fail(f"{_VARIABLE} names a standalone server, which has no change streams", pytrace=False)


def _give_up(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
