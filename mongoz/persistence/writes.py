"""The three ways to write an instance, each with its signals and its origin stamp."""

import copy
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pymongo import ReturnDocument
from pymongo.read_preferences import ReadPreference

from mongoz.connection import Collection
from mongoz.connection.cancellation import unbroken
from mongoz.connection.codec import as_read
from mongoz.exceptions import DocumentNotFound, WriteConflict
from mongoz.fields.storage import stored, stored_names
from mongoz.ids import new_token
from mongoz.model.partial import is_partial
from mongoz.persistence.operations.limits import limits_of, require_within
from mongoz.persistence.operations.operation import Operation, with_operations
from mongoz.persistence.operations.preview import preview
from mongoz.persistence.origin import is_stamped, originator, plain_origin
from mongoz.persistence.outcome.refusals import explain_unstorable
from mongoz.persistence.patches import (
    Applied,
    after,
    apply,
    apply_as_whole,
    attribute_names,
    field_names,
    patch_of,
    settle,
    touch,
)
from mongoz.persistence.pre_signals import ask
from mongoz.persistence.rows.copies import independent_values
from mongoz.persistence.rows.hydration import (
    Changes,
    adopt,
    as_loaded,
    as_whole,
    changes,
    differing,
    hydrate_anyway,
    id_of,
    loaded,
    new_row,
    previous,
    remember,
    validated_row,
)
from mongoz.persistence.rows.invariants import has_invariants
from mongoz.persistence.target import Target, aim, at_home
from mongoz.persistence.turns import in_turn
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import Write, send_and_tell
from mongoz.signals.post_signals import Firing
from mongoz.stamps import Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = [
    "ATTEMPTS",
    "Moved",
    "create",
    "created",
    "gone",
    "moves_too_fast",
    "require_id",
    "save",
    "update",
]

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


ATTEMPTS: Final = 100
"""At a document that others change between each look and the write."""


class Moved(Exception):
    """The document has changed since what is to be written was derived from it."""


def moves_too_fast(document: type["Document"], target: Target, id_: Any) -> WriteConflict:
    """The error of a document that was different at each attempt to write it."""
    return WriteConflict(
        f"The document with _id {id_!r} of {target.collection.namespace} changed {ATTEMPTS} times between being "
        f"read and written, so nothing was written. If a pre_update receiver of {document.__name__} writes the "
        "document itself, have it change the instance instead; else try again when fewer clients write it."
    )


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
    if instance.id is None:  # else it is what the application gave it, which may be stored as another type
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
    if has_invariants(document) and is_partial(type(instance)):
        changed = {**changed, **await _derived_elsewhere(instance, changed, target)}
    if document.model_config.get("extra") != "allow":
        removed = ()  # what the model does not know is not on the instance, and not gone
    require_watched(document, target.collection, signals.post_save)
    firing = target.plan(signals.post_save)
    was = previous(instance) if firing.receivers else None
    origin = (await originator(firing, target, Call.SAVED, natural=False)).of(id_of(instance))
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

    await send_and_tell(Write(target, firing, origin, instance, id_of(instance), send, settle))
    return instance


async def _derived_elsewhere(instance: "Document", changed: dict[str, Any], target: Target) -> dict[str, Any]:
    """What the model derives of the changed fields of a partly loaded instance, as stored; it is on it then.

    Raises:
        DocumentNotFound: the document is gone.
        pydantic.ValidationError: the document would not fit the model.
    """
    document = type(instance).meta.document
    row = await _present(instance, target, (), target.session, everything=True)
    full = hydrate_anyway(document, row, target.elsewhere(document))
    before = stored(full)
    whole = as_whole(document, {**before, **changed})
    made = stored(whole)
    names = stored_names(document)
    derived = {name for name in differing(document, before, made) if names[name] not in changed}
    adopt(instance, whole, derived)
    return {names[name]: made[names[name]] for name in derived if names[name] in made}


async def _apply(
    instance: "Document",
    target: Target,
    patch: Changes,
    operations: Sequence[Operation] = (),
    session: Any = None,
    conditions: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Send a patch; returns what the operations made of their fields.

    Args:
        instance: whose document it is.
        target: where it is.
        patch: what is set and removed.
        operations: what the server computes.
        session: to send it in.
        conditions: under which it is written.

    Raises:
        DocumentNotFound: the document is gone.
        pydantic.ValidationError: what the operations would make of it does not fit its field.
        Moved: the conditions do not hold; they did when the document was read.
    """
    key: dict[str, Any] = {"_id": id_of(instance)}
    if conditions:
        key = {"$and": [key, *conditions]}
    update = with_operations(patch.as_update(), operations)
    row: dict[str, Any] | None = {}
    if operations:  # only the server knows what they come to
        wanted = dict.fromkeys((operation.top for operation in operations), 1)
        row = target.read(
            await target.lenient.find_one_and_update(
                key, update, projection=wanted, return_document=ReturnDocument.AFTER, session=session
            )
        )
        found = row is not None
    elif update:
        result = await target.driver.update_one(key, update, session=session)
        found = bool(result.matched_count)
    else:  # nothing to write, but a document that is gone must still be found out
        found = bool(await target.driver.count_documents(key, limit=1, session=session))
    if not found:
        if conditions:
            await _present(instance, target, operations, session)
            raise Moved
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
    given = {names[name]: value for name, value in values.items()}
    for _ in range(ATTEMPTS):
        try:
            await _patch(instance, given, operations, target)
        except Moved:  # what it was derived from has changed since
            continue
        return instance
    raise moves_too_fast(document, target, instance.id)


async def _patch(
    instance: "Document", values: dict[str, Any], operations: Sequence[Operation], target: Target
) -> None:
    document = type(instance).meta.document
    undo, ours = _state(instance), None
    settled = False
    try:
        applied, conditions = await _applied(instance, values, operations, target)
        # What the model derives of what the server would compute takes the place of that.
        operations = [operation for operation in operations if operation.attribute not in applied.derived]
        patch = await patch_of(instance, applied.fields, frozenset(each.attribute for each in operations))
        ours = dict(instance.__dict__)
        signal = document.meta.signals.post_update
        require_watched(document, target.collection, signal)
        changed = attribute_names(document, (*patch.changed, *patch.removed, *(o.top for o in operations)))
        firing = target.plan(signal, changed)
        was = previous(instance) if firing.receivers else None
        origin = (await originator(firing, target, Call.UPDATED, natural=True)).of(id_of(instance))
        target.keep_undoable(instance)
        stamped = patch._replace(changed=origin.onto(patch.changed))

        def settle_all(instance: "Document", row: dict[str, Any]) -> dict[str, Any]:
            nonlocal settled
            settled = True
            computed = {operation.top: row[operation.top] for operation in operations if operation.top in row}
            written = settle(instance, patch, operations, computed, target.elsewhere(document))
            return {"instance": instance, "update_fields": written, "previous": was}

        def send(session: Any) -> Awaitable[dict[str, Any]]:
            return _apply(instance, target, stamped, operations, session, conditions)

        await send_and_tell(Write(target, firing, origin, instance, id_of(instance), send, settle_all))
    except BaseException:
        if not settled:  # else it is written, and only its receivers raised
            _put_back(instance, undo, ours)
        raise


async def _applied(
    instance: "Document", values: dict[str, Any], operations: Sequence[Operation], target: Target
) -> tuple[Applied, list[Mapping[str, Any]]]:
    """Put new values onto an instance; returns which, and under what conditions they may be written.

    Limits of fields that operations are about are such conditions. What a validator has looked at must not have
    changed until it is written: where that is more than the instance and the new values, it is a condition too.
    """
    document = type(instance).meta.document
    limits = limits_of(document, operations)
    whole = has_invariants(document)
    partial = whole and is_partial(type(instance))
    if not (partial or limits.others or (whole and operations)):
        apply_all = apply_as_whole if whole else _apply_each
        return apply_all(instance, values), list(limits.conditions)
    row = await _present(instance, target, operations, target.session, everything=partial)
    if not whole:
        return _apply_each(instance, values), _unchanged(row, operations)
    computed = preview(row, operations)
    if not partial:
        return apply_as_whole(instance, values, operations, computed), _unchanged(row, operations)
    full = hydrate_anyway(document, dict(row))
    applied = apply_as_whole(full, values, operations, computed)
    adopt(instance, full, applied.fields)
    instance.__pydantic_fields_set__.update(applied.fields)
    return applied, [{"$expr": {"$eq": ["$$ROOT", {"$literal": as_read(row)}]}}]


def _apply_each(instance: "Document", values: dict[str, Any]) -> Applied:
    return Applied(apply(instance, values))


def _unchanged(row: dict[str, Any], operations: Sequence[Operation]) -> list[Mapping[str, Any]]:
    """That the fields that operations are about are as they are in a row, which has no others."""
    tops = dict.fromkeys(operation.top for operation in operations)
    same = {"$expr": {"$eq": [{name: f"${name}" for name in row}, {"$literal": as_read(row)}]}}
    return [same, *({top: {"$exists": False}} for top in tops if top not in row)]


async def _present(
    instance: "Document",
    target: Target,
    operations: Sequence[Operation],
    session: Any,
    *,
    everything: bool = False,
) -> dict[str, Any]:
    """What the database has now in the fields that operations are about, or in all.

    Raises:
        DocumentNotFound: the document is gone.
        pydantic.ValidationError: what the operations would make of it does not fit its field.
    """
    primary = target.lenient.with_options(read_preference=ReadPreference.PRIMARY)
    wanted = None if everything else {"_id": 1, **{operation.top: 1 for operation in operations}}
    found = await primary.find_one({"_id": id_of(instance)}, wanted, session=session)
    row: dict[str, Any] | None = target.read(found)
    if row is None:
        raise gone(instance, target)
    require_within(type(instance).meta.document, target.collection.namespace, row, operations)
    return row


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
