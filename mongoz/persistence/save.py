"""Saves an instance: writes the fields that changed since the load."""

from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from mongoz.fields.storage import stored, stored_names
from mongoz.model.base import Model
from mongoz.model.partial import is_partial
from mongoz.model.state import loaded, remember
from mongoz.persistence.insert import insert_within_turn
from mongoz.persistence.origin import make_originator
from mongoz.persistence.outcome.refusals import explain_unstorable
from mongoz.persistence.patch_command import read_current, send_patch
from mongoz.persistence.patches import set_auto_now
from mongoz.persistence.pre_signals import fire_pre_signal
from mongoz.persistence.rows.changes import Changes, differing_fields, find_changes
from mongoz.persistence.rows.hydration import hydrate_leniently, previous_instance
from mongoz.persistence.rows.invariants import has_invariants
from mongoz.persistence.rows.partial_changes import changes_of_parts, completed
from mongoz.persistence.rows.unsaved import unsaved_changes
from mongoz.persistence.rows.validation import adopt_fields, id_of, validate_row, validated_row
from mongoz.persistence.target import WriteTarget, resolve_target
from mongoz.persistence.turns import run_in_turn
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import Write, write_and_fire
from mongoz.stamps import Call

__all__ = ["save_instance"]

D = TypeVar("D", bound=Model)


def save_instance(instance: D, collection: Any = None, session: Any = None) -> Coroutine[Any, Any, D]:
    """Write the changes since the load; see `Document.save`."""
    return run_in_turn(instance, session, _save(instance, collection, session))


async def _save(instance: D, collection: Any, session: Any) -> D:
    document = type(instance).meta.document
    if instance.id is None:
        set_auto_now(instance)
        return await insert_within_turn(instance, collection, session)
    own_collection = loaded(instance).collection or document.meta.require_collection()
    target = await resolve_target(document, own_collection if collection is None else collection, session)
    signals = document.meta.signals
    await fire_pre_signal(signals.pre_save, document, instance=instance, created=False)
    set_auto_now(instance)
    row = validated_row(instance)
    is_own = target.collection == own_collection
    try:
        changes = unsaved_changes(instance, row) if is_own else find_changes(None, row)
    except Exception as error:
        explain_unstorable(error, instance)
        raise
    if has_invariants(document) and is_partial(type(instance)):
        derived = await _derived_fields(instance, changes.changed, target)
        changes = changes._replace(changed={**changes.changed, **derived})
    if document.model_config.get("extra") != "allow":
        changes = changes._replace(removed=())  # the instance does not have the undeclared keys of its document
    written = changes_of_parts(instance, changes) if is_partial(type(instance)) else changes
    require_watched(document, target.collection, signals.post_save)
    firing = target.plan(signals.post_save)
    previous = previous_instance(instance) if firing.receivers else None
    origin = (await make_originator(firing, target, Call.SAVED, natural=False)).origin_for(id_of(instance))
    target.undo_on_abort(instance)
    patch = Changes(origin.stamped(written.changed), written.removed)

    def settle(instance: Model, _: dict[str, Any]) -> dict[str, Any]:
        known = loaded(instance).row() if is_own else None
        now = row if known is None else changes.applied_to(known)
        remember(instance, now, target.other_collection(type(instance)))
        return {"instance": instance, "created": False, "previous": previous}

    def send(session: Any) -> Awaitable[dict[str, Any]]:
        return send_patch(instance, target, patch, session=session)

    await write_and_fire(Write(target, firing, origin, instance, id_of(instance), send, settle))
    return instance


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
