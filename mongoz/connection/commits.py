"""Commits or aborts the transaction of a session, and finds the outcome of a commit that got no answer."""

from typing import Any, Final

from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError, WriteConcernError

from mongoz.connection.elections import as_transient, is_connection_error
from mongoz.connection.retry import ask_until_answered

__all__ = ["abort", "commit", "is_aborted_after", "is_committed"]

_TRANSIENT: Final = "TransientTransactionError"
_UNKNOWN_COMMIT: Final = "UnknownTransactionCommitResult"
_COMMIT_ATTEMPTS: Final = 3
_TRANSACTION_GONE: Final = frozenset({225, 251})  # TransactionTooOld, NoSuchTransaction


async def abort(session: Any) -> None:
    """Abort the transaction. If the command does not arrive, the server ends the transaction by itself."""
    try:
        await session.abort_transaction()  # the driver ignores all errors but a ConfigurationError
    except ConfigurationError as error:
        await as_transient(error, session.client)


async def commit(session: Any) -> PyMongoError | None:
    """Commit, and commit again while the outcome is unknown: a second commit of one transaction changes nothing.

    Returns:
        None if the transaction is committed. Otherwise the last error; then the outcome is still unknown.
    """
    unknown = None
    for _ in range(_COMMIT_ATTEMPTS):
        try:
            await session.commit_transaction()
        except PyMongoError as error:
            if not (error.has_error_label(_UNKNOWN_COMMIT) or is_connection_error(error)):
                raise
            unknown = await as_transient(error, session.client)
            unknown._add_error_label(_UNKNOWN_COMMIT)
        else:
            return None
    return unknown


def is_aborted_after(error: BaseException) -> bool:
    """Whether this error of a command or of the commit shows that the transaction was certainly not committed.

    If the server can't satisfy the write concern, the commit raises an error although it took effect.
    """
    if not isinstance(error, PyMongoError) or error.has_error_label(_UNKNOWN_COMMIT):
        return False
    if error.has_error_label(_TRANSIENT):
        return True
    return isinstance(error, OperationFailure) and not isinstance(error, WriteConcernError)


async def is_committed(session: Any) -> bool:
    """Find out whether a transaction was committed: commit again until the server answers.

    A second commit changes nothing. Reading the documents would prove nothing: another client may have changed
    them.

    Args:
        session: the session of the transaction. Nothing else has used the session since the commit.

    Raises:
        InvalidOperation: the client was closed.
    """

    async def ask() -> bool:
        try:
            await session.commit_transaction()
        except PyMongoError as error:
            if _is_aborted(error):
                return False
            raise await as_transient(error, session.client)  # noqa: B904 - its cause is set
        return True

    return await ask_until_answered(ask)


def _is_aborted(error: PyMongoError) -> bool:
    """Whether the server answered a commit by saying that the transaction is gone."""
    if error.has_error_label(_UNKNOWN_COMMIT):
        return False
    return error.has_error_label(_TRANSIENT) or (
        isinstance(error, OperationFailure) and error.code in _TRANSACTION_GONE
    )
