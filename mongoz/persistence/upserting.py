"""Inserting a document unless one like it is there."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pymongo.errors import DuplicateKeyError

from mongoz.persistence.origin import Origin
from mongoz.persistence.rows import new_row
from mongoz.persistence.targets import Target
from mongoz.persistence.writes import created
from mongoz.stamps import Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["insert_unless"]


async def insert_unless(instance: "Document", filter: Mapping[str, Any], target: Target) -> bool:
    """Insert an instance unless a document matches; in one atomic command.

    Args:
        instance: new, validated.
        filter: what a document that is there matches.
        target: where to.

    Returns:
        Whether it was inserted. If not, `pre_save` has run, and `post_save` has not.

    Raises:
        pymongo.errors.DuplicateKeyError: a document that does not match has one of its unique values.
    """
    document = type(instance).meta.document
    signals = document.meta.signals
    await signals.pre_save.send(document, instance=instance, created=True)
    row = new_row(instance)
    firing = target.plan(signals.post_save)
    origin = Origin(firing, target, row["_id"], Call.CREATED, natural=True)
    try:
        result = await target.driver.update_one(
            filter, {"$setOnInsert": origin.onto(row)}, upsert=True, session=target.session
        )
    except DuplicateKeyError:
        if await target.driver.find_one(filter, {"_id": 1}, session=target.session) is None:
            raise
        return False
    if result.upserted_id is None:
        return False
    target.keep_undoable(instance)
    created(instance, row, target)
    await target.fire(firing, document, str(origin.token), instance=instance, created=True, previous=None)
    return True
