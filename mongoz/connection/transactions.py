"""Transactions: a session that the calls of one task join, and the actions that wait for the commit.

Calls of the task that entered `registry.transaction()` find the session by themselves. Calls of its child tasks
do not find the session, because MongoDB refuses two concurrent commands in one session.
"""

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any, Final, NamedTuple, TypedDict, TypeVar
from weakref import WeakKeyDictionary

from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from mongoz.claims.book import OpenClaim
from mongoz.connection.cancellation import uninterrupted
from mongoz.connection.commits import abort, commit, is_aborted_after, is_committed
from mongoz.connection.deployment import Deployment
from mongoz.connection.elections import as_transient
from mongoz.error_groups import raise_together
from mongoz.exceptions import ImproperlyConfigured, TransactionError

__all__ = [
    "NOT_JOINED",
    "JoinedSession",
    "Transaction",
    "TransactionOptions",
    "is_in_transaction",
    "join_transaction",
    "run_private_transaction",
    "run_private_transaction_once",
    "run_transaction",
    "session_of_call",
    "transaction",
]

T = TypeVar("T")

# The code of the error with which a server outside of a replica set refuses a transaction.
_ILLEGAL_OPERATION: Final = 20
_NO_TRANSACTIONS: Final = (
    "This server has no transactions: they need a replica set (one node is enough: start mongod with --replSet, "
    "and run rs.initiate() once)."
)
_OUTCOME_UNKNOWN: Final = (
    "It is not known yet whether the transaction was committed. If it was committed, its receivers run as "
    "soon as mongoz knows that. Instances keep the values that the transaction wrote, even if it was not "
    "committed."
)

_READ_CONCERNS: Final = (None, "local", "majority", "snapshot")  # transactions support these

# Like the drivers, repeat the whole function for two minutes, with growing pauses.
_TRANSIENT: Final = "TransientTransactionError"
_RETRY_SECONDS: Final = 120.0
_FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.5


class TransactionOptions(TypedDict, total=False):
    """The options of a transaction: arguments of the driver's `start_transaction`."""

    read_concern: ReadConcern | None
    write_concern: WriteConcern | None
    read_preference: Any
    max_commit_time_ms: int | None


class Transaction:
    """One attempt at a transaction, and the actions of this process at its end.

    Attributes:
        deployment: the deployment on which the transaction runs.
        session: the driver's session.
        is_committed: the transaction is committed; errors of receivers don't change that.
        is_outcome_unknown: the commit got no answer yet, so the actions still wait.
    """

    __slots__ = (
        "__weakref__",
        "_after_commit",
        "_claims",
        "_on_abort",
        "_task",
        "deployment",
        "is_committed",
        "is_outcome_unknown",
        "session",
    )

    def __init__(self, deployment: Deployment, session: Any) -> None:
        self.deployment = deployment
        self.session = session
        self.is_committed = False
        self.is_outcome_unknown = False
        self._task = asyncio.current_task()
        self._after_commit: list[Callable[[], Awaitable[None]]] = []
        self._on_abort: list[Callable[[], None]] = []
        self._claims: list[OpenClaim] = []
        _by_session[_key(session)] = self

    @property
    def is_entered_here(self) -> bool:
        """Whether the running task entered the transaction."""
        return self._task is asyncio.current_task()

    def after_commit(self, action: Callable[[], Awaitable[None]]) -> None:
        """Await `action` after the transaction is committed. If it aborts, `action` is never called."""
        self._after_commit.append(action)

    @property
    def is_awaited(self) -> bool:
        """Whether any action waits for the commit."""
        return bool(self._after_commit)

    def add_claim(self, claim: OpenClaim) -> None:
        """Record a write's claim, which ends when the receivers have run, or if the transaction aborts."""
        self._claims.append(claim)

    def on_abort(self, undo: Callable[[], None]) -> None:
        """Call `undo` if the transaction aborts, so that instances match the database again."""
        self._on_abort.append(undo)

    async def run_commit_actions(self) -> None:
        """Mark the transaction as committed, and await all actions in order; then raise their errors.

        Raises:
            Exception: one action failed; its error, unchanged.
            ExceptionGroup: several actions failed. In both cases the transaction stays committed.
        """
        self.is_committed = True
        _by_session.pop(_key(self.session), None)
        errors: list[Exception] = []
        try:
            for action in self._after_commit:
                try:
                    await action()
                except Exception as error:
                    errors.append(error)
        finally:
            self.leave_claims()
        raise_together(errors, f"{len(errors)} writes of a transaction have receivers that raised")

    def leave_claims(self) -> None:
        """Leave the claimed receivers to dispatchers, unless they have run.

        The stream shows only committed writes, so dispatchers deliver nothing of an aborted transaction.
        """
        _by_session.pop(_key(self.session), None)
        for claim in self._claims:
            claim.release()

    def drop_claims(self) -> None:
        """End the claims as done: the transaction is aborted."""
        for claim in self._claims:
            claim.done()

    def undo_in_memory(self) -> None:
        """Reset the instances that the transaction wrote. Call this only if the commit actions will not run."""
        for undo in reversed(self._on_abort):
            undo()


_entered: ContextVar[tuple[Transaction, ...]] = ContextVar("mongoz_transactions", default=())
is_in_transaction: Final[Callable[[], object]] = _entered.get
"""Whether the running task or its parent task entered a transaction.

Every ODM call asks this, so the answer must be quick: this is a function written in C.
"""

_by_session: WeakKeyDictionary[Any, Transaction] = WeakKeyDictionary()


def _key(session: Any) -> Any:
    """The key of a session in a weak dict: Motor's wrapper can't be a key, the wrapped session can."""
    return getattr(session, "delegate", session)


class JoinedSession(NamedTuple):
    """The session of one call.

    Attributes:
        session: the driver's session; None if the call has none.
        transaction: the mongoz transaction that the session is in; None if there is none.
    """

    session: Any = None
    transaction: Transaction | None = None

    @property
    def is_foreign_transaction(self) -> bool:
        """Whether the application started the transaction with the driver. Then mongoz does not see the commit."""
        return self.session is not None and self.transaction is None and bool(self.session.in_transaction)


NOT_JOINED: Final = JoinedSession()


def join_transaction(deployment: Deployment, session: Any = None) -> JoinedSession:
    """The session for a call of the running task.

    Args:
        deployment: the deployment that is read or written.
        session: the session that the caller gave; None joins the transaction that the task entered.

    Raises:
        ImproperlyConfigured: the session belongs to another client.
    """
    if session is not None:
        if getattr(session, "client", None) is not deployment.client:
            raise ImproperlyConfigured(
                f"session={session!r} was not started by the client of {deployment!r}; start it with "
                "registry.client.start_session(), or use registry.transaction()."
            )
        return JoinedSession(session, _by_session.get(_key(session)))
    if not _entered.get():
        return NOT_JOINED
    own = _current(deployment)
    return NOT_JOINED if own is None else JoinedSession(own.session, own)


def _current(deployment: Deployment) -> Transaction | None:
    return next((t for t in _entered.get() if t.deployment is deployment and t.is_entered_here), None)


def session_of_call(session: Any = None) -> Any:
    """The session of the transaction that a call of the running task belongs to, or None.

    Args:
        session: the session that the caller gave; None means the transaction that the task entered.
    """
    if session is not None:
        return session if session.in_transaction else None
    own = next((t for t in _entered.get() if t.is_entered_here), None)
    return None if own is None else own.session


@contextmanager
def _entering(transaction: Transaction) -> Iterator[None]:
    token = _entered.set((*_entered.get(), transaction))
    try:
        yield
    finally:
        _entered.reset(token)


def _refuse_nesting(deployment: Deployment) -> None:
    if _current(deployment) is not None:
        raise TransactionError(
            "This task is in a transaction of this registry already, and MongoDB has no nested ones; do the work "
            "in the transaction that is open."
        )


@asynccontextmanager
async def transaction(deployment: Deployment, options: dict[str, Any]) -> AsyncIterator[Any]:
    """See `Registry.transaction`."""
    _refuse_nesting(deployment)
    async with AsyncExitStack() as held:
        session = await held.enter_async_context(deployment.new_session())
        await deployment.adapter.start_transaction(session, _transaction_options(deployment.client, options))
        own = Transaction(deployment, session)
        try:
            with _entering(own):
                yield session
            # A cancellation must not separate a commit from its receivers.
            await uninterrupted(_finish(own, held))
        except BaseException as error:
            await _abort(own)
            if _has_no_transactions(error):
                raise TransactionError(_NO_TRANSACTIONS) from error
            if (transient := await as_transient(error, deployment.client, in_transaction=True)) is not error:
                raise transient  # noqa: B904 - its cause is set
            raise


async def _finish(own: Transaction, held: AsyncExitStack) -> None:
    """Commit; then run the actions that wait for it.

    Args:
        own: the transaction.
        held: the resources to release, among them the session. If the outcome is unknown and actions wait for it,
            a background task gets the resources.
    """
    try:
        unknown = await commit(own.session)
    except BaseException as error:  # for example the end of the event loop, while the server commits
        if is_aborted_after(error):
            own.drop_claims()
        else:
            own.leave_claims()
        raise
    if unknown is not None:
        own.is_outcome_unknown = True
        # From now on only the background task holds the transaction. If the task ends early, the claims are
        # released.
        _by_session.pop(_key(own.session), None)
        if own.is_awaited:
            unknown.add_note(_OUTCOME_UNKNOWN)
            own.deployment.run_in_background(_finish_when_known(own, held.pop_all()))
        raise unknown
    await own.run_commit_actions()


async def _finish_when_known(own: Transaction, held: AsyncExitStack) -> None:
    try:
        async with held:
            committed = await is_committed(own.session)
        if committed:
            await own.run_commit_actions()
    finally:
        own.leave_claims()


async def _abort(own: Transaction) -> None:
    """Abort, unless the transaction is committed or may be committed."""
    if own.is_committed or own.is_outcome_unknown:
        return
    try:
        if own.session.in_transaction:
            await abort(own.session)
            own.drop_claims()
    finally:
        # Claims are still open if the application itself has committed, or if the abort was interrupted.
        own.leave_claims()
        own.undo_in_memory()


async def run_transaction(deployment: Deployment, fn: Callable[..., Awaitable[T]], options: dict[str, Any]) -> T:
    """See `Registry.run_transaction`."""
    _refuse_nesting(deployment)
    takes_session = _takes_session(fn)
    retry = _RetryPolicy()
    async with AsyncExitStack() as held:
        session = await held.enter_async_context(deployment.new_session())
        supported = _transaction_options(deployment.client, options)
        while True:
            await deployment.adapter.start_transaction(session, supported)
            own = Transaction(deployment, session)
            try:
                with _entering(own):
                    result = await (fn(session) if takes_session else fn())
                await uninterrupted(_finish(own, held))
            except BaseException as raised:
                await _abort(own)
                if _has_no_transactions(raised):
                    raise TransactionError(_NO_TRANSACTIONS) from raised
                error = await as_transient(raised, deployment.client, in_transaction=True)
                if own.is_committed or not retry.allows(error):
                    raise error  # noqa: B904 - it is the same error, or its cause is set
            else:
                return result
            await retry.pause()


async def run_private_transaction(
    deployment: Deployment, session: Any, fn: Callable[[Any], Awaitable[None]]
) -> None:
    """Run commands in a transaction that no other call joins. Repeat it after transient errors, for two minutes.

    Args:
        deployment: the deployment of the session.
        session: a session in no transaction.
        fn: sends the commands in the session that it gets.

    Raises:
        PyMongoError: the driver's error. If it has the label `UnknownTransactionCommitResult`, the outcome is
            unknown, and `is_committed` finds it out.
    """
    retry = _RetryPolicy()
    while True:
        try:
            return await run_private_transaction_once(deployment, session, fn)
        except BaseException as error:
            if not retry.allows(error):
                raise
        await retry.pause()


async def run_private_transaction_once(
    deployment: Deployment, session: Any, fn: Callable[[Any], Awaitable[None]]
) -> None:
    """Like `run_private_transaction`, without repetition: a transient error reaches the caller."""
    await deployment.adapter.start_transaction(session, _transaction_options(deployment.client, {}))
    try:
        await fn(session)
        unknown = await commit(session)
    except BaseException as raised:
        if session.in_transaction:
            await abort(session)
        raise await as_transient(raised, deployment.client, in_transaction=True)  # noqa: B904 - its cause is set
    if unknown is not None:
        raise unknown


def _transaction_options(client: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The caller's options, and replacements for options of the URL that transactions don't support.

    Args:
        client: the driver's client, with the options of the URL.
        given: the caller's options.
    """
    replaced: dict[str, Any] = {}
    if client.read_preference != ReadPreference.PRIMARY:
        replaced["read_preference"] = ReadPreference.PRIMARY
    if client.read_concern.level not in _READ_CONCERNS:
        replaced["read_concern"] = ReadConcern("majority")
    if not client.write_concern.acknowledged:
        replaced["write_concern"] = WriteConcern("majority")
    return {**replaced, **given}


class _RetryPolicy:
    """The time limit and the pauses for repeating a transaction."""

    def __init__(self) -> None:
        self._deadline = monotonic() + _RETRY_SECONDS
        self._pause = _FIRST_PAUSE

    def allows(self, error: BaseException) -> bool:
        """Whether the server asks for a repetition after this error, and there is time for it."""
        transient = isinstance(error, PyMongoError) and error.has_error_label(_TRANSIENT)
        return transient and monotonic() + self._pause <= self._deadline

    async def pause(self) -> None:
        """Wait before the next attempt."""
        await asyncio.sleep(self._pause * random.random())
        self._pause = min(_LONGEST_PAUSE, self._pause * 1.5)


def _takes_session(fn: Callable[..., Any]) -> bool:
    try:
        inspect.signature(fn).bind(None)
    except TypeError:
        return False
    return True


def _has_no_transactions(error: BaseException) -> bool:
    """Whether the server says that it has no transactions at all."""
    return isinstance(error, OperationFailure) and error.code == _ILLEGAL_OPERATION
