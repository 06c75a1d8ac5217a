"""A MongoDB deployment: a client for each event loop, its sessions, and the server's clock."""

import asyncio
import gc
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final, NamedTuple

import pymongo
from bson.codec_options import CodecOptions

from mongoz.claims.claims import TIMEOUT, Claims
from mongoz.claims.document import NamedReceiver
from mongoz.connection.address import Seed, decoding_options, first_seed, has_retryable_writes, named_options
from mongoz.connection.clock import ServerClock
from mongoz.connection.codec import CODEC_OPTIONS, with_encoders
from mongoz.connection.drivers import adapter_named, adapter_of
from mongoz.connection.session_pool import SessionPool
from mongoz.exceptions import ImproperlyConfigured

__all__ = ["DEFAULT_STATE", "Deployment", "OpenClient", "running_loop"]

_DEFAULT_GROUP: Final = "default"
_GROUP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

DEFAULT_STATE: Final = "mongoz_dispatcher"
"""The default of `dispatcher --state-database`."""

_MOST_SECONDS: Final = 3_600

# Maximum seconds for closing a client: the client reports ended sessions to the server, which may be unreachable.
_CLOSE_TIMEOUT: Final = 1.0

_NO_RETRIES: Final = (
    "retryWrites=false contradicts dispatched=...: if the answer to a write is lost, mongoz looks up the outcome, "
    "which decides whether receivers run. mongoz can look up only retryable writes. Remove retryWrites=false. "
    "Dispatchers need a replica set, and all replica sets accept retryable writes."
)


class OpenClient(NamedTuple):
    """The client of one event loop.

    Attributes:
        client: the driver's client.
        session_pool: the client's sessions for single writes.
        pid: the process that opened the client.
        closer: closes the client when the loop shuts down; None for a client of the application, which stays open.
    """

    client: Any
    session_pool: SessionPool
    pid: int
    closer: AsyncGenerator[None, None] | None = None


class Deployment:
    """One MongoDB deployment, used from any number of event loops.

    Args:
        url: a MongoDB URL, or an existing asynchronous client.
        driver: the name of the driver that opens a URL; None is PyMongo, or the driver of the given client.
        dispatched: the group of dispatchers that serves the deployment; True is the group "default", False is
            no group.
        state: the database with the state of the dispatchers.
        claims: whether this process claims the receivers that it runs; a number is the timeout in seconds.

    Attributes:
        adapter: the differences between the drivers.
        dispatched: the name of the group, or None.
        clock: the server's clock.
        claims: the claims of this process; None without a group of dispatchers, or if claims are turned off.
        indexed: the documents whose indexes this process created, each with the names of its database and
            collection.

    Raises:
        ImproperlyConfigured: the URL does not parse, an argument is invalid, or the deployment is dispatched and
            its writes are not retryable.
    """

    def __init__(
        self,
        url: Any,
        driver: str | None,
        dispatched: bool | str,
        state: str = DEFAULT_STATE,
        claims: bool | float = True,
    ) -> None:
        self._url: str | None = None
        self._given: OpenClient | None = None
        self._clients: dict[asyncio.AbstractEventLoop, OpenClient] = {}
        self._preferred: dict[str, Any] = {}
        self.dispatched = _group_of(dispatched)
        if isinstance(url, str):
            self.adapter = adapter_named(driver or "pymongo")
            self._set_url(url)
        else:
            self.adapter = adapter_of(url)
            if driver not in (None, self.adapter.name):
                raise ImproperlyConfigured(
                    f"driver={driver!r}, but the given client is a {self.adapter.name} client; leave driver= out."
                )
            self._given = OpenClient(url, SessionPool(self.adapter, url), os.getpid())
            self._given_loop: asyncio.AbstractEventLoop | None = None
            self._codec_options = with_encoders(url.codec_options)
            if self.dispatched and not _pymongo_client(url, self.driver).options.retry_writes:
                raise ImproperlyConfigured(_NO_RETRIES)
        self.clock = ServerClock()
        self.claims = self._claims_of(state, claims)
        self.indexed: set[tuple[type, str, str]] = set()
        self._unsettled: set[asyncio.Task[None]] = set()

    def _claims_of(self, state: str, claims: bool | float) -> Claims | None:
        if not isinstance(claims, bool | int | float) or not (claims is False or 0 < claims <= _MOST_SECONDS):
            raise ImproperlyConfigured(
                f"claims={claims!r} must be True, False, or a timeout in seconds, at most {_MOST_SECONDS}."
            )
        if self.dispatched is None or claims is False:
            return None
        seconds = TIMEOUT if claims is True else float(claims)
        return Claims(self.dispatched, state, self._open_synchronous_client, self.claimable_receivers, seconds)

    def claimable_receivers(self) -> list[NamedReceiver]:
        """The receivers of this process that dispatchers can take over."""
        return []

    def _open_synchronous_client(self) -> Any:
        """A client for the thread that records claims. It has few connections, no listeners, and no encryption."""
        options: dict[str, Any] = {
            "minPoolSize": 0,
            "maxPoolSize": 1,
            "event_listeners": [],
            "auto_encryption_opts": None,
        }
        if self._url is not None:
            return pymongo.MongoClient(self._url, **options)
        assert self._given is not None
        given = _pymongo_client(self._given.client, self.driver)._init_kwargs
        return pymongo.MongoClient(**{**given, **options})

    def _set_url(self, url: str) -> None:
        options = decoding_options(url)  # first: unlike the driver's error, our error lists the valid values
        self._seed = first_seed(url)
        if self.dispatched and not has_retryable_writes(url):
            raise ImproperlyConfigured(_NO_RETRIES)
        self._url = url
        self._codec_options = CODEC_OPTIONS.with_options(**options)

    @property
    def url(self) -> str | None:
        """The URL of the deployment, credentials included; None if the deployment was made from a client."""
        return self._url

    @property
    def driver(self) -> str:
        """`"pymongo"` or `"motor"`."""
        return self.adapter.name

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
        """`host:port` of the first seed, without credentials, so it may be logged. No I/O."""
        seed = self._first_seed
        return f"{seed.host}:{seed.port}" if seed.port else seed.host

    @property
    def _first_seed(self) -> Seed:
        if self._given is None:
            return self._seed
        settings = getattr(_pymongo_client(self._given.client, self.driver), "_topology_settings", None)
        host, port = sorted(settings.seeds)[0] if settings else ("client", None)
        return Seed(host, port)

    @property
    def codec_options(self) -> CodecOptions[Any]:
        """The options for reading and writing values in all databases of this deployment."""
        return self._codec_options

    def point_to(self, url: str) -> None:
        """Use another deployment from now on; for tests, and for a dispatcher's `--url`.

        Raises:
            ImproperlyConfigured: the URL does not parse, or a client is already in use.
        """
        if self._given is not None or self._clients:
            raise ImproperlyConfigured(
                "The registry is connected already; call point_to() before its first use, and make the registry "
                "from a URL instead of a client."
            )
        self._set_url(url)

    def prefer(self, **options: Any) -> None:
        """Open clients with these options of the driver from now on, unless the URL sets them.

        For processes that need other options than the application, such as a dispatcher.
        """
        self._preferred.update(options)

    @property
    def client(self) -> Any:
        """The driver's client for the running event loop, opened at the first use; see `opened`."""
        return self.opened.client

    @property
    def opened(self) -> OpenClient:
        """The client for the running event loop, with its sessions.

        Raises:
            ImproperlyConfigured: no event loop is running, or the client that the registry was made from
                belongs to another event loop.
        """
        return self.opened_in(running_loop())

    def opened_in(self, loop: asyncio.AbstractEventLoop) -> OpenClient:
        """The same as `opened`, for a caller who knows the running event loop.

        Raises:
            ImproperlyConfigured: the client that the registry was made from belongs to another event loop.
        """
        if self._given is not None:
            return self._given_in(loop)
        return self._clients.get(loop) or self._open(loop)

    def _open(self, loop: asyncio.AbstractEventLoop) -> OpenClient:
        assert self._url is not None
        self._abandon_dead_loops()
        named = named_options(self._url)
        preferred = {name: value for name, value in self._preferred.items() if name.lower() not in named}
        client = self.adapter.connect(self._url, **preferred)
        session_pool = SessionPool(self.adapter, client)

        async def close() -> None:
            self._clients.pop(loop, None)
            with pymongo.timeout(_CLOSE_TIMEOUT):
                await session_pool.end()
                await self.adapter.close(client)

        opened = self._clients[loop] = OpenClient(client, session_pool, os.getpid(), _close_with_loop(close))
        return opened

    def _abandon_dead_loops(self) -> None:
        """Drop the clients of loops that were closed without `shutdown_asyncgens()`.

        A client can't be closed without its loop; garbage collection closes its sockets.
        """
        dead = [loop for loop in list(self._clients) if loop.is_closed()]  # list(): other threads add clients
        for loop in dead:
            self._clients.pop(loop, None)
        if dead:
            gc.collect()

    def _given_in(self, loop: asyncio.AbstractEventLoop) -> OpenClient:
        assert self._given is not None
        if self._given_loop is None:
            self._given_loop = loop
        if self._given_loop is not loop:
            raise ImproperlyConfigured(
                "The registry was made from a client, which belongs to one event loop, but now another loop runs. "
                "Make the registry from a URL: it then opens a client for every loop."
            )
        return self._given

    def new_session(self) -> AbstractAsyncContextManager[Any]:
        """A context manager with a new session of the running loop's client. The session ends with the block."""
        return self.adapter.session(self.client)

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in a task of its own, until the registry is closed."""
        task = asyncio.create_task(work, name="mongoz-unsettled-write")
        self._unsettled.add(task)  # the event loop keeps weak references only
        task.add_done_callback(self._unsettled.discard)

    async def close(self) -> None:
        """Close the running loop's client; a later use opens a new one. A client of the application stays open."""
        loop = asyncio.get_running_loop()
        for task in [task for task in self._unsettled if task.get_loop() is loop]:
            task.cancel()
        if self._given is not None:
            await self._given.session_pool.end()
        opened = self._clients.get(loop)
        if opened is not None and opened.closer is not None:
            await opened.closer.aclose()
        # A forked process has the clients of its parent, too.
        is_last = all(one.pid != os.getpid() for one in self._clients.values())
        if self.claims is not None and self.claims.is_running and is_last:
            await asyncio.to_thread(self.claims.close)


def running_loop() -> asyncio.AbstractEventLoop:
    """The running event loop. A write asks for it once, because Python 3.11 makes a system call for each answer.

    Raises:
        ImproperlyConfigured: no event loop is running.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ImproperlyConfigured(
            "No event loop is running; a document can only be read or written from a coroutine."
        ) from None


def _pymongo_client(client: Any, driver: str) -> Any:
    """PyMongo's client. Motor's client is a wrapper of it."""
    # hasattr("delegate") would always be true: every attribute of a client is a database.
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
    """Await `close` when the running loop shuts down, or earlier, when the generator is closed.

    `asyncio.run`, uvloop and test runners close the async generators that were started in a loop. After that they
    close the loop. If a generator is suspended inside of `try` when it is closed, it runs its `finally`.
    """

    async def wait_for_the_end() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await close()

    generator = wait_for_the_end()
    # The first step needs no loop: it runs to the yield without waiting, and then `send` raises StopIteration.
    with suppress(StopIteration):
        generator.__anext__().__await__().send(None)
    return generator
