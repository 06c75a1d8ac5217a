"""The registry: one deployment, its documents, and a client per event loop."""

import asyncio
import gc
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import pymongo
from bson.codec_options import CodecOptions

from mongoz.connection.address import Seed, decoding, first_seed, named_options, wants_retries
from mongoz.connection.clock import ServerClock
from mongoz.connection.codec import CODEC_OPTIONS, with_our_types
from mongoz.connection.database import Collection, Database
from mongoz.connection.drivers import driver_named, driver_of
from mongoz.connection.session_pool import Sessions
from mongoz.connection.transactions import run_transaction, transaction
from mongoz.exceptions import ImproperlyConfigured

__all__ = ["Registry"]

T = TypeVar("T")

_DEFAULT_GROUP: Final = "default"
_GROUP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

# Seconds that closing a client may take: it tells the server which sessions are over, and does not wait for one
# that is gone.
_FAREWELL: Final = 1.0

_NO_RETRIES: Final = (
    "retryWrites=false does not go with dispatched=...: when the answer to a write is lost, only a retryable one "
    "can be known to have ended, and nobody could tell whether its receivers must run. Remove retryWrites=false; "
    "replica sets, which dispatchers need anyway, take retryable writes."
)


class _Opened(NamedTuple):
    client: Any
    closer: AsyncGenerator[None, None]
    sessions: Sessions


class Registry:
    """A MongoDB deployment and the documents that live in it.

    Usually a module global: it opens a client for each running event loop when it is first used there, and
    the client is closed together with the loop. Making a registry does no I/O.

    Args:
        url: a MongoDB URL, or an existing `pymongo.AsyncMongoClient` or Motor client. A client belongs to
            one event loop and is closed by whoever made it.
        driver: `"pymongo"` (default) or `"motor"`: what a URL is opened with.
        dispatched: a group of dispatchers serves this registry: its name, or True for the group "default".
            Writes are then stamped where needed, so that nothing is delivered twice.
        event_loop: accepted for applications that pass it; clients follow the running loop by themselves.

    Raises:
        ImproperlyConfigured: the URL does not parse, an argument is of no use, or it is dispatched and its writes
            are not retryable.

    Examples:
        >>> registry = Registry("mongodb://localhost:27017/?replicaSet=rs0", dispatched=True)
    """

    def __init__(
        self,
        url: Any,
        *,
        driver: str | None = None,
        dispatched: bool | str = False,
        event_loop: object = None,  # noqa: ARG002 - see the docstring
    ) -> None:
        self._url: str | None = None
        self._given: Any = None
        self._clients: dict[asyncio.AbstractEventLoop, _Opened] = {}
        self._preferred: dict[str, Any] = {}
        self.dispatched = _group_of(dispatched)
        if isinstance(url, str):
            self._driver = driver_named(driver or "pymongo")
            self._set_url(url)
        else:
            self._driver = driver_of(url)
            if driver not in (None, self._driver.name):
                raise ImproperlyConfigured(f"driver={driver!r}, but the client is one of {self._driver.name}.")
            self._given = url
            self._given_sessions = Sessions(self._driver, url)
            self._given_loop: asyncio.AbstractEventLoop | None = None
            self._codec_options = with_our_types(url.codec_options)
            if self.dispatched and not _bare(url, self.driver).options.retry_writes:
                raise ImproperlyConfigured(_NO_RETRIES)
        self.documents: dict[str, type] = {}
        self._all_documents: list[type] = []
        self._clock = ServerClock()
        self._unsettled: set[asyncio.Task[None]] = set()
        self._indexed: set[tuple[type, Collection]] = set()  # whose indexes were created by themselves, and where

    def _set_url(self, url: str) -> None:
        options = decoding(url)  # before the driver reads the URL, which has fewer words for these
        self._seed = first_seed(url)
        if self.dispatched and not wants_retries(url):
            raise ImproperlyConfigured(_NO_RETRIES)
        self._url = url
        self._codec_options = CODEC_OPTIONS.with_options(**options)

    @property
    def url(self) -> str | None:
        """The URL it was made from, credentials included; None if it was made from a client."""
        return self._url

    @property
    def driver(self) -> str:
        """`"pymongo"` or `"motor"`."""
        return self._driver.name

    @property
    def host(self) -> str:
        """Host of the first seed."""
        return self._first_seed.host

    @property
    def port(self) -> int | None:
        """Port of the first seed; None for `mongodb+srv` names."""
        return self._first_seed.port

    @property
    def address(self) -> str:
        """`host:port` of the first seed. Fit for logs: it has no credentials. No I/O."""
        seed = self._first_seed
        return f"{seed.host}:{seed.port}" if seed.port else seed.host

    @property
    def _first_seed(self) -> Seed:
        if self._given is None:
            return self._seed
        seeds = getattr(_bare(self._given, self.driver), "_topology_settings", None)
        host, port = sorted(seeds.seeds)[0] if seeds else ("client", None)
        return Seed(host, port)

    @property
    def codec_options(self) -> CodecOptions[Any]:
        """How values are read and written in all databases of this registry."""
        return self._codec_options

    @property
    def all_documents(self) -> tuple[type, ...]:
        """Every concrete document class, those included whose name another took over since."""
        return tuple(self._all_documents)

    def register(self, document: type) -> None:
        """Make a concrete document known. Done when its class is defined."""
        self.documents[document.__name__] = document
        self._all_documents.append(document)

    def point_to(self, url: str) -> None:
        """Use another deployment from now on; for tests, and for a dispatcher's `--url`.

        Raises:
            ImproperlyConfigured: the URL does not parse, or a client is already in use.
        """
        if self._given is not None or self._clients:
            raise ImproperlyConfigured(
                "The registry is connected already; point it elsewhere before its first use, and make it "
                "from a URL rather than from a client."
            )
        self._set_url(url)

    def prefer(self, **options: Any) -> None:
        """Have clients that are opened from now on use these options of the driver, unless the URL names them.

        For processes that serve the application in another way than usual, as a dispatcher does.
        """
        self._preferred.update(options)

    @property
    def client(self) -> Any:
        """The driver's client for the running event loop, opened at the first use.

        Raises:
            ImproperlyConfigured: no event loop is running, or the client that the registry was made from
                belongs to another one.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ImproperlyConfigured(
                "No event loop is running; a document can only be read or written from a coroutine."
            ) from None
        if self._given is not None:
            return self._given_client(loop)
        opened = self._clients.get(loop)
        return (opened or self._open(loop)).client

    def _open(self, loop: asyncio.AbstractEventLoop) -> "_Opened":
        assert self._url is not None
        self._abandon_dead_loops()
        named = named_options(self._url)
        preferred = {name: value for name, value in self._preferred.items() if name.lower() not in named}
        client = self._driver.connect(self._url, **preferred)
        sessions = Sessions(self._driver, client)

        async def close() -> None:
            self._clients.pop(loop, None)
            with pymongo.timeout(_FAREWELL):
                await sessions.end()
                await self._driver.close(client)

        opened = self._clients[loop] = _Opened(client, _close_with_loop(close), sessions)
        return opened

    def _abandon_dead_loops(self) -> None:
        """Get rid of clients whose loops were closed without their `shutdown_asyncgens()`.

        Without its loop a client can't be closed, but its sockets are when it is collected.
        """
        dead = [loop for loop in list(self._clients) if loop.is_closed()]  # list(): other threads open theirs
        for loop in dead:
            self._clients.pop(loop, None)
        if dead:
            gc.collect()

    def _given_client(self, loop: asyncio.AbstractEventLoop) -> Any:
        if self._given_loop is None:
            self._given_loop = loop
        if self._given_loop is not loop:
            raise ImproperlyConfigured(
                "The registry was made from a client, and a client belongs to one event loop; this is another. "
                "Make the registry from a URL: it then opens a client for every loop."
            )
        return self._given

    def get_database(self, name: str) -> Database:
        """The database of this name; no I/O."""
        return Database(name, self)

    async def get_databases(self) -> list[Database]:
        """All databases that exist now, in the order of their names."""
        return [self.get_database(name) for name in sorted(await self.client.list_database_names())]

    async def drop_database(self, database: str | Database) -> None:
        """Drop a database with everything in it."""
        name = database.name if isinstance(database, Database) else database
        await self.client.drop_database(name)
        self._indexed -= {one for one in self._indexed if one[1].database.name == name}

    async def document_checks(self) -> None:
        """Make the indexes of all collections those that the documents declare, as `check_indexes()` does.

        Documents that share a collection are considered together. Of several classes with one name the latest
        counts, as in `documents`.

        Raises:
            pymongo.errors.OperationFailure: the server refuses an index.
        """
        by_collection: dict[Collection, list[Any]] = {}
        for document in self.documents.values():
            by_collection.setdefault(document.meta.collection, []).append(document)  # type: ignore[attr-defined]
        for first, *others in by_collection.values():
            await first._check_indexes_with(others)

    def _session(self) -> AbstractAsyncContextManager[Any]:
        """A new session of the running loop's client."""
        return self._driver.session(self.client)

    @property
    def _sessions(self) -> Sessions:
        """Sessions to lend to single writes, of the running loop's client."""
        if self._given is not None:
            return self._given_sessions
        loop = asyncio.get_running_loop()
        return (self._clients.get(loop) or self._open(loop)).sessions

    def transaction(self, **options: Any) -> AbstractAsyncContextManager[Any]:
        """A block whose reads and writes happen together or not at all.

        What the entering task calls inside joins the transaction by itself; tasks that it starts don't. In
        process `post_*` receivers run after the commit, in the order of the writes, and not at all if the block
        raises: then the transaction is aborted, and instances forget what was written in it.

        Args:
            **options: what the driver's `start_transaction` takes: `read_concern`, `write_concern`,
                `read_preference`, `max_commit_time_ms`.

        Returns:
            A context manager that gives the driver's session, for calls that bypass the ODM.

        Raises:
            TransactionError: the task is in one already, or the server is no replica set.

        Examples:
            >>> async with registry.transaction():
            ...     await account.update(U.inc(balance=-10))
            ...     await Transfer.objects.create(amount=10)
        """
        return transaction(self, options)

    async def run_transaction(self, fn: Callable[..., Awaitable[T]], **options: Any) -> T:
        """Run a function in a transaction, and run it again as a whole while the server asks for that.

        The driver's convention: errors labelled as transient repeat the function, an unknown outcome of the
        commit repeats the commit, for two minutes at most. What failed attempts would have fired is dropped.

        Args:
            fn: an async function; it is given the session if it takes an argument.
            **options: as for `transaction`.

        Returns:
            What `fn` returned.

        Raises:
            TransactionError: the task is in a transaction already, or the server is no replica set.

        Examples:
            >>> async def transfer():
            ...     await account.update(U.inc(balance=-10))
            >>> await registry.run_transaction(transfer)
        """
        return await run_transaction(self, fn, options)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done in the background, until the registry is closed."""
        task = asyncio.create_task(work, name="mongoz-unsettled-write")
        self._unsettled.add(task)  # else it might be collected
        task.add_done_callback(self._unsettled.discard)

    async def close(self) -> None:
        """Close the running loop's client; a later use opens a new one. A client given is left to its owner."""
        loop = asyncio.get_running_loop()
        for task in [task for task in self._unsettled if task.get_loop() is loop]:
            task.cancel()
        if self._given is not None:
            await self._given_sessions.end()
        opened = self._clients.get(loop)
        if opened is not None:
            await opened.closer.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Registry({self.address!r}, dispatched={self.dispatched!r})"


def _bare(client: Any, driver: str) -> Any:
    """PyMongo's client, which Motor's wraps."""
    # Not by asking whether there is a delegate: every attribute of a client is a database.
    return client.delegate if driver == "motor" else client


def _group_of(dispatched: bool | str) -> str | None:
    if dispatched is True:
        return _DEFAULT_GROUP
    if dispatched is False or dispatched is None:
        return None
    if isinstance(dispatched, str) and _GROUP.fullmatch(dispatched):
        return dispatched
    raise ImproperlyConfigured(
        f"dispatched={dispatched!r} must be True, False or the name of a group of dispatchers: letters, digits, "
        "'_', '.' and '-', at most 63."
    )


def _close_with_loop(close: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    """Have `close` awaited when the running loop shuts down, or when the generator is closed before.

    A loop that shuts down finalizes the async generators that were started in it (`asyncio.run`, uvloop and
    test runners all do), so one that is suspended in front of its cleanup does the closing.
    """

    async def wait_for_the_end() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await close()

    generator = wait_for_the_end()
    # The first step needs no loop: it runs straight to the yield, which surfaces as StopIteration.
    with suppress(StopIteration):
        generator.__anext__().__await__().send(None)
    return generator
