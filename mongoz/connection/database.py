"""Databases and collections of a registry: names, resolved to the driver's objects per event loop."""

from typing import TYPE_CHECKING, Any

from bson.codec_options import CodecOptions

if TYPE_CHECKING:
    from mongoz.connection.registry import Registry

__all__ = ["Collection", "Database"]


class Database:
    """A database of a registry. Made without a running loop, used from any.

    Attributes:
        name: its name.
    """

    __slots__ = ("_registry", "name")

    def __init__(self, name: str, registry: "Registry") -> None:
        self.name = name
        self._registry = registry

    @property
    def codec_options(self) -> CodecOptions[Any]:
        """How values are read and written: the client's options, with standard UUIDs and our encoders."""
        return self._registry.codec_options

    @property
    def _db(self) -> Any:
        """The driver's database, for the running event loop."""
        return self._registry.client.get_database(self.name, codec_options=self.codec_options)

    def get_collection(self, name: str) -> "Collection":
        """The collection of this name; no I/O."""
        return Collection(name, self)

    async def get_collections(self) -> list["Collection"]:
        """All collections that exist now, in the order of their names."""
        return [self.get_collection(name) for name in sorted(await self._db.list_collection_names())]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Database):
            return NotImplemented
        return self.name == other.name and self._registry is other._registry

    def __hash__(self) -> int:
        return hash((self.name, id(self._registry)))

    def __repr__(self) -> str:
        return f"Database({self.name!r})"


class Collection:
    """A collection of a database.

    Attributes:
        name: its name, without the database.
        database: where it lives.
    """

    __slots__ = ("_plain_target", "_resolved", "database", "name")

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self.database = database
        self._resolved: tuple[Any, Any] | None = None
        self._plain_target: Any = None  # of writes outside of any session, see `persistence.targets`

    @property
    def namespace(self) -> str:
        """`"database.collection"`."""
        return f"{self.database.name}.{self.name}"

    @property
    def _collection(self) -> Any:
        """The driver's collection, for the running event loop."""
        client = self.database._registry.client
        resolved = self._resolved  # read once: another thread, with a loop of its own, may write it meanwhile
        if resolved is None or resolved[0] is not client:
            self._resolved = resolved = (client, self.database._db[self.name])
        return resolved[1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Collection):
            return NotImplemented
        return self.name == other.name and self.database == other.database

    def __hash__(self) -> int:
        return hash((self.name, self.database))

    def __repr__(self) -> str:
        return f"Collection({self.namespace!r})"
