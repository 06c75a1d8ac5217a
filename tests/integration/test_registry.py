"""The registry on a real server has one client per event loop, and leaves no client open."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from bson.binary import UuidRepresentation
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.errors import ServerSelectionTimeoutError

import mongoz
from mongoz.exceptions import ImproperlyConfigured


def make(registry: mongoz.Registry, database: str) -> Any:
    options = {"registry": registry, "database": database}

    class User(mongoz.Document):
        name: str = mongoz.String()

        Meta = type("Meta", (), options)

    return User


async def write_and_count(User: Any) -> int:
    await User.objects.create(name="Ada")
    return int(await User.objects.count())


def test_a_module_global_registry_serves_one_loop_after_another(mongo: Any, database: str, driver: str) -> None:
    registry = mongoz.Registry(mongo.url, driver=driver)
    User = make(registry, database)
    counts = []

    for _ in range(3):
        counts.append(asyncio.run(write_and_count(User)))
        assert registry._clients == {}
    assert counts == [1, 2, 3]


async def test_a_registry_has_one_client_per_loop_and_can_be_closed_twice(mongo: Any, database: str) -> None:
    registry = mongoz.Registry(mongo.url)
    assert registry._clients == {}
    first = registry.client
    assert registry.client is first
    await registry.close()
    await registry.close()
    assert registry._clients == {}
    async with registry as entered:
        assert entered is registry
        assert registry.client is not first
        assert await write_and_count(make(registry, database)) == 1
    assert registry._clients == {}


CLIENTS: dict[str, Callable[[str], Any]] = {
    "pymongo": AsyncMongoClient,
    "motor": lambda url: AsyncIOMotorClient(url, io_loop=asyncio.get_running_loop()),
}


async def close(client: Any) -> None:
    if isinstance(closing := client.close(), Awaitable):
        await closing


@pytest.fixture(params=CLIENTS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


async def test_a_registry_can_use_a_given_client(mongo: Any, database: str, kind: str) -> None:
    client = CLIENTS[kind](mongo.url)
    registry = mongoz.Registry(client)
    assert (registry.driver, registry.url, registry.client) == (kind, None, client)
    assert (registry.host, registry.port) == ("127.0.0.1", mongo.port)
    assert registry.address == f"127.0.0.1:{mongo.port}"
    assert registry.codec_options.uuid_representation == UuidRepresentation.STANDARD
    assert await write_and_count(make(registry, database)) == 1
    await registry.close()
    await client.admin.command("ping")  # the registry has not closed the given client
    await close(client)
    with pytest.raises(ImproperlyConfigured, match="driver="):
        mongoz.Registry(client, driver="motor" if kind == "pymongo" else "pymongo")


def test_a_client_belongs_to_one_loop(mongo: Any, database: str, kind: str) -> None:
    held: list[Any] = []

    async def first() -> None:
        held.extend([client := CLIENTS[kind](mongo.url), registry := mongoz.Registry(client)])
        held.append(make(registry, database))
        assert await write_and_count(held[2]) == 1
        await close(client)

    async def second() -> None:
        for use in (held[2].objects.count, held[2](name="Ada").create):
            with pytest.raises(ImproperlyConfigured, match="belongs to one event loop"):
                await use()

    asyncio.run(first())
    asyncio.run(second())


async def test_databases_and_collections_are_listed_and_dropped(
    registry: mongoz.Registry, database: str, foreign: Any
) -> None:
    foreign.b.insert_one({})
    foreign.a.insert_one({})
    found = registry.get_database(database)
    assert found in await registry.get_databases()
    assert [collection.name for collection in await found.get_collections()] == ["a", "b"]
    assert await found.get_collections() == [found.get_collection("a"), found.get_collection("b")]
    await registry.drop_database(found)
    assert await found.get_collections() == []
    foreign.a.insert_one({})
    await registry.drop_database(database)
    assert found not in await registry.get_databases()


async def test_the_registry_returns_objects_of_the_driver(registry: mongoz.Registry, database: str) -> None:
    found = registry.get_database(database).get_collection("users")
    await found._collection.insert_one({"_id": 1})
    assert await registry.get_database(database)._db["users"].find_one() == {"_id": 1}
    await registry.close()
    assert await found._collection.find_one() == {"_id": 1}, "the collection uses the new client"


async def test_a_server_selection_error_is_the_error_of_the_driver(mongo: Any, database: str) -> None:
    # The URL names another replica set, not another port. PyMongo leaves a socket open if its client is closed
    # while it connects, and the warning would appear in another test.
    url = f"mongodb://127.0.0.1:{mongo.port}/?replicaSet=other&serverSelectionTimeoutMS=50"
    async with mongoz.Registry(url) as registry:
        with pytest.raises(ServerSelectionTimeoutError):  # the driver's errors pass unwrapped
            await make(registry, database).objects.count()


async def test_ids_of_other_types_are_written_and_read(
    registry: mongoz.Registry, database: str, foreign: Any
) -> None:
    options = {"registry": registry, "database": database}

    class Counter(mongoz.Document):
        id: Any = mongoz.String(alias="_id")
        value: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), options)

    counter = await Counter.objects.create(id="a" * 24)
    assert foreign.counters.find_one()["_id"] == "a" * 24
    await counter.update(value=1)
    assert (await Counter.get_document_by_id("a" * 24)).value == 1
