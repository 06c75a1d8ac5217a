"""Transactional receivers: their writes in MongoDB commit together with the record of the delivery.

A delivery may be repeated after a crash, or after a wrong assumption that a process is dead. The repetition finds
the record and ends.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from dispatcher.core.state import DELIVERIES, Group
from dispatcher.delivery.attempt import Attempt, Run, Target
from dispatcher.delivery.instances import name_of
from dispatcher.delivery.ports import SessionRegister
from mongoz import Registry

# WriteConflict and LockTimeout: the error codes of a conflict between transactions.
_CONFLICTS: Final = frozenset({112, 24})

_TRANSIENT: Final = ("TransientTransactionError", "UnknownTransactionCommitResult")

# The write concern is majority, whatever the default of the deployment: when the position has passed a change,
# a failover must not undo the commits of its receivers.
_OPTIONS: Final[dict[str, Any]] = {
    "read_concern": ReadConcern("snapshot"),
    "write_concern": WriteConcern("majority"),
}


class _AlreadyDone(Exception):
    """An earlier transaction wrote the record."""


class _NotRegistered(Exception):
    """The session could not be registered, for example during an election. The transaction has not begun."""


class Transactions:
    """The step that runs a transactional receiver in a transaction.

    Args:
        registry: the registry of the application. Receivers use its client, and a session belongs to one client.
        group: the group of dispatchers. Each group has its own records.
        sessions: the register for sessions of this process; None if no other process takes over the work of
            this process.
    """

    def __init__(self, registry: Registry, group: Group, sessions: SessionRegister | None = None) -> None:
        self._registry = registry
        self._group = group
        self._sessions = sessions
        self._records = group.state.deliveries

    def around(self, target: Target) -> Target:
        """Put the step around the `run` of a transactional receiver."""
        return replace(target, run=partial(self._run, target.run)) if target.terms.transactional else target

    async def _run(self, run: Run, attempt: Attempt) -> None:
        record, *former = self.ids(attempt, attempt.delivery.id)
        try:
            async with self.begin() as (session, records):
                await _insert(records, record, session)
                if former and await records.find_one({"_id": {"$in": former}}, session=session):
                    raise _AlreadyDone
                await run(replace(attempt, delivery=attempt.delivery.replaced(session=session)))
        except _AlreadyDone:
            return

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[tuple[Any, Any]]:
        """Open a transaction. Yields its session, and the collection of the records.

        Raises:
            _NotRegistered: the session could not be registered.
        """
        async with self._registry.transaction(**_OPTIONS) as session:
            await self._register(session)
            yield session, self._registry.client[self._group.state.name][DELIVERIES]

    async def _register(self, session: Any) -> None:
        """Register a session, so that other processes can end it.

        Raises:
            _NotRegistered: the command failed. The receiver has not failed.
        """
        if self._sessions is None:
            return
        try:
            await self._sessions.announce(session)
        except PyMongoError as error:
            raise _NotRegistered(f"The session could not be registered: {error}") from error

    async def is_committed(self, attempt: Attempt) -> bool:
        """Ask the server whether a transaction of this delivery is committed.

        This is necessary if the reply to the commit is lost.

        Raises:
            PyMongoError: the command failed.
        """
        return bool(await self.recorded(self.ids(attempt, attempt.delivery.id)))

    async def recorded(self, ids: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """Find out which of these `_id`s have a record.

        Raises:
            PyMongoError: the command failed.
        """
        return [one["_id"] async for one in self._records.find({"_id": {"$in": list(ids)}}, {"_id": True})]

    def ids(self, attempt: Attempt, delivery: str) -> list[dict[str, str]]:
        """The `_id` of the record of a delivery, followed by its `_id`s under earlier names of the receiver.

        Each `_id` contains the document class, because the id of the receiver is not enough: several subclasses of
        an abstract class may share a collection, and a receiver of the abstract class has one id for all of them.
        """
        document = name_of(attempt.calls.document)
        return [
            {"group": self._group.name, "delivery": delivery, "receiver": id_.hex(), "document": document}
            for id_ in attempt.target.receiver.ids
        ]


def delivery_record(id_: Mapping[str, str]) -> dict[str, Any]:
    """The record of a delivery."""
    return {"_id": id_, "at": datetime.now(UTC)}


async def _insert(records: Any, id_: dict[str, str], session: Any) -> None:
    """Write the record, as the first write of the transaction.

    Raises:
        _AlreadyDone: the record exists.
        PyMongoError: the command failed, for example because another process makes the same delivery.
    """
    try:
        await records.insert_one(delivery_record(id_), session=session)
    except DuplicateKeyError as error:
        raise _AlreadyDone from error


def is_transient(error: BaseException) -> bool:
    """Returns whether the transaction must be repeated because of an error that is no failure of the receiver.

    There are two such cases: the server asks for the repetition, or the transaction has not begun. The exceptions
    that caused the error are checked, too.
    """
    return isinstance(error, _NotRegistered) or any(
        any(map(one.has_error_label, _TRANSIENT)) for one in _driver_errors(error)
    )


def is_conflict(error: BaseException) -> bool:
    """Returns whether the error, or one of its causes, is a conflict of the transaction with another write."""
    return any(isinstance(one, OperationFailure) and one.code in _CONFLICTS for one in _driver_errors(error))


def _driver_errors(error: BaseException) -> Iterator[PyMongoError]:
    seen: BaseException | None = error
    known: set[int] = set()
    while seen is not None and id(seen) not in known:  # causes may form a cycle
        if isinstance(seen, PyMongoError):
            yield seen
        known.add(id(seen))
        by_itself = None if seen.__suppress_context__ else seen.__context__
        seen = by_itself if seen.__cause__ is None else seen.__cause__
