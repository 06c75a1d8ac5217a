"""Writes of many documents: one command where nobody listens, bounded batches where somebody does."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import bson
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, ConnectionFailure, PyMongoError

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.exceptions import raise_together
from mongoz.fields.storage import stored, stored_names
from mongoz.persistence.deleting import MARKER_REFUSED, marks, takes_no_transactions
from mongoz.persistence.operations import Operation, with_operations
from mongoz.persistence.origin import Origin, Originator, originator
from mongoz.persistence.outcomes import UNKNOWN, fence, is_ours
from mongoz.persistence.patches import apply, attribute_names, now_values, patch_of, settle
from mongoz.persistence.refusals import explain_refusal, refuses_stamp
from mongoz.persistence.rows import Changes, hydrate, new_row, previous
from mongoz.persistence.selection import BATCH, Selection, chunks
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
_PATIENCE: Final = 3  # attempts, each of which takes as long as the driver waits for a server


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
    heard = signals.pre_save.receivers or target.plan(signals.post_save).receivers
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
        failure, there = await _send_inserts(stamped, target)
        progress.done += len(there)
        written = []
        for number in there:
            instance = batch[number]
            target.keep_undoable(instance)
            created(instance, rows[number], target)
            written.append(_Written(instance, origins[number].token, {"created": True, "previous": None}))
        await _fire(document, firing, target, written, failure)

    await target.as_unit(firing, unit())


async def _send_inserts(rows: list[Row], target: Target) -> tuple[PyMongoError | None, Sequence[int]]:
    """Insert in order; returns what went wrong, and the indexes of those that are in the database."""
    try:
        async with target.own_session() as session:
            try:
                await target.driver.insert_many(rows, session=session)
            except ConnectionFailure as error:
                return error, await _inserted(rows, target, session, error)
    except BulkWriteError as error:
        if rows and FIELD in rows[0]:
            explain_refusal(error)
        return error, range(error.details["nInserted"])
    return None, range(len(rows))


async def _inserted(rows: list[Row], target: Target, session: Any, error: PyMongoError) -> list[int]:
    """Which rows a command of unknown outcome has inserted; none, and a note, if that can't be found out."""
    if target.in_transaction:
        return []  # the transaction is lost as a whole
    there = await _found_out(target, session, error, [row["_id"] for row in rows])
    return [number for number, row in enumerate(rows) if _key(row["_id"]) in there]


async def _found_out(
    target: Target, session: Any, error: PyMongoError, ids: list[Any], fields: Iterable[str] = ()
) -> dict[bytes, Row]:
    """What there is after a command of unknown outcome, once it can do nothing more."""
    patience = _PATIENCE
    while True:
        try:
            await fence(target, session, ids[0])
            return await _there(target, ids, fields)
        except PyMongoError:
            patience -= 1
            if not patience:
                error.add_note(f"Whether any of {len(ids)} further documents were written could not be found out.")
                return {}


# Updating


async def update_and_count(document: type["Document"], selection: Selection, patch: Patch) -> int:
    """Update what is selected.

    Returns:
        How many documents matched.
    """
    target, progress = selection.target, _Progress("updated", selection.target)
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
        failure, there = await _send_updates(requests, instances, origins, fields, target)
        written = []
        for instance, origin, change, firing in zip(instances, origins, changes, firings, strict=True):
            row = there.get(_key(instance.id))
            if row is not None:
                was = previous(instance) if firing.receivers else None
                names = settle(instance, change, patch.operations, row, elsewhere)
                told = {"update_fields": names, "previous": was}
                written.append(_Written(instance, origin.token, told, firing))
        progress.done += len(written)
        await _fire(document, heard, target, written, failure)
        return [each.instance for each in written]

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
    try:
        async with target.own_session() as session:
            try:
                await target.driver.bulk_write(requests, session=session)
            except ConnectionFailure as error:
                if target.in_transaction or origins[0].stamp is None:
                    raise
                rows = await _found_out(target, session, error, ids, [*fields, FIELD])
                return error, _stamped(rows, ids, origins)
    except BulkWriteError as error:
        if origins[0].stamp is not None:
            explain_refusal(error)
        failure, errors = error, error.details["writeErrors"]
        ids = ids[: errors[0]["index"]] if errors else ids
    return failure, await _there(target, ids, fields)


def _stamped(rows: dict[bytes, Row], ids: list[Any], origins: list[Origin]) -> dict[bytes, Row]:
    """Those rows that went through the writes of these origins."""
    ours = {}
    for id_, origin in zip(ids, origins, strict=True):
        row = rows.get(_key(id_))
        if row is not None and is_ours(row, origin.stamp or b"", inserted=False):
            row.pop(FIELD)
            ours[_key(id_)] = row
    return ours


# Deleting


async def delete(document: type["Document"], selection: Selection) -> int:
    """Delete what is selected; returns how many there were."""
    target, progress = selection.target, _Progress("deleted", selection.target)
    signals = document.meta.signals
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
        deleted = await _delete_ids([instance.id for instance in instances], target, firing, make)
        progress.done += deleted.number
        written = [
            _Written(instance, deleted.tokens.get(_key(instance.id)) or str(bson.ObjectId()), {})
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
    deleted = _Deleted(0, {}, firing)

    async def mark_and_delete(session: Any) -> None:
        nonlocal deleted
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

    try:
        if target.in_transaction:
            await mark_and_delete(target.session)
        else:
            async with target.own_session() as session:
                await session.with_transaction(mark_and_delete)
    except PyMongoError as error:
        if refuses_stamp(error) and not target.in_transaction:
            return await _delete_plainly(ids, target, left_to_dispatchers(firing))
        if takes_no_transactions(error) and not target.in_transaction:
            return await _delete_plainly(ids, target, firing)
        if refuses_stamp(error):
            error.add_note(MARKER_REFUSED)
        if target.in_transaction or not isinstance(error, UNKNOWN):
            raise
        return await _deleted_perhaps(ids, target, firing, error)
    return deleted


async def _delete_plainly(ids: list[Any], target: Target, firing: Firing) -> "_Deleted":
    result = await target.driver.delete_many({"_id": {"$in": ids}}, session=target.session)
    return _Deleted(int(result.deleted_count), _UNKNOWN_WHICH, firing)


async def _deleted_perhaps(ids: list[Any], target: Target, firing: Firing, error: PyMongoError) -> "_Deleted":
    """After a commit of unknown outcome: all of them are gone, or none."""
    async with target.own_session() as session:
        there = await _found_out(target, session, error, ids)
    tokens = {key: "" for key in map(_key, ids) if key not in there}
    return _Deleted(len(tokens), tokens, firing, error)


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


# A plain delete of many does not say which it found: where somebody else was faster, both tell.
_UNKNOWN_WHICH: Final[dict[bytes, str]] = {}
_MARKED: Final = 1_000  # documents that are marked and deleted in one transaction


# Telling


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
            await target.fire(told, document, each.token, instance=each.instance, **each.keywords)
        except Exception as error:
            errors.append(error)
    if failure is not None:
        for raised in errors:
            failure.add_note(f"And a receiver raised {raised!r}.")
        raise failure
    raise_together(errors, f"receivers of {len(errors)} {document.__name__} documents raised")


async def _there(
    target: Target, ids: list[Any], fields: Iterable[str] = (), session: Any = None
) -> dict[bytes, Row]:
    """Those of these documents that exist, with some of their fields."""
    projection = {"_id": 1, **dict.fromkeys(fields, 1)}
    rows: list[Row] = []
    for some in chunks(ids, _IDS):
        cursor = target.driver.find({"_id": {"$in": some}}, projection, session=session or target.session)
        rows += await cursor.to_list(None)
    return {_key(row.pop("_id")): row for row in rows}


def _key(id_: Any) -> bytes:
    """An id as a key of a dict; ids may be documents."""
    return bson.encode({"": id_}, codec_options=CODEC_OPTIONS)
