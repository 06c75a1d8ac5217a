"""Deletes an instance, with a marker if a dispatcher must know that mongoz made the delete.

A deleted document can't carry a stamp. So a delete with a marker is a transaction of two commands. The first
command writes a stamp to the document; this stamp is the marker. The second command deletes the document. The
dispatcher sees the two changes next to each other.
"""

from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Final

from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from mongoz.claims.book import OpenClaim
from mongoz.connection.commits import is_aborted_after, is_committed
from mongoz.connection.elections import as_transient
from mongoz.connection.retry import ask_until_answered
from mongoz.connection.transactions import run_private_transaction
from mongoz.ids import new_token
from mongoz.model.base import Model
from mongoz.model.state import loaded
from mongoz.persistence.errors import document_gone, require_id
from mongoz.persistence.origin import make_originator
from mongoz.persistence.outcome.lookup import fence_session, is_commit_unknown, is_outcome_unknown, was_absent
from mongoz.persistence.outcome.refusals import explain_refused_marker, refuses_stamp
from mongoz.persistence.pre_signals import fire_pre_signal
from mongoz.persistence.rows.copies import independent_copy
from mongoz.persistence.rows.validation import id_of
from mongoz.persistence.target import WriteTarget, resolve_target
from mongoz.persistence.turns import Turn, run_in_turn
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import note_unknown_outcome, raise_after_firing
from mongoz.signals.post_signals import Firing, leave_to_dispatchers
from mongoz.stamps import FIELD, Call

__all__ = ["delete_instance", "has_no_transactions", "needs_marker"]

_ILLEGAL_OPERATION: Final = 20  # the answer of a standalone server to a transaction


def delete_instance(instance: Model, session: Any = None) -> Coroutine[Any, Any, int]:
    """Delete an instance; see `Document.delete`."""
    return run_in_turn(instance, session, _delete)


async def _delete(turn: Turn, instance: Model, session: Any) -> int:
    turn.show()
    document = type(instance).meta.document
    require_id(instance)
    target = await resolve_target(document, loaded(instance).collection, session)
    signals = document.meta.signals
    await fire_pre_signal(signals.pre_delete, document, instance=instance)
    require_watched(document, target.collection, signals.post_delete)
    firing = target.plan(signals.post_delete)
    return await target.as_unit(firing, _delete_and_fire(instance, target, firing))


async def _delete_and_fire(instance: Model, target: WriteTarget, firing: Firing) -> int:
    deletion = _Deletion(id_of(instance), target, firing)
    try:
        await _send_and_fire(instance, deletion)
    finally:
        deletion.leave()
    return 1


async def _send_and_fire(instance: Model, deletion: "_Deletion") -> None:
    target, failure = deletion.target, None
    session = await target.take_session() if deletion.needs_outcome else target.session
    try:
        await deletion.send(session)
    except BaseException as raised:
        error = await as_transient(raised, target.client)
        async with AsyncExitStack() as held:
            if session is not target.session:
                held.push_async_callback(session.end_session)
            if not (
                isinstance(error, PyMongoError) and deletion.needs_outcome and deletion.is_unknown_after(error)
            ):
                raise error  # noqa: B904 - it is the same error, or its cause is set
            if not await _look_up_outcome(instance, deletion, session, held, error):
                raise error  # noqa: B904 - it is the same error, or its cause is set
            failure = error
    else:
        if not target.give_back_session(session):
            await session.end_session()
    if not deletion.token:
        raise document_gone(instance, target)
    await raise_after_firing(_fire(instance, deletion), failure)


async def _look_up_outcome(
    instance: Model, deletion: "_Deletion", session: Any, held: AsyncExitStack, error: PyMongoError
) -> bool:
    """Return whether a delete of unknown outcome took effect.

    Raises:
        PyMongoError: the error of the delete; the outcome is still unknown. The receivers run later, as soon as it
            is known that the delete took effect.
    """
    if not deletion.is_marked:  # for a marked delete, the commit was repeated already, and got no answer
        with suppress(PyMongoError):
            return await deletion.took_effect(session)
    note_unknown_outcome(error)
    copied, held = independent_copy(instance), held.pop_all()

    async def fire_when_known() -> None:
        async with held:
            if deletion.is_marked:
                took_effect = await is_committed(session)
            else:
                took_effect = await ask_until_answered(partial(deletion.took_effect, session))
        if took_effect:
            await _fire(copied, deletion)

    deletion.target.deployment.run_in_background(fire_when_known())
    raise error


async def _fire(instance: Model, deletion: "_Deletion") -> None:
    document = type(instance).meta.document
    keywords = {"instance": instance}
    await deletion.target.fire(deletion.firing, document, deletion.token, keywords, deletion.claim)


def needs_marker(target: WriteTarget, firing: Firing) -> bool:
    """Whether a dispatcher must know that mongoz made a delete.

    This is so if the delete is muted, if it has hops or a context, or if this process runs a receiver that may
    also run in a dispatcher. Without a marker, dispatchers would deliver the muted delete, lose the hops or the
    context, or run the receiver again.
    """
    if target.group is None:
        return False
    return bool(firing.informs_dispatchers or any(r.runs_in_dispatcher for r in firing.receivers))


class _Deletion:
    """One delete.

    Attributes:
        target: the target.
        firing: the receivers to run; if the server refused the marker, only receivers that no dispatcher runs.
        token: the id of the delete; empty if there was nothing to delete.
        is_marked: the latest attempt was a marker and a delete in a transaction.
        claim: the claim in the marker of the latest attempt, or None.
    """

    __slots__ = ("_id", "_sent_at", "claim", "firing", "is_marked", "target", "token")

    def __init__(self, id_: Any, target: WriteTarget, firing: Firing) -> None:
        self._id = id_
        self._sent_at = 0.0
        self.target = target
        self.firing = firing
        self.token = ""
        self.is_marked = False
        self.claim: OpenClaim | None = None

    @property
    def needs_outcome(self) -> bool:
        """Whether this process must find out the outcome if the answer gets lost."""
        return (
            self.target.group is not None and self.firing.concerns_dispatchers and not self.target.in_transaction
        )

    async def send(self, session: Any) -> None:
        """Delete the document; with a marker, if dispatchers need a marker and the server accepts it."""
        if not needs_marker(self.target, self.firing):
            await self._delete_unmarked(session)
        elif self.target.in_transaction:
            await self._delete_marked_in_transaction(session)
        else:
            await self._delete_marked(session)

    def is_unknown_after(self, error: PyMongoError) -> bool:
        """Whether receivers depend on the outcome, and it is unknown after this error."""
        if not (self.token and self.firing.receivers and is_outcome_unknown(error)):
            return False
        if self.is_marked:
            return is_commit_unknown(error)
        return not isinstance(error, ServerSelectionTimeoutError)  # this error means that nothing was sent

    async def took_effect(self, session: Any) -> bool:
        """Whether the document was absent at any time since an unmarked delete was sent.

        A delete by another client in this time counts, too.

        Args:
            session: the session of the delete.
        """
        await fence_session(self.target, session, self._id)
        return await was_absent(self.target, self._id, self._sent_at)

    async def _delete_unmarked(self, session: Any) -> None:
        self.token, self.is_marked, self._sent_at = new_token(), False, self.target.clock.now()
        result = await self.target.driver_collection.delete_one({"_id": self._id}, session=session)
        if not result.deleted_count:
            self.token = ""

    async def _mark_and_delete(self, session: Any) -> None:
        self.undone()
        self.token, self.is_marked = "", True
        # Each attempt gets a new stamp, because a stamp is valid for a short time only.
        originator = await make_originator(self.firing, self.target, Call.DELETED, natural=True)
        origin = originator.origin_for(self._id)
        self.claim = origin.claim
        marker = {"$set": {FIELD: origin.stamp}}
        marked = await self.target.driver_collection.update_one({"_id": self._id}, marker, session=session)
        if marked.matched_count:
            await self.target.driver_collection.delete_one({"_id": self._id}, session=session)
            self.token = origin.token
        else:
            self.undone()

    def undone(self) -> None:
        """Record that the latest marked attempt certainly did not take effect."""
        if self.claim is not None:
            self.claim.done()
            self.claim = None

    def leave(self) -> None:
        """Leave the claimed receivers to dispatchers, unless they have run, or will run after the commit."""
        if self.claim is not None and not self.target.in_transaction:
            self.claim.release()

    async def _delete_marked(self, session: Any) -> None:
        try:
            await run_private_transaction(self.target.deployment, session, self._mark_and_delete)
        except PyMongoError as error:
            if is_aborted_after(error):
                self.undone()
            if refuses_stamp(error):
                self.firing = leave_to_dispatchers(self.firing)
            elif not has_no_transactions(error):
                raise
            await self._delete_unmarked(session)

    async def _delete_marked_in_transaction(self, session: Any) -> None:
        try:
            await self._mark_and_delete(session)
        except PyMongoError as error:
            explain_refused_marker(error)
            raise


def has_no_transactions(error: PyMongoError) -> bool:
    """Whether the error says that the server has no transactions. No dispatcher can read such a server."""
    return isinstance(error, OperationFailure) and error.code == _ILLEGAL_OPERATION
