"""Databases and collections of a deployment: names, with the driver's objects for the running event loop."""

from asyncio import AbstractEventLoop
from typing import Any, NamedTuple

from bson.codec_options import CodecOptions

from mongoz.connection.deployment import Deployment, OpenClient, running_loop
from mongoz.connection.session_pool import SessionPool

__all__ = ["Collection", "Database", "OpenCollection"]


class Database:
    """A database of a registry. It can be created without a running loop, and used from any loop.

    Attributes:
        name: the name of the database.
        deployment: the deployment of the registry.
    """

    __slots__ = ("deployment", "name")

    def __init__(self, name: str, deployment: Deployment) -> None:
        self.name = name
        self.deployment = deployment

    @property
    def codec_options(self) -> CodecOptions[Any]:
        """The options for reading and writing values: the client's, with standard UUIDs and mongoz's encoders."""
        return self.deployment.codec_options

    @property
    def driver_database(self) -> Any:
        """The driver's database, for the running event loop."""
        return self.deployment.client.get_database(self.name, codec_options=self.codec_options)

    _db = driver_database  # the documented name

    def get_collection(self, name: str) -> "Collection":
        """The collection of this name; no I/O."""
        return Collection(name, self)

    async def get_collections(self) -> list["Collection"]:
        """All collections that exist now, in the order of their names."""
        return [self.get_collection(name) for name in sorted(await self.driver_database.list_collection_names())]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Database):
            return NotImplemented
        return self.name == other.name and self.deployment is other.deployment

    def __hash__(self) -> int:
        return hash((self.name, id(self.deployment)))

    def __repr__(self) -> str:
        return f"Database({self.name!r})"


class OpenCollection(NamedTuple):
    """A collection in one event loop.

    Attributes:
        client: the client of the loop.
        driver_collection: the driver's collection.
        sessions: the sessions for single writes; None if the client does not wait for acknowledgements, since
            unacknowledged writes support no session.
    """

    client: OpenClient
    driver_collection: Any
    sessions: SessionPool | None


class Collection:
    """A collection of a database.

    Attributes:
        name: the name of the collection, without the database.
        database: the database of the collection.
        namespace: `"database.collection"`.
        write_target: the cached target of writes without a session; None before the first such write. Only
            `mongoz.persistence.target` uses it.
    """

    __slots__ = ("_opened", "database", "name", "namespace", "write_target")

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self.database = database
        self.namespace = f"{database.name}.{name}"
        self.write_target: Any = None
        self._opened: OpenCollection | None = None

    @property
    def opened(self) -> OpenCollection:
        """The collection in the running event loop."""
        return self.opened_in(running_loop())

    def opened_in(self, loop: AbstractEventLoop) -> OpenCollection:
        """The same as `opened`, for a caller who knows the running event loop."""
        client = self.database.deployment.opened_in(loop)
        opened = self._opened  # read once: another thread, with another loop, may write it meanwhile
        if opened is None or opened.client is not client:
            collection = self.database.driver_database[self.name]
            sessions = client.session_pool if collection.write_concern.acknowledged else None
            self._opened = opened = OpenCollection(client, collection, sessions)
        return opened

    @property
    def driver_collection(self) -> Any:
        """The driver's collection, for the running event loop."""
        return self.opened.driver_collection

    _collection = driver_collection  # the documented name

    def sibling(self, database: str, name: str | None = None) -> "Collection":
        """A collection in another database of the same deployment; by default with the same name."""
        return Database(database, self.database.deployment).get_collection(name or self.name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Collection):
            return NotImplemented
        return self.name == other.name and self.database == other.database

    def __hash__(self) -> int:
        return hash((self.name, self.database))

    def __repr__(self) -> str:
        return f"Collection({self.namespace!r})"
