"""Where a write goes: the collection, the session, and what must happen around it."""

from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from mongoz.connection import Collection, Registry
from mongoz.connection.cancellation import is_given_up, unbroken
from mongoz.connection.clock import ServerClock
from mongoz.connection.codec import lenient, read
from mongoz.connection.drivers import Driver
from mongoz.connection.transactions import ALONE, Transaction, is_in_one, join
from mongoz.persistence.rows.copies import independent_copy
from mongoz.persistence.rows.hydration import loaded
from mongoz.signals.chains import refuse_endless
from mongoz.signals.post_signals import Firing, left_to_dispatchers, plan

if TYPE_CHECKING:
    from mongoz.documents.base import Document
    from mongoz.documents.meta import MetaInfo
    from mongoz.signals import Signal

__all__ = ["Target", "aim", "as_collection", "at_home"]

T = TypeVar("T")


class Target(NamedTuple):
    """Where a write goes.

    Attributes:
        collection: ours.
        session: the driver's session, or None.
        transaction: the transaction of ours that the session is in, or None.
        uncertain: the session is in somebody else's transaction: nobody here will see it commit.
    """

    collection: Collection
    session: Any = None
    transaction: Transaction | None = None
    uncertain: bool = False

    @property
    def in_transaction(self) -> bool:
        """Whether the write stands only once a transaction is committed."""
        return self.transaction is not None or self.uncertain

    @property
    def driver(self) -> Any:
        """The driver's collection."""
        collection = self.collection._collection
        return self.driver_seam.in_transaction(collection) if self.in_transaction else collection

    @property
    def lenient(self) -> Any:
        """The same, for reading what is written: documents are left undecoded, for `read`."""
        collection = self.collection._collection
        collection = collection.with_options(codec_options=lenient(collection.codec_options))
        return self.driver_seam.in_transaction(collection) if self.in_transaction else collection

    def read(self, document: Any) -> Any:
        """What `lenient` gives, decoded: a value that Python can't have does not get in between."""
        return None if document is None else read(document, self.registry.codec_options)

    @property
    def registry(self) -> Registry:
        """Whose deployment it is on."""
        return self.collection.database._registry

    @property
    def client(self) -> Any:
        """The driver's client, for the running event loop."""
        return self.registry.client

    @property
    def clock(self) -> ServerClock:
        """The server's."""
        return self.registry._clock

    @property
    def driver_seam(self) -> Driver:
        """What PyMongo and Motor do differently."""
        return self.collection.database._registry._driver

    @property
    def group(self) -> str | None:
        """The group of dispatchers that serves the registry, or None."""
        return self.collection.database._registry.dispatched

    def elsewhere(self, document: type) -> Collection | None:
        """The collection, if it is not the document's own."""
        own = document.meta.collection  # type: ignore[attr-defined]
        return None if self.collection is own or self.collection == own else self.collection

    def plan(self, signal: "Signal", changed: Iterable[str] | None = None) -> Firing:
        """Which receivers this process runs after the write.

        In somebody else's transaction `post_*` is left to the dispatcher, where there is one: it sees the commit.

        Args:
            signal: a `post_*` signal.
            changed: names of the fields that the write is about; None means any.

        Raises:
            SignalError: receivers would run too deep inside of others.
        """
        firing = plan(signal, changed)
        if firing.receivers:
            refuse_endless(signal, given_up=is_given_up())
        return left_to_dispatchers(firing) if self.uncertain and self.group is not None else firing

    @asynccontextmanager
    async def own_session(self) -> AsyncIterator[Any]:
        """The session of the caller's transaction, or one for a single write.

        In a session of its own, what became of a write can be found out, whatever the caller does with his
        meanwhile: see `outcomes`. It takes its place in the order of the caller's.
        """
        if self.in_transaction or not self.driver.write_concern.acknowledged:
            yield self.session  # unacknowledged writes take no session, and have no outcome
            return
        async with self.registry._session() as own:
            if self.session is not None:
                _follow(own, self.session)
            try:
                yield own
            finally:
                if self.session is not None:
                    _follow(self.session, own)

    async def lent_session(self) -> Any:
        """The same, of those that are lent to one write after another: to be given back, or to be ended."""
        if self.in_transaction or not self.driver.write_concern.acknowledged:
            return self.session
        own = await self.registry._sessions.take()
        if self.session is not None:
            _follow(own, self.session)
        return own

    async def give_back(self, session: Any) -> None:
        """Have others use a session that was lent for a write, which succeeded."""
        if session is self.session:
            return
        if self.session is not None:
            _follow(self.session, session)
        await self.registry._sessions.give_back(session)

    def as_unit(self, firing: Firing, unit: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Await a write together with its receivers, so that no cancellation comes between them.

        In a transaction it is the commit that belongs with the receivers.
        """
        return unbroken(unit) if firing.receivers and not self.in_transaction else unit

    def fire(self, firing: Firing, sender: type, delivery_id: str, keywords: dict[str, Any]) -> Awaitable[None]:
        """Run the receivers, or have them run once the transaction is committed. To be awaited in either case.

        Args:
            firing: who is told.
            sender: the document class.
            delivery_id: the token of the write.
            keywords: what they are told beside these.

        Raises:
            Exception: what the only failing receiver raised, as it is.
            ExceptionGroup: what several raised. The write stands in either case.
        """
        if not firing.receivers:
            return _NOTHING
        if self.transaction is None:
            return firing.run(sender, delivery_id, **keywords)
        # Until the commit later calls may change the instance: the receivers get it as this call wrote it.
        kept = {**keywords, "instance": independent_copy(keywords["instance"])}
        self.transaction.after_commit(partial(firing.run, sender, delivery_id, **kept))
        return _NOTHING

    def keep_undoable(self, instance: "Document") -> None:
        """Have the instance forget what it is about to learn of the database, if the transaction aborts.

        Else a second attempt would find nothing left to write.
        """
        if self.transaction is None:
            return
        state, id_ = loaded(instance), instance.__dict__.get("id")

        def undo() -> None:
            object.__setattr__(instance, "_loaded", state)
            instance.__dict__["id"] = id_

        self.transaction.on_abort(undo)


def at_home(meta: "MetaInfo") -> Target | None:
    """Where most writes go: to the document's own collection, in no session. None if only `aim` can tell."""
    place = meta.collection
    if place is None or meta.autogenerate_index or is_in_one():
        return None
    if place._plain_target is None:
        place._plain_target = Target(place)
    return place._plain_target  # type: ignore[no-any-return]


class _Nothing:
    """Nothing to wait for."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


_NOTHING: Final = _Nothing()


def _follow(session: Any, other: Any) -> None:
    """Have a session read what was written in another one."""
    if other.cluster_time is not None:
        session.advance_cluster_time(other.cluster_time)
    if other.operation_time is not None:
        session.advance_operation_time(other.operation_time)


async def aim(document: type["Document"], collection: Any = None, session: Any = None) -> Target:
    """Where a write of `document` goes. Its indexes exist afterwards, where Meta wants that.

    Args:
        document: the class.
        collection: ours or the driver's, if it is not the document's own.
        session: the caller's session; None joins the transaction of the task.

    Raises:
        AbstractDocumentError: the document is abstract.
        ImproperlyConfigured: it has no registry, or the session belongs to another client.
    """
    meta = document.meta
    place = meta.require_collection() if collection is None else as_collection(document, collection)
    if meta.autogenerate_index:
        await meta.ensure_indexes(place, session)
    joined = join(place.database._registry, session)
    if joined is not ALONE:
        return Target(place, joined.session, joined.transaction, joined.is_somebody_elses_transaction)
    if place._plain_target is None:
        place._plain_target = Target(place)
    return place._plain_target  # type: ignore[no-any-return]


def as_collection(document: type["Document"], collection: Any) -> Collection:
    """Our collection for one of ours or of the driver's.

    Raises:
        AbstractDocumentError: the document is abstract.
        ImproperlyConfigured: it has no registry.
        TypeError: it is neither.
    """
    if isinstance(collection, Collection):
        return collection
    own = document.meta.require_collection()
    if not hasattr(collection, "database"):
        raise TypeError(f"A collection is one of mongoz or of the driver, not {collection!r}.")
    return own.database._registry.get_database(collection.database.name).get_collection(collection.name)
