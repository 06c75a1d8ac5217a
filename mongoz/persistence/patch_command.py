"""Sends the commands of an update: the patch, and the read of the document as it is now."""

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import ReturnDocument
from pymongo.read_preferences import ReadPreference

from mongoz.model.base import Model
from mongoz.persistence.errors import DocumentChanged, document_gone
from mongoz.persistence.operations.limits import require_within_limits
from mongoz.persistence.operations.operation import Operation, with_operations
from mongoz.persistence.outcome.refusals import explain_unstorable
from mongoz.persistence.rows.changes import Changes
from mongoz.persistence.rows.validation import id_of
from mongoz.persistence.target import WriteTarget

__all__ = ["read_current", "send_alone", "send_patch"]


async def send_alone(instance: Model, target: WriteTarget, patch: Changes) -> None:
    """Send a patch that has no stamp, no receivers in this process and no further conditions.

    Raises:
        DocumentNotFound: the document does not exist any more.
    """
    # Most patches remove no field. For them this line saves a call.
    update = {"$set": patch.changed} if patch.changed and not patch.removed else patch.as_update()
    if not update:
        await send_patch(instance, target, patch, session=target.session)
        return
    session = target.session
    try:
        # Without a session, `target.driver_collection` is the same collection, but takes one more call.
        collection = target.opened.driver_collection if session is None else target.driver_collection
        result = await collection.update_one({"_id": id_of(instance)}, update, session=session)
    except Exception as error:
        explain_unstorable(error, instance)
        raise
    answer = result.raw_result  # `matched_count` calls three functions
    if not (answer and answer.get("n")) and not result.matched_count:
        raise document_gone(instance, target)


async def send_patch(
    instance: Model,
    target: WriteTarget,
    patch: Changes,
    operations: Sequence[Operation] = (),
    session: Any = None,
    conditions: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Send a patch; returns the fields of the operations as the server computed them.

    Args:
        instance: the instance of the document.
        target: the target.
        patch: the fields to set and remove.
        operations: the changes that the server computes.
        session: the session of the command.
        conditions: further conditions on the document.

    Raises:
        DocumentNotFound: the document does not exist any more.
        pydantic.ValidationError: a computed value would not fit its field.
        DocumentChanged: a condition is not true any more.
    """
    key: dict[str, Any] = {"_id": id_of(instance)}
    if conditions:
        key = {"$and": [key, *conditions]}
    update = with_operations(patch.as_update(), operations)
    row: dict[str, Any] | None = {}
    if operations:  # only the server knows the computed values
        wanted = dict.fromkeys((operation.top for operation in operations), 1)
        row = target.decode(
            await target.raw_collection.find_one_and_update(
                key, update, projection=wanted, return_document=ReturnDocument.AFTER, session=session
            )
        )
        found = row is not None
    elif update:
        result = await target.driver_collection.update_one(key, update, session=session)
        found = bool(result.matched_count)
    else:  # nothing to write, but a missing document is an error
        found = bool(await target.driver_collection.count_documents(key, limit=1, session=session))
    if not found:
        if conditions:
            await read_current(instance, target, operations, session)
            raise DocumentChanged
        raise document_gone(instance, target)
    return {name: value for name, value in (row or {}).items() if name != "_id"}


async def read_current(
    instance: Model,
    target: WriteTarget,
    operations: Sequence[Operation],
    session: Any,
    *,
    whole: bool = False,
) -> dict[str, Any]:
    """Read the fields that operations change, or the whole document, from the primary.

    Raises:
        DocumentNotFound: the document does not exist any more.
        pydantic.ValidationError: a computed value would not fit its field.
    """
    primary = target.raw_collection.with_options(read_preference=ReadPreference.PRIMARY)
    wanted = None if whole else {"_id": 1, **{operation.top: 1 for operation in operations}}
    found = await primary.find_one({"_id": id_of(instance)}, wanted, session=session)
    row: dict[str, Any] | None = target.decode(found)
    if row is None:
        raise document_gone(instance, target)
    require_within_limits(type(instance).meta.document, target.collection.namespace, row, operations)
    return row
