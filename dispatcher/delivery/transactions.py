"""Transactional receivers: what they write in MongoDB commits together with the record that they ran.

A repeat of the delivery, after a crash or by a process that was thought dead, finds the record and does nothing.
"""

import random
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any, Final

from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from dispatcher.core.events import Calls
from dispatcher.core.output.logs import get_logger
from dispatcher.core.output.throttle import Throttle
from dispatcher.core.retry import Pause
from dispatcher.core.state import DELIVERIES, Group
from dispatcher.core.stats import ReceiverFigures
from dispatcher.delivery.contention import Contention
from dispatcher.delivery.instances import name_of
from dispatcher.delivery.log import described
from dispatcher.delivery.ports import SessionRegister
from mongoz import Registry
from mongoz.signals import Delivery
from mongoz.signals.receivers import Receiver

__all__ = ["Transactions", "is_conflict", "is_transient"]

log = get_logger()

Run = Callable[..., Awaitable[None]]
"""Runs a transaction once; takes what a receiver takes."""

# WriteConflict; LockTimeout: what the server answers to a transaction that meets another one.
_CONFLICTS: Final = frozenset({112, 24})

_TRANSIENT: Final = ("TransientTransactionError", "UnknownTransactionCommitResult")

# Majority, whatever the deployment's default is: the position passes the commit, which must not be rolled back.
_OPTIONS: Final[dict[str, Any]] = {
    "read_concern": ReadConcern("snapshot"),
    "write_concern": WriteConcern("majority"),
}

# Seconds between two runs of a transaction that met another one: at first, and at most.
_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.5


class _AlreadyDone(Exception):
    """An earlier transaction has the record."""


class Transactions:
    """Calls transactional receivers.

    Args:
        registry: whose client the receivers use: a session is of no use to another.
        client: the dispatcher's own, opened for the running loop.
        database: of the dispatcher's state.
        group: of dispatchers; another one's deliveries are not ours.
        sessions: where those of the receivers are written down; None if nobody takes over from this process.
    """

    def __init__(
        self,
        registry: Registry,
        group: Group,
        sessions: SessionRegister | None = None,
    ) -> None:
        self._registry = registry
        self._group = group
        self._sessions = sessions
        self._records = group.state.deliveries
        self._contention: dict[bytes, Contention] = {}
        self._throttle = Throttle()

    async def attempt(  # noqa: PLR0913 - one attempt, and the steps that its deliverer puts around a run
        self,
        receiver: Receiver,
        calls: Calls,
        delivery: Delivery,
        keywords: dict[str, Any],
        *,
        call: Callable[[Run, dict[str, Any]], Awaitable[BaseException | None]],
        anew: Callable[[], dict[str, Any]],
        pause: Pause,
        patience: float,
        figures: ReceiverFigures,
    ) -> BaseException | None:
        """Call a receiver in a transaction; again as a whole while the server asks for that.

        Each run has the receiver's whole time limit: it is not the receiver's fault that others wrote first.

        Args:
            receiver: which one.
            calls: what it is called for.
            delivery: for the receiver; it gets the session.
            keywords: likewise.
            call: calls a function once, in time; returns what it raised. It commits before that.
            anew: makes keywords for another run: the first may have changed its instance.
            pause: waits between runs.
            patience: seconds after which no further run begins.
            figures: of the receiver.

        Returns:
            What the last run raised, if it did; `is_transient` tells whether the server asked for another one.
        """
        contention = self._contention.setdefault(receiver.ids[0], Contention())
        run, began, seconds = partial(self._run, receiver, calls), monotonic(), _FIRST_PAUSE
        while True:
            async with contention.place() as place:
                error = await call(run, keywords)
                if error is None:
                    contention.committed()
                    return None
                if is_conflict(error):
                    contention.conflicted(place)
                    self._count(delivery, figures, contention.limit)
            if not is_transient(error) or monotonic() - began >= patience:
                return error
            await pause(seconds * random.uniform(0.5, 1.0))
            seconds = min(_LONGEST_PAUSE, seconds * 2)
            keywords = anew()

    def _count(self, delivery: Delivery, figures: ReceiverFigures, limit: float) -> None:
        """Count a conflict; name the receiver in the log, once in a while."""
        figures.conflicts += 1
        further = self._throttle.due(delivery.receiver)
        if further is not None:
            log.warning(
                "a transactional receiver conflicts with other writes; its transaction runs again",
                action="delivery.conflict",
                **described(delivery),
                at_once=max(1, int(limit)),
                further=further,
            )

    async def _run(self, receiver: Receiver, calls: Calls, *, delivery: Delivery, **keywords: Any) -> None:
        """Run the transaction once."""
        record, *former = self._ids(receiver, calls, delivery)
        records = self._registry.client[self._group.state.name][DELIVERIES]
        try:
            async with self._registry.transaction(**_OPTIONS) as session:
                if self._sessions is not None:
                    await self._sessions.announce(session)
                await _insert(records, record, session)
                if former and await records.find_one({"_id": {"$in": former}}, session=session):
                    raise _AlreadyDone
                await receiver.function(delivery=delivery._replace(session=session), **keywords)
        except _AlreadyDone:
            return

    async def happened(self, receiver: Receiver, calls: Calls, delivery: Delivery) -> bool:
        """Whether a transaction of this delivery is committed: one whose commit got no answer may be.

        Raises:
            PyMongoError: as the driver has it.
        """
        ids = self._ids(receiver, calls, delivery)
        return await self._records.find_one({"_id": {"$in": ids}}) is not None

    def _ids(self, receiver: Receiver, calls: Calls, delivery: Delivery) -> list[dict[str, str]]:
        """The record's `_id`, and those that it would have under earlier names of the receiver.

        The document is part of it: a receiver of an abstract one has a single id, and may be called for several
        classes that share a collection.
        """
        document = name_of(calls.document)
        return [
            {"group": self._group.name, "delivery": delivery.id, "receiver": id_.hex(), "document": document}
            for id_ in receiver.ids
        ]


async def _insert(records: Any, id_: dict[str, str], session: Any) -> None:
    """Write the record, before anything else: whoever finds it there has nothing to do.

    Raises:
        _AlreadyDone: it is there.
        PyMongoError: as the driver has it; a write conflict while another process is at it.
    """
    try:
        await records.insert_one({"_id": id_, "at": datetime.now(UTC)}, session=session)
    except DuplicateKeyError as error:
        raise _AlreadyDone from error


def is_transient(error: BaseException) -> bool:
    """Whether the server asks for the transaction again; also where the receiver made another error of that."""
    return any(any(map(one.has_error_label, _TRANSIENT)) for one in _driver_errors(error))


def is_conflict(error: BaseException) -> bool:
    """Whether a transaction met another one's write; also where the receiver made another error of that."""
    return any(isinstance(one, OperationFailure) and one.code in _CONFLICTS for one in _driver_errors(error))


def _driver_errors(error: BaseException) -> Iterator[PyMongoError]:
    seen: BaseException | None = error
    known: set[int] = set()
    while seen is not None and id(seen) not in known:  # an application may have its errors cause each other
        if isinstance(seen, PyMongoError):
            yield seen
        known.add(id(seen))
        by_itself = None if seen.__suppress_context__ else seen.__context__
        seen = by_itself if seen.__cause__ is None else seen.__cause__
