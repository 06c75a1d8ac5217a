"""Creates clients of the MongoDB deployment, and checks the dispatcher's requirements on the deployment."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import pymongo
from pymongo import AsyncMongoClient
from pymongo.common import MAX_POOL_SIZE
from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError

from dispatcher.core.driver_errors import fatal, in_short
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.exceptions import ApplicationError, CannotConnect, DispatcherError, NotAReplicaSet, ServerError
from dispatcher.settings import Settings
from mongoz import Registry
from mongoz.connection.address import first_seed, named_options, without_options
from mongoz.exceptions import ImproperlyConfigured
from mongoz.signals.options import Retry

T = TypeVar("T")


class Closable(Protocol):
    """A client, or an object that has one."""

    async def close(self) -> None:
        """Close all connections."""


_MIN_WIRE_VERSION: Final = 17  # MongoDB 6.0: pre and post images, wallTime

# A server that does not answer within this time counts as lost, even if TCP reports no error.
_SOCKET_TIMEOUT_MS: Final = 30_000

# Time limit of a handshake, for long-running processes. If a node does not answer the handshake, commands to this
# node fail. The driver's default is 20 seconds.
_CONNECT_TIMEOUT_MS: Final = 5_000

# Time between two checks of a lost server, for long-running processes. The driver's default is 10 seconds.
_HEARTBEAT_MS: Final = 2_000

# URL options that concern only the application's own reads and writes, in lower case.
_OF_APPLICATIONS: Final = frozenset(
    {
        "readpreference",
        "readpreferencetags",
        "maxstalenessseconds",
        "readconcernlevel",
        "w",
        "wtimeoutms",
        "journal",
        "fsync",
        "timeoutms",
        "maxpoolsize",
        "minpoolsize",
        "waitqueuetimeoutms",
        "retrywrites",
        "retryreads",
    }
)

# Server selection waits for a node that may never come back. A short wait and another attempt are better.
_SELECTION_TIMEOUT_MS: Final = 5_000

_PAUSES: Final = Retry(base=0.1, cap=1.0)

# Time limit in seconds for closing a client.
_CLOSE_TIMEOUT: Final = 1.0


class Clients:
    """Makes the clients for the deployment of a registry.

    Args:
        registry: the registry of the application. If `settings.url` is set, the registry uses this URL from now
            on.

    Raises:
        ApplicationError: the registry has no URL.
        CannotConnect: the URL does not parse.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._url = _url_of(registry, settings)
        # Receivers wait for answers on the application's client, so this client must notice dead connections soon.
        registry.prefer(connectTimeoutMS=_CONNECT_TIMEOUT_MS, heartbeatFrequencyMS=_HEARTBEAT_MS)
        self._patience = settings.connect_timeout
        self.address = registry.address
        _attempt_client(self._url, self.address)  # a wrong URL raises an error before anything else happens

    def client(self, **options: Any) -> AsyncMongoClient[Any]:
        """A new client for the running loop, with options of the driver."""
        defaults = {"appname": "mongoz-dispatcher", "socketTimeoutMS": _SOCKET_TIMEOUT_MS}
        return client_of(self._url, self.address, **{**defaults, **options})

    def patient_client(self) -> AsyncMongoClient[Any]:
        """A client that waits at most `connect_timeout` for the server."""
        return self.client(serverSelectionTimeoutMS=int(self._patience * 1000))

    def lasting_client(self, **options: Any) -> AsyncMongoClient[Any]:
        """A client for the life of the process: it notices a lost server soon."""
        return self.client(
            serverSelectionTimeoutMS=_SELECTION_TIMEOUT_MS,
            connectTimeoutMS=_CONNECT_TIMEOUT_MS,
            heartbeatFrequencyMS=_HEARTBEAT_MS,
            **options,
        )

    def watching_client(self) -> AsyncMongoClient[Any]:
        """Like `lasting_client`, for change streams. Their time limit is set in `stream/cursor.py`.

        Each stream occupies a connection, so the number of connections is not limited.
        """
        return self.lasting_client(socketTimeoutMS=None, maxPoolSize=0)

    @property
    def connections(self) -> int:
        """The number of connections that the application's client may have; 0 means no limit."""
        given = named_options(self._url).get("maxpoolsize", "")
        return int(given) if given.isdecimal() else MAX_POOL_SIZE

    async def check(self, client: AsyncMongoClient[Any]) -> None:
        """Require a server with change streams.

        Raises:
            CannotConnect: no server answers.
            NotAReplicaSet: the server has no change streams.
            ServerError: the server is too old.
            AccessDenied: the server refuses the user or the password.
        """
        try:
            hello = await self.patiently(partial(client.admin.command, "hello"))
        except CannotConnect:
            await self._look_for_a_standalone()
            raise
        if hello.get("msg") != "isdbgrid":  # mongos is in front of replica sets
            self._refuse_standalone(hello)
        if hello.get("maxWireVersion", 0) < _MIN_WIRE_VERSION:
            raise ServerError(
                f"The server at {self.address} is older than MongoDB 6.0.", remedy="Upgrade the server."
            )

    async def patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step until it succeeds, for at most `connect_timeout`: the server may just be starting.

        Args:
            step: may run several times.

        Raises:
            DispatcherError: an error is permanent, or the time is over.
        """
        report = partial(log.warning, "the server is not ready, trying again", action="server.not_ready")
        try:
            return await retry(step, report, address=self.address, pauses=_PAUSES, within=self._patience)
        except PyMongoError as error:
            raise self._unreachable(error) from error

    def verdict(self, error: PyMongoError) -> DispatcherError:
        """Make the error for the operator from a driver error that ends a command."""
        return fatal(error, self.address) or self._unreachable(error)

    async def _look_for_a_standalone(self) -> None:
        """Raise `NotAReplicaSet` if the server is a standalone, or if its replica set is not initiated.

        If the URL has replicaSet=, the driver does not use such a server, and reports only that no server answers.
        """
        options: dict[str, Any] = {
            "serverSelectionTimeoutMS": 1_000,
            "replicaSet": None,
            "directConnection": True,
        }
        try:
            async with AsyncMongoClient(f"mongodb://{self.address}/", **options) as client:
                hello = await client.admin.command("hello")
        except PyMongoError:
            return
        self._refuse_standalone(hello)

    def _refuse_standalone(self, hello: dict[str, Any]) -> None:
        if hello.get("setName"):
            return
        if hello.get("isreplicaset"):
            raise NotAReplicaSet(
                f"The server at {self.address} was started as part of a replica set that is not initiated.",
                remedy="Run rs.initiate() in mongosh once.",
            )
        raise NotAReplicaSet(
            f"The server at {self.address} is a standalone mongod, which has no change streams.",
            remedy="Start it with --replSet rs0 and run rs.initiate() in mongosh once; one node is enough.",
        )

    def _unreachable(self, error: Exception) -> CannotConnect:
        if isinstance(error, OperationFailure):
            return CannotConnect(
                f"The MongoDB server at {self.address} is not ready: {in_short(error)}",
                remedy="Try again in a moment; if this lasts, look at the server's log.",
            )
        if isinstance(error, ConfigurationError):
            return CannotConnect(
                f"The server at {self.address} can't be used within {self._patience:g} s: {in_short(error)}",
                remedy="Is the name in the URL right, and does a replica set of MongoDB 6.0 or later run there?",
            )
        return CannotConnect(
            f"No MongoDB server answers at {self.address} within {self._patience:g} s: {in_short(error)}",
            remedy="Is it running, are address and replicaSet of the URL right, may this machine reach it?",
        )


def client_of(url: str, address: str, **options: Any) -> AsyncMongoClient[Any]:
    """A client for the dispatcher's own work, for the running loop.

    Options of the URL that concern the application's reads and writes are ignored: the dispatcher reads from the
    primary, writes with majority, and sets other limits for connections.
    """
    return _attempt_client(without_options(url, _OF_APPLICATIONS), address, **{"w": "majority", **options})


def _attempt_client(url: str, address: str, **options: Any) -> AsyncMongoClient[Any]:
    try:
        return AsyncMongoClient(url, **options)
    except (ConfigurationError, ValueError) as error:
        raise CannotConnect(
            f"The driver does not accept the URL of {address}: {str(error).rstrip('.')}.",
            remedy="Fix the options after the '?' of the URL.",
        ) from error


async def close(*clients: Closable) -> None:
    """Close clients and their sessions on the server. Wait only briefly for a lost server."""
    for client in clients:
        with pymongo.timeout(_CLOSE_TIMEOUT):
            closing = asyncio.create_task(client.close(), name=f"close-{type(client).__name__}")
        await asyncio.wait([closing], timeout=2 * _CLOSE_TIMEOUT)
        if not closing.done() or closing.exception() is not None:
            log.warning(
                "a client could not be closed and is abandoned",
                action="client.not_closed",
                error=repr(closing.exception()) if closing.done() else "closing it takes too long",
            )
            closing.cancel()


@asynccontextmanager
async def closing(*clients: Closable) -> AsyncIterator[None]:
    """Close clients at the end of the block, the last one first."""
    try:
        yield
    finally:
        await close(*reversed(clients))


def _url_of(registry: Registry, settings: Settings) -> str:
    if settings.url is not None:
        try:
            first_seed(settings.url)
            registry.point_to(settings.url)
        except ImproperlyConfigured as error:
            raise CannotConnect(str(error), remedy="Fix --url or DISPATCHER_URL.") from error
        return settings.url
    if registry.url is None:
        raise ApplicationError(
            "The registry was made from a client, so the dispatcher does not know the URL to watch.",
            remedy="Make the registry from a URL; Registry(url, driver='motor') uses Motor.",
        )
    return registry.url
