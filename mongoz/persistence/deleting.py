"""Deleting an instance: where a dispatcher must know of it, with a marker.

A deleted document can't carry a stamp. So a marker, which is a stamp, is put onto it and it is deleted in one
transaction: the dispatcher sees both, next to each other.
"""

from typing import TYPE_CHECKING, Any, Final

import bson
from pymongo.errors import OperationFailure, PyMongoError

from mongoz.persistence.origin import Originator, originator
from mongoz.persistence.outcomes import UNKNOWN, find_out, is_gone
from mongoz.persistence.refusals import refuses_stamp
from mongoz.persistence.rows import loaded
from mongoz.persistence.sending import note, raise_after
from mongoz.persistence.targets import Target, aim
from mongoz.persistence.watching import require_watched
from mongoz.persistence.writes import gone, require_id
from mongoz.signals.firing import Firing, left_to_dispatchers
from mongoz.stamps import FIELD, Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["MARKER_REFUSED", "delete", "marks", "takes_no_transactions"]

_ILLEGAL_OPERATION: Final = 20  # what a standalone server answers to a transaction

MARKER_REFUSED: Final = (
    "The server refused the mark by which a dispatcher tells this delete from others, and ended the transaction. "
    "Outside of a transaction such a document is deleted without one; see the error for what it objects to."
)


async def delete(instance: "Document", session: Any = None) -> int:
    """Delete an instance; see `Document.delete`."""
    document = type(instance).meta.document
    require_id(instance)
    target = await aim(document, loaded(instance).collection, session)
    signals = document.meta.signals
    await signals.pre_delete.send(document, instance=instance)
    require_watched(document, target.collection, signals.post_delete)
    firing = target.plan(signals.post_delete)
    make = await originator(firing, target, Call.DELETED, natural=True)
    return await target.as_unit(firing, _delete_and_tell(instance, target, firing, make))


async def _delete_and_tell(instance: "Document", target: Target, firing: Firing, make: Originator) -> int:
    failure: PyMongoError | None = None
    token = str(bson.ObjectId())
    try:
        if marks(target, firing):
            token, firing = await _marked(instance.id, target, firing, make)
        elif not await _plain(instance.id, target, target.session):
            raise gone(instance, target)
    except UNKNOWN as error:
        if target.in_transaction or target.group is None or not firing.receivers:
            raise
        try:
            stands = await is_gone(target, instance.id)
        except PyMongoError:
            note(error)
            target.registry._later(_tell_when_known(instance, target, firing, token))
            raise error from None
        if not stands:
            raise
        failure = error
    if not token:
        raise gone(instance, target)
    await raise_after(_tell(instance, target, firing, token), failure)
    return 1


async def _tell(instance: "Document", target: Target, firing: Firing, token: str) -> None:
    await target.fire(firing, type(instance).meta.document, token, instance=instance)


async def _tell_when_known(instance: "Document", target: Target, firing: Firing, token: str) -> None:
    if await find_out(lambda: is_gone(target, instance.id)):
        await _tell(instance, target, firing, token)


def marks(target: Target, firing: Firing) -> bool:
    """Whether a dispatcher must be told that a delete was ours.

    Not for receivers that no dispatcher ever runs: then there is nothing that it could do twice.
    """
    if target.group is None:
        return False
    return bool(firing.muted or firing.hops or any(r.runs_in_dispatcher for r in firing.receivers))


async def _plain(id_: Any, target: Target, session: Any) -> int:
    result = await target.driver.delete_one({"_id": id_}, session=session)
    return int(result.deleted_count)


async def _marked(id_: Any, target: Target, firing: Firing, make: Originator) -> tuple[str, Firing]:
    """Mark and delete.

    Returns:
        The token, empty if there was nothing to delete; and who is to be told: if it could not be marked, only
        those that no dispatcher runs.
    """
    token = ""

    async def mark_and_delete(session: Any) -> None:
        nonlocal token
        origin = make.of(id_)  # for each attempt anew: a stamp counts for a short time only
        marked = await target.driver.update_one({"_id": id_}, {"$set": {FIELD: origin.stamp}}, session=session)
        token = origin.token if marked.matched_count else ""
        if token:
            await _plain(id_, target, session)

    try:
        if target.in_transaction:
            await mark_and_delete(target.session)
        else:
            async with target.own_session() as session:
                await session.with_transaction(mark_and_delete)
    except PyMongoError as error:
        if not (refuses_stamp(error) or takes_no_transactions(error)):
            raise
        if target.in_transaction:
            error.add_note(MARKER_REFUSED)
            raise
        if refuses_stamp(error):
            firing = left_to_dispatchers(firing)
        token = str(bson.ObjectId()) if await _plain(id_, target, target.session) else ""
    return token, firing


def takes_no_transactions(error: PyMongoError) -> bool:
    """Whether the server has none at all; then it has no dispatchers either."""
    return isinstance(error, OperationFailure) and error.code == _ILLEGAL_OPERATION
