"""Patches: validated new values for some fields of an instance, and the values that validators derive."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from mongoz.fields.class_cache import cached_per_class
from mongoz.fields.storage import stored, stored_names, stored_values
from mongoz.model.base import Model
from mongoz.model.partial import default_of
from mongoz.model.state import remember_changes
from mongoz.persistence.operations.operation import Operation
from mongoz.persistence.operations.preview import preview_operations
from mongoz.persistence.pre_signals import fire_pre_signal
from mongoz.persistence.rows.changes import Changes, differing_fields, find_changes
from mongoz.persistence.rows.flat import assigned_row
from mongoz.persistence.rows.hydration import validate_stored
from mongoz.persistence.rows.validation import adopt_fields, validate_row, validate_values, validated_row

__all__ = [
    "AppliedValues",
    "apply_values",
    "apply_values_together",
    "assign_flat",
    "attribute_names",
    "auto_now_values",
    "fire_and_make_patch",
    "make_patch",
    "set_auto_now",
    "settle_update",
    "show_sets",
]

D = TypeVar("D", bound=Model)


class AppliedValues(NamedTuple):
    """The fields that an update sets on an instance, by attribute name.

    Attributes:
        fields: all fields that were set.
        derived: those of `fields` that validators of the model changed.
    """

    fields: frozenset[str]
    derived: frozenset[str] = frozenset()


def auto_now_values(document: type[Model]) -> dict[str, Any]:
    """The values that every update gives to the `auto_now` fields."""
    return {
        name: field.get_default(call_default_factory=True) for name, field in _auto_now_fields(document).items()
    }


@cached_per_class
def _auto_now_fields(document: Any) -> dict[str, Any]:
    return {name: field for name, field in document.meta.fields.items() if getattr(field, "auto_now", False)}


def set_auto_now(instance: Model) -> Iterable[str]:
    """Set the `auto_now` fields to now; returns their names."""
    if not _auto_now_fields(type(instance)):
        return ()
    values = auto_now_values(type(instance))
    instance.__dict__.update(values)
    instance.__pydantic_fields_set__.update(values)
    return values


def apply_values(instance: Model, values: dict[str, Any]) -> frozenset[str]:
    """Put new values onto an instance, and set its `auto_now` fields; returns the names of all these fields.

    After an error the caller restores the instance.

    Raises:
        pydantic.ValidationError: values do not fit their fields.
    """
    # If the class has its own `__setattr__`, other attributes may change, too. The update does not write them.
    is_usual = type(instance).__setattr__ is Model.__setattr__
    assigned = instance if is_usual else copy.copy(instance)
    errors: list[ValidationError] = []
    for name, value in values.items():
        try:
            setattr(assigned, name, value)
        except ValidationError as error:
            errors.append(error)
    if errors:
        raise _merged(type(instance), errors)
    fields = frozenset((*values, *set_auto_now(assigned)))
    if not is_usual:
        adopt_fields(instance, assigned, fields)
        instance.__pydantic_fields_set__.update(fields)
    return fields


def apply_values_together(
    instance: Model,
    values: Mapping[str, Any],
    operations: Sequence[Operation] = (),
    computed: Mapping[str, Any] | None = None,
) -> AppliedValues:
    """Put new values onto an instance whose validators read several fields. An error leaves it unchanged.

    Args:
        instance: the instance before the update.
        values: attribute name -> new value.
        operations: the changes that the server computes.
        computed: the results of the operations, by stored name; None if they are unknown.

    Raises:
        pydantic.ValidationError: the instance would not fit the model.
    """
    document = type(instance)
    row = stored(instance)
    try:
        before = stored(validate_row(document, row))
    except Exception:  # an invalid instance has no derived values to compare with
        before = row
    new = {**validate_values(document, dict(values)), **auto_now_values(document)}
    after = {**row, **stored_values(document, new)}
    operated = {operation.top: operation.attribute for operation in operations if computed is not None}
    for alias in operated:
        after.pop(alias, None)
    after |= computed or {}
    checked = validate_row(document, after)
    made = stored(checked)
    derived = differing_fields(document, before, made) - new.keys() - set(operated.values()) - {"id"}
    derived |= {attribute for alias, attribute in operated.items() if alias in after} & differing_fields(
        document, after, made
    )
    adopt_fields(instance, checked, {*new, *derived, *operated.values()})
    fields = frozenset({*new, *derived})
    instance.__pydantic_fields_set__.update(fields)
    return AppliedValues(fields, frozenset(derived))


def assign_flat(instance: Model, values: dict[str, Any]) -> Changes | None:
    """Do the same as `apply_values` and `make_patch`, with one validation.

    Returns None if this is not possible, or if a value is invalid. Then the instance is unchanged.
    """
    document, present = type(instance), instance.__dict__
    new = {**values, **auto_now_values(document)} if _auto_now_fields(document) else values
    if instance.__pydantic_extra__:
        return None
    row = assigned_row(document, present, new)
    if row is None:
        return None
    names, changed = stored_names(document), {}
    for name in new:
        alias = names[name]
        changed[alias] = value = row[alias]
        present[name] = value if type(value) is not list else value.copy()
    instance.__pydantic_fields_set__.update(new)
    return tuple.__new__(Changes, (changed, ()))  # `Changes(...)` takes twice as long


def make_patch(instance: Model, fields: Iterable[str]) -> Changes:
    """The given fields of an instance, validated together with all other fields."""
    names, row = stored_names(type(instance)), validated_row(instance)
    return Changes({names[name]: row[names[name]] for name in fields}, ())


async def fire_and_make_patch(instance: Model, fields: frozenset[str], operations: Sequence[Operation]) -> Changes:
    """Fire `pre_update`; returns the fields to write: the given fields, and fields that a receiver changed.

    If a receiver changed a field, the update writes the receiver's value and leaves out operations on the field.
    """
    document = type(instance).meta.document
    show_sets(instance, operations)
    before = validated_row(instance)
    operated = {operation.attribute for operation in operations}
    await fire_pre_signal(
        document.meta.signals.pre_update, document, instance=instance, update_fields=fields | operated
    )
    names, row = stored_names(document), validated_row(instance)
    by_receivers = find_changes(before, row)
    return Changes({names[name]: row[names[name]] for name in fields} | by_receivers.changed, by_receivers.removed)


def _merged(document: type[Model], errors: list[ValidationError]) -> ValidationError:
    if len(errors) == 1:
        return errors[0]
    lines: list[Any] = [line for error in errors for line in error.errors(include_url=False)]
    return ValidationError.from_exception_data(document.__name__, lines)


def attribute_names(document: type[Model], aliases: Iterable[str]) -> frozenset[str]:
    """Stored names -> attribute names."""
    attributes = _attributes(document)
    return frozenset(attributes.get(alias, alias) for alias in aliases)


@cached_per_class
def _attributes(document: Any) -> dict[str, str]:
    """Stored name -> attribute name, for each field."""
    return {alias: name for name, alias in stored_names(document).items()}


def show_sets(instance: Model, operations: Iterable[Operation]) -> None:
    """Give an instance the values that operations set inside of its fields, before these values are written.

    Receivers of `pre_update` get the instance with all new values.
    """
    sets = [operation for operation in operations if operation.operator == "$set"]
    if sets:
        present = {each.attribute for each in sets if each.attribute in instance.__dict__}
        row = stored_values(type(instance), {name: instance.__dict__[name] for name in present})
        after = preview_operations(row, sets)
        if after is not None:
            _take_computed(instance, sets, after)


def settle_update(
    instance: Model, patch: Changes, operations: Sequence[Operation], row: dict[str, Any], other_collection: Any
) -> frozenset[str]:
    """Update the state of an instance after its patch was written.

    Args:
        instance: the instance, which has the values of the patch already.
        patch: the fields that were set and removed.
        operations: the changes that the server computed.
        row: stored name -> new value, for the fields that the server computed. A removed field is missing.
        other_collection: the written collection; None if it is the document's own.

    Returns:
        The names of the fields that changed.
    """
    _take_computed(instance, operations, row)
    removed = (*patch.removed, *(operation.top for operation in operations if operation.top not in row))
    written = Changes({**patch.changed, **row}, removed)
    remember_changes(instance, written.changed, removed, other_collection)
    return attribute_names(type(instance), written.names)


def _take_computed(instance: Model, operations: Sequence[Operation], row: dict[str, Any]) -> None:
    """Give an instance the fields that the server computed.

    The server has written these fields already, so a value that does not fit its field is kept unchanged.
    """
    partial = type(instance).meta.document.proxy_document
    for operation in operations:
        name, alias = operation.attribute, operation.top
        value = stored(row.get(alias))
        with suppress(Exception):
            if alias in row:
                value = validate_stored(partial, {alias: value}).__dict__[name]
            else:
                value = default_of(type(instance).model_fields[name], instance.__dict__)
        instance.__dict__[name] = value
        instance.__pydantic_fields_set__.add(name)
