"""Adapters of the two drivers: only the calls in which PyMongo's async client and Motor differ.

Collections of both drivers have the same awaitable methods (`insert_one`, `update_one`, `find_one`,
`count_documents`, ...), and cursors of both are asynchronous iterators. The ODM uses these methods and cursors
directly.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol

from pymongo import AsyncMongoClient

from mongoz.connection.cancellation import uninterrupted
from mongoz.connection.lock_repair import repair
from mongoz.exceptions import ImproperlyConfigured

__all__ = ["DriverAdapter", "MotorAdapter", "PyMongoAdapter", "adapter_named", "adapter_of"]

repair()


class DriverAdapter(Protocol):
    """The calls in which the drivers differ."""

    name: str

    def connect(self, url: str, **options: Any) -> Any:
        """A client for the running event loop, with options in addition to those of the URL. No I/O."""

    async def close(self, client: Any) -> None:
        """Close the sockets of a client."""

    def session(self, client: Any) -> AbstractAsyncContextManager[Any]:
        """A session that ends with the block."""

    async def start_session(self, client: Any) -> Any:
        """A session that the caller must end. No I/O. It is not causally consistent."""

    async def start_transaction(self, session: Any, options: dict[str, Any]) -> None:
        """Start a transaction. No I/O."""

    async def aggregate(self, collection: Any, pipeline: Any, **options: Any) -> Any:
        """The cursor of an aggregation."""

    async def list_indexes(self, collection: Any) -> Any:
        """The cursor over the indexes of a collection."""

    def in_transaction(self, collection: Any) -> Any:
        """The collection for commands of a transaction: a cancelled command never arrives after the abort."""


class PyMongoAdapter:
    """PyMongo's native async client, the default."""

    name = "pymongo"

    def connect(self, url: str, **options: Any) -> AsyncMongoClient[dict[str, Any]]:
        """A client for the running event loop, with options in addition to those of the URL. No I/O."""
        return AsyncMongoClient(url, **options)

    async def close(self, client: AsyncMongoClient[dict[str, Any]]) -> None:
        """Close the sockets of a client."""
        await client.close()

    @asynccontextmanager
    async def session(self, client: AsyncMongoClient[dict[str, Any]]) -> AsyncIterator[Any]:
        """A session that ends with the block."""
        async with client.start_session() as session:
            yield session

    async def start_session(self, client: AsyncMongoClient[dict[str, Any]]) -> Any:
        """A session that the caller must end. No I/O. It is not causally consistent."""
        return client.start_session(causal_consistency=False)

    async def start_transaction(self, session: Any, options: dict[str, Any]) -> None:
        """Start a transaction. No I/O."""
        await session.start_transaction(**options)

    async def aggregate(self, collection: Any, pipeline: Any, **options: Any) -> Any:
        """The cursor of an aggregation."""
        return await collection.aggregate(pipeline, **options)

    async def list_indexes(self, collection: Any) -> Any:
        """The cursor over the indexes of a collection."""
        return await collection.list_indexes()

    def in_transaction(self, collection: Any) -> Any:
        """The collection itself: PyMongo closes the connection of a cancelled command."""
        return collection


class MotorAdapter:
    """Motor: deprecated upstream, and still in use."""

    name = "motor"

    def connect(self, url: str, **options: Any) -> Any:
        """A client for the running event loop, with options in addition to those of the URL. No I/O."""
        from motor.motor_asyncio import AsyncIOMotorClient  # noqa: PLC0415 - takes 40 ms, and few applications need it

        return AsyncIOMotorClient(url, io_loop=asyncio.get_running_loop(), **options)

    async def close(self, client: Any) -> None:
        """Close the sockets of a client."""
        client.close()

    @asynccontextmanager
    async def session(self, client: Any) -> AsyncIterator[Any]:
        """A session that ends with the block."""
        async with await client.start_session() as session:
            yield session

    async def start_session(self, client: Any) -> Any:
        """A session that the caller must end. No I/O. It is not causally consistent."""
        return await client.start_session(causal_consistency=False)

    async def start_transaction(self, session: Any, options: dict[str, Any]) -> None:
        """Start a transaction. No I/O."""
        session.start_transaction(**options)

    async def aggregate(self, collection: Any, pipeline: Any, **options: Any) -> Any:
        """The cursor of an aggregation."""
        return collection.aggregate(pipeline, **options)

    async def list_indexes(self, collection: Any) -> Any:
        """The cursor over the indexes of a collection."""
        return collection.list_indexes()

    def in_transaction(self, collection: Any) -> Any:
        """A collection whose cancelled commands are awaited."""
        return _MotorCollection(collection)


class _MotorCollection:
    """A Motor collection whose commands end before their cancellation is raised.

    Commands run in threads, which a cancellation does not reach. The cancelled caller aborts the transaction, and
    the thread could send its command after that: outside of any transaction, or in a new one that no code ends.
    """

    __slots__ = ("_collection",)

    def __init__(self, collection: Any) -> None:
        self._collection = collection

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._collection, name)
        return partial(_call_uninterrupted, found) if inspect.ismethod(found) else found


def _call_uninterrupted(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    result = method(*args, **options)
    return uninterrupted(_await_future(result)) if isinstance(result, asyncio.Future) else result


async def _await_future(future: "asyncio.Future[Any]") -> Any:
    return await future


_ADAPTERS: dict[str, DriverAdapter] = {adapter.name: adapter for adapter in (PyMongoAdapter(), MotorAdapter())}


def adapter_named(name: str) -> DriverAdapter:
    """The adapter of the driver with this name.

    Raises:
        ImproperlyConfigured: no driver has this name.
    """
    if name not in _ADAPTERS:
        raise ImproperlyConfigured(f"driver={name!r} is unknown; valid are {', '.join(sorted(_ADAPTERS))}.")
    return _ADAPTERS[name]


def adapter_of(client: object) -> DriverAdapter:
    """The adapter of the driver that made this client.

    Raises:
        ImproperlyConfigured: `client` is no asynchronous MongoDB client.
    """
    if isinstance(client, AsyncMongoClient):
        return _ADAPTERS["pymongo"]
    # Motor's classes are recognized by the name of their module, so that only users of Motor import Motor.
    if any(base.__module__.startswith("motor.") for base in type(client).__mro__):
        return _ADAPTERS["motor"]
    raise ImproperlyConfigured(
        f"Registry() takes a URL, a pymongo.AsyncMongoClient or a Motor client, not an object of "
        f"{type(client).__qualname__}."  # not its repr: the repr of a URL object shows the password
    )
