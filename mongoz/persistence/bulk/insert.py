"""Inserts many instances, in one command or in batches.

One command is enough if no receiver of this process runs and no stamp is needed.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

import bson
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from mongoz.connection.elections import as_transient
from mongoz.connection.retry import ask_until_answered
from mongoz.model.base import Model
from mongoz.persistence.bulk.progress import (
    BulkProgress,
    Row,
    WrittenDocument,
    find_existing,
    fire_for_each,
    fire_when_known,
    id_key,
)
from mongoz.persistence.bulk.selection import BATCH, split_into_chunks
from mongoz.persistence.insert import mark_inserted
from mongoz.persistence.origin import Origin, make_originator
from mongoz.persistence.outcome.lookup import fence_session, find_written_rows, is_outcome_unknown
from mongoz.persistence.outcome.refusals import explain_refusal, explain_unstorable
from mongoz.persistence.pre_signals import fire_pre_signal
from mongoz.persistence.rows.copies import independent_copy
from mongoz.persistence.rows.validation import new_row
from mongoz.persistence.target import WriteTarget, resolve_target
from mongoz.persistence.turns import run_in_turns
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import note_unknown_outcome
from mongoz.stamps import FIELD, Call

__all__ = ["insert_many"]

D = TypeVar("D", bound=Model)

# Rows with fewer bytes in total fit into one command of the driver, even with encryption.
_ONE_COMMAND: Final = 2_000_000


async def insert_many(
    document: type[D], models: Iterable[D], collection: Any = None, session: Any = None
) -> list[D]:
    """Insert instances; see `Document.create_many`."""
    instances = list(models)
    for instance in instances:
        if not isinstance(instance, document):
            raise TypeError(f"create_many() takes instances of {document.__name__}, not {instance!r}.")
    if len(set(map(id, instances))) < len(instances):
        double = next(each for place, each in enumerate(instances) if any(each is it for it in instances[:place]))
        raise ValueError(
            f"create_many() of {document.__name__} got an instance twice: {double}. "
            "An instance is one document; make one instance for each document."
        )
    await run_in_turns(instances, session, _insert_many(document, instances, collection, session))
    return instances


async def _insert_many(document: type[D], instances: list[D], collection: Any, session: Any) -> None:
    target = await resolve_target(document, collection, session)
    signals = document.meta.signals
    for instance in instances if signals.pre_save.receivers else ():
        await fire_pre_signal(signals.pre_save, document, instance=instance, created=True)
    rows = [new_row(instance) for instance in instances]
    firing = target.plan(signals.post_save)
    # Stamps need small batches too, since they are valid for a short time only.
    needs_batches = firing.receivers or (firing.concerns_dispatchers and target.group)
    size = BATCH if needs_batches else max(len(instances), 1)
    progress = BulkProgress(document, "created", target)
    with progress.reported():
        for batch in split_into_chunks(list(zip(instances, rows, strict=True)), size):
            await _insert_batch(document, batch, target, progress)


async def _insert_batch(
    document: type[D], batch: list[tuple[D, Row]], target: WriteTarget, progress: BulkProgress
) -> None:
    signals = document.meta.signals
    require_watched(document, target.collection, signals.post_save)
    rows = [row for _, row in batch]
    firing = target.plan(signals.post_save)

    async def unit() -> None:
        originator = await make_originator(firing, target, Call.CREATED, natural=True)
        origins = [originator.origin_for(row["_id"]) for row in rows]
        try:
            await insert(origins)
        finally:
            for origin in () if target.in_transaction else origins:
                origin.leave()

    async def insert(origins: list[Origin]) -> None:
        stamped = [origin.stamped(row) for origin, row in zip(origins, rows, strict=True)]

        def settle(instances: list[Any], inserted: Collection[int]) -> list[WrittenDocument]:
            written = []
            for place in sorted(inserted):
                target.undo_on_abort(instances[place])
                mark_inserted(instances[place], rows[place], target)
                keywords = {"created": True, "previous": None}
                token, _, claim = origins[place]
                written.append(WrittenDocument(instances[place], token, keywords, claim=claim))
            return written

        instances = [instance for instance, _ in batch]
        try:
            failure, inserted = await _send(stamped, origins, target)
        except _InsertOutcomeUnknown as unknown:
            note_unknown_outcome(unknown.error)
            # Receivers get copies, since the caller may insert the instances again.
            copies, look_up = [independent_copy(instance) for instance in instances], unknown.look_up

            async def find_written() -> list[WrittenDocument]:
                return settle(copies, await ask_until_answered(look_up))

            fire_when_known(document, firing, target, find_written, unknown.held)
            raise unknown.error from None
        except Exception as error:
            for instance in instances:
                explain_unstorable(error, instance)
            if _were_refused(error, stamped, target):
                for origin in origins:
                    origin.undone()
            raise
        if isinstance(failure, BulkWriteError):
            for origin in origins[len(inserted) :]:
                origin.undone()
        written = settle(instances, inserted)
        before, progress.done = progress.done, progress.done + len(written)
        await fire_for_each(document, firing, target, written, progress)
        if failure is not None:
            raise _shift_places(before, failure)

    await target.as_unit(firing, unit())


async def _send(
    rows: list[Row], origins: list[Origin], target: WriteTarget
) -> tuple[PyMongoError | None, Collection[int]]:
    """Insert in order; returns the error, if any, and the places (indexes in `rows`) of the inserted documents."""
    try:
        async with AsyncExitStack() as held:
            session = await held.enter_async_context(target.own_session())
            try:
                await target.driver_collection.insert_many(rows, session=session)
            except PyMongoError as raised:
                error = await as_transient(raised, target.client)
                if isinstance(error, BulkWriteError) or not is_outcome_unknown(error):
                    raise
                if target.in_transaction:
                    return error, ()  # the server aborts the whole transaction
                return error, await _find_inserted(target, held, session, error, rows, origins)
    except BulkWriteError as error:
        if rows and FIELD in rows[0]:
            explain_refusal(error)
        return error, range(error.details["nInserted"])
    return None, range(len(rows))


def _were_refused(error: Exception, rows: list[Row], target: WriteTarget) -> bool:
    """Whether the server certainly inserted none of the rows: it answered their only command with this error.

    The driver splits many rows into several commands, and the first of them may have taken effect.
    """
    if not isinstance(error, OperationFailure):
        return False
    options = target.driver_collection.codec_options
    return sum(len(bson.encode(row, codec_options=options)) for row in rows) < _ONE_COMMAND


def _shift_places(before: int, error: PyMongoError) -> PyMongoError:
    """The error of a batch, as an error of the whole call.

    Its indexes and its number of inserted documents then also count the documents of earlier batches.

    Args:
        before: the number of documents that earlier batches inserted.
        error: the error of the batch.
    """
    if before and isinstance(error, BulkWriteError):
        details: Any = error.details
        details["nInserted"] += before
        for refusal in details["writeErrors"]:
            refusal["index"] += before
    return error


class _InsertOutcomeUnknown(Exception):
    """The outcome of a batch is unknown at present.

    Args:
        error: the error of the command.
        look_up: finds the places of the inserted documents, if the server answers.
        held: the resources that `look_up` needs.
    """

    def __init__(
        self, error: PyMongoError, look_up: Callable[[], Awaitable[Collection[int]]], held: AsyncExitStack
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.look_up = look_up
        self.held = held


async def _find_inserted(
    target: WriteTarget,
    held: AsyncExitStack,
    session: Any,
    error: PyMongoError,
    sent: list[Row],
    origins: list[Origin],
) -> Collection[int]:
    """The places of the inserted documents after a command of unknown outcome.

    Without stamps an existing document counts as inserted.

    Raises:
        _InsertOutcomeUnknown: the server does not answer, and the rows are stamped, so dispatchers leave receivers
            to this process.
    """
    ids = [row["_id"] for row in sent]
    stamped = any(origin.stamp for origin in origins)

    async def look_up() -> Collection[int]:
        await fence_session(target, session, ids[0])
        rows = await find_existing(target, ids, (FIELD,), durable=True)
        if not stamped:  # if several rows have the same id, the first was inserted
            first = {id_key(id_): place for place, id_ in reversed(list(enumerate(ids)))}
            return {first[key] for key in rows}
        places: dict[bytes, int] = {origin.stamp: place for place, origin in enumerate(origins) if origin.stamp}
        found: dict[bytes, Row | None] = {stamp: rows.get(id_key(ids[place])) for stamp, place in places.items()}
        return {places[stamp] for stamp in await find_written_rows(target, found, inserted=True)}

    try:
        return await look_up()
    except PyMongoError:
        if stamped:
            raise _InsertOutcomeUnknown(error, look_up, held.pop_all()) from None
        error.add_note(f"It is not known whether any of {len(ids)} further documents were written.")
        return ()
