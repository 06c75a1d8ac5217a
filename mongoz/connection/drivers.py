"""The driver seam: everything in which PyMongo's async client and Motor differ, and nothing else.

Collections of both have the same coroutines for single documents (`insert_one`, `update_one`,
`find_one`, `count_documents`, ...) and cursors of both are asynchronous iterators; those are used as they are.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol

from pymongo import AsyncMongoClient

from mongoz.connection.cancellation import unbroken
from mongoz.exceptions import ImproperlyConfigured

__all__ = ["Driver", "MotorDriver", "PyMongoDriver", "driver_named", "driver_of"]


class Driver(Protocol):
    """What the ODM needs of a driver beyond what both do alike."""

    name: str

    def connect(self, url: str, **options: Any) -> Any:
        """A client for the running event loop, with these options beside those of the URL; no I/O."""

    async def close(self, client: Any) -> None:
        """Close its sockets."""

    def session(self, client: Any) -> AbstractAsyncContextManager[Any]:
        """A session that ends with the block."""

    async def start_session(self, client: Any) -> Any:
        """A session that whoever asks must end; no I/O. Its reads don't wait for its writes."""

    async def start_transaction(self, session: Any, options: dict[str, Any]) -> None:
        """Start a transaction; no I/O."""

    async def aggregate(self, collection: Any, pipeline: Any, **options: Any) -> Any:
        """The cursor of an aggregation."""

    async def list_indexes(self, collection: Any) -> Any:
        """The cursor over the indexes of a collection."""

    def in_transaction(self, collection: Any) -> Any:
        """A collection whose commands, once they are cancelled, are not sent behind the abort that follows."""


class PyMongoDriver:
    """PyMongo's native async client, the default."""

    name = "pymongo"

    def connect(self, url: str, **options: Any) -> AsyncMongoClient[dict[str, Any]]:
        """A client for the running event loop, with these options beside those of the URL; no I/O."""
        return AsyncMongoClient(url, **options)

    async def close(self, client: AsyncMongoClient[dict[str, Any]]) -> None:
        """Close its sockets."""
        await client.close()

    @asynccontextmanager
    async def session(self, client: AsyncMongoClient[dict[str, Any]]) -> AsyncIterator[Any]:
        """A session that ends with the block."""
        async with client.start_session() as session:
            yield session

    async def start_session(self, client: AsyncMongoClient[dict[str, Any]]) -> Any:
        """A session that whoever asks must end; no I/O. Its reads don't wait for its writes."""
        return client.start_session(causal_consistency=False)

    async def start_transaction(self, session: Any, options: dict[str, Any]) -> None:
        """Start a transaction; no I/O."""
        await session.start_transaction(**options)

    async def aggregate(self, collection: Any, pipeline: Any, **options: Any) -> Any:
        """The cursor of an aggregation."""
        return await collection.aggregate(pipeline, **options)

    async def list_indexes(self, collection: Any) -> Any:
        """The cursor over the indexes of a collection."""
        return await collection.list_indexes()

    def in_transaction(self, collection: Any) -> Any:
        """As it is: a command that is cancelled takes its connection along."""
        return collection


class MotorDriver:
    """Motor: deprecated upstream, still what many applications pass in."""

    name = "motor"

    def connect(self, url: str, **options: Any) -> Any:
        """A client for the running event loop, with these options beside those of the URL; no I/O."""
        from motor.motor_asyncio import AsyncIOMotorClient  # noqa: PLC0415 - 40 ms for nearly nobody

        return AsyncIOMotorClient(url, io_loop=asyncio.get_running_loop(), **options)

    async def close(self, client: Any) -> None:
        """Close its sockets."""
        client.close()

    @asynccontextmanager
    async def session(self, client: Any) -> AsyncIterator[Any]:
        """A session that ends with the block."""
        async with await client.start_session() as session:
            yield session

    async def start_session(self, client: Any) -> Any:
        """A session that whoever asks must end; no I/O. Its reads don't wait for its writes."""
        return await client.start_session(causal_consistency=False)

    async def start_transaction(self, session: Any, options: dict[str, Any]) -> None:
        """Start a transaction; no I/O."""
        session.start_transaction(**options)

    async def aggregate(self, collection: Any, pipeline: Any, **options: Any) -> Any:
        """The cursor of an aggregation."""
        return collection.aggregate(pipeline, **options)

    async def list_indexes(self, collection: Any) -> Any:
        """The cursor over the indexes of a collection."""
        return collection.list_indexes()

    def in_transaction(self, collection: Any) -> Any:
        """One whose commands are waited for when they are cancelled."""
        return _Waiting(collection)


class _Waiting:
    """A collection of Motor's whose commands end before their cancellation goes on.

    They run in threads, which know nothing of a cancellation. Whoever was cancelled aborts the transaction, and
    the thread would send its command after that: outside of any transaction, so that it stands, or in one that
    nobody ends.
    """

    __slots__ = ("_collection",)

    def __init__(self, collection: Any) -> None:
        self._collection = collection

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._collection, name)
        return partial(_waiting, found) if inspect.ismethod(found) else found


def _waiting(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    result = method(*args, **options)
    return unbroken(_result(result)) if isinstance(result, asyncio.Future) else result


async def _result(future: "asyncio.Future[Any]") -> Any:
    return await future


_DRIVERS: dict[str, Driver] = {driver.name: driver for driver in (PyMongoDriver(), MotorDriver())}


def driver_named(name: str) -> Driver:
    """The driver of this name.

    Raises:
        ImproperlyConfigured: there is none.
    """
    if name not in _DRIVERS:
        raise ImproperlyConfigured(f"driver={name!r} is unknown; there are {', '.join(sorted(_DRIVERS))}.")
    return _DRIVERS[name]


def driver_of(client: object) -> Driver:
    """The driver that made this client.

    Raises:
        ImproperlyConfigured: it is not an asynchronous MongoDB client.
    """
    if isinstance(client, AsyncMongoClient):
        return _DRIVERS["pymongo"]
    # By name, so that Motor is only imported by those who use it.
    if any(base.__module__.startswith("motor.") for base in type(client).__mro__):
        return _DRIVERS["motor"]
    raise ImproperlyConfigured(
        f"Registry() takes a URL, a pymongo.AsyncMongoClient or a Motor client, not an object of "
        f"{type(client).__qualname__}."  # not its repr: that of a URL object shows the password
    )
