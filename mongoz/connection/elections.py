"""Sessions during an election: the driver's ConfigurationError becomes a transient error.

While a server of the replica set starts, recovers or rolls back, it says that it supports no sessions. The driver
believes that for the whole life of the connection, and raises ConfigurationError, which tells applications to give
up. Without new connections, the driver would raise this error even after the election.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import isawaitable
from typing import Any, Final, TypeVar

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import AutoReconnect, ConfigurationError, OperationFailure

__all__ = ["as_transient", "is_connection_error", "session_of"]

E = TypeVar("E", bound=BaseException)

_NO_SESSIONS: Final = "Sessions are not supported"
_AUTHENTICATION_FAILED: Final = 18
_TRANSIENT: Final = "TransientTransactionError"


def _is_from_election(error: BaseException) -> bool:
    """Whether the driver refused a session because the server serves no data at the moment."""
    return isinstance(error, ConfigurationError) and str(error).startswith(_NO_SESSIONS)


def is_connection_error(error: BaseException) -> bool:
    """Whether an error is about a new connection, so that the outcome of an earlier attempt stays unknown.

    After a lost connection, the driver repeats a write or a commit. If the second attempt fails, the driver raises
    only the error of the second attempt.
    """
    return _is_from_election(error) or (
        isinstance(error, OperationFailure) and error.code == _AUTHENTICATION_FAILED
    )


async def as_transient(error: E, client: Any, *, in_transaction: bool = False) -> E | AutoReconnect:
    """Convert an error of an election to an AutoReconnect, as after a lost connection.

    Any other error is returned unchanged.

    Args:
        error: the error of a command in a session.
        client: the driver's client, PyMongo's or Motor's. After an error of an election the client opens new
            connections.
        in_transaction: the command belongs to a transaction. Then the AutoReconnect has the label by which callers
            know that they can repeat the whole transaction.
    """
    if not _is_from_election(error):
        return error
    await _drop_connections(client)
    transient = AutoReconnect("The member of the replica set serves no data at the moment: it starts or recovers.")
    if in_transaction:
        transient._add_error_label(_TRANSIENT)
    transient.__cause__ = error
    return transient


@asynccontextmanager
async def session_of(client: AsyncMongoClient[Any]) -> AsyncIterator[AsyncClientSession]:
    """A PyMongo session that ends with the block. During an election the block raises AutoReconnect."""
    try:
        async with client.start_session() as session:
            yield session
    except ConfigurationError as error:
        raise await as_transient(error, client)  # noqa: B904 - its cause is set


async def _drop_connections(client: Any) -> None:
    """Close idle connections now. Each connection in use is closed when it returns to the pool.

    The driver has no public call for this.
    """
    pymongo_client = client if isinstance(client, AsyncMongoClient) else client.delegate
    for server in list(pymongo_client._topology._servers.values()):
        closing = server.pool.reset_without_pause()
        if isawaitable(closing):
            await closing
