"""Inserting a document unless one like it is there."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pymongo.errors import DuplicateKeyError

from mongoz.persistence.origin import originator
from mongoz.persistence.pre_signals import ask
from mongoz.persistence.rows.hydration import new_row
from mongoz.persistence.target import Target
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import Write, send_and_tell
from mongoz.persistence.writes import created
from mongoz.stamps import Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["insert_unless"]


async def insert_unless(
    instance: "Document", filter: Mapping[str, Any], target: Target, *, by_id: bool = False
) -> bool:
    """Insert an instance unless a document matches; in one atomic command.

    Args:
        instance: new, validated.
        filter: what a document that is there matches.
        target: where to.
        by_id: the filter asks for the `_id` of the instance.

    Returns:
        Whether it was inserted. If not, `pre_save` has run, and `post_save` has not.

    Raises:
        pymongo.errors.DuplicateKeyError: a document that does not match has one of its unique values.
    """
    document = type(instance).meta.document
    signals = document.meta.signals
    await ask(signals.pre_save, document, instance=instance, created=True)
    require_watched(document, target.collection, signals.post_save)
    row = new_row(instance)
    firing = target.plan(signals.post_save)
    origin = (await originator(firing, target, Call.CREATED, natural=True)).of(row["_id"])

    async def send(session: Any) -> dict[str, Any]:
        try:
            stamped = origin.onto(row)
            if by_id and not _is_operable(row):  # the `_id` alone keeps a second one away
                await target.driver.insert_one(stamped, session=session)
                return {}
            update = {"$setOnInsert": stamped} if _is_operable(row) else _as_pipeline(stamped)
            result = await target.driver.update_one(filter, update, upsert=True, session=session)
        except DuplicateKeyError:
            if await target.lenient.find_one(filter, {"_id": 1}, session=session) is None:
                raise
            raise _Occupied from None
        if result.upserted_id is None:
            raise _Occupied
        return {}

    def settle(instance: "Document", _: dict[str, Any]) -> dict[str, Any]:
        target.keep_undoable(instance)
        created(instance, row, target.elsewhere(document))
        return {"instance": instance, "created": True, "previous": None}

    try:
        await send_and_tell(Write(target, firing, origin, instance, row["_id"], send, settle, inserts=True))
    except _Occupied:
        return False
    return True


def _is_operable(row: Mapping[str, Any]) -> bool:
    """Whether update operators take the names of a row as they are: not dots, which are a path to them."""
    return not any(not name or "." in name or name.startswith("$") for name in row)


def _as_pipeline(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An update that makes a new document the row, and leaves one that is there as it is."""
    is_new = {"$eq": [{"$type": "$_id"}, "missing"]}
    return [{"$replaceWith": {"$cond": [is_new, {"$literal": row}, "$$ROOT"]}}]


class _Occupied(Exception):
    """Another document is there."""
