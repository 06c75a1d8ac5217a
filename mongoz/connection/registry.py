"""The registry: one deployment, and the documents that live in it."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, Unpack, cast

from pymongo.asynchronous.client_session import AsyncClientSession

from mongoz.claims.document import NamedReceiver
from mongoz.connection.database import Database
from mongoz.connection.deployment import DEFAULT_STATE, Deployment
from mongoz.connection.transactions import TransactionOptions, run_transaction, transaction

__all__ = ["Registry"]

T = TypeVar("T")


class _RegisteredDocument(Protocol):
    """The attributes of a document class that a registry uses."""

    meta: Any

    async def check_indexes(self) -> None: ...


class Registry(Deployment):
    """A MongoDB deployment and the documents that live in it.

    A registry is usually a module global. It opens a client for each event loop, at the first use in that loop,
    and closes the client together with the loop. Making a registry does no I/O.

    Args:
        url: a MongoDB URL, or an existing `pymongo.AsyncMongoClient` or Motor client. A client belongs to one
            event loop, and the application closes it.
        driver: `"pymongo"` (default) or `"motor"`: the driver that opens a URL.
        dispatched: the name of the group of dispatchers that serves this registry; True is the group "default".
            Writes are then stamped where needed, so that dispatchers do not repeat the receivers of this process.
            False means that no dispatcher serves this registry.
        state: the database with the state of the dispatchers, as in `dispatcher run --state-database`. The process
            records its claims in this database.
        claims: whether this process claims the receivers that it runs: if the process dies before these receivers
            have ended, a dispatcher runs them. A number is the timeout in seconds (15 by default), see
            docs/reference/claims.md; False turns claims off.
        event_loop: ignored, because each running loop gets a client of its own. Some applications still pass it.

    Raises:
        ImproperlyConfigured: the URL does not parse, an argument is invalid, or the registry is dispatched and its
            writes are not retryable.

    Examples:
        >>> registry = Registry("mongodb://localhost:27017/?replicaSet=rs0", dispatched=True)
    """

    def __init__(
        self,
        url: Any,
        *,
        driver: str | None = None,
        dispatched: bool | str = False,
        state: str = DEFAULT_STATE,
        claims: bool | float = True,
        event_loop: object = None,  # noqa: ARG002 - see the docstring
    ) -> None:
        super().__init__(url, driver, dispatched, state, claims)
        self.documents: dict[str, type] = {}
        self._all_documents: list[type] = []

    @property
    def all_documents(self) -> tuple[type, ...]:
        """Every concrete document class. If several classes have the same name, all of them are included."""
        return tuple(self._all_documents)

    def claimable_receivers(self) -> list[NamedReceiver]:
        """The receivers of this process that dispatchers can take over."""
        found: list[NamedReceiver] = []
        for document in cast("list[_RegisteredDocument]", list(self._all_documents)):
            signals = document.meta.signals
            for signal in (signals.post_save, signals.post_update, signals.post_delete):
                found += signal.claimable_receivers
        return found

    def register(self, document: type) -> None:
        """Add a concrete document class. The metaclass of documents calls this."""
        self.documents[document.__name__] = document
        self._all_documents.append(document)

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
        self.indexed -= {each for each in self.indexed if each[1] == name}

    async def document_checks(self) -> None:
        """Make the indexes of all collections match what the documents declare, as `check_indexes()` does.

        If several classes have the same name, only the latest one counts, as in `documents`.

        Raises:
            pymongo.errors.OperationFailure: the server refuses an index.
        """
        for document in self.documents.values():
            await cast("_RegisteredDocument", document).check_indexes()

    def transaction(
        self, **options: Unpack[TransactionOptions]
    ) -> AbstractAsyncContextManager[AsyncClientSession]:
        """A block whose reads and writes happen together or not at all.

        The transaction includes the calls of the task that enters the block, but no calls of tasks that this task
        starts.
        `post_*` receivers of this process run after the commit, in the order of the writes. If the block raises,
        the transaction is aborted, no `post_*` receiver runs, and instances get their earlier state back.

        Args:
            **options: arguments of the driver's `start_transaction`: `read_concern`, `write_concern`,
                `read_preference`, `max_commit_time_ms`.

        Returns:
            A context manager that gives the driver's session, for calls that bypass the ODM. With Motor, the
            session is Motor's. It has the same methods as PyMongo's session.

        Raises:
            TransactionError: the task is in a transaction already, or the server is no replica set.

        Examples:
            >>> async with registry.transaction():
            ...     await account.update(U.inc(balance=-10))
            ...     await Transfer.objects.create(amount=10)
        """
        return transaction(self, dict(options))

    async def run_transaction(self, fn: Callable[..., Awaitable[T]], **options: Unpack[TransactionOptions]) -> T:
        """Run a function in a transaction; repeat the whole transaction while the server asks for that.

        As with the driver, an error that is labelled as transient repeats the function, for two minutes at most.
        If the outcome of the commit is unknown, only the commit is repeated, a few times. Failed attempts fire no
        `post_*` signals.

        Args:
            fn: an async function; it gets the session if it takes an argument.
            **options: as for `transaction`.

        Returns:
            The function's result.

        Raises:
            TransactionError: the task is in a transaction already, or the server is no replica set.

        Examples:
            >>> async def transfer():
            ...     await account.update(U.inc(balance=-10))
            >>> await registry.run_transaction(transfer)
        """
        return await run_transaction(self, fn, dict(options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Registry({self.address!r}, dispatched={self.dispatched!r})"
