"""Deletes many documents.

If dispatchers need markers, each document gets a marker before it is deleted: see `mongoz.persistence.delete`.
"""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pymongo import UpdateOne
from pymongo.errors import PyMongoError

from mongoz.claims.book import OpenClaim
from mongoz.connection.commits import is_aborted_after, is_committed
from mongoz.connection.transactions import run_private_transaction
from mongoz.ids import new_token
from mongoz.model.base import Model
from mongoz.persistence.bulk.progress import (
    BulkProgress,
    Row,
    WrittenDocument,
    fire_for_each,
    fire_when_known,
    id_key,
)
from mongoz.persistence.bulk.selection import Selection, split_into_chunks
from mongoz.persistence.delete import has_no_transactions, needs_marker
from mongoz.persistence.origin import Origin, make_originator, unstamped_origin
from mongoz.persistence.outcome.lookup import is_commit_unknown
from mongoz.persistence.outcome.refusals import explain_refused_marker, refuses_stamp
from mongoz.persistence.pre_signals import fire_pre_signal
from mongoz.persistence.rows.copies import independent_copy
from mongoz.persistence.rows.hydration import hydrate_leniently
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import note_unknown_outcome
from mongoz.signals.post_signals import Firing, leave_to_dispatchers
from mongoz.stamps import FIELD, Call

__all__ = ["delete_selected"]

_MARKED_BATCH: Final = 1_000  # documents that one transaction marks and deletes


async def delete_selected(document: type[Model], selection: Selection) -> int:
    """Delete the selected documents; returns their number."""
    target = selection.target
    progress = BulkProgress(document, "deleted", target)
    signals = document.meta.signals
    require_watched(document, target.collection, signals.post_delete)
    firing = target.plan(signals.post_delete)
    has_receivers = signals.pre_delete.receivers or firing.receivers
    if selection.is_plain and not has_receivers and not needs_marker(target, firing):
        result = await target.driver_collection.delete_many(
            selection.filter, session=target.session, **selection.options
        )
        return int(result.deleted_count)
    with progress.reported():
        if has_receivers:
            async for rows in selection.batches():
                await _delete_batch(document, rows, selection, progress)
        else:
            async for ids in selection.id_batches():
                await _delete_without_receivers(document, ids, selection, progress)
    return progress.done


async def _delete_batch(
    document: type[Model], rows: list[Row], selection: Selection, progress: BulkProgress
) -> None:
    """Delete a batch, and run the receivers of each document."""
    target, signals = selection.target, document.meta.signals
    other_collection = target.other_collection(document)
    instances = {id_key(row["_id"]): hydrate_leniently(document, row, other_collection) for row in rows}
    for instance in instances.values():
        await fire_pre_signal(signals.pre_delete, document, instance=instance)
    require_watched(document, target.collection, signals.post_delete)
    firing = target.plan(signals.post_delete)

    async def unit() -> None:
        try:
            deleted = await _delete_ids([row["_id"] for row in rows], selection, firing)
        except _DeleteOutcomeUnknown as caught:
            unknown = caught
            note_unknown_outcome(unknown.error)
            copies = {key: independent_copy(each) for key, each in instances.items()}

            async def find_written() -> list[WrittenDocument]:
                committed = await is_committed(unknown.session)
                return _written(copies, unknown.deleted) if committed else []

            fire_when_known(document, unknown.deleted.firing, target, find_written, unknown.held)
            raise unknown.error from None
        progress.done += deleted.number
        try:
            await fire_for_each(document, deleted.firing, target, _written(instances, deleted), progress)
        finally:
            for claim in () if target.in_transaction else deleted.claims.values():
                claim.release()
        if deleted.failure is not None:
            raise deleted.failure

    await target.as_unit(firing, unit())


def _written(instances: dict[bytes, Any], deleted: "_Deleted") -> list[WrittenDocument]:
    claims = deleted.claims
    return [
        WrittenDocument(instances[key], token, {}, claim=claims.get(key)) for key, token in deleted.tokens.items()
    ]


async def _delete_without_receivers(
    document: type[Model], ids: list[Any], selection: Selection, progress: BulkProgress
) -> None:
    """Delete a batch without receivers."""
    target = selection.target
    firing = target.plan(document.meta.signals.post_delete)
    size = _MARKED_BATCH if needs_marker(target, firing) else len(ids)
    for chunk in split_into_chunks(ids, size):
        deleted = await _delete_ids(chunk, selection, firing)
        progress.done += deleted.number


async def _delete_ids(ids: list[Any], selection: Selection, firing: Firing) -> "_Deleted":
    """Delete the given documents that still match.

    Each delete gets a marker, if dispatchers need markers and the server accepts them.

    Raises:
        _DeleteOutcomeUnknown: the outcome is unknown at present, and receivers depend on it.
    """
    target = selection.target
    marked = needs_marker(target, firing)
    if marked:
        try:
            return await _delete_together(ids, selection, firing, marked=True)
        except PyMongoError as error:
            if target.in_transaction:
                explain_refused_marker(error)
            if target.in_transaction or not (refuses_stamp(error) or has_no_transactions(error)):
                raise
            firing = leave_to_dispatchers(firing) if refuses_stamp(error) else firing
    if not (firing.receivers or selection.is_ambiguous):
        result = await target.driver_collection.delete_many(
            selection.filter_for(ids), session=target.session, **selection.collation
        )
        return _Deleted(int(result.deleted_count), {}, firing)
    try:
        return await _delete_together(ids, selection, firing, marked=False)
    except PyMongoError as error:
        if target.in_transaction or not has_no_transactions(error):
            raise
    return await _delete_one_by_one(ids, selection, firing)


async def _delete_together(ids: list[Any], selection: Selection, firing: Firing, *, marked: bool) -> "_Deleted":
    """Find the matching documents and delete them in one transaction, so that no write happens in between."""
    target = selection.target
    deleted: _Deleted | None = None
    origins: list[Origin] = []

    def note_undone() -> None:
        for origin in origins:
            origin.undone()

    async def find_and_delete(session: Any) -> None:
        nonlocal deleted, origins
        note_undone()  # for an earlier attempt: its transaction was aborted
        deleted, origins = None, []
        found = [row["_id"] for row in await selection.matching(ids, {"_id": 1}, session)]
        if not found:
            deleted = _Deleted(0, {}, firing)
            return
        if not marked:
            origins = [unstamped_origin(firing) for _ in found]
        else:
            originator = await make_originator(firing, target, Call.DELETED, natural=True)
            origins = [originator.origin_for(id_) for id_ in found]
            markers = [
                UpdateOne({"_id": id_}, {"$set": {FIELD: origin.stamp}})
                for id_, origin in zip(found, origins, strict=True)
            ]
            # One command sends all markers, and another command sends all deletes. A marker command and a delete
            # command for each document would take many times as long.
            await target.driver_collection.bulk_write(markers, session=session)
        result = await target.driver_collection.delete_many({"_id": {"$in": found}}, session=session)
        tokens = {id_key(id_): origin.token for id_, origin in zip(found, origins, strict=True)}
        claims = {id_key(id_): one.claim for id_, one in zip(found, origins, strict=True) if one.claim}
        deleted = _Deleted(int(result.deleted_count), tokens, firing, claims=claims)

    if target.in_transaction:
        await find_and_delete(target.session)
        assert deleted is not None
        return deleted
    async with AsyncExitStack() as held:
        session = await held.enter_async_context(target.own_session())
        try:
            await run_private_transaction(target.deployment, session, find_and_delete)
        except BaseException as error:
            if is_aborted_after(error):
                note_undone()
            for origin in origins:
                origin.leave()
            if not isinstance(error, PyMongoError) or not is_commit_unknown(error):
                raise
            if deleted is None or not (deleted.tokens and firing.receivers):
                raise
            raise _DeleteOutcomeUnknown(error, deleted, session, held.pop_all()) from None
    assert deleted is not None
    return deleted


async def _delete_one_by_one(ids: list[Any], selection: Selection, firing: Firing) -> "_Deleted":
    """Delete each document with its own command.

    Without transactions, only separate commands show which documents were deleted.
    """
    target = selection.target
    tokens: dict[bytes, str] = {}
    for row in await selection.matching(ids, session=target.session):
        try:
            found = await target.raw_collection.find_one_and_delete(
                **selection.if_matching(row), projection={"_id": 1}, session=target.session
            )
        except PyMongoError as error:
            return _Deleted(len(tokens), tokens, firing, error)
        if found is not None:
            tokens[id_key(row["_id"])] = new_token()
    return _Deleted(len(tokens), tokens, firing)


class _Deleted(NamedTuple):
    """The deleted documents of a batch.

    Attributes:
        number: the number of deleted documents.
        tokens: the tokens of the deletes, by `id_key`; empty if only the number of the deletes is known.
        firing: the receivers to run.
        failure: the error that stopped the batch, or None.
        claims: the claims of the deletes, by `id_key`.
    """

    number: int
    tokens: dict[bytes, str]
    firing: Firing
    failure: PyMongoError | None = None
    claims: Mapping[bytes, OpenClaim] = MappingProxyType({})


class _DeleteOutcomeUnknown(Exception):
    """The outcome of a batch is unknown at present: either all of its documents were deleted, or none.

    Args:
        error: the error of the commit.
        deleted: the documents that are deleted if the transaction was committed.
        session: the session of the transaction.
        held: the resources to release when the outcome is known, among them the session.
    """

    def __init__(self, error: PyMongoError, deleted: _Deleted, session: Any, held: AsyncExitStack) -> None:
        super().__init__(str(error))
        self.error = error
        self.deleted = deleted
        self.session = session
        self.held = held
