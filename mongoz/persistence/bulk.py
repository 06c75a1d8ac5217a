"""Creating and updating many documents: one command where nobody listens, bounded batches where somebody does."""

import copy
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from mongoz.connection.elections import as_passing
from mongoz.fields.storage import stored, stored_names
from mongoz.persistence.asking import ask
from mongoz.persistence.batches import Progress, Row, StillOpen, Written, key_of, settle_and_fire, there_of
from mongoz.persistence.operations import Operation, with_operations
from mongoz.persistence.origin import Origin, originator
from mongoz.persistence.outcomes import fence, is_unknown, those_written
from mongoz.persistence.patches import apply, attribute_names, now_values, patch_of, settle
from mongoz.persistence.refusals import explain_refusal, explain_unstorable
from mongoz.persistence.rows import Changes, hydrate, new_row, previous
from mongoz.persistence.selection import BATCH, Selection, chunks
from mongoz.persistence.targets import Target, aim
from mongoz.persistence.watching import require_watched
from mongoz.persistence.writes import created
from mongoz.stamps import FIELD, Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Patch", "create_many", "update_and_count", "update_and_load"]

D = TypeVar("D", bound="Document")


class Patch(NamedTuple):
    """What a bulk update does to each document.

    Attributes:
        values: attribute name -> new value.
        operations: what the server computes.
    """

    values: dict[str, Any]
    operations: tuple[Operation, ...] = ()


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
    progress = Progress("created", target)
    with progress.reported():
        for batch in chunks(instances, BATCH if heard else max(len(instances), 1)):
            await _insert(document, batch, target, progress)
    return instances


async def _insert(document: type[D], batch: list[D], target: Target, progress: Progress) -> None:
    signals = document.meta.signals
    for instance in batch:
        await ask(signals.pre_save, document, instance=instance, created=True)
    require_watched(document, target.collection, signals.post_save)
    rows = [new_row(instance) for instance in batch]
    firing = target.plan(signals.post_save)
    make = await originator(firing, target, Call.CREATED, natural=True)

    async def unit() -> None:
        origins = [make.of(row["_id"]) for row in rows]
        stamped = [origin.onto(row) for origin, row in zip(origins, rows, strict=True)]

        def conclude(instances: list[Any], there: dict[bytes, Row]) -> list[Written]:
            written = []
            for instance, row, origin in zip(instances, rows, origins, strict=True):
                if key_of(row["_id"]) in there:
                    target.keep_undoable(instance)
                    created(instance, row, target.elsewhere(document))
                    told = {"created": True, "previous": None}
                    written.append(Written(instance, origin.token, told))
            progress.done += len(written)
            return written

        sending = _send_inserts(stamped, origins, target)
        try:
            await settle_and_fire(document, firing, target, batch, sending, conclude)
        except Exception as error:
            for instance in batch:
                explain_unstorable(error, instance)
            raise

    await target.as_unit(firing, unit())


async def _send_inserts(
    rows: list[Row], origins: list[Origin], target: Target
) -> tuple[PyMongoError | None, dict[bytes, Row]]:
    """Insert in order; returns what went wrong, and those that are in the database."""
    ids, failure = [row["_id"] for row in rows], None
    try:
        async with AsyncExitStack() as held:
            session = await held.enter_async_context(target.own_session())
            try:
                await target.driver.insert_many(rows, session=session)
            except PyMongoError as raised:
                error = await as_passing(raised, target.client)
                if isinstance(error, BulkWriteError) or not is_unknown(error):
                    raise
                if target.in_transaction:
                    return error, {}  # the transaction is lost as a whole
                return error, await _found_out(target, held, session, error, ids, origins, inserted=True)
    except BulkWriteError as error:
        if rows and FIELD in rows[0]:
            explain_refusal(error)
        failure, ids = error, ids[: error.details["nInserted"]]
    return failure, {key_of(id_): {} for id_ in ids}


async def _found_out(
    target: Target,
    held: AsyncExitStack,
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
        StillOpen: that can't be found out now, and a dispatcher relies on this process.
    """
    stamped = any(origin.stamp for origin in origins)

    async def look() -> dict[bytes, Row]:
        await fence(target, session, ids[0])
        rows = await there_of(target, ids, (*fields, FIELD), surely=True)
        return await _ours(target, rows, ids, origins, inserted=inserted) if stamped else rows

    try:
        return await look()
    except PyMongoError:
        if stamped:
            raise StillOpen(error, look, held.pop_all()) from None
        error.add_note(f"Whether any of {len(ids)} further documents were written could not be found out.")
        return {}


async def _ours(
    target: Target, rows: dict[bytes, Row], ids: list[Any], origins: list[Origin], *, inserted: bool = False
) -> dict[bytes, Row]:
    """Those documents that went through the writes of these origins, as far as those have stamps."""
    pairs = zip(ids, origins, strict=True)
    keys: dict[bytes, bytes] = {origin.stamp: key_of(id_) for id_, origin in pairs if origin.stamp}
    written = await those_written(target, {stamp: rows.get(key) for stamp, key in keys.items()}, inserted=inserted)
    return {keys[stamp]: {n: v for n, v in row.items() if n != FIELD} for stamp, row in written.items()}


# Updating


async def update_and_count(document: type["Document"], selection: Selection, patch: Patch) -> int:
    """Update what is selected.

    Returns:
        How many documents matched.
    """
    target, progress = selection.target, Progress("updated", selection.target)
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
    target, progress = selection.target, Progress("updated", selection.target)
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


async def _update(document: type[D], rows: list[Row], patch: Patch, target: Target, progress: Progress) -> list[D]:
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

        def conclude(instances: list[Any], there: dict[bytes, Row]) -> list[Written]:
            written = []
            for instance, origin, change, firing in zip(instances, origins, changes, firings, strict=True):
                row = there.get(key_of(instance.id))
                if row is not None:
                    was = previous(instance) if firing.receivers else None
                    names = settle(instance, change, patch.operations, row, elsewhere)
                    told = {"update_fields": names, "previous": was}
                    written.append(Written(instance, origin.token, told, firing))
            progress.done += len(written)
            return written

        sending = _send_updates(requests, instances, origins, fields, target)
        return await settle_and_fire(document, heard, target, instances, sending, conclude)

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
        async with AsyncExitStack() as held:
            session = await held.enter_async_context(target.own_session())
            try:
                result = await target.driver.bulk_write(requests, session=session)
            except PyMongoError as raised:
                error = await as_passing(raised, target.client)
                known = isinstance(error, BulkWriteError) or not is_unknown(error)
                if known or target.in_transaction or not stamped:
                    raise error  # noqa: B904 - it is the same, or has its cause
                return error, await _found_out(target, held, session, error, ids, origins, fields)
    except BulkWriteError as error:
        if stamped:
            explain_refusal(error)
        failure, errors = error, error.details["writeErrors"]
        ids = ids[: errors[0]["index"]] if errors else ids
    else:
        if result.matched_count == len(ids) and not fields:
            return None, {key_of(id_): {} for id_ in ids}
    return failure, await _read_back(target, ids, origins[: len(ids)], fields)


async def _read_back(target: Target, ids: list[Any], origins: list[Origin], fields: list[str]) -> dict[bytes, Row]:
    """What was updated, and some of its fields.

    Raises:
        StillOpen: the server does not answer any more, and a dispatcher relies on this process.
    """
    try:
        return await there_of(target, ids, fields)
    except PyMongoError as error:
        if target.in_transaction or not any(origin.stamp for origin in origins):
            raise

        async def look() -> dict[bytes, Row]:
            rows = await there_of(target, ids, (*fields, FIELD), surely=True)
            return await _ours(target, rows, ids, origins)

        raise StillOpen(error, look, AsyncExitStack()) from None
