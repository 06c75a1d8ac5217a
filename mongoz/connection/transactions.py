"""Transactions: a session that the calls of one task join, and what waits for its commit.

The calls of the task that entered `registry.transaction()` find its session by themselves. Tasks that it
starts don't: a session can't be used by two tasks at once, and MongoDB would refuse.
"""

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from mongoz.connection.cancellation import unbroken
from mongoz.connection.elections import as_passing, is_of_connection
from mongoz.connection.retry import find_out
from mongoz.error_groups import raise_together
from mongoz.exceptions import ImproperlyConfigured, TransactionError

if TYPE_CHECKING:
    from mongoz.connection.registry import Registry

__all__ = [
    "ALONE",
    "Joined",
    "Transaction",
    "is_committed",
    "is_in_one",
    "join",
    "run_alone",
    "run_once",
    "run_transaction",
    "session_here",
    "transaction",
]

T = TypeVar("T")

_ILLEGAL_OPERATION: Final = 20  # what a server without a replica set answers to a transaction's first command
_NO_TRANSACTIONS: Final = (
    "This server takes no transactions: they need a replica set (one node is enough: start mongod with --replSet, "
    "and run rs.initiate() once)."
)
_UNKNOWN_COMMIT: Final = "UnknownTransactionCommitResult"
_COMMIT_ATTEMPTS: Final = 3
_NOT_THERE: Final = frozenset({225, 251})  # TransactionTooOld, NoSuchTransaction
_OPEN: Final = (
    "Whether it was committed could not be found out yet. If it was, its receivers run as soon as that is known; "
    "instances are left as if it was."
)

_READ_CONCERNS: Final = (None, "local", "majority", "snapshot")  # that a transaction takes

# As the drivers do it: the whole function again, for two minutes, with growing pauses.
_TRANSIENT: Final = "TransientTransactionError"
_LONGEST_RETRYING: Final = 120.0
_FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.5


class Transaction:
    """One attempt at a transaction, and what is to happen in this process when it ends.

    Attributes:
        registry: whose databases it is on.
        session: the driver's session.
        is_committed: it stands, whatever its receivers raise.
        is_open: whether it stands is not known yet; what waits for the commit goes on waiting.
    """

    __slots__ = (
        "__weakref__",
        "_after_commit",
        "_on_abort",
        "_task",
        "is_committed",
        "is_open",
        "registry",
        "session",
    )

    def __init__(self, registry: "Registry", session: Any) -> None:
        self.registry = registry
        self.session = session
        self.is_committed = False
        self.is_open = False
        self._task = asyncio.current_task()
        self._after_commit: list[Callable[[], Awaitable[None]]] = []
        self._on_abort: list[Callable[[], None]] = []
        _by_session[_key(session)] = self

    @property
    def is_entered_here(self) -> bool:
        """Whether the running task is the one that entered it."""
        return self._task is asyncio.current_task()

    def after_commit(self, action: Callable[[], Awaitable[None]]) -> None:
        """Have `action` awaited once the transaction is committed; never if it aborts."""
        self._after_commit.append(action)

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits for the commit."""
        return bool(self._after_commit)

    def on_abort(self, undo: Callable[[], None]) -> None:
        """Have `undo` called if the transaction aborts: what is in memory then follows the database."""
        self._on_abort.append(undo)

    async def committed(self) -> None:
        """Do what waited for the commit, in order, all of it; then raise what was raised.

        Raises:
            Exception: the only one that was raised, as it is.
            ExceptionGroup: several were raised. The transaction stands in either case.
        """
        self.is_committed = True
        _by_session.pop(_key(self.session), None)
        errors: list[Exception] = []
        for action in self._after_commit:
            try:
                await action()
            except Exception as error:
                errors.append(error)
        raise_together(errors, f"{len(errors)} writes of a transaction have receivers that raised")

    def aborted(self) -> None:
        """Forget what waited, and undo what instances remember of it."""
        _by_session.pop(_key(self.session), None)
        for undo in reversed(self._on_abort):
            undo()


_entered: ContextVar[tuple[Transaction, ...]] = ContextVar("mongoz_transactions", default=())
is_in_one: Final[Callable[[], object]] = _entered.get
"""Whether the running task, or one that it comes from, has entered a transaction. A function of C, for speed."""

_by_session: WeakKeyDictionary[Any, Transaction] = WeakKeyDictionary()


def _key(session: Any) -> Any:
    """What stands for a session; Motor's wrappers can't be keys, and wrap a session that can."""
    return getattr(session, "delegate", session)


class Joined(NamedTuple):
    """What a call works in.

    Attributes:
        session: the driver's session, or None.
        transaction: the transaction of ours that the session is in, or None.
    """

    session: Any = None
    transaction: Transaction | None = None

    @property
    def is_somebody_elses_transaction(self) -> bool:
        """Whether it is in a transaction whose commit we can't see."""
        return self.session is not None and self.transaction is None and bool(self.session.in_transaction)


ALONE: Final = Joined()


def join(registry: "Registry", session: Any = None) -> Joined:
    """The session for a call of the running task.

    Args:
        registry: whose database is read or written.
        session: the session that the caller asked for; None joins the transaction that the task entered.

    Raises:
        ImproperlyConfigured: the session belongs to another client.
    """
    if session is not None:
        if getattr(session, "client", None) is not registry.client:
            raise ImproperlyConfigured(
                f"session={session!r} was not started by the client of {registry!r}; start it with "
                "registry.client.start_session(), or use registry.transaction()."
            )
        return Joined(session, _by_session.get(_key(session)))
    if not _entered.get():
        return ALONE
    own = _current(registry)
    return ALONE if own is None else Joined(own.session, own)


def _current(registry: "Registry") -> Transaction | None:
    return next((t for t in _entered.get() if t.registry is registry and t.is_entered_here), None)


def session_here(session: Any = None) -> Any:
    """The session of the transaction that a call of the running task is part of; None if it is in none.

    Args:
        session: the session that the caller asked for.
    """
    if session is not None:
        return session if session.in_transaction else None
    own = next((t for t in _entered.get() if t.is_entered_here), None)
    return None if own is None else own.session


@contextmanager
def _ambient(transaction: Transaction) -> Iterator[None]:
    token = _entered.set((*_entered.get(), transaction))
    try:
        yield
    finally:
        _entered.reset(token)


def _refuse_nesting(registry: "Registry") -> None:
    if _current(registry) is not None:
        raise TransactionError(
            "This task is in a transaction of this registry already, and MongoDB has no nested ones; do the work "
            "in the transaction that is open."
        )


@asynccontextmanager
async def transaction(registry: "Registry", options: dict[str, Any]) -> AsyncIterator[Any]:
    """See `Registry.transaction`."""
    _refuse_nesting(registry)
    async with AsyncExitStack() as held:
        session = await held.enter_async_context(registry._session())
        await registry._driver.start_transaction(session, _fit_for(registry.client, options))
        own = Transaction(registry, session)
        try:
            with _ambient(own):
                yield session
            # A commit and the receivers that wait for it are one unit, as a write and its receivers are.
            await unbroken(_finish(own, held))
        except BaseException as error:
            await _abort(own)
            if _takes_none(error):
                raise TransactionError(_NO_TRANSACTIONS) from error
            if (passing := await as_passing(error, registry.client, in_transaction=True)) is not error:
                raise passing  # noqa: B904 - it has its cause
            raise


async def _finish(own: Transaction, held: AsyncExitStack) -> None:
    """Commit; then do what waited for it.

    Args:
        own: what is to be committed.
        held: its session; kept where the answer stays away, and taken out of it then.
    """
    unknown = await _commit(own.session)
    if unknown is not None:
        own.is_open = True
        if own.is_awaited:
            unknown.add_note(_OPEN)
            own.registry._later(_finish_when_known(own, held.pop_all()))
        raise unknown
    await own.committed()


async def _finish_when_known(own: Transaction, held: AsyncExitStack) -> None:
    async with held:
        committed = await is_committed(own.session)
    if committed:
        await own.committed()


async def _abort(own: Transaction) -> None:
    """Undo everything, unless it is committed, and only receivers raised, or may be."""
    if own.is_committed or own.is_open:
        return
    try:
        if own.session.in_transaction:
            await _abort_session(own.session)
    finally:
        own.aborted()


async def _abort_session(session: Any) -> None:
    """Tell the server to forget it. If that does not arrive, the server ends the transaction by itself."""
    try:
        await session.abort_transaction()  # the driver ignores all errors but those of an election
    except ConfigurationError as error:
        await as_passing(error, session.client)


async def _commit(session: Any) -> PyMongoError | None:
    """Commit; while the outcome is unknown, ask again: that changes nothing where it is committed already.

    Returns:
        The error after which the outcome is unknown still; None if it is committed.
    """
    unknown = None
    for _ in range(_COMMIT_ATTEMPTS):
        try:
            await session.commit_transaction()
        except PyMongoError as error:
            if not (error.has_error_label(_UNKNOWN_COMMIT) or is_of_connection(error)):
                raise
            unknown = await as_passing(error, session.client)
            unknown._add_error_label(_UNKNOWN_COMMIT)
        else:
            return None
    return unknown


async def is_committed(session: Any) -> bool:
    """Whether a transaction whose commit got no answer stands: the commit is sent again until there is one.

    That changes nothing where it is committed already. Only the server knows: what the transaction has written may
    be overwritten or deleted by now.

    Args:
        session: nothing was done in it since.

    Raises:
        InvalidOperation: the client was closed.
    """

    async def ask() -> bool:
        try:
            await session.commit_transaction()
        except PyMongoError as error:
            if _is_aborted(error):
                return False
            raise await as_passing(error, session.client)  # noqa: B904 - it has its cause
        return True

    return await find_out(ask)


def _is_aborted(error: PyMongoError) -> bool:
    """Whether the answer to a commit means that there is nothing to commit."""
    if error.has_error_label(_UNKNOWN_COMMIT):
        return False
    return error.has_error_label(_TRANSIENT) or (isinstance(error, OperationFailure) and error.code in _NOT_THERE)


async def run_transaction(registry: "Registry", fn: Callable[..., Awaitable[T]], options: dict[str, Any]) -> T:
    """See `Registry.run_transaction`."""
    _refuse_nesting(registry)
    takes_session = _takes_session(fn)
    retrying = _Retrying()
    async with AsyncExitStack() as held:
        session, fit = await held.enter_async_context(registry._session()), _fit_for(registry.client, options)
        while True:
            await registry._driver.start_transaction(session, fit)
            own = Transaction(registry, session)
            try:
                with _ambient(own):
                    result = await (fn(session) if takes_session else fn())
                await unbroken(_finish(own, held))
            except BaseException as raised:
                await _abort(own)
                if _takes_none(raised):
                    raise TransactionError(_NO_TRANSACTIONS) from raised
                error = await as_passing(raised, registry.client, in_transaction=True)
                if own.is_committed or not retrying.is_asked_for_by(error):
                    raise error  # noqa: B904 - it is the same, or has its cause
            else:
                return result
            await retrying.pause()


async def run_alone(registry: "Registry", session: Any, fn: Callable[[Any], Awaitable[None]]) -> None:
    """Run a few commands in a transaction that no other call joins; all again while the server asks for that.

    Args:
        registry: whose driver it is.
        session: in no transaction.
        fn: sends the commands, in the session that it is given.

    Raises:
        PyMongoError: as the driver has it. After one with the label `UnknownTransactionCommitResult`,
            `is_committed` tells whether it stands.
    """
    retrying = _Retrying()
    while True:
        try:
            return await run_once(registry, session, fn)
        except BaseException as error:
            if not retrying.is_asked_for_by(error):
                raise
        await retrying.pause()


async def run_once(registry: "Registry", session: Any, fn: Callable[[Any], Awaitable[None]]) -> None:
    """The same, but a transaction that the server ends is not repeated: what it raised reaches the caller."""
    await registry._driver.start_transaction(session, _fit_for(registry.client, {}))
    try:
        await fn(session)
        unknown = await _commit(session)
    except BaseException as raised:
        if session.in_transaction:
            await _abort_session(session)
        raise await as_passing(raised, registry.client, in_transaction=True)  # noqa: B904 - it has its cause
    if unknown is not None:
        raise unknown


def _fit_for(client: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The caller's options; and what a transaction takes instead of what it would inherit from the URL, but can't.

    Args:
        client: the driver's, with the options of the URL.
        given: what the caller asked for.
    """
    fit: dict[str, Any] = {}
    if client.read_preference != ReadPreference.PRIMARY:
        fit["read_preference"] = ReadPreference.PRIMARY
    if client.read_concern.level not in _READ_CONCERNS:
        fit["read_concern"] = ReadConcern("majority")
    if not client.write_concern.acknowledged:
        fit["write_concern"] = WriteConcern("majority")
    return {**fit, **given}


class _Retrying:
    """How long transactions are repeated, and with which pauses."""

    def __init__(self) -> None:
        self._deadline = monotonic() + _LONGEST_RETRYING
        self._pause = _FIRST_PAUSE

    def is_asked_for_by(self, error: BaseException) -> bool:
        """Whether the server wants the transaction again, and there is time for that."""
        transient = isinstance(error, PyMongoError) and error.has_error_label(_TRANSIENT)
        return transient and monotonic() + self._pause <= self._deadline

    async def pause(self) -> None:
        """Wait before the next one."""
        await asyncio.sleep(self._pause * random.random())
        self._pause = min(_LONGEST_PAUSE, self._pause * 1.5)


def _takes_session(fn: Callable[..., Any]) -> bool:
    try:
        inspect.signature(fn).bind(None)
    except TypeError:
        return False
    return True


def _takes_none(error: BaseException) -> bool:
    """Whether a server says that it has no transactions at all."""
    return isinstance(error, OperationFailure) and error.code == _ILLEGAL_OPERATION
