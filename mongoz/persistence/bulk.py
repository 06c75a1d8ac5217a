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
from mongoz.persistence.operations import Operation, with_operations
from mongoz.persistence.origin import Origin
from mongoz.persistence.patches import apply, now_values, patch_of, settle
from mongoz.persistence.rows import Changes, hydrate, new_row, previous
from mongoz.persistence.selection import BATCH, Selection, chunks
from mongoz.persistence.targets import Target, aim
from mongoz.persistence.writes import created
from mongoz.signals.firing import Firing
from mongoz.stamps import Call

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
    token: bson.ObjectId
    keywords: dict[str, Any]


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
    rows = [new_row(instance) for instance in batch]
    firing = target.plan(signals.post_save)
    origins = [Origin(firing, target, row["_id"], Call.CREATED, natural=True) for row in rows]
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


async def _send_inserts(rows: list[Row], target: Target) -> tuple[PyMongoError | None, Sequence[int]]:
    """Insert in order; returns what went wrong, and the indexes of those that are in the database."""
    try:
        await target.driver.insert_many(rows, session=target.session)
    except BulkWriteError as error:
        return error, range(error.details["nInserted"])
    except ConnectionFailure as error:
        return error, await _inserted(rows, target, error)
    return None, range(len(rows))


async def _inserted(rows: list[Row], target: Target, error: PyMongoError) -> list[int]:
    """Which rows a command of unknown outcome has inserted; none, and a note, if that can't be found out."""
    if target.in_transaction:
        return []  # the transaction is lost as a whole
    try:
        there = await _there(target, [row["_id"] for row in rows])
    except PyMongoError:
        error.add_note(f"Whether any of {len(rows)} further documents were created could not be found out.")
        return []
    return [number for number, row in enumerate(rows) if _key(row["_id"]) in there]


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
    return bool(signals.pre_update.receivers or firing.receivers or (firing.muted and target.group))


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
    instances = [hydrate(document, row, elsewhere) for row in rows]
    changes = [await _changes(instance, patch) for instance in instances]
    firing = target.plan(document.meta.signals.post_update)
    origins = [Origin(firing, target, instance.id, Call.UPDATED, natural=True) for instance in instances]
    requests = []
    for instance, origin, change in zip(instances, origins, changes, strict=True):
        target.keep_undoable(instance)
        stamped = change._replace(changed=origin.onto(change.changed))
        update = with_operations(stamped.as_update(), patch.operations)
        requests.append(UpdateOne({"_id": instance.id}, update))
    failure, count = await _send_updates(requests, target)
    there = await _there(target, [i.id for i in instances[:count]], [o.top for o in patch.operations])
    written = []
    for instance, origin, change in zip(instances, origins, changes, strict=True):
        row = there.get(_key(instance.id))
        if row is not None:
            was = previous(instance) if firing.receivers else None
            fields = settle(instance, change, patch.operations, row, elsewhere)
            written.append(_Written(instance, origin.token, {"update_fields": fields, "previous": was}))
    progress.done += len(written)
    await _fire(document, firing, target, written, failure)
    return [each.instance for each in written]


async def _changes(instance: "Document", patch: Patch) -> Changes:
    fields = apply(instance, copy.deepcopy(patch.values))
    return await patch_of(instance, fields, frozenset(operation.attribute for operation in patch.operations))


async def _send_updates(requests: list[Any], target: Target) -> tuple[PyMongoError | None, int]:
    """Send the updates in order; returns what went wrong, and how many of the first were carried out."""
    try:
        await target.driver.bulk_write(requests, session=target.session)
    except BulkWriteError as error:
        errors = error.details["writeErrors"]
        return error, errors[0]["index"] if errors else len(requests)
    return None, len(requests)


# Deleting


async def delete(document: type["Document"], selection: Selection) -> int:
    """Delete what is selected; returns how many there were."""
    target, progress = selection.target, _Progress("deleted", selection.target)
    signals = document.meta.signals
    heard = signals.pre_delete.receivers or target.plan(signals.post_delete).receivers
    if selection.is_plain and not heard:
        result = await target.driver.delete_many(selection.filter, session=target.session, **selection.options)
        return int(result.deleted_count)
    with progress.reported():
        if heard:
            async for rows in selection.batches():
                await _delete(document, rows, target, progress)
        else:
            async for ids in selection.id_batches():
                result = await target.driver.delete_many({"_id": {"$in": ids}}, session=target.session)
                progress.done += int(result.deleted_count)
    return progress.done


async def _delete(document: type["Document"], rows: list[Row], target: Target, progress: _Progress) -> None:
    signals, elsewhere = document.meta.signals, target.elsewhere(document)
    instances = [hydrate(document, row, elsewhere) for row in rows]
    for instance in instances:
        await signals.pre_delete.send(document, instance=instance)
    firing = target.plan(signals.post_delete)
    ids = [instance.id for instance in instances]
    result = await target.driver.delete_many({"_id": {"$in": ids}}, session=target.session)
    progress.done += int(result.deleted_count)
    if result.deleted_count:  # the server does not say which: where somebody else was faster, both tell
        written = [_Written(instance, bson.ObjectId(), {}) for instance in instances]
        await _fire(document, firing, target, written)


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
            await target.fire(firing, document, str(each.token), instance=each.instance, **each.keywords)
        except Exception as error:
            errors.append(error)
    if failure is not None:
        for raised in errors:
            failure.add_note(f"And a receiver raised {raised!r}.")
        raise failure
    raise_together(errors, f"receivers of {len(errors)} {document.__name__} documents raised")


async def _there(target: Target, ids: list[Any], fields: Iterable[str] = ()) -> dict[bytes, Row]:
    """Those of these documents that exist, with some of their fields."""
    projection = {"_id": 1, **dict.fromkeys(fields, 1)}
    rows: list[Row] = []
    for some in chunks(ids, _IDS):
        cursor = target.driver.find({"_id": {"$in": some}}, projection, session=target.session)
        rows += await cursor.to_list(None)
    return {_key(row.pop("_id")): row for row in rows}


def _key(id_: Any) -> bytes:
    """An id as a key of a dict; ids may be documents."""
    return bson.encode({"": id_}, codec_options=CODEC_OPTIONS)
