"""Deleting many documents: with a mark for each where a dispatcher must know of it, see `deleting`."""

import copy
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pymongo import UpdateOne
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError

from mongoz.connection.elections import as_passing
from mongoz.connection.patience import find_out
from mongoz.connection.transactions import is_committed, run_alone
from mongoz.ids import new_token
from mongoz.persistence.asking import ask
from mongoz.persistence.batches import Progress, Row, Written, fire, key_of, there_of
from mongoz.persistence.deleting import marks, takes_no_transactions
from mongoz.persistence.origin import Originator, originator
from mongoz.persistence.outcomes import fence, is_commit_open, is_unknown
from mongoz.persistence.refusals import explain_refused_marker, refuses_stamp
from mongoz.persistence.rows import hydrate
from mongoz.persistence.selection import Selection, chunks
from mongoz.persistence.sending import note
from mongoz.persistence.targets import Target
from mongoz.persistence.watching import require_watched
from mongoz.signals.firing import Firing, left_to_dispatchers
from mongoz.stamps import FIELD, Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["delete"]


async def delete(document: type["Document"], selection: Selection) -> int:
    """Delete what is selected; returns how many there were."""
    target, progress = selection.target, Progress("deleted", selection.target)
    signals = document.meta.signals
    require_watched(document, target.collection, signals.post_delete)
    heard = signals.pre_delete.receivers or target.plan(signals.post_delete).receivers
    if selection.is_plain and not heard and not marks(target, target.plan(signals.post_delete)):
        result = await target.driver.delete_many(selection.filter, session=target.session, **selection.options)
        return int(result.deleted_count)
    with progress.reported():
        if heard:
            async for rows in selection.batches():
                await _delete(document, rows, target, progress)
        else:
            async for ids in selection.id_batches():
                await _delete_unheard(document, ids, target, progress)
    return progress.done


async def _delete(document: type["Document"], rows: list[Row], target: Target, progress: Progress) -> None:
    signals, elsewhere = document.meta.signals, target.elsewhere(document)
    instances = [hydrate(document, row, elsewhere) for row in rows]
    for instance in instances:
        await ask(signals.pre_delete, document, instance=instance)
    require_watched(document, target.collection, signals.post_delete)
    firing = target.plan(signals.post_delete)
    make = await originator(firing, target, Call.DELETED, natural=True)

    async def unit() -> None:
        try:
            deleted = await _delete_ids([instance.id for instance in instances], target, firing, make)
        except _StillOpen as still:
            note(still.error)
            copies, look = copy.deepcopy(instances), still.look

            async def later() -> None:
                await tell(copies, await look())

            target.registry._later(later())
            raise still.error from None
        progress.done += deleted.number
        await tell(instances, deleted)

    async def tell(instances: list[Any], deleted: _Deleted) -> None:
        written = [
            Written(instance, deleted.tokens.get(key_of(instance.id)) or new_token(), {})
            for instance in instances
            if deleted.tokens is _UNKNOWN_WHICH or key_of(instance.id) in deleted.tokens
        ]
        await fire(document, deleted.firing, target, written if deleted.number else [])

    await target.as_unit(firing, unit())


async def _delete_unheard(document: type["Document"], ids: list[Any], target: Target, progress: Progress) -> None:
    firing = target.plan(document.meta.signals.post_delete)
    make = await originator(firing, target, Call.DELETED, natural=True)
    for some in chunks(ids, _MARKED if marks(target, firing) else len(ids)):
        deleted = await _delete_ids(some, target, firing, make)
        progress.done += deleted.number


async def _delete_ids(ids: list[Any], target: Target, firing: Firing, make: Originator) -> "_Deleted":
    """Delete these documents; with marks where a dispatcher must know of it, and where the server takes them.

    Raises:
        _StillOpen: nobody can tell now whether they are deleted, and receivers wait for that.
    """
    if not marks(target, firing):
        return await _delete_plainly(ids, target, firing)
    try:
        return await _delete_marked(ids, target, firing, make)
    except PyMongoError as error:
        if target.in_transaction:
            explain_refused_marker(error)
        if target.in_transaction or not (refuses_stamp(error) or takes_no_transactions(error)):
            raise
        firing = left_to_dispatchers(firing) if refuses_stamp(error) else firing
    return await _delete_plainly(ids, target, firing)


async def _delete_marked(ids: list[Any], target: Target, firing: Firing, make: Originator) -> "_Deleted":
    deleted: _Deleted | None = None

    async def mark_and_delete(session: Any) -> None:
        nonlocal deleted
        deleted = None
        origins = {key_of(id_): make.of(id_) for id_ in ids}
        markers = [UpdateOne({"_id": id_}, {"$set": {FIELD: origins[key_of(id_)].stamp}}) for id_ in ids]
        # All markers in one command, and all deletes in another: pairs of them would take many times as long.
        result = await target.driver.bulk_write(markers, session=session)
        there = set(origins)
        if result.matched_count != len(ids):  # somebody else was faster
            there = set(await there_of(target, ids, session=session))
        tokens = {key: origin.token for key, origin in origins.items() if key in there}
        gone = await target.driver.delete_many({"_id": {"$in": ids}}, session=session)
        deleted = _Deleted(int(gone.deleted_count), tokens, firing)

    if target.in_transaction:
        await mark_and_delete(target.session)
        assert deleted is not None
        return deleted
    async with AsyncExitStack() as held:
        session = await held.enter_async_context(target.own_session())
        try:
            await run_alone(target.registry, session, mark_and_delete)
        except PyMongoError as error:
            if deleted is None or not (deleted.tokens and firing.receivers and is_commit_open(error)):
                raise
            raise _StillOpen(error, _committed(deleted, session, held.pop_all())) from None
    assert deleted is not None
    return deleted


def _committed(deleted: "_Deleted", session: Any, held: AsyncExitStack) -> Callable[[], Awaitable["_Deleted"]]:
    """Finds out whether a batch was deleted: all of it, or nothing."""

    async def look() -> _Deleted:
        async with held:
            return deleted if await is_committed(session) else deleted._replace(number=0, tokens={})

    return look


async def _delete_plainly(ids: list[Any], target: Target, firing: Firing) -> "_Deleted":
    """Delete without marks.

    Raises:
        _StillOpen: receivers of which no dispatcher knows wait for what became of it.
    """
    matters = bool(firing.receivers) and target.group is not None and not target.in_transaction
    async with AsyncExitStack() as held:
        session = await held.enter_async_context(target.own_session()) if matters else target.session
        try:
            result = await target.driver.delete_many({"_id": {"$in": ids}}, session=session)
        except PyMongoError as raised:
            error = await as_passing(raised, target.client)
            if not matters or isinstance(error, ServerSelectionTimeoutError) or not is_unknown(error):
                raise error  # noqa: B904 - it is the same, or has its cause
            raise _StillOpen(error, _no_longer_there(ids, target, firing, session, held.pop_all())) from None
    return _Deleted(int(result.deleted_count), _UNKNOWN_WHICH, firing)


def _no_longer_there(
    ids: list[Any], target: Target, firing: Firing, session: Any, held: AsyncExitStack
) -> Callable[[], Awaitable["_Deleted"]]:
    """Finds out which documents of a batch are gone, whoever deleted them."""

    async def find() -> _Deleted:
        await fence(target, session, ids[0])
        there = await there_of(target, ids, surely=True)
        gone = {key: new_token() for id_ in ids if (key := key_of(id_)) not in there}
        return _Deleted(len(gone), gone, firing)

    async def look() -> _Deleted:
        async with held:
            return await find_out(find)

    return look


class _Deleted(NamedTuple):
    """What became of a batch.

    Attributes:
        number: how many were deleted.
        tokens: of those, by key.
        firing: who is to be told.
    """

    number: int
    tokens: dict[bytes, str]
    firing: Firing


class _StillOpen(Exception):
    """Nobody can tell now whether a batch was deleted.

    Args:
        error: of the commit.
        look: finds out, once the server answers.
    """

    def __init__(self, error: PyMongoError, look: Callable[[], Awaitable[_Deleted]]) -> None:
        super().__init__(str(error))
        self.error = error
        self.look = look


# A plain delete of many does not say which it found: where somebody else was faster, both tell.
_UNKNOWN_WHICH: Final[dict[bytes, str]] = {}
_MARKED: Final = 1_000  # documents that are marked and deleted in one transaction
