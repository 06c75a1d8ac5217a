"""The target of a write: its collection, its session, and how its receivers run."""

from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from mongoz.claims.book import OpenClaim
from mongoz.connection import Collection
from mongoz.connection.cancellation import is_caller_cancelled, uninterrupted
from mongoz.connection.clock import ServerClock
from mongoz.connection.codec import decode_raw, raw_options
from mongoz.connection.database import OpenCollection
from mongoz.connection.deployment import Deployment
from mongoz.connection.drivers import DriverAdapter
from mongoz.connection.transactions import NOT_JOINED, Transaction, is_in_transaction, join_transaction
from mongoz.model.base import Model
from mongoz.model.meta import MetaInfo
from mongoz.model.state import loaded, restore
from mongoz.persistence.indexing import ensure_indexes
from mongoz.persistence.rows.copies import independent_copy
from mongoz.signals import Signal
from mongoz.signals.chains import innermost_link, refuse_endless_chain
from mongoz.signals.post_signals import Firing, leave_to_dispatchers, plan_firing

__all__ = ["WriteTarget", "default_target", "resolve_target"]

T = TypeVar("T")


class WriteTarget(NamedTuple):
    """The target of a write.

    Attributes:
        collection: the `Collection`.
        loop: the running event loop.
        session: the driver's session; None if the write has none.
        transaction: the mongoz transaction that the session is in; None if there is none.
        is_foreign_transaction: the application started the transaction with the driver. mongoz does not see its
            commit.
    """

    collection: Collection
    loop: AbstractEventLoop
    session: Any = None
    transaction: Transaction | None = None
    is_foreign_transaction: bool = False

    @property
    def in_transaction(self) -> bool:
        """Whether the write takes effect at a later commit."""
        return self.transaction is not None or self.is_foreign_transaction

    @property
    def opened(self) -> OpenCollection:
        """The collection in the event loop."""
        return self.collection.opened_in(self.loop)

    @property
    def driver_collection(self) -> Any:
        """The driver's collection."""
        collection = self.opened.driver_collection
        if self.session is None:  # the most frequent case
            return collection
        return self.adapter.in_transaction(collection) if self.in_transaction else collection

    @property
    def raw_collection(self) -> Any:
        """The driver's collection for lenient reads, which accept all values of other clients. See `decode`."""
        collection = self.opened.driver_collection
        collection = collection.with_options(codec_options=raw_options(collection.codec_options))
        return self.adapter.in_transaction(collection) if self.in_transaction else collection

    def decode(self, document: Any) -> Any:
        """Decode a document of `raw_collection` leniently; None stays None."""
        return None if document is None else decode_raw(document, self.deployment.codec_options)

    @property
    def deployment(self) -> Deployment:
        """The deployment of the collection's registry."""
        return self.collection.database.deployment

    @property
    def client(self) -> Any:
        """The driver's client, for the running event loop."""
        return self.deployment.client

    @property
    def clock(self) -> ServerClock:
        """The server's clock."""
        return self.deployment.clock

    @property
    def adapter(self) -> DriverAdapter:
        """The adapter of the driver, which hides the differences between PyMongo and Motor."""
        return self.collection.database.deployment.adapter

    @property
    def group(self) -> str | None:
        """The group of dispatchers that serves the registry, or None."""
        return self.collection.database.deployment.dispatched

    def other_collection(self, document: type[Model]) -> Collection | None:
        """The collection; None if it is the document's own."""
        own = document.meta.collection
        return None if self.collection is own or self.collection == own else self.collection

    def plan(self, signal: Signal, changed: Iterable[str] | None = None) -> Firing:
        """Decide which receivers this process runs after the write.

        Dispatchers see the commit of a foreign transaction, but this process does not. So on a dispatched registry
        the receivers of such a write are left to dispatchers, except receivers with `delivery="process"`.

        Args:
            signal: a `post_*` signal.
            changed: names of the written fields, see `plan_firing`. If None, `fields=` does not count.

        Raises:
            SignalError: the chain of receivers is too long.
        """
        firing = plan_firing(signal, changed)
        if firing.receivers and innermost_link.get() is not None:
            refuse_endless_chain(signal, caller_cancelled=is_caller_cancelled())
        if self.is_foreign_transaction and self.group is not None:
            return leave_to_dispatchers(firing)
        return firing

    @asynccontextmanager
    async def own_session(self) -> AsyncIterator[Any]:
        """The session of the caller's transaction, or a new session for a single write.

        The outcome of a write can be looked up only if no other command uses its session, but the caller may use
        the caller's session meanwhile. The new session stays causally consistent with the caller's session.
        """
        if self.in_transaction or self.opened.sessions is None:
            yield self.session  # unacknowledged writes support no session, and have no outcome
            return
        async with self.deployment.new_session() as own:
            if self.session is not None:
                _advance(own, self.session)
            try:
                yield own
            finally:
                if self.session is not None:
                    _advance(self.session, own)

    async def take_session(self) -> Any:
        """Like `own_session`, but with a session of the pool. The caller gives the session back or ends it."""
        sessions = None if self.session is not None and self.in_transaction else self.opened.sessions
        if sessions is None:
            return self.session
        own = sessions.take_idle()
        if own is None:
            own = await sessions.start()
        if self.session is not None:
            _advance(own, self.session)
        return own

    def give_back_session(self, session: Any) -> bool:
        """Return a session to the pool after a successful write; False if the caller must end it."""
        if session is self.session:
            return True
        if self.session is not None:
            _advance(self.session, session)
        sessions = self.opened.sessions
        return sessions is not None and sessions.keep(session)

    def as_unit(self, firing: Firing, unit: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Await a write together with its receivers: a cancellation must not separate them.

        In a transaction the commit and the receivers are the unit instead.
        """
        return uninterrupted(unit) if firing.receivers and not self.in_transaction else unit

    def fire(
        self,
        firing: Firing,
        sender: type,
        delivery_id: str,
        keywords: dict[str, Any],
        claim: OpenClaim | None = None,
    ) -> Awaitable[None]:
        """Run the receivers, or schedule them for the commit. The caller awaits the result in either case.

        Args:
            firing: the receivers.
            sender: the document class.
            delivery_id: the token of the write.
            keywords: further keywords of the receivers.
            claim: the claim of the write, if the write has one. The claim ends when the receivers have run.

        Raises:
            Exception: the error of the only failing receiver.
            ExceptionGroup: several receivers failed. In both cases the document stays written.
        """
        if not firing.receivers:
            return _DONE
        if self.transaction is None:
            return firing.run(sender, delivery_id, keywords, claim)
        # Later calls may change the instance before the commit, so receivers get a copy.
        kept = {**keywords, "instance": independent_copy(keywords["instance"])}
        self.transaction.after_commit(partial(firing.run, sender, delivery_id, kept, claim))
        return _DONE

    def undo_on_abort(self, instance: Model) -> None:
        """Restore the state and the id of an instance if the transaction aborts.

        Otherwise a second attempt would see no changes to write.
        """
        if self.transaction is None:
            return
        state, id_ = loaded(instance), instance.__dict__.get("id")

        def undo() -> None:
            restore(instance, state)
            instance.__dict__["id"] = id_

        self.transaction.on_abort(undo)


def default_target(meta: MetaInfo, loop: AbstractEventLoop) -> WriteTarget | None:
    """The target of most writes: the document's own collection, without a session.

    None if a write may have another target.

    Args:
        meta: the `Meta` of the document.
        loop: the running event loop.
    """
    place = meta.collection
    if place is None or meta.autogenerate_index or is_in_transaction():
        return None
    return _cached_target(place, loop)


def _cached_target(place: Collection, loop: AbstractEventLoop) -> WriteTarget:
    """The target of writes without a session."""
    target: WriteTarget | None = place.write_target
    if target is None or target.loop is not loop:
        place.write_target = target = WriteTarget(place, loop)
    return target


class _Done:
    """An awaitable that is already done."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


_DONE: Final = _Done()


def _advance(session: Any, other: Any) -> None:
    """Make the reads of one session see the writes of another."""
    if other.cluster_time is not None:
        session.advance_cluster_time(other.cluster_time)
    if other.operation_time is not None:
        session.advance_operation_time(other.operation_time)


async def resolve_target(document: type[Model], collection: Any = None, session: Any = None) -> WriteTarget:
    """The target of a write. Creates the indexes of the collection first, if `autogenerate_index` is set.

    Args:
        document: the class.
        collection: a `Collection` or the driver's collection; by default the document's own.
        session: the caller's session. None joins the transaction of the task, if there is one.

    Raises:
        AbstractDocumentError: the document is abstract.
        ImproperlyConfigured: the document has no registry, or the session belongs to another client.
    """
    meta = document.meta
    place = meta.require_collection() if collection is None else meta.collection_for(collection)
    if meta.autogenerate_index:
        await ensure_indexes(meta, place, session)
    loop, joined = get_running_loop(), join_transaction(place.database.deployment, session)
    if joined is not NOT_JOINED:
        return WriteTarget(place, loop, joined.session, joined.transaction, joined.is_foreign_transaction)
    return _cached_target(place, loop)
