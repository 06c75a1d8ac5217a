"""Updates some fields of an instance."""

from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from mongoz.connection.codec import as_stored_literal
from mongoz.exceptions import DocumentNotFound
from mongoz.model.base import Model
from mongoz.model.partial import is_partial
from mongoz.model.state import loaded, remember_changes
from mongoz.persistence.errors import ATTEMPTS, DocumentChanged, require_id, write_conflict
from mongoz.persistence.operations.limits import limits_of
from mongoz.persistence.operations.operation import Operation
from mongoz.persistence.operations.preview import preview_operations
from mongoz.persistence.origin import make_originator
from mongoz.persistence.patch_command import read_current, send_alone, send_patch
from mongoz.persistence.patches import (
    AppliedValues,
    apply_values,
    apply_values_together,
    assign_flat,
    attribute_names,
    fire_and_make_patch,
    make_patch,
    settle_update,
)
from mongoz.persistence.rows.changes import Changes
from mongoz.persistence.rows.copies import independent_values
from mongoz.persistence.rows.hydration import hydrate_leniently, previous_instance
from mongoz.persistence.rows.invariants import has_invariants
from mongoz.persistence.rows.validation import adopt_fields, id_of
from mongoz.persistence.target import WriteTarget, default_target, resolve_target
from mongoz.persistence.turns import Turn, run_in_turn
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import Write, write_and_fire
from mongoz.signals.post_signals import Firing
from mongoz.stamps import Call

__all__ = ["update_if_matching", "update_instance"]

D = TypeVar("D", bound=Model)


def update_instance(
    instance: D, values: dict[str, Any], operations: Sequence[Operation] = (), session: Any = None
) -> Coroutine[Any, Any, D]:
    """Write new values, and operations that the server computes; see `Document.update`."""
    return run_in_turn(instance, session, _update, values, operations)


async def _update(
    turn: Turn, instance: D, session: Any, values: dict[str, Any], operations: Sequence[Operation]
) -> D:
    if not values and not operations:
        return instance
    meta = type(instance).meta
    document = meta.document
    if instance.id is None:  # this check saves a call
        require_id(instance)
    collection = loaded(instance).collection
    target = default_target(meta, turn.loop) if collection is session is None else None
    if target is None:
        target = await resolve_target(document, collection, session)
    for _ in range(ATTEMPTS):
        try:
            await _patch(instance, values, operations, target, turn=turn)
        except DocumentChanged:
            continue
        return instance
    raise write_conflict(document, target, instance.id)


async def update_if_matching(
    instance: Model,
    values: dict[str, Any],
    operations: Sequence[Operation],
    filter: Mapping[str, Any],
    target: WriteTarget,
) -> bool:
    """Write new values and operations if the document still matches a filter; returns whether it matched."""
    try:
        await _patch(instance, values, operations, target, [filter] if filter else [])
    except (DocumentChanged, DocumentNotFound):
        return False
    return True


async def _patch(
    instance: Model,
    values: dict[str, Any],
    operations: Sequence[Operation],
    target: WriteTarget,
    filters: Sequence[Mapping[str, Any]] = (),
    turn: Turn | None = None,
) -> None:
    """Make one attempt to update an instance.

    Args:
        instance: the instance.
        values: attribute name -> new value.
        operations: the changes that the server computes.
        target: the target.
        filters: filters that the document must match.
        turn: the turn of the call; None if no other call can know the instance.

    Raises:
        DocumentChanged: fields that the patch depends on have changed since they were read, or a filter does not
            match any more.
        DocumentNotFound: the document does not exist any more.
    """
    meta = type(instance).meta
    document = meta.document
    undo: dict[str, Any] = {"__dict__": instance.__dict__.copy()}
    own_values = None
    try:
        conditions: Sequence[Mapping[str, Any]] = ()
        fires_first = bool(meta.signals.pre_update.receivers)
        patch = None if operations or fires_first else assign_flat(instance, values)
        if patch is None:
            undo = _copy_state(instance)
            if turn is not None:
                turn.show()
            patch, operations, conditions = await _assign(instance, values, operations, target, fires_first)
        own_values = instance.__dict__.copy()
        signal = meta.signals.post_update
        if target.collection is not meta.collection:
            require_watched(document, target.collection, signal)
        needs_more = operations or conditions or filters
        if needs_more or signal.receivers or target.group is not None:
            changed = attribute_names(document, (*patch.names, *(operation.top for operation in operations)))
            firing = target.plan(signal, changed)
            if needs_more or firing.concerns_dispatchers:
                if turn is not None:
                    turn.show()
                await _write_and_fire(instance, target, firing, patch, operations, [*conditions, *filters], undo)
                return
        if target.transaction is not None:
            target.undo_on_abort(instance)
        await send_alone(instance, target, patch)
        undo.clear()
        own = target.collection is meta.collection  # this check saves a call
        other = None if own else target.other_collection(document)
        remember_changes(instance, patch.changed, patch.removed, other)
    except BaseException:
        if undo:  # else the update is written, and only receivers raised
            _restore_state(instance, undo, own_values)
        raise


async def _write_and_fire(
    instance: Model,
    target: WriteTarget,
    firing: Firing,
    patch: Changes,
    operations: Sequence[Operation],
    conditions: Sequence[Mapping[str, Any]],
    undo: dict[str, Any],
) -> None:
    """Send the patch, with a stamp if the write needs one; then run the receivers.

    Args:
        instance: the instance, which has the values of the patch already.
        target: the target.
        firing: the receivers.
        patch: the fields to set and remove.
        operations: the changes that the server computes.
        conditions: the conditions of the write.
        undo: the state before the update. It is cleared when the update is written.
    """
    previous = previous_instance(instance) if firing.receivers else None
    id_ = id_of(instance)
    origin = (await make_originator(firing, target, Call.UPDATED, natural=True)).origin_for(id_)
    target.undo_on_abort(instance)
    stamped = patch._replace(changed=origin.stamped(patch.changed))

    def send(session: Any) -> Awaitable[dict[str, Any]]:
        return send_patch(instance, target, stamped, operations, session, conditions)

    def settle(instance: Model, row: dict[str, Any]) -> dict[str, Any]:
        undo.clear()
        computed = {operation.top: row[operation.top] for operation in operations if operation.top in row}
        written = settle_update(
            instance, patch, operations, computed, target.other_collection(instance.meta.document)
        )
        return {"instance": instance, "update_fields": written, "previous": previous}

    await write_and_fire(Write(target, firing, origin, instance, id_, settle), send)


async def _assign(
    instance: Model,
    values: dict[str, Any],
    operations: Sequence[Operation],
    target: WriteTarget,
    fires_first: bool,
) -> tuple[Changes, Sequence[Operation], Sequence[Mapping[str, Any]]]:
    """Put new values onto an instance, and fire `pre_update` if it has receivers.

    Returns:
        The patch; the operations on fields that the patch does not write; and the conditions of the write.
    """
    conditions: Sequence[Mapping[str, Any]] = ()
    if operations or has_invariants(type(instance).meta.document):
        (fields, derived), conditions = await _apply(instance, values, operations, target)
        # If validators change the result of an operation, their value is written instead of the operation.
        operations = [operation for operation in operations if operation.attribute not in derived]
    else:
        fields = apply_values(instance, values)
    if fires_first:
        patch = await fire_and_make_patch(instance, fields, operations)
    else:
        patch = make_patch(instance, fields)
    return patch, [operation for operation in operations if operation.top not in patch.names], conditions


async def _apply(
    instance: Model, values: dict[str, Any], operations: Sequence[Operation], target: WriteTarget
) -> tuple[AppliedValues, Sequence[Mapping[str, Any]]]:
    """Put new values onto an instance; returns the fields that were set, and the conditions of the write.

    The conditions are the limits of the fields that the operations change. Some updates need the current values
    from the database. Then the limits are checked here, and the condition is that these values have not changed.
    """
    document = type(instance).meta.document
    limits = limits_of(document, operations)
    together = has_invariants(document)
    needs_whole = together and is_partial(type(instance))
    if not (needs_whole or limits.has_others or (together and operations)):
        applied = (
            apply_values_together(instance, values) if together else AppliedValues(apply_values(instance, values))
        )
        return applied, limits.conditions
    row = await read_current(instance, target, operations, target.session, whole=needs_whole)
    if not together:
        return AppliedValues(apply_values(instance, values)), _unchanged(row, operations)
    computed = preview_operations(row, operations)
    if not needs_whole:
        return apply_values_together(instance, values, operations, computed), _unchanged(row, operations)
    full = hydrate_leniently(document, dict(row))
    applied = apply_values_together(full, values, operations, computed)
    adopt_fields(instance, full, applied.fields)
    instance.__pydantic_fields_set__.update(applied.fields)
    return applied, [{"$expr": {"$eq": ["$$ROOT", {"$literal": as_stored_literal(row)}]}}]


def _unchanged(row: dict[str, Any], operations: Sequence[Operation]) -> list[Mapping[str, Any]]:
    """Conditions that are true if the fields of the operations still have the values of `row`.

    Args:
        row: the `_id` and the fields of the operations, as they were read.
        operations: the operations.
    """
    tops = dict.fromkeys(operation.top for operation in operations)
    same = {"$expr": {"$eq": [{name: f"${name}" for name in row}, {"$literal": as_stored_literal(row)}]}}
    return [same, *({top: {"$exists": False}} for top in tops if top not in row)]


def _copy_state(instance: Model) -> dict[str, Any]:
    """Copy the state that a failed `update` restores.

    If there are `pre_update` receivers, the values are copied too, since receivers may change values in place.
    """
    extra = instance.__pydantic_extra__
    state: dict[str, Any] = {
        "__dict__": dict(instance.__dict__),
        "__pydantic_extra__": None if extra is None else dict(extra),
        "__pydantic_fields_set__": set(instance.__pydantic_fields_set__),
    }
    if type(instance).meta.signals.pre_update.receivers:
        for name in ("__dict__", "__pydantic_extra__"):
            state[name] = state[name] and independent_values(state[name])
    return state


def _restore_state(instance: Model, undo: dict[str, Any], own_values: dict[str, Any] | None) -> None:
    """Undo a failed update.

    Args:
        instance: the instance.
        undo: the state before the update.
        own_values: the values after `pre_update`; None if the update failed earlier. A field that has changed
            since `pre_update` is not restored, because another update may have written the new value.
    """
    if own_values is not None:
        before, now = undo.pop("__dict__"), instance.__dict__
        for name, value in own_values.items():
            if name in before and now.get(name) is value:
                now[name] = before[name]
        undo.pop("__pydantic_fields_set__", None)
    for name, value in undo.items():
        object.__setattr__(instance, name, value)
