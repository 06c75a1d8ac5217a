"""Finds the changes of an instance since its load."""

from typing import Any

from mongoz.fields.storage import stored, stored_names
from mongoz.model.base import Model
from mongoz.persistence.rows.changes import Changes, are_same, find_changes
from mongoz.persistence.rows.flat import loads_unchanged, reloaded_values
from mongoz.persistence.rows.hydration import previous_instance

__all__ = ["unsaved_changes"]


def unsaved_changes(instance: Model, row: dict[str, Any], known: dict[str, Any] | None) -> Changes:
    """The changes of an instance since its load, by stored names.

    A field can differ from the stored row although this process did not change it: another client may have
    stored an integer in 64 bits, or left out a field with a default. Such a field must not be written, because
    that would undo concurrent changes.

    Args:
        instance: the instance.
        row: the valid row of the instance.
        known: the last known row; None if there is none.

    Raises:
        InvalidKeyError: update operators don't support the name of a changed key.
    """
    changes = find_changes(known, row)
    if known is not None and changes.changed and not loads_unchanged(type(instance), known, changes.changed):
        changes = _own_changes(instance, row, known, changes)
    if changes.removed and type(instance).model_config.get("extra") != "allow":
        # The class keeps no undeclared keys, so `row` lacks the undeclared keys of the document. The write must
        # not remove them.
        return Changes(changes.changed, ())
    return changes


def _own_changes(instance: Model, row: dict[str, Any], known: dict[str, Any], changes: Changes) -> Changes:
    """The changes, without the differences that come from loading the row."""
    changed, reloaded = changes.changed, None
    if known.keys() >= changed.keys():
        reloaded = reloaded_values(type(instance), {name: known[name] for name in changed})
    if reloaded is None:
        return find_changes(_row_as_loaded(instance, known), row)
    for name, value in reloaded.items():
        if are_same(value, changed[name]):
            del changed[name]
    return changes


def _row_as_loaded(instance: Model, known: dict[str, Any]) -> dict[str, Any]:
    """The row that would be stored for the instance if it were unchanged.

    Args:
        instance: the instance.
        known: the row in the database.
    """
    untouched = previous_instance(instance)
    if untouched is None:
        return known
    names = stored_names(type(instance))
    assigned = {names[name] for name in instance.model_fields_set if name in names}
    with_defaults = stored(untouched)
    return known | {name: value for name, value in with_defaults.items() if name in known or name not in assigned}
