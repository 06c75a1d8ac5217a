"""Transactional receivers: what they write in MongoDB commits together with the record that they ran.

A repeat of the delivery, after a crash or by a process that was thought dead, finds the record and does nothing.
"""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from dispatcher.events import Calls
from dispatcher.instances import name_of
from dispatcher.sessions import Sessions
from dispatcher.state import DELIVERIES, deliveries
from mongoz import Registry
from mongoz.signals import Delivery
from mongoz.signals.receivers import Receiver

__all__ = ["Transactions"]

_TRANSIENT: Final = ("TransientTransactionError", "UnknownTransactionCommitResult")

# Majority, whatever the deployment's default is: the position passes the commit, which must not be rolled back.
_OPTIONS: Final[dict[str, Any]] = {
    "read_concern": ReadConcern("snapshot"),
    "write_concern": WriteConcern("majority"),
}

# Seconds between two runs of a transaction that met another one: at first, and at most.
_FIRST_PAUSE: Final = 0.005
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
        client: AsyncMongoClient[Any],
        database: str,
        group: str,
        sessions: Sessions | None = None,
    ) -> None:
        self._registry = registry
        self._database = database
        self._group = group
        self._sessions = sessions
        self._records = deliveries(client, database)

    async def run(
        self,
        receiver: Receiver,
        calls: Calls,
        anew: Callable[[], dict[str, Any]],
        *,
        sender: Any,
        delivery: Delivery,
        **keywords: Any,
    ) -> None:
        """Call a receiver in a transaction; again as a whole while the server asks for that.

        It does not return before the transaction is known to be committed. Whoever calls it ends it in time.

        Args:
            receiver: which one.
            calls: what it is called for.
            anew: makes keywords for another run: the first may have changed its instance.
            sender: for the receiver.
            delivery: likewise; it gets the session.
            **keywords: likewise.

        Raises:
            BaseException: what the receiver raised, or the driver; then nothing is committed.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._once(receiver, calls, sender, delivery, keywords)
            except Exception as error:
                if not _is_transient(error):
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(_LONGEST_PAUSE, pause * 2)
            keywords = anew()

    async def _once(
        self, receiver: Receiver, calls: Calls, sender: Any, delivery: Delivery, keywords: dict[str, Any]
    ) -> None:
        record, *former = self._ids(receiver, calls, delivery)
        records = self._registry.client[self._database][DELIVERIES]
        try:
            async with self._registry.transaction(**_OPTIONS) as session:
                if self._sessions is not None:
                    await self._sessions.announce(session)
                await _insert(records, record, session)
                if former and await records.find_one({"_id": {"$in": former}}, session=session):
                    raise _AlreadyDone
                await receiver.function(sender=sender, delivery=delivery._replace(session=session), **keywords)
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
            {"group": self._group, "delivery": delivery.id, "receiver": id_.hex(), "document": document}
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


def _is_transient(error: BaseException) -> bool:
    """Whether the server asks for the transaction again; also where the receiver made another error of that."""
    seen: BaseException | None = error
    known: set[int] = set()
    while seen is not None and id(seen) not in known:  # an application may have its errors cause each other
        if isinstance(seen, PyMongoError) and any(map(seen.has_error_label, _TRANSIENT)):
            return True
        known.add(id(seen))
        by_itself = None if seen.__suppress_context__ else seen.__context__
        seen = by_itself if seen.__cause__ is None else seen.__cause__
    return False
