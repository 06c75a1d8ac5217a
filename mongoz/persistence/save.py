"""Saves an instance: writes the fields that changed since the load."""

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from mongoz.connection import Collection
from mongoz.fields.storage import stored, stored_names
from mongoz.model.base import Model
from mongoz.model.state import loaded, remember, remember_changes
from mongoz.persistence.insert import insert_within_turn
from mongoz.persistence.origin import make_originator
from mongoz.persistence.outcome.refusals import explain_unstorable
from mongoz.persistence.patch_command import read_current, send_alone, send_patch
from mongoz.persistence.patches import set_auto_now
from mongoz.persistence.pre_signals import fire_pre_signal
from mongoz.persistence.rows.changes import Changes, differing_fields
from mongoz.persistence.rows.hydration import hydrate_leniently, previous_instance
from mongoz.persistence.rows.invariants import has_invariants
from mongoz.persistence.rows.partial_changes import changes_of_parts, completed
from mongoz.persistence.rows.unsaved import unsaved_changes
from mongoz.persistence.rows.validation import adopt_fields, id_of, validate_row, validated_row
from mongoz.persistence.target import WriteTarget, default_target, resolve_target
from mongoz.persistence.turns import Turn, run_in_turn
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import Write, write_and_fire
from mongoz.signals.post_signals import Firing
from mongoz.stamps import Call

__all__ = ["save_instance"]

D = TypeVar("D", bound=Model)


def save_instance(instance: D, collection: Any = None, session: Any = None) -> Coroutine[Any, Any, D]:
    """Write the changes since the load; see `Document.save`."""
    return run_in_turn(instance, session, _save, collection)


async def _save(turn: Turn, instance: D, session: Any, collection: Any) -> D:
    if instance.id is None:
        set_auto_now(instance)
        return await insert_within_turn(turn, instance, session, collection)
    kind = type(instance)
    meta = kind.meta
    document, signals = meta.document, meta.signals
    state = loaded(instance)
    own_collection = state.collection or meta.collection or meta.require_collection()
    is_usual = collection is session is None and own_collection is meta.collection
    target = default_target(meta, turn.loop) if is_usual else None
    if target is None:
        target = await resolve_target(document, own_collection if collection is None else collection, session)
        state = loaded(instance)  # other calls may have changed it during the `await`
    if signals.pre_save.receivers:  # checked here too, which saves a call
        turn.show()
        await fire_pre_signal(signals.pre_save, document, instance=instance, created=False)
        state = loaded(instance)  # a receiver may have saved the instance
    set_auto_now(instance)
    row = validated_row(instance)
    is_own = target.collection is own_collection or target.collection == own_collection
    try:
        changes = written = unsaved_changes(instance, row, state.row() if is_own else None)
    except Exception as error:
        explain_unstorable(error, instance)
        raise
    if kind is not document:
        if has_invariants(document):
            derived = await _derived_fields(instance, changes.changed, target)
            changes = changes._replace(changed={**changes.changed, **derived})
        written = changes_of_parts(instance, changes)
    if target.collection is not meta.collection:
        require_watched(document, target.collection, signals.post_save)
    applied = changes if is_own else None
    other = None if target.collection is meta.collection else target.other_collection(document)
    if signals.post_save.receivers or target.group is not None:
        firing = target.plan(signals.post_save)
        if firing.receivers or target.group is not None:  # a dispatched registry stamps each save
            turn.show()
            remember_saved = partial(_remember_saved, row=row, applied=applied, other=other)
            await _write_and_fire(instance, target, firing, written, remember_saved)
            return instance
    if target.transaction is not None:
        target.undo_on_abort(instance)
    await send_alone(instance, target, written)
    _remember_saved(instance, row, applied, other)
    return instance


async def _write_and_fire(
    instance: Model,
    target: WriteTarget,
    firing: Firing,
    written: Changes,
    remember_saved: Callable[[Model], None],
) -> None:
    """Send the changes with their stamp, if they need one; then run the receivers.

    Args:
        instance: the instance.
        target: the target.
        firing: the receivers.
        written: the changes, with paths for fields that were loaded in part.
        remember_saved: updates the last known row of an instance.
    """
    previous = previous_instance(instance) if firing.receivers else None
    id_ = id_of(instance)
    origin = (await make_originator(firing, target, Call.SAVED, natural=False)).origin_for(id_)
    target.undo_on_abort(instance)
    patch = Changes(origin.stamped(written.changed), written.removed)

    def send(session: Any) -> Awaitable[dict[str, Any]]:
        return send_patch(instance, target, patch, session=session)

    def settle(instance: Model, _: object) -> dict[str, Any]:
        remember_saved(instance)
        return {"instance": instance, "created": False, "previous": previous}

    await write_and_fire(Write(target, firing, origin, instance, id_, settle), send)


def _remember_saved(
    instance: Model, row: dict[str, Any], applied: Changes | None, other: Collection | None
) -> None:
    """Update the last known row of an instance.

    Args:
        instance: the instance.
        row: the valid row of the instance.
        applied: the changes since the last known row; None if that row is of another collection.
        other: the collection of the save; None if it is the document's own.
    """
    if applied is None:
        remember(instance, row, other)
    else:
        remember_changes(instance, applied.changed, applied.removed, other, row)


async def _derived_fields(instance: Model, changed: dict[str, Any], target: WriteTarget) -> dict[str, Any]:
    """The fields that validators derive from the changed fields of a partial instance, in stored form.

    The instance gets the derived values too.

    Raises:
        DocumentNotFound: the document does not exist any more.
        pydantic.ValidationError: the document would not fit the model.
    """
    document = type(instance).meta.document
    row = await read_current(instance, target, (), target.session, whole=True)
    full = hydrate_leniently(document, row, target.other_collection(document))
    before = stored(full)
    checked = validate_row(document, {**before, **completed(instance, before, changed)})
    after = stored(checked)
    names = stored_names(document)
    derived = {name for name in differing_fields(document, before, after) if names[name] not in changed}
    adopt_fields(instance, checked, derived)
    return {names[name]: after[names[name]] for name in derived if names[name] in after}
