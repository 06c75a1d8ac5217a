"""Creating many documents: one command where no receiver listens, bounded batches where one does."""

from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from pymongo.errors import BulkWriteError, PyMongoError

from mongoz.connection.elections import as_passing
from mongoz.connection.retry import find_out
from mongoz.persistence.bulk.progress import Progress, Row, Written, fire, fire_later, key_of, there_of
from mongoz.persistence.bulk.selection import BATCH, chunks
from mongoz.persistence.origin import Origin, originator
from mongoz.persistence.outcome.lookup import fence, is_unknown, those_written
from mongoz.persistence.outcome.refusals import explain_refusal, explain_unstorable
from mongoz.persistence.pre_signals import ask
from mongoz.persistence.rows.copies import independent_copy
from mongoz.persistence.rows.hydration import new_row
from mongoz.persistence.target import Target, aim
from mongoz.persistence.turns import in_turns
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import note
from mongoz.persistence.writes import created
from mongoz.stamps import FIELD, Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["create_many"]

D = TypeVar("D", bound="Document")


async def create_many(
    document: type[D], models: Iterable[D], collection: Any = None, session: Any = None
) -> list[D]:
    """Insert instances; see `Document.create_many`."""
    instances = list(models)
    for instance in instances:
        if not isinstance(instance, document):
            raise TypeError(f"create_many() of {document.__name__} takes its instances, not {instance!r}.")
    if len(set(map(id, instances))) < len(instances):
        again = next(each for place, each in enumerate(instances) if any(each is it for it in instances[:place]))
        raise ValueError(
            f"create_many() of {document.__name__} got an instance twice: {again!r}. An instance is one document; "
            "make one for each."
        )
    await in_turns(instances, session, _create_many(document, instances, collection, session))
    return instances


async def _create_many(document: type[D], instances: list[D], collection: Any, session: Any) -> None:
    target = await aim(document, collection, session)
    signals = document.meta.signals
    for instance in instances if signals.pre_save.receivers else ():
        await ask(signals.pre_save, document, instance=instance, created=True)
    rows = [new_row(instance) for instance in instances]
    firing = target.plan(signals.post_save)
    # Stamps too want small batches: they count for a short time only.
    heard = firing.receivers or (firing.tells and target.group)
    progress = Progress(document, "created", target)
    with progress.reported():
        for batch in chunks(list(zip(instances, rows, strict=True)), BATCH if heard else max(len(instances), 1)):
            await _insert(document, batch, target, progress)


async def _insert(document: type[D], batch: list[tuple[D, Row]], target: Target, progress: Progress) -> None:
    signals = document.meta.signals
    require_watched(document, target.collection, signals.post_save)
    rows = [row for _, row in batch]
    firing = target.plan(signals.post_save)
    make = await originator(firing, target, Call.CREATED, natural=True)

    async def unit() -> None:
        origins = [make.of(row["_id"]) for row in rows]
        stamped = [origin.onto(row) for origin, row in zip(origins, rows, strict=True)]

        def settle(instances: list[Any], stand: Collection[int]) -> list[Written]:
            written = []
            for place in sorted(stand):
                target.keep_undoable(instances[place])
                created(instances[place], rows[place], target.elsewhere(document))
                told = {"created": True, "previous": None}
                written.append(Written(instances[place], origins[place].token, told))
            return written

        instances = [instance for instance, _ in batch]
        try:
            failure, stand = await _send(stamped, origins, target)
        except _StillOpen as still:
            note(still.error)
            # Of copies, since the caller may try again with the instances.
            copies, look = [independent_copy(instance) for instance in instances], still.look

            async def found_out() -> list[Written]:
                return settle(copies, await find_out(look))

            fire_later(document, firing, target, found_out, still.held)
            raise still.error from None
        except Exception as error:
            for instance in instances:
                explain_unstorable(error, instance)
            raise
        written = settle(instances, stand)
        before, progress.done = progress.done, progress.done + len(written)
        await fire(document, firing, target, written, progress)
        if failure is not None:
            raise _counted_from(before, failure)

    await target.as_unit(firing, unit())


async def _send(
    rows: list[Row], origins: list[Origin], target: Target
) -> tuple[PyMongoError | None, Collection[int]]:
    """Insert in order; returns what went wrong, and the places of those that are in the database."""
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
                    return error, ()  # the transaction is lost as a whole
                return error, await _found_out(target, held, session, error, rows, origins)
    except BulkWriteError as error:
        if rows and FIELD in rows[0]:
            explain_refusal(error)
        return error, range(error.details["nInserted"])
    return None, range(len(rows))


def _counted_from(before: int, error: PyMongoError) -> PyMongoError:
    """The error of a batch, with the places that its documents have in the whole call."""
    if before and isinstance(error, BulkWriteError):
        details: Any = error.details
        details["nInserted"] += before
        for refusal in details["writeErrors"]:
            refusal["index"] += before
    return error


class _StillOpen(Exception):
    """Nobody can tell now what became of a batch.

    Args:
        error: of the write.
        look: finds out the places of its documents that stand, once the server answers.
        held: what that needs.
    """

    def __init__(
        self, error: PyMongoError, look: Callable[[], Awaitable[Collection[int]]], held: AsyncExitStack
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.look = look
        self.held = held


async def _found_out(
    target: Target,
    held: AsyncExitStack,
    session: Any,
    error: PyMongoError,
    sent: list[Row],
    origins: list[Origin],
) -> Collection[int]:
    """Which of a batch stand after a command of unknown outcome, once it can do nothing more.

    Where nothing is stamped, documents that are there count as inserted.

    Raises:
        _StillOpen: that can't be found out now, and a dispatcher relies on this process.
    """
    ids = [row["_id"] for row in sent]
    stamped = any(origin.stamp for origin in origins)

    async def look() -> Collection[int]:
        await fence(target, session, ids[0])
        rows = await there_of(target, ids, (FIELD,), surely=True)
        if not stamped:  # of those with the same id the first was inserted
            first = {key_of(id_): place for place, id_ in reversed(list(enumerate(ids)))}
            return {first[key] for key in rows}
        places: dict[bytes, int] = {origin.stamp: place for place, origin in enumerate(origins) if origin.stamp}
        found: dict[bytes, Row | None] = {stamp: rows.get(key_of(ids[place])) for stamp, place in places.items()}
        return {places[stamp] for stamp in await those_written(target, found, inserted=True)}

    try:
        return await look()
    except PyMongoError:
        if stamped:
            raise _StillOpen(error, look, held.pop_all()) from None
        error.add_note(f"Whether any of {len(ids)} further documents were written could not be found out.")
        return ()
