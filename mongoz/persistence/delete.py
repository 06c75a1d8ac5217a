"""Deleting an instance: where a dispatcher must know of it, with a marker.

A deleted document can't carry a stamp. So a marker, which is a stamp, is put onto it and it is deleted in one
transaction: the dispatcher sees both, next to each other.
"""

from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from mongoz.connection.elections import as_passing
from mongoz.connection.retry import find_out
from mongoz.connection.transactions import is_committed, run_alone
from mongoz.ids import new_token
from mongoz.persistence.origin import Originator, originator
from mongoz.persistence.outcome.lookup import fence, is_commit_open, is_unknown, is_without
from mongoz.persistence.outcome.refusals import explain_refused_marker, refuses_stamp
from mongoz.persistence.pre_signals import ask
from mongoz.persistence.rows.copies import independent_copy
from mongoz.persistence.rows.hydration import id_of, loaded
from mongoz.persistence.target import Target, aim
from mongoz.persistence.turns import in_turn
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import note, raise_after
from mongoz.persistence.writes import gone, require_id
from mongoz.signals.post_signals import Firing, left_to_dispatchers
from mongoz.stamps import FIELD, Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["delete", "marks", "takes_no_transactions"]

_ILLEGAL_OPERATION: Final = 20  # what a standalone server answers to a transaction


def delete(instance: "Document", session: Any = None) -> Coroutine[Any, Any, int]:
    """Delete an instance; see `Document.delete`."""
    return in_turn(instance, session, _delete(instance, session))


async def _delete(instance: "Document", session: Any) -> int:
    document = type(instance).meta.document
    require_id(instance)
    target = await aim(document, loaded(instance).collection, session)
    signals = document.meta.signals
    await ask(signals.pre_delete, document, instance=instance)
    require_watched(document, target.collection, signals.post_delete)
    firing = target.plan(signals.post_delete)
    make = await originator(firing, target, Call.DELETED, natural=True)
    return await target.as_unit(firing, _delete_and_tell(instance, target, firing, make))


async def _delete_and_tell(instance: "Document", target: Target, firing: Firing, make: Originator) -> int:
    deletion, failure = _Deletion(id_of(instance), target, firing, make), None
    session = await target.lent_session() if deletion.matters else target.session
    try:
        await deletion.send(session)
    except BaseException as raised:
        error = await as_passing(raised, target.client)
        async with AsyncExitStack() as held:
            if session is not target.session:
                held.push_async_callback(session.end_session)
            if not (isinstance(error, PyMongoError) and deletion.matters and deletion.is_open_after(error)):
                raise error  # noqa: B904 - it is the same, or has its cause
            if not await _found_out(instance, deletion, session, held, error):
                raise error  # noqa: B904 - it is the same, or has its cause
            failure = error
    else:
        await target.give_back(session)
    if not deletion.token:
        raise gone(instance, target)
    await raise_after(_tell(instance, deletion), failure)
    return 1


async def _found_out(
    instance: "Document", deletion: "_Deletion", session: Any, held: AsyncExitStack, error: PyMongoError
) -> bool:
    """Whether a delete of unknown outcome stands.

    Raises:
        PyMongoError: the delete's; that can't be found out now. The receivers run when it can.
    """
    if not deletion.is_marked:  # else the commit was sent often enough
        with suppress(PyMongoError):
            return await deletion.stands(session)
    note(error)
    copied, held = independent_copy(instance), held.pop_all()

    async def later() -> None:
        async with held:
            stands = await (
                is_committed(session) if deletion.is_marked else find_out(partial(deletion.stands, session))
            )
        if stands:
            await _tell(copied, deletion)

    deletion.target.registry._later(later())
    raise error


async def _tell(instance: "Document", deletion: "_Deletion") -> None:
    document = type(instance).meta.document
    await deletion.target.fire(deletion.firing, document, deletion.token, {"instance": instance})


def marks(target: Target, firing: Firing) -> bool:
    """Whether a dispatcher must be told that a delete was ours.

    Not for receivers that no dispatcher ever runs: then there is nothing that it could do twice.
    """
    if target.group is None:
        return False
    return bool(firing.muted or firing.hops or any(r.runs_in_dispatcher for r in firing.receivers))


class _Deletion:
    """One delete on its way.

    Attributes:
        target: where it goes.
        firing: who is to be told: if it could not be marked, only those that no dispatcher runs.
        token: stands for it; empty if there was nothing to delete.
        is_marked: the latest attempt was one with a mark, in a transaction.
    """

    __slots__ = ("_id", "_make", "_sent_at", "firing", "is_marked", "target", "token")

    def __init__(self, id_: Any, target: Target, firing: Firing, make: Originator) -> None:
        self._id = id_
        self._make = make
        self._sent_at = 0.0
        self.target = target
        self.firing = firing
        self.token = ""
        self.is_marked = False

    @property
    def matters(self) -> bool:
        """Whether somebody must know what became of it, should its answer be lost."""
        return self.target.group is not None and self.firing.tells and not self.target.in_transaction

    async def send(self, session: Any) -> None:
        """Delete; with a mark where a dispatcher must know of it, and where the server takes one."""
        if not marks(self.target, self.firing):
            await self._plainly(session)
        elif self.target.in_transaction:
            await self._marked_in_transaction(session)
        else:
            await self._marked(session)

    def is_open_after(self, error: PyMongoError) -> bool:
        """Whether somebody is to be told if it stands, and this error leaves open whether it does."""
        if not (self.token and self.firing.receivers and is_unknown(error)):
            return False
        if self.is_marked:
            return is_commit_open(error)
        return not isinstance(error, ServerSelectionTimeoutError)  # else it was never sent

    async def stands(self, session: Any) -> bool:
        """Whether there is no such document any more, or was none for a moment; of a delete without a mark.

        Who deleted it is not known then; in doubt it was this.

        Args:
            session: in which it was sent.
        """
        await fence(self.target, session, self._id)
        return await is_without(self.target, self._id, self._sent_at)

    async def _plainly(self, session: Any) -> None:
        self.token, self.is_marked, self._sent_at = new_token(), False, self.target.clock.now()
        result = await self.target.driver.delete_one({"_id": self._id}, session=session)
        if not result.deleted_count:
            self.token = ""

    async def _mark_and_delete(self, session: Any) -> None:
        self.token, self.is_marked = "", True
        origin = self._make.of(self._id)  # for each attempt anew: a stamp counts for a short time only
        marker = {"$set": {FIELD: origin.stamp}}
        marked = await self.target.driver.update_one({"_id": self._id}, marker, session=session)
        if marked.matched_count:
            await self.target.driver.delete_one({"_id": self._id}, session=session)
            self.token = origin.token

    async def _marked(self, session: Any) -> None:
        try:
            await run_alone(self.target.registry, session, self._mark_and_delete)
        except PyMongoError as error:
            if refuses_stamp(error):
                self.firing = left_to_dispatchers(self.firing)
            elif not takes_no_transactions(error):
                raise
            await self._plainly(session)

    async def _marked_in_transaction(self, session: Any) -> None:
        try:
            await self._mark_and_delete(session)
        except PyMongoError as error:
            explain_refused_marker(error)
            raise


def takes_no_transactions(error: PyMongoError) -> bool:
    """Whether the server has none at all; then it has no dispatchers either."""
    return isinstance(error, OperationFailure) and error.code == _ILLEGAL_OPERATION
