"""Deleting many documents: with a mark for each where a dispatcher must know of it, see `deleting`."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pymongo import UpdateOne
from pymongo.errors import PyMongoError

from mongoz.connection.transactions import is_committed, run_alone
from mongoz.ids import new_token
from mongoz.persistence.bulk.progress import Progress, Row, Written, fire, fire_later, key_of
from mongoz.persistence.bulk.selection import Selection, chunks
from mongoz.persistence.delete import marks, takes_no_transactions
from mongoz.persistence.origin import Originator, originator, plain_origin
from mongoz.persistence.outcome.lookup import is_commit_open
from mongoz.persistence.outcome.refusals import explain_refused_marker, refuses_stamp
from mongoz.persistence.pre_signals import ask
from mongoz.persistence.rows.copies import independent_copy
from mongoz.persistence.rows.hydration import hydrate_anyway
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import note
from mongoz.signals.post_signals import Firing, left_to_dispatchers
from mongoz.stamps import FIELD, Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["delete"]


async def delete(document: type["Document"], selection: Selection) -> int:
    """Delete what is selected; returns how many there were."""
    target = selection.target
    progress = Progress(document, "deleted", target)
    signals = document.meta.signals
    require_watched(document, target.collection, signals.post_delete)
    heard = signals.pre_delete.receivers or target.plan(signals.post_delete).receivers
    if selection.is_plain and not heard and not marks(target, target.plan(signals.post_delete)):
        result = await target.driver.delete_many(selection.filter, session=target.session, **selection.options)
        return int(result.deleted_count)
    with progress.reported():
        if heard:
            async for rows in selection.batches():
                await _delete(document, rows, selection, progress)
        else:
            async for ids in selection.id_batches():
                await _delete_unheard(document, ids, selection, progress)
    return progress.done


async def _delete(document: type["Document"], rows: list[Row], selection: Selection, progress: Progress) -> None:
    target, signals = selection.target, document.meta.signals
    elsewhere = target.elsewhere(document)
    instances = {key_of(row["_id"]): hydrate_anyway(document, row, elsewhere) for row in rows}
    for instance in instances.values():
        await ask(signals.pre_delete, document, instance=instance)
    require_watched(document, target.collection, signals.post_delete)
    firing = target.plan(signals.post_delete)
    make = await originator(firing, target, Call.DELETED, natural=True)

    async def unit() -> None:
        try:
            deleted = await _delete_ids([row["_id"] for row in rows], selection, firing, make)
        except _StillOpen as caught:
            still = caught
            note(still.error)
            copies = {key: independent_copy(each) for key, each in instances.items()}

            async def found_out() -> list[Written]:
                stands = await is_committed(still.session)
                return _written(copies, still.deleted) if stands else []

            fire_later(document, still.deleted.firing, target, found_out, still.held)
            raise still.error from None
        progress.done += deleted.number
        await fire(document, deleted.firing, target, _written(instances, deleted), progress)
        if deleted.failure is not None:
            raise deleted.failure

    await target.as_unit(firing, unit())


def _written(instances: dict[bytes, Any], deleted: "_Deleted") -> list[Written]:
    return [Written(instances[key], token, {}) for key, token in deleted.tokens.items()]


async def _delete_unheard(
    document: type["Document"], ids: list[Any], selection: Selection, progress: Progress
) -> None:
    target = selection.target
    firing = target.plan(document.meta.signals.post_delete)
    make = await originator(firing, target, Call.DELETED, natural=True)
    for some in chunks(ids, _MARKED if marks(target, firing) else len(ids)):
        deleted = await _delete_ids(some, selection, firing, make)
        progress.done += deleted.number


async def _delete_ids(ids: list[Any], selection: Selection, firing: Firing, make: Originator) -> "_Deleted":
    """Delete those of these documents that match still.

    Where a dispatcher must know of it, and where the server takes marks, with a mark for each.

    Raises:
        _StillOpen: nobody can tell now whether they are deleted, and receivers wait for that.
    """
    target = selection.target
    marked = marks(target, firing)
    if marked:
        try:
            return await _delete_together(ids, selection, firing, make, marked=True)
        except PyMongoError as error:
            if target.in_transaction:
                explain_refused_marker(error)
            if target.in_transaction or not (refuses_stamp(error) or takes_no_transactions(error)):
                raise
            firing = left_to_dispatchers(firing) if refuses_stamp(error) else firing
    if not (firing.receivers or selection.is_ambiguous):
        result = await target.driver.delete_many(
            selection.among(ids), session=target.session, **selection.collation
        )
        return _Deleted(int(result.deleted_count), {}, firing)
    try:
        return await _delete_together(ids, selection, firing, make, marked=False)
    except PyMongoError as error:
        if target.in_transaction or not takes_no_transactions(error):
            raise
    return await _delete_one_by_one(ids, selection, firing)


async def _delete_together(
    ids: list[Any], selection: Selection, firing: Firing, make: Originator, *, marked: bool
) -> "_Deleted":
    """Find which of them match, and delete those, in one transaction: so that nothing comes in between."""
    target = selection.target
    deleted: _Deleted | None = None

    async def find_and_delete(session: Any) -> None:
        nonlocal deleted
        deleted = None
        there = [row["_id"] for row in await selection.matching(ids, {"_id": 1}, session)]
        if not there:
            deleted = _Deleted(0, {}, firing)
            return
        origins = [make.of(id_) if marked else plain_origin(firing) for id_ in there]
        if marked:
            markers = [
                UpdateOne({"_id": id_}, {"$set": {FIELD: origin.stamp}})
                for id_, origin in zip(there, origins, strict=True)
            ]
            # All markers in one command, and all deletes in another: pairs of them would take many times as long.
            await target.driver.bulk_write(markers, session=session)
        gone = await target.driver.delete_many({"_id": {"$in": there}}, session=session)
        tokens = {key_of(id_): origin.token for id_, origin in zip(there, origins, strict=True)}
        deleted = _Deleted(int(gone.deleted_count), tokens, firing)

    if target.in_transaction:
        await find_and_delete(target.session)
        assert deleted is not None
        return deleted
    async with AsyncExitStack() as held:
        session = await held.enter_async_context(target.own_session())
        try:
            await run_alone(target.registry, session, find_and_delete)
        except PyMongoError as error:
            if deleted is None or not (deleted.tokens and firing.receivers and is_commit_open(error)):
                raise
            raise _StillOpen(error, deleted, session, held.pop_all()) from None
    assert deleted is not None
    return deleted


async def _delete_one_by_one(ids: list[Any], selection: Selection, firing: Firing) -> "_Deleted":
    """Without transactions only this says which were deleted."""
    target = selection.target
    tokens: dict[bytes, str] = {}
    for row in await selection.matching(ids, session=target.session):
        try:
            found = await target.lenient.find_one_and_delete(
                **selection.still(row), projection={"_id": 1}, session=target.session
            )
        except PyMongoError as error:
            return _Deleted(len(tokens), tokens, firing, error)
        if found is not None:
            tokens[key_of(row["_id"])] = new_token()
    return _Deleted(len(tokens), tokens, firing)


class _Deleted(NamedTuple):
    """What became of a batch.

    Attributes:
        number: how many were deleted.
        tokens: of those, by key.
        firing: who is to be told.
        failure: what kept the call from deleting the others.
    """

    number: int
    tokens: dict[bytes, str]
    firing: Firing
    failure: PyMongoError | None = None


class _StillOpen(Exception):
    """Nobody can tell now whether a batch was deleted: all of it was, or nothing.

    Args:
        error: of the commit.
        deleted: what is deleted if it was committed.
        session: in which it was sent.
        held: the session, to be kept until that is known.
    """

    def __init__(self, error: PyMongoError, deleted: _Deleted, session: Any, held: AsyncExitStack) -> None:
        super().__init__(str(error))
        self.error = error
        self.deleted = deleted
        self.session = session
        self.held = held


_MARKED: Final = 1_000  # documents that are marked and deleted in one transaction
