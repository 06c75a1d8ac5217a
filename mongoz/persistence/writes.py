"""The three ways to write an instance, each with its signals and its origin stamp."""

import copy
from collections.abc import Awaitable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pymongo import ReturnDocument

from mongoz.connection import Collection
from mongoz.connection.units import unbroken
from mongoz.exceptions import DocumentNotFound
from mongoz.ids import new_token
from mongoz.persistence.asking import ask
from mongoz.persistence.copies import independent_values
from mongoz.persistence.operations import Operation, with_operations
from mongoz.persistence.origin import is_stamped, originator, plain_origin
from mongoz.persistence.patches import after, apply, attribute_names, field_names, patch_of, settle, touch
from mongoz.persistence.refusals import explain_unstorable
from mongoz.persistence.rows import Changes, as_loaded, changes, loaded, new_row, previous, remember, validated_row
from mongoz.persistence.sending import Write, send_and_tell
from mongoz.persistence.targets import Target, aim, at_home
from mongoz.persistence.turns import in_turn
from mongoz.persistence.watching import require_watched
from mongoz.signals.firing import Firing
from mongoz.stamps import Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["create", "created", "gone", "require_id", "save", "update"]

D = TypeVar("D", bound="Document")


def require_id(instance: "Document") -> None:
    """Refuse an instance that is not in the database.

    Raises:
        DocumentNotFound: it has no id.
    """
    if instance.id is None:  # and not "the document whose _id is null", which somebody may have
        raise DocumentNotFound(f"This {type(instance).__name__} was never saved: it has no id.")


def gone(instance: "Document", target: Target) -> DocumentNotFound:
    """The error of a document that was there once."""
    return DocumentNotFound(f"{target.collection.namespace} has no document with _id {instance.id!r} any more.")


def create(instance: D, collection: Any = None, session: Any = None) -> Coroutine[Any, Any, D]:
    """Insert an instance; see `Document.create`."""
    return in_turn(instance, session, _create(instance, collection, session))


async def _create(instance: D, collection: Any, session: Any) -> D:
    meta = instance.meta
    document, signals = meta.document, meta.signals
    target = at_home(meta) if collection is None and session is None else None
    if target is None:
        target = await aim(document, collection, session)
    if signals.pre_save.receivers:  # asked here too: a call is saved
        await ask(signals.pre_save, document, instance=instance, created=True)
    elsewhere = None
    if target.collection is not meta.collection:
        require_watched(document, target.collection, signals.post_save)
        elsewhere = target.elsewhere(document)
    row = new_row(instance)
    firing = target.plan(signals.post_save)
    if target.transaction is not None:
        target.keep_undoable(instance)
    if not firing.tells:
        try:
            await target.driver.insert_one(row, session=target.session)
        except Exception as error:
            explain_unstorable(error, instance)
            raise
        created(instance, row, elsewhere)
        return instance
    if is_stamped(firing, target, natural=True):
        origin = (await originator(firing, target, Call.CREATED, natural=True)).of(row["_id"])
    elif target.in_transaction:
        origin = plain_origin(firing)
    else:  # as nearly always; what is below does the same, at a higher price
        unit = _insert_and_tell(instance, target, firing, row, elsewhere)
        await (unbroken(unit) if firing.receivers else unit)
        return instance

    def send(session: Any) -> Awaitable[Any]:
        return target.driver.insert_one(origin.onto(row), session=session)  # type: ignore[no-any-return]

    def settle(instance: "Document", _: object) -> dict[str, Any]:
        created(instance, row, elsewhere)
        return {"instance": instance, "created": True, "previous": None}

    await send_and_tell(Write(target, firing, origin, instance, row["_id"], send, settle, True))
    return instance


async def _insert_and_tell(
    instance: "Document", target: Target, firing: Firing, row: dict[str, Any], elsewhere: Collection | None
) -> None:
    """Insert a row without a stamp, outside of transactions; then run the receivers."""
    try:
        await target.driver.insert_one(row, session=target.session)
    except Exception as error:
        explain_unstorable(error, instance)
        raise
    created(instance, row, elsewhere)
    await firing.run(instance.meta.document, new_token(), instance=instance, created=True, previous=None)


def created(instance: "Document", row: dict[str, Any], elsewhere: Collection | None) -> None:
    """Have an instance know that it was inserted as this row.

    Args:
        instance: what was inserted.
        row: as it was sent, without a stamp.
        elsewhere: the collection, if it is not the document's own.
    """
    instance.__dict__["id"] = row["_id"]
    remember(instance, row, elsewhere)


def save(instance: D, collection: Any = None, session: Any = None) -> Coroutine[Any, Any, D]:
    """Write what changed since the load; see `Document.save`."""
    return in_turn(instance, session, _save(instance, collection, session))


async def _save(instance: D, collection: Any, session: Any) -> D:
    document = type(instance).meta.document
    if instance.id is None:
        touch(instance)
        return await _create(instance, collection, session)
    home = loaded(instance).collection or document.meta.require_collection()
    target = await aim(document, home if collection is None else collection, session)
    signals = document.meta.signals
    await ask(signals.pre_save, document, instance=instance, created=False)
    touch(instance)
    row = validated_row(instance)
    same_place = target.collection == home
    try:
        changed, removed = changes(as_loaded(instance) if same_place else None, row)
    except Exception as error:
        explain_unstorable(error, instance)
        raise
    if document.model_config.get("extra") != "allow":
        removed = ()  # what the model does not know is not on the instance, and not gone
    require_watched(document, target.collection, signals.post_save)
    firing = target.plan(signals.post_save)
    was = previous(instance) if firing.receivers else None
    origin = (await originator(firing, target, Call.SAVED, natural=False)).of(instance.id)
    target.keep_undoable(instance)
    patch = Changes(origin.onto(changed), removed)

    def settle(instance: "Document", _: dict[str, Any]) -> dict[str, Any]:
        known = loaded(instance).row() if same_place else None
        remember(
            instance, row if known is None else after(known, changed, removed), target.elsewhere(type(instance))
        )
        return {"instance": instance, "created": False, "previous": was}

    def send(session: Any) -> Awaitable[dict[str, Any]]:
        return _apply(instance, target, patch, session=session)

    await send_and_tell(Write(target, firing, origin, instance, instance.id, send, settle))
    return instance


async def _apply(
    instance: "Document", target: Target, patch: Changes, operations: Sequence[Operation] = (), session: Any = None
) -> dict[str, Any]:
    """Send a patch; returns what the operations made of their fields.

    Raises:
        DocumentNotFound: the document is gone.
    """
    key, update = {"_id": instance.id}, with_operations(patch.as_update(), operations)
    row: dict[str, Any] | None = {}
    if operations:  # only the server knows what they come to
        wanted = dict.fromkeys((operation.top for operation in operations), 1)
        row = await target.driver.find_one_and_update(
            key, update, projection=wanted, return_document=ReturnDocument.AFTER, session=session
        )
        found = row is not None
    elif update:
        result = await target.driver.update_one(key, update, session=session)
        found = bool(result.matched_count)
    else:  # nothing to write, but a document that is gone must still be found out
        found = bool(await target.driver.count_documents(key, limit=1, session=session))
    if not found:
        raise gone(instance, target)
    return {name: value for name, value in (row or {}).items() if name != "_id"}


def update(
    instance: D, values: dict[str, Any], operations: Sequence[Operation] = (), session: Any = None
) -> Coroutine[Any, Any, D]:
    """Write a patch; see `Document.update`."""
    return in_turn(instance, session, _update(instance, values, operations, session))


async def _update(instance: D, values: dict[str, Any], operations: Sequence[Operation], session: Any) -> D:
    if not values and not operations:
        return instance
    document = type(instance).meta.document
    require_id(instance)
    names = field_names(document, values)
    target = await aim(document, loaded(instance).collection, session)
    undo, ours = _state(instance), None
    settled = False
    try:
        fields = apply(instance, {names[name]: value for name, value in values.items()})
        patch = await patch_of(instance, fields, frozenset(operation.attribute for operation in operations))
        ours = dict(instance.__dict__)
        signal = document.meta.signals.post_update
        require_watched(document, target.collection, signal)
        changed = attribute_names(document, (*patch.changed, *patch.removed, *(o.top for o in operations)))
        firing = target.plan(signal, changed)
        was = previous(instance) if firing.receivers else None
        origin = (await originator(firing, target, Call.UPDATED, natural=True)).of(instance.id)
        target.keep_undoable(instance)
        stamped = patch._replace(changed=origin.onto(patch.changed))

        def settle_all(instance: "Document", row: dict[str, Any]) -> dict[str, Any]:
            nonlocal settled
            settled = True
            computed = {operation.top: row[operation.top] for operation in operations if operation.top in row}
            written = settle(instance, patch, operations, computed, target.elsewhere(document))
            return {"instance": instance, "update_fields": written, "previous": was}

        def send(session: Any) -> Awaitable[dict[str, Any]]:
            return _apply(instance, target, stamped, operations, session)

        await send_and_tell(Write(target, firing, origin, instance, instance.id, send, settle_all))
    except BaseException:
        if not settled:  # else it is written, and only its receivers raised
            _put_back(instance, undo, ours)
        raise
    return instance


def _state(instance: "Document") -> dict[str, Any]:
    """What `update` puts back if it fails; a receiver may change the inside of values too, so those are copied."""
    names = ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__")
    state = {name: copy.copy(getattr(instance, name)) for name in names}
    if type(instance).meta.signals.pre_update.receivers:
        for name in ("__dict__", "__pydantic_extra__"):
            state[name] = state[name] and independent_values(state[name])
    return state


def _put_back(instance: "Document", undo: dict[str, Any], ours: dict[str, Any] | None) -> None:
    """Undo an update that failed: after the receivers, only what is still as this call left it.

    Another update of the same instance may have changed, and written, other fields in the meantime.
    """
    if ours is not None:
        before, now = undo.pop("__dict__"), instance.__dict__
        for name, value in ours.items():
            if name in before and now.get(name) is value:
                now[name] = before[name]
        undo.pop("__pydantic_fields_set__")
    for name, value in undo.items():
        object.__setattr__(instance, name, value)
