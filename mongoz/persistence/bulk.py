"""Writes of many documents: one command where nobody listens, bounded batches where somebody does."""

import copy
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import bson
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, ConnectionFailure, PyMongoError
from pymongo.read_preferences import ReadPreference

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.connection.patience import find_out
from mongoz.exceptions import raise_together
from mongoz.fields.storage import stored, stored_names
from mongoz.ids import new_token
from mongoz.persistence.deleting import MARKER_REFUSED, marks, takes_no_transactions
from mongoz.persistence.operations import Operation, with_operations
from mongoz.persistence.origin import Origin, Originator, originator
from mongoz.persistence.outcomes import (
    PATIENCE_MS,
    UNKNOWN,
    fence,
    is_gone,
    is_ours,
    prove_by_absence,
    prove_by_stamp,
    surely_read,
)
from mongoz.persistence.patches import apply, attribute_names, now_values, patch_of, settle
from mongoz.persistence.refusals import explain_refusal, refuses_stamp
from mongoz.persistence.rows import Changes, hydrate, new_row, previous
from mongoz.persistence.selection import BATCH, Selection, chunks
from mongoz.persistence.sending import note
from mongoz.persistence.targets import Target, aim
from mongoz.persistence.watching import require_watched
from mongoz.persistence.writes import created
from mongoz.signals.firing import Firing, left_to_dispatchers
from mongoz.stamps import FIELD, Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Patch", "create_many", "delete", "update_and_count", "update_and_load"]

D = TypeVar("D", bound="Document")

Row = dict[str, Any]

_IDS: Final = 10_000  # that fit into one command


class Patch(NamedTuple):
    """What a bulk update does to each document.

    Attributes:
        values: attribute name -> new value.
        operations: what the server computes.
    """

    values: dict[str, Any]
    operations: tuple[Operation, ...] = ()


class _Written(NamedTuple):
    """One document of a batch that stands, and what its receivers are told."""

    instance: Any
    token: str
    keywords: dict[str, Any]
    firing: Firing | None = None


class _StillOpen(Exception):
    """Nobody can tell now what became of a batch.

    Args:
        error: of the write.
        look: finds out which of its documents stand, once the server answers.
    """

    def __init__(self, error: PyMongoError, look: Callable[[], Awaitable[dict[bytes, Row]]]) -> None:
        super().__init__(str(error))
        self.error = error
        self.look = look


class _Progress:
    """Counts what stands, so that an error can say it."""

    def __init__(self, what: str, target: Target) -> None:
        self.what = what
        self.target = target
        self.done = 0

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Add to an error how many documents were written before it."""
        try:
            yield
        except Exception as error:
            if not self.target.in_transaction:  # else nothing stands
                error.add_note(f"Before this error {self.done} documents were {self.what}; they stay so.")
            raise


# Creating


async def create_many(
    document: type[D], models: Iterable[D], collection: Any = None, session: Any = None
) -> list[D]:
    """Insert instances; see `Document.create_many`."""
    instances = list(models)
    for instance in instances:
        if not isinstance(instance, document):
            raise TypeError(f"create_many() of {document.__name__} takes its instances, not {instance!r}.")
    target = await aim(document, collection, session)
    signals = document.meta.signals
    firing = target.plan(signals.post_save)
    # Stamps too want small batches: they count for a short time only.
    heard = signals.pre_save.receivers or firing.receivers or (firing.tells and target.group)
    progress = _Progress("created", target)
    with progress.reported():
        for batch in chunks(instances, BATCH if heard else max(len(instances), 1)):
            await _insert(document, batch, target, progress)
    return instances


async def _insert(document: type[D], batch: list[D], target: Target, progress: _Progress) -> None:
    signals = document.meta.signals
    for instance in batch:
        await signals.pre_save.send(document, instance=instance, created=True)
    require_watched(document, target.collection, signals.post_save)
    rows = [new_row(instance) for instance in batch]
    firing = target.plan(signals.post_save)
    make = await originator(firing, target, Call.CREATED, natural=True)

    async def unit() -> None:
        origins = [make.of(row["_id"]) for row in rows]
        stamped = [origin.onto(row) for origin, row in zip(origins, rows, strict=True)]

        def conclude(instances: list[Any], there: dict[bytes, Row]) -> list[_Written]:
            written = []
            for instance, row, origin in zip(instances, rows, origins, strict=True):
                if _key(row["_id"]) in there:
                    target.keep_undoable(instance)
                    created(instance, row, target.elsewhere(document))
                    written.append(_Written(instance, origin.token, {"created": True, "previous": None}))
            progress.done += len(written)
            return written

        await _settle_and_fire(document, firing, target, batch, _send_inserts(stamped, origins, target), conclude)

    await target.as_unit(firing, unit())


async def _send_inserts(
    rows: list[Row], origins: list[Origin], target: Target
) -> tuple[PyMongoError | None, dict[bytes, Row]]:
    """Insert in order; returns what went wrong, and those that are in the database."""
    ids, failure = [row["_id"] for row in rows], None
    try:
        async with target.own_session() as session:
            try:
                await target.driver.insert_many(rows, session=session)
            except ConnectionFailure as error:
                if target.in_transaction:
                    return error, {}  # the transaction is lost as a whole
                return error, await _found_out(target, session, error, ids, origins, inserted=True)
    except BulkWriteError as error:
        if rows and FIELD in rows[0]:
            explain_refusal(error)
        failure, ids = error, ids[: error.details["nInserted"]]
    if ids:
        prove_by_stamp(target, ids[-1], origins[len(ids) - 1].stamp, inserted=True)
    return failure, {_key(id_): {} for id_ in ids}


async def _found_out(
    target: Target,
    session: Any,
    error: PyMongoError,
    ids: list[Any],
    origins: list[Origin],
    fields: Iterable[str] = (),
    *,
    inserted: bool = False,
) -> dict[bytes, Row]:
    """What of a batch stands after a command of unknown outcome, once it can do nothing more.

    Where nothing is stamped, documents that are there count as inserted.

    Raises:
        _StillOpen: that can't be found out now, and a dispatcher relies on this process.
    """

    async def look() -> dict[bytes, Row]:
        rows = await _there(target, ids, (*fields, FIELD), surely=True)
        return _ours(rows, ids, origins, inserted=inserted) if any(o.stamp for o in origins) else rows

    try:
        await fence(target, session, ids[0])
        return await look()
    except PyMongoError:
        if any(origin.stamp for origin in origins):
            raise _StillOpen(error, look) from None
        error.add_note(f"Whether any of {len(ids)} further documents were written could not be found out.")
        return {}


def _ours(
    rows: dict[bytes, Row], ids: list[Any], origins: list[Origin], *, inserted: bool = False
) -> dict[bytes, Row]:
    """Those rows that went through the writes of these origins."""
    ours = {}
    for id_, origin in zip(ids, origins, strict=True):
        row = rows.get(_key(id_))
        if row is not None and is_ours(row, origin.stamp or b"", inserted=inserted):
            row.pop(FIELD, None)
            ours[_key(id_)] = row
    return ours


# Updating


async def update_and_count(document: type["Document"], selection: Selection, patch: Patch) -> int:
    """Update what is selected.

    Returns:
        How many documents matched.
    """
    target, progress = selection.target, _Progress("updated", selection.target)
    require_watched(document, target.collection, document.meta.signals.post_update)
    if not _is_heard(document, target) and selection.is_plain:
        result = await target.driver.update_many(
            selection.filter, _as_update(document, patch), session=target.session, **selection.options
        )
        return int(result.matched_count)
    with progress.reported():
        async for rows in selection.batches():
            await _update(document, rows, patch, target, progress)
    return progress.done


async def update_and_load(document: type[D], selection: Selection, patch: Patch) -> list[D]:
    """Update what is selected.

    Returns:
        The documents that matched before, as they are after.
    """
    target, progress = selection.target, _Progress("updated", selection.target)
    require_watched(document, target.collection, document.meta.signals.post_update)
    elsewhere = target.elsewhere(document)
    instances: list[D] = []
    with progress.reported():
        if _is_heard(document, target):
            async for rows in selection.batches():
                instances += await _update(document, rows, patch, target, progress)
            return instances
        update = _as_update(document, patch)
        async for ids in selection.id_batches():
            result = await target.driver.update_many(selection.among(ids), update, session=target.session)
            progress.done += int(result.matched_count)
            instances += [hydrate(document, row, elsewhere) for row in await selection.rows(ids)]
    return instances


def _is_heard(document: type["Document"], target: Target) -> bool:
    """Whether each document must be looked at: for a receiver, or for the stamp that says it is muted."""
    signals = document.meta.signals
    firing = target.plan(signals.post_update)
    return bool(
        signals.pre_update.receivers or firing.receivers or ((firing.muted or firing.hops) and target.group)
    )


def _as_update(document: type["Document"], patch: Patch) -> dict[str, dict[str, Any]]:
    names = stored_names(document)
    values = {**now_values(document), **patch.values}
    changed = {names[name]: stored(value) for name, value in values.items()}
    return with_operations(Changes(changed, ()).as_update(), patch.operations)


async def _update(
    document: type[D], rows: list[Row], patch: Patch, target: Target, progress: _Progress
) -> list[D]:
    """Update the documents of a batch; returns those that were still there."""
    elsewhere = target.elsewhere(document)
    signal = document.meta.signals.post_update
    instances = [hydrate(document, row, elsewhere) for row in rows]
    changes = [await _changes(instance, patch) for instance in instances]
    require_watched(document, target.collection, signal)
    firings = [target.plan(signal, _names(document, change, patch)) for change in changes]
    heard = next((firing for firing in firings if firing.receivers), firings[0])
    makers = {
        firing: await originator(firing, target, Call.UPDATED, natural=True) for firing in dict.fromkeys(firings)
    }

    async def unit() -> list[D]:
        origins = [makers[firing].of(i.id) for firing, i in zip(firings, instances, strict=True)]
        requests = []
        for instance, origin, change in zip(instances, origins, changes, strict=True):
            target.keep_undoable(instance)
            stamped = change._replace(changed=origin.onto(change.changed))
            requests.append(
                UpdateOne({"_id": instance.id}, with_operations(stamped.as_update(), patch.operations))
            )
        fields = [operation.top for operation in patch.operations]

        def conclude(instances: list[Any], there: dict[bytes, Row]) -> list[_Written]:
            written = []
            for instance, origin, change, firing in zip(instances, origins, changes, firings, strict=True):
                row = there.get(_key(instance.id))
                if row is not None:
                    was = previous(instance) if firing.receivers else None
                    names = settle(instance, change, patch.operations, row, elsewhere)
                    told = {"update_fields": names, "previous": was}
                    written.append(_Written(instance, origin.token, told, firing))
            progress.done += len(written)
            return written

        sending = _send_updates(requests, instances, origins, fields, target)
        return await _settle_and_fire(document, heard, target, instances, sending, conclude)

    return await target.as_unit(heard, unit())


def _names(document: type["Document"], change: Changes, patch: Patch) -> frozenset[str]:
    return attribute_names(
        document, (*change.changed, *change.removed, *(operation.top for operation in patch.operations))
    )


async def _changes(instance: "Document", patch: Patch) -> Changes:
    fields = apply(instance, copy.deepcopy(patch.values))
    return await patch_of(instance, fields, frozenset(operation.attribute for operation in patch.operations))


async def _send_updates(
    requests: list[Any], instances: list[Any], origins: list[Origin], fields: list[str], target: Target
) -> tuple[PyMongoError | None, dict[bytes, Row]]:
    """Send the updates in order; returns what went wrong, and some fields of the documents that were updated."""
    ids, failure = [instance.id for instance in instances], None
    stamped = any(origin.stamp for origin in origins)
    try:
        async with target.own_session() as session:
            try:
                result = await target.driver.bulk_write(requests, session=session)
            except ConnectionFailure as error:
                if target.in_transaction or not stamped:
                    raise
                return error, await _found_out(target, session, error, ids, origins, fields)
    except BulkWriteError as error:
        if stamped:
            explain_refusal(error)
        failure, errors = error, error.details["writeErrors"]
        ids = ids[: errors[0]["index"]] if errors else ids
    else:
        if result.matched_count == len(ids) and not fields:
            prove_by_stamp(target, ids[-1], origins[-1].stamp, inserted=False)
            return None, {_key(id_): {} for id_ in ids}
    there = await _read_back(target, ids, origins[: len(ids)], fields)
    proven = next((n for n in reversed(range(len(ids))) if _key(ids[n]) in there and origins[n].stamp), None)
    if proven is not None:
        prove_by_stamp(target, ids[proven], origins[proven].stamp, inserted=False)
    return failure, there


async def _read_back(target: Target, ids: list[Any], origins: list[Origin], fields: list[str]) -> dict[bytes, Row]:
    """What was updated, and some of its fields.

    Raises:
        _StillOpen: the server does not answer any more, and a dispatcher relies on this process.
    """
    try:
        return await _there(target, ids, fields)
    except PyMongoError as error:
        if target.in_transaction or not any(origin.stamp for origin in origins):
            raise

        async def look() -> dict[bytes, Row]:
            return _ours(await _there(target, ids, (*fields, FIELD), surely=True), ids, origins)

        raise _StillOpen(error, look) from None


# Deleting


async def delete(document: type["Document"], selection: Selection) -> int:
    """Delete what is selected; returns how many there were."""
    target, progress = selection.target, _Progress("deleted", selection.target)
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


async def _delete(document: type["Document"], rows: list[Row], target: Target, progress: _Progress) -> None:
    signals, elsewhere = document.meta.signals, target.elsewhere(document)
    instances = [hydrate(document, row, elsewhere) for row in rows]
    for instance in instances:
        await signals.pre_delete.send(document, instance=instance)
    require_watched(document, target.collection, signals.post_delete)
    firing = target.plan(signals.post_delete)
    make = await originator(firing, target, Call.DELETED, natural=True)

    async def unit() -> None:
        try:
            deleted = await _delete_ids([instance.id for instance in instances], target, firing, make)
        except _StillOpenDelete as still:
            note(still.error)
            copies, look = copy.deepcopy(instances), still.look

            async def later() -> None:
                await tell(copies, await find_out(look))

            target.registry._later(later())
            raise still.error from None
        progress.done += deleted.number
        await tell(instances, deleted)

    async def tell(instances: list[Any], deleted: _Deleted) -> None:
        written = [
            _Written(instance, deleted.tokens.get(_key(instance.id)) or new_token(), {})
            for instance in instances
            if deleted.tokens is _UNKNOWN_WHICH or _key(instance.id) in deleted.tokens
        ]
        await _fire(document, deleted.firing, target, written if deleted.number else [], deleted.failure)

    await target.as_unit(firing, unit())


async def _delete_unheard(document: type["Document"], ids: list[Any], target: Target, progress: _Progress) -> None:
    firing = target.plan(document.meta.signals.post_delete)
    make = await originator(firing, target, Call.DELETED, natural=True)
    for some in chunks(ids, _MARKED if marks(target, firing) else len(ids)):
        deleted = await _delete_ids(some, target, firing, make)
        progress.done += deleted.number
        if deleted.failure is not None:
            raise deleted.failure


async def _delete_ids(ids: list[Any], target: Target, firing: Firing, make: Originator) -> "_Deleted":
    if not marks(target, firing):
        return await _delete_plainly(ids, target, firing)
    async with target.own_session() as session:
        try:
            return await _delete_marked(ids, target, firing, make, session)
        except PyMongoError as error:
            if refuses_stamp(error) and target.in_transaction:
                error.add_note(MARKER_REFUSED)
            if target.in_transaction or not (refuses_stamp(error) or takes_no_transactions(error)):
                raise
            firing = left_to_dispatchers(firing) if refuses_stamp(error) else firing
        return await _delete_plainly(ids, target, firing)


async def _delete_marked(
    ids: list[Any], target: Target, firing: Firing, make: Originator, session: Any
) -> "_Deleted":
    deleted: _Deleted | None = None

    async def mark_and_delete(session: Any) -> None:
        nonlocal deleted
        deleted = None
        origins = {_key(id_): make.of(id_) for id_ in ids}
        markers = [UpdateOne({"_id": id_}, {"$set": {FIELD: origins[_key(id_)].stamp}}) for id_ in ids]
        # All markers in one command, and all deletes in another: pairs of them would take many times as long.
        result = await target.driver.bulk_write(markers, session=session)
        there = set(origins)
        if result.matched_count != len(ids):  # somebody else was faster
            there = set(await _there(target, ids, session=session))
        tokens = {key: origin.token for key, origin in origins.items() if key in there}
        gone = await target.driver.delete_many({"_id": {"$in": ids}}, session=session)
        deleted = _Deleted(int(gone.deleted_count), tokens, firing)

    if target.in_transaction:
        await mark_and_delete(session)
    else:
        try:
            await session.with_transaction(mark_and_delete)
        except UNKNOWN as error:
            if deleted is None or not deleted.tokens:
                raise  # the commit was never sent
            return await _deleted_perhaps(ids, target, session, deleted._replace(failure=error))
    assert deleted is not None
    if deleted.tokens:
        prove_by_absence(target, next(id_ for id_ in ids if _key(id_) in deleted.tokens))
    return deleted


async def _delete_plainly(ids: list[Any], target: Target, firing: Firing) -> "_Deleted":
    result = await target.driver.delete_many({"_id": {"$in": ids}}, session=target.session)
    return _Deleted(int(result.deleted_count), _UNKNOWN_WHICH, firing)


async def _deleted_perhaps(ids: list[Any], target: Target, session: Any, deleted: "_Deleted") -> "_Deleted":
    """After a commit of unknown outcome: all of them are gone, or none.

    Raises:
        _StillOpenDelete: that can't be found out now.
    """
    witness = next(id_ for id_ in ids if _key(id_) in deleted.tokens)
    nothing = deleted._replace(number=0, tokens={})

    async def look() -> _Deleted:
        return (deleted if await is_gone(target, witness) else nothing)._replace(failure=None)

    assert deleted.failure is not None
    try:
        await fence(target, session, witness)
        return (await look())._replace(failure=deleted.failure)
    except PyMongoError:
        raise _StillOpenDelete(deleted.failure, look) from None


class _Deleted(NamedTuple):
    """What became of a batch.

    Attributes:
        number: how many were deleted.
        tokens: of those, by key.
        firing: who is to be told.
        failure: what went wrong all the same.
    """

    number: int
    tokens: dict[bytes, str]
    firing: Firing
    failure: PyMongoError | None = None


class _StillOpenDelete(Exception):
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


# Telling


async def _settle_and_fire(
    document: type["Document"],
    firing: Firing,
    target: Target,
    instances: list[Any],
    sending: Awaitable[tuple[PyMongoError | None, dict[bytes, Row]]],
    conclude: Callable[[list[Any], dict[bytes, Row]], list[_Written]],
) -> list[Any]:
    """Send a batch, have its instances know, and tell the receivers; returns the instances that stand.

    Where nobody can tell now what stands, the receivers are told when somebody can; of copies, since the caller
    may try again with the instances.
    """
    try:
        failure, there = await sending
    except _StillOpen as still:
        note(still.error)
        target.registry._later(
            _tell_when_known(document, firing, target, copy.deepcopy(instances), still, conclude)
        )
        raise still.error from None
    written = conclude(instances, there)
    await _fire(document, firing, target, written, failure)
    return [each.instance for each in written]


async def _tell_when_known(
    document: type["Document"],
    firing: Firing,
    target: Target,
    instances: list[Any],
    still: _StillOpen,
    conclude: Callable[[list[Any], dict[bytes, Row]], list[_Written]],
) -> None:
    await _fire(document, firing, target, conclude(instances, await find_out(still.look)))


async def _fire(
    document: type["Document"],
    firing: Firing,
    target: Target,
    written: Iterable[_Written],
    failure: PyMongoError | None = None,
) -> None:
    """Tell the receivers of each document that stands, all of them; then raise what went wrong."""
    errors: list[Exception] = []
    for each in written if firing.receivers else ():
        try:
            told = each.firing or firing
            await target.fire(told, document, each.token, {"instance": each.instance, **each.keywords})
        except Exception as error:
            errors.append(error)
    if failure is not None:
        for raised in errors:
            failure.add_note(f"And a receiver raised {raised!r}.")
        raise failure
    raise_together(errors, f"receivers of {len(errors)} {document.__name__} documents raised")


async def _there(
    target: Target, ids: list[Any], fields: Iterable[str] = (), session: Any = None, *, surely: bool = False
) -> dict[bytes, Row]:
    """Those of these documents that exist, with some of their fields; from the primary, which has them first.

    Args:
        target: where they are.
        ids: which.
        fields: stored names.
        session: for the read; by default the caller's.
        surely: read nothing that could be rolled back; without a session.
    """
    projection = {"_id": 1, **dict.fromkeys(fields, 1)}
    rows: list[Row] = []
    for some in chunks(ids, _IDS):
        if surely:
            cursor = surely_read(target).find({"_id": {"$in": some}}, projection, max_time_ms=PATIENCE_MS)
        else:
            primary = target.driver.with_options(read_preference=ReadPreference.PRIMARY)
            cursor = primary.find({"_id": {"$in": some}}, projection, session=session or target.session)
        rows += await cursor.to_list(None)
    return {_key(row.pop("_id")): row for row in rows}


def _key(id_: Any) -> bytes:
    """An id as a key of a dict; ids may be documents."""
    return bson.encode({"": id_}, codec_options=CODEC_OPTIONS)
