"""Inserts an instance."""

from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, TypeVar

from pymongo.errors import DuplicateKeyError

from mongoz.connection.cancellation import uninterrupted
from mongoz.ids import new_token
from mongoz.model.base import Model
from mongoz.model.state import remember
from mongoz.persistence.errors import NotWritten
from mongoz.persistence.origin import Origin, make_originator
from mongoz.persistence.outcome.refusals import explain_unstorable
from mongoz.persistence.pre_signals import fire_pre_signal
from mongoz.persistence.rows.validation import new_row
from mongoz.persistence.target import WriteTarget, default_target, resolve_target
from mongoz.persistence.turns import Turn, run_in_turn
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import Write, fire_if_written, write_and_fire
from mongoz.signals.post_signals import Firing
from mongoz.stamps import Call

__all__ = ["insert_instance", "insert_unless_exists", "insert_within_turn", "mark_inserted"]

D = TypeVar("D", bound=Model)


def insert_instance(instance: D, collection: Any = None, session: Any = None) -> Coroutine[Any, Any, D]:
    """Insert an instance; see `Document.create`."""
    return run_in_turn(instance, session, insert_within_turn, collection)


async def insert_within_turn(turn: Turn, instance: D, session: Any, collection: Any) -> D:
    """Insert an instance, without waiting for its turn (see `mongoz/persistence/turns.py`)."""
    meta = instance.meta
    document, signals = meta.document, meta.signals
    target = default_target(meta, turn.loop) if collection is None and session is None else None
    if target is None:
        target = await resolve_target(document, collection, session)
    if signals.pre_save.receivers:  # this check saves a call
        turn.show()
        await fire_pre_signal(signals.pre_save, document, instance=instance, created=True)
    if target.collection is not meta.collection:
        require_watched(document, target.collection, signals.post_save)
    row = new_row(instance)
    if target.transaction is not None:
        target.undo_on_abort(instance)
    is_heard = signals.post_save.receivers or target.group is not None
    firing = target.plan(signals.post_save) if is_heard else None
    if firing is None or not firing.concerns_dispatchers:
        await _insert_unstamped(instance, target, row)
        return instance
    turn.show()
    if target.group is None and not target.in_transaction:
        await target.as_unit(firing, _insert_and_fire(instance, target, firing, row))
        return instance
    origin = (await make_originator(firing, target, Call.CREATED, natural=True)).origin_for(row["_id"])
    if firing.receivers and not target.in_transaction:
        await uninterrupted(_insert_stamped(instance, target, firing, origin, row))
    else:
        await _insert_simply(instance, target, firing, origin, row)
    return instance


async def _insert_and_fire(instance: Model, target: WriteTarget, firing: Firing, row: dict[str, Any]) -> None:
    """Insert a row without a stamp; then run the receivers."""
    await _insert_unstamped(instance, target, row)
    if firing.receivers:
        keywords = {"instance": instance, "created": True, "previous": None}
        await firing.run(instance.meta.document, new_token(), keywords)


async def _insert_unstamped(instance: Model, target: WriteTarget, row: dict[str, Any]) -> None:
    """Insert a row without a stamp."""
    try:
        await target.driver_collection.insert_one(row, session=target.session)
    except Exception as error:
        explain_unstorable(error, instance)
        raise
    mark_inserted(instance, row, target)


async def _insert_stamped(
    instance: Model, target: WriteTarget, firing: Firing, origin: Origin, row: dict[str, Any]
) -> None:
    """Insert a row with a stamp outside of transactions; then run the receivers.

    Optimized: `write_and_fire` does the same, but takes a tenth more instructions.
    """
    try:
        session = await target.take_session()
        try:
            await target.driver_collection.insert_one(origin.stamped(row), session=session)
        except BaseException as error:
            await fire_if_written(_write_of(instance, target, firing, origin, row), session, error)
        else:
            if not target.give_back_session(session):
                await session.end_session()
            mark_inserted(instance, row, target)
            sender, keywords = instance.meta.document, {"instance": instance, "created": True, "previous": None}
            await firing.run(sender, origin.token, keywords, origin.claim)
    finally:
        origin.leave()


async def _insert_simply(
    instance: Model, target: WriteTarget, firing: Firing, origin: Origin, row: dict[str, Any]
) -> None:
    """Insert a row in a transaction, or a row that no receiver of this process gets.

    In a transaction of mongoz, the commit runs the receivers.
    """

    def send(session: Any) -> Awaitable[Any]:
        return target.driver_collection.insert_one(origin.stamped(row), session=session)  # type: ignore[no-any-return]

    await write_and_fire(_write_of(instance, target, firing, origin, row), send)


def _write_of(instance: Model, target: WriteTarget, firing: Firing, origin: Origin, row: dict[str, Any]) -> Write:
    def settle(instance: Model, _: object) -> dict[str, Any]:
        mark_inserted(instance, row, target)
        return {"instance": instance, "created": True, "previous": None}

    return Write(target, firing, origin, instance, row["_id"], settle, inserts=True)


def mark_inserted(instance: Model, row: dict[str, Any], target: WriteTarget) -> None:
    """Give an instance its id and its state in the database.

    Args:
        instance: the inserted instance.
        row: the row without a stamp.
        target: the target of the insert.
    """
    values = instance.__dict__
    if values.get("id") is None:  # keep an id of the application, because the stored id may have another type
        values["id"] = row["_id"]
    meta = instance.meta
    own = target.collection is meta.collection  # checked here too, which saves a call
    remember(instance, row, None if own else target.other_collection(meta.document))


async def insert_unless_exists(
    instance: Model, filter: Mapping[str, Any], target: WriteTarget, *, by_id: bool = False
) -> bool:
    """Insert an instance in one atomic command, unless a document matches the filter.

    Args:
        instance: the new instance, validated.
        filter: a document that matches this filter prevents the insert.
        target: the target.
        by_id: the filter requires the `_id` of the instance.

    Returns:
        Whether the instance was inserted. If not, `pre_save` has fired, and `post_save` has not.

    Raises:
        pymongo.errors.DuplicateKeyError: a document that does not match the filter has the same value in a unique
            index.
    """
    document = type(instance).meta.document
    signals = document.meta.signals
    await fire_pre_signal(signals.pre_save, document, instance=instance, created=True)
    require_watched(document, target.collection, signals.post_save)
    row = new_row(instance)
    firing = target.plan(signals.post_save)
    if target.transaction is not None:
        target.undo_on_abort(instance)
    origin = (await make_originator(firing, target, Call.CREATED, natural=True)).origin_for(row["_id"])

    async def send(session: Any) -> dict[str, Any]:
        try:
            stamped = origin.stamped(row)
            if by_id and not _has_operable_names(row):  # the `_id` alone prevents a second document
                await target.driver_collection.insert_one(stamped, session=session)
                return {}
            update = {"$setOnInsert": stamped} if _has_operable_names(row) else _as_pipeline(stamped)
            result = await target.driver_collection.update_one(filter, update, upsert=True, session=session)
        except DuplicateKeyError:
            if await target.raw_collection.find_one(filter, {"_id": 1}, session=session) is None:
                raise
            raise _DocumentExists from None
        if result.upserted_id is None:
            raise _DocumentExists
        return {}

    try:
        await write_and_fire(_write_of(instance, target, firing, origin, row), send)
    except _DocumentExists:
        return False
    return True


def _has_operable_names(row: Mapping[str, Any]) -> bool:
    """Whether update operators support the names of a row: a name with a dot would be a path."""
    return not any(not name or "." in name or name.startswith("$") for name in row)


def _as_pipeline(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An update that writes the row into a new document, and does not change an existing one."""
    is_new = {"$eq": [{"$type": "$_id"}, "missing"]}
    return [{"$replaceWith": {"$cond": [is_new, {"$literal": row}, "$$ROOT"]}}]


class _DocumentExists(NotWritten):
    """An existing document matches the filter."""
