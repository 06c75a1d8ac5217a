"""Changes of embedded documents that were loaded in part: only the changed parts are written."""

from collections.abc import Mapping
from typing import Any

from mongoz.exceptions import InvalidKeyError
from mongoz.fields.storage import stored_names
from mongoz.model.base import Model
from mongoz.model.parts import holds_parts, is_part
from mongoz.model.state import loaded
from mongoz.persistence.rows.changes import Changes, find_changes

__all__ = ["changes_of_parts", "completed"]


def changes_of_parts(instance: Model, changes: Changes) -> Changes:
    """The changes, with the changed parts in place of each field that was loaded in part.

    Raises:
        InvalidKeyError: a list that was loaded in part has changed. Its items can't be told apart.
    """
    before = loaded(instance).row() or {}
    changed: dict[str, Any] = {}
    removed = list(changes.removed)
    for alias, value in changes.changed.items():
        part = _value_of(instance, alias)
        if not holds_parts(part):
            changed[alias] = value
            continue
        if not is_part(part) or not isinstance(before.get(alias), Mapping):
            raise _not_writable(instance, alias)
        inner = _inner_changes(instance, alias, part, before[alias], value)
        changed |= inner.changed
        removed += inner.removed
    return Changes(changed, tuple(removed))


def _inner_changes(instance: Model, path: str, part: Any, before: Any, after: Any) -> Changes:
    """The changes inside of a part, by dotted path."""
    attributes = {alias: name for name, alias in stored_names(type(part)).items()}
    found = find_changes(before, after)
    changed: dict[str, Any] = {}
    removed = [f"{path}.{name}" for name in found.removed]
    for alias, value in found.changed.items():
        place, inner = f"{path}.{alias}", part.__dict__.get(attributes.get(alias, alias))
        if is_part(inner) and isinstance(before.get(alias), Mapping):
            nested = _inner_changes(instance, place, inner, before[alias], value)
            changed |= nested.changed
            removed += nested.removed
        elif holds_parts(inner):
            raise _not_writable(instance, place)
        else:
            changed[place] = value
    return Changes(changed, tuple(removed))


def completed(instance: Model, row: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """The changed fields as whole values: a field that was loaded in part gets its other parts from the row.

    Args:
        instance: the instance.
        row: the document in the database.
        changed: stored name -> changed value.
    """
    return {
        alias: _overlaid(row.get(alias), value) if is_part(_value_of(instance, alias)) else value
        for alias, value in changed.items()
    }


def _overlaid(whole: Any, part: Any) -> Any:
    if not (isinstance(whole, Mapping) and isinstance(part, Mapping)):
        return part
    return {**whole, **{name: _overlaid(whole.get(name), value) for name, value in part.items()}}


def _value_of(instance: Model, alias: str) -> Any:
    name = next((name for name, stored_as in stored_names(type(instance)).items() if stored_as == alias), alias)
    return instance.__dict__.get(name)


def _not_writable(instance: Model, path: str) -> InvalidKeyError:
    return InvalidKeyError(
        f"{instance}: {path!r} was loaded in part by only(), so save() can't write the change. Await refresh() "
        "before the change, or assign a whole value."
    )
