"""Inserts an instance."""

from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, TypeVar

from pymongo.errors import DuplicateKeyError

from mongoz.connection import Collection
from mongoz.connection.cancellation import uninterrupted
from mongoz.ids import new_token
from mongoz.model.base import Model
from mongoz.model.state import remember
from mongoz.persistence.errors import NotWritten
from mongoz.persistence.origin import make_originator, must_stamp, unstamped_origin
from mongoz.persistence.outcome.refusals import explain_unstorable
from mongoz.persistence.pre_signals import fire_pre_signal
from mongoz.persistence.rows.validation import new_row
from mongoz.persistence.target import WriteTarget, default_target, resolve_target
from mongoz.persistence.turns import run_in_turn
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import Write, write_and_fire
from mongoz.signals.post_signals import Firing
from mongoz.stamps import Call

__all__ = ["insert_instance", "insert_unless_exists", "insert_within_turn", "mark_inserted"]

D = TypeVar("D", bound=Model)


def insert_instance(instance: D, collection: Any = None, session: Any = None) -> Coroutine[Any, Any, D]:
    """Insert an instance; see `Document.create`."""
    return run_in_turn(instance, session, insert_within_turn(instance, collection, session))


async def insert_within_turn(instance: D, collection: Any, session: Any) -> D:
    """Insert an instance, without waiting for its turn."""
    meta = instance.meta
    document, signals = meta.document, meta.signals
    target = default_target(meta) if collection is None and session is None else None
    if target is None:
        target = await resolve_target(document, collection, session)
    if signals.pre_save.receivers:  # this check saves a call
        await fire_pre_signal(signals.pre_save, document, instance=instance, created=True)
    other_collection = None
    if target.collection is not meta.collection:
        require_watched(document, target.collection, signals.post_save)
        other_collection = target.other_collection(document)
    row = new_row(instance)
    firing = target.plan(signals.post_save)
    if target.transaction is not None:
        target.undo_on_abort(instance)
    if not firing.concerns_dispatchers:
        try:
            await target.driver_collection.insert_one(row, session=target.session)
        except Exception as error:
            explain_unstorable(error, instance)
            raise
        mark_inserted(instance, row, other_collection)
        return instance
    if must_stamp(firing, target, natural=True):
        origin = (await make_originator(firing, target, Call.CREATED, natural=True)).origin_for(row["_id"])
    elif target.in_transaction:
        origin = unstamped_origin(firing)
    else:  # the most frequent case; the code below does the same, but slower
        unit = _insert_and_fire(instance, target, firing, row, other_collection)
        await (uninterrupted(unit) if firing.receivers else unit)
        return instance

    def send(session: Any) -> Awaitable[Any]:
        return target.driver_collection.insert_one(origin.stamped(row), session=session)  # type: ignore[no-any-return]

    def settle(instance: Model, _: object) -> dict[str, Any]:
        mark_inserted(instance, row, other_collection)
        return {"instance": instance, "created": True, "previous": None}

    await write_and_fire(Write(target, firing, origin, instance, row["_id"], send, settle, True))
    return instance


async def _insert_and_fire(
    instance: Model, target: WriteTarget, firing: Firing, row: dict[str, Any], other_collection: Collection | None
) -> None:
    """Insert a row without a stamp, outside of transactions; then run the receivers."""
    try:
        await target.driver_collection.insert_one(row, session=target.session)
    except Exception as error:
        explain_unstorable(error, instance)
        raise
    mark_inserted(instance, row, other_collection)
    await firing.run(instance.meta.document, new_token(), instance=instance, created=True, previous=None)


def mark_inserted(instance: Model, row: dict[str, Any], other_collection: Collection | None) -> None:
    """Give an instance its id and its state in the database.

    Args:
        instance: the inserted instance.
        row: the row without a stamp.
        other_collection: the collection, unless it is the document's own.
    """
    if instance.id is None:  # keep an id of the application, because the stored id may have another type
        instance.__dict__["id"] = row["_id"]
    remember(instance, row, other_collection)


async def insert_unless_exists(
    instance: Model, filter: Mapping[str, Any], target: WriteTarget, *, by_id: bool = False
) -> bool:
    """Insert an instance unless a document matches, in one atomic command.

    Args:
        instance: new and validated.
        filter: the filter that an existing document matches.
        target: the target.
        by_id: the filter names the `_id` of the instance.

    Returns:
        Whether it was inserted. If not, `pre_save` has fired, and `post_save` has not.

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

    def settle(instance: Model, _: dict[str, Any]) -> dict[str, Any]:
        target.undo_on_abort(instance)
        mark_inserted(instance, row, target.other_collection(document))
        return {"instance": instance, "created": True, "previous": None}

    try:
        await write_and_fire(Write(target, firing, origin, instance, row["_id"], send, settle, inserts=True))
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
