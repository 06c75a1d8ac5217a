"""Sessions while a replica set elects: what the driver then calls a wrong configuration passes by itself.

A member that starts, recovers or rolls back says that it has no sessions, and the driver believes that for as long
as the connection lasts. It raises ConfigurationError, which tells applications and daemons to give up. It raises
that again on the same connection after the election.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import isawaitable
from typing import Any, Final, TypeVar

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import AutoReconnect, ConfigurationError, OperationFailure

__all__ = ["as_passing", "is_of_connection", "session_of"]

E = TypeVar("E", bound=BaseException)

_NO_SESSIONS: Final = "Sessions are not supported"
_NOT_LET_IN: Final = 18  # AuthenticationFailed
_TRANSIENT: Final = "TransientTransactionError"


def _meets_election(error: BaseException) -> bool:
    """Whether the driver refused a session because the member that it asked holds no data at the moment."""
    return isinstance(error, ConfigurationError) and str(error).startswith(_NO_SESSIONS)


def is_of_connection(error: BaseException) -> bool:
    """Whether an error is about a new connection, and tells nothing of what was sent on an earlier one.

    The driver sends a write or a commit a second time after a lost connection, and raises the second error.
    """
    return _meets_election(error) or (isinstance(error, OperationFailure) and error.code == _NOT_LET_IN)


async def as_passing(error: E, client: Any, *, in_transaction: bool = False) -> E | AutoReconnect:
    """The error as it is; for a session that met an election, what the driver raises for a lost connection.

    Args:
        error: of a command in a session.
        client: the driver's, PyMongo's or Motor's. It opens new connections after such an error.
        in_transaction: the command was one of a transaction, which can be repeated as a whole.
    """
    if not _meets_election(error):
        return error
    await _drop_connections(client)
    passing = AutoReconnect("The member that was asked holds no data at the moment: it starts or recovers.")
    if in_transaction:
        passing._add_error_label(_TRANSIENT)
    passing.__cause__ = error
    return passing


@asynccontextmanager
async def session_of(client: AsyncMongoClient[Any]) -> AsyncIterator[AsyncClientSession]:
    """A session of PyMongo's that ends with the block. A session that meets an election raises AutoReconnect."""
    try:
        async with client.start_session() as session:
            yield session
    except ConfigurationError as error:
        raise await as_passing(error, client)  # noqa: B904 - it has its cause


async def _drop_connections(client: Any) -> None:
    """Close the idle connections, and those in use when they come back: the driver has no public call for it."""
    bare = client if isinstance(client, AsyncMongoClient) else client.delegate
    for server in list(bare._topology._servers.values()):
        closing = server.pool.reset_without_pause()
        if isawaitable(closing):
            await closing
