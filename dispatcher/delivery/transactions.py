"""Transactional receivers: their writes in MongoDB commit together with the record of the delivery.

A crash, or a process that was thought dead, may repeat a delivery. The repetition finds the record and ends.
"""

from collections.abc import Iterator
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

# WriteConflict and LockTimeout: the server's answers to a transaction that meets another one.
_CONFLICTS: Final = frozenset({112, 24})

_TRANSIENT: Final = ("TransientTransactionError", "UnknownTransactionCommitResult")

# Majority, whatever the default of the deployment is: the position passes the commit, which must not be undone.
_OPTIONS: Final[dict[str, Any]] = {
    "read_concern": ReadConcern("snapshot"),
    "write_concern": WriteConcern("majority"),
}


class _AlreadyDone(Exception):
    """An earlier transaction wrote the record."""


class Transactions:
    """The step that runs a transactional receiver in a transaction.

    Args:
        registry: of the application. Receivers use its client, and a session belongs to one client.
        group: of dispatchers. Each group has its own records.
        sessions: where this process registers its sessions; None if no process takes over from it.
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
        record, *former = self._ids(attempt)
        records = self._registry.client[self._group.state.name][DELIVERIES]
        try:
            async with self._registry.transaction(**_OPTIONS) as session:
                if self._sessions is not None:
                    await self._sessions.announce(session)
                await _insert(records, record, session)
                if former and await records.find_one({"_id": {"$in": former}}, session=session):
                    raise _AlreadyDone
                await run(replace(attempt, delivery=attempt.delivery._replace(session=session)))
        except _AlreadyDone:
            return

    async def is_committed(self, attempt: Attempt) -> bool:
        """Whether a transaction of this delivery is committed: the answer to a commit may get lost.

        Raises:
            PyMongoError: as the driver raises it.
        """
        return await self._records.find_one({"_id": {"$in": self._ids(attempt)}}) is not None

    def _ids(self, attempt: Attempt) -> list[dict[str, str]]:
        """The `_id` of the record, and the ones that it would have under earlier names of the receiver.

        They contain the document class: a receiver of an abstract class has a single id, and several of its
        classes may share a collection.
        """
        delivery, document = attempt.delivery.id, name_of(attempt.calls.document)
        return [
            {"group": self._group.name, "delivery": delivery, "receiver": id_.hex(), "document": document}
            for id_ in attempt.target.receiver.ids
        ]


async def _insert(records: Any, id_: dict[str, str], session: Any) -> None:
    """Write the record, before anything else.

    Raises:
        _AlreadyDone: it is there.
        PyMongoError: as the driver raises it; a write conflict while another process does the same.
    """
    try:
        await records.insert_one({"_id": id_, "at": datetime.now(UTC)}, session=session)
    except DuplicateKeyError as error:
        raise _AlreadyDone from error


def is_transient(error: BaseException) -> bool:
    """Whether the server asks to repeat the transaction; also if the receiver raised another error from that."""
    return any(any(map(one.has_error_label, _TRANSIENT)) for one in _driver_errors(error))


def is_conflict(error: BaseException) -> bool:
    """Whether a transaction met another write; also if the receiver raised another error from that."""
    return any(isinstance(one, OperationFailure) and one.code in _CONFLICTS for one in _driver_errors(error))


def _driver_errors(error: BaseException) -> Iterator[PyMongoError]:
    seen: BaseException | None = error
    known: set[int] = set()
    while seen is not None and id(seen) not in known:  # errors of an application may be in a circle
        if isinstance(seen, PyMongoError):
            yield seen
        known.add(id(seen))
        by_itself = None if seen.__suppress_context__ else seen.__context__
        seen = by_itself if seen.__cause__ is None else seen.__cause__
