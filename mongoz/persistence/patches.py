"""Patches: new values for some fields of an instance, checked and put together."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import ValidationError

from mongoz.exceptions import InvalidKeyError
from mongoz.fields.storage import stored, stored_names, stored_values
from mongoz.persistence.operations.operation import Operation
from mongoz.persistence.pre_signals import ask
from mongoz.persistence.rows.hydration import (
    Changes,
    adopt,
    as_whole,
    changes,
    differing,
    loaded,
    remember,
    validated_as_stored,
    validated_row,
)
from mongoz.persistence.rows.invariants import asks_for_others
from mongoz.synonyms import nearest

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = [
    "Applied",
    "after",
    "apply",
    "apply_as_whole",
    "attribute_names",
    "field_names",
    "now_values",
    "patch_of",
    "settle",
    "touch",
    "validated_values",
]

D = TypeVar("D", bound="Document")


def now_values(document: type["Document"]) -> dict[str, Any]:
    """The fields that every update sets to now, and that."""
    fields = {name: field for name, field in document.meta.fields.items() if getattr(field, "auto_now", False)}
    return {name: field.get_default(call_default_factory=True) for name, field in fields.items()}


def touch(instance: "Document") -> list[str]:
    """Set the auto_now fields to now; returns their names."""
    values = now_values(type(instance))
    instance.__dict__.update(values)
    instance.__pydantic_fields_set__.update(values)
    return list(values)


def apply(instance: "Document", values: dict[str, Any]) -> frozenset[str]:
    """Put new values onto an instance, and now into its auto_now fields; all of them, or none.

    Returns:
        The names of the fields that were set.

    Raises:
        pydantic.ValidationError: a value does not fit its field.
    """
    candidate = _with_values(instance, values)
    fields = frozenset([*values, *touch(candidate)])
    instance.__dict__.update({name: candidate.__dict__[name] for name in fields})
    instance.__pydantic_fields_set__.update(fields)
    return fields


class Applied(NamedTuple):
    """What of an instance an update is about, by the names of the fields.

    Attributes:
        fields: that were set.
        derived: that the model's validators changed in consequence.
    """

    fields: frozenset[str]
    derived: frozenset[str] = frozenset()


def apply_as_whole(
    instance: "Document",
    values: Mapping[str, Any],
    operations: Sequence[Operation] = (),
    computed: Mapping[str, Any] | None = None,
) -> Applied:
    """Put new values onto an instance of a model whose validators look at several fields; all of them, or none.

    Args:
        instance: as it is before.
        values: attribute name -> new value.
        operations: what the server will compute.
        computed: what that will come to, by stored name; None if that is not known.

    Raises:
        pydantic.ValidationError: what would be stored does not fit the model.
    """
    document = type(instance)
    row = stored(instance)
    try:
        before = stored(as_whole(document, row))
    except Exception:  # then nothing is known of what it derives
        before = row
    new = {**validated_values(document, dict(values)), **now_values(document)}
    after = {**row, **stored_values(document, new)}
    operated = {operation.top: operation.attribute for operation in operations if computed is not None}
    for alias in operated:
        after.pop(alias, None)
    after |= computed or {}
    whole = as_whole(document, after)
    made = stored(whole)
    derived = differing(document, before, made) - new.keys() - set(operated.values()) - {"id"}
    derived |= {attribute for alias, attribute in operated.items() if alias in after} & differing(
        document, after, made
    )
    adopt(instance, whole, {*new, *derived, *operated.values()})
    fields = frozenset({*new, *derived})
    instance.__pydantic_fields_set__.update(fields)
    return Applied(fields, frozenset(derived))


async def patch_of(instance: "Document", fields: frozenset[str], operated: frozenset[str]) -> Changes:
    """Run the `pre_update` receivers; returns what must be written.

    Without receivers that is the patch; what a receiver changed on the instance is written with it.
    """
    document = type(instance).meta.document
    signal = document.meta.signals.pre_update
    names = stored_names(document)
    more = Changes({}, ())
    if signal.receivers:
        before = validated_row(instance)
        await ask(signal, document, instance=instance, update_fields=fields | operated)
        row = validated_row(instance)
        more = changes(before, row)
    else:
        row = validated_row(instance)
    return Changes({names[name]: row[names[name]] for name in fields} | more.changed, more.removed)


def field_names(document: type["Document"], values: dict[str, Any]) -> dict[str, str]:
    """What was given -> the field's name; aliases included."""
    aliases = {alias: name for name, alias in stored_names(document).items()}
    names = {}
    for given in values:
        name = given if given in document.meta.fields else aliases.get(given, given)
        if name in ("id", "_id", "pk"):
            raise InvalidKeyError(f"The id of a {document.__name__} can't be updated.")
        if name not in document.meta.fields:
            raise InvalidKeyError(
                f"{document.__name__} has no field {given!r}.{nearest(given, document.meta.fields)}"
            )
        names[given] = name
    return names


def _with_values(instance: D, values: dict[str, Any]) -> D:
    """A copy with these values, validated; the instance stays as it is."""
    candidate = copy.copy(instance)
    errors: list[ValidationError] = []
    for name, value in values.items():
        try:
            setattr(candidate, name, value)
        except ValidationError as error:
            errors.append(error)
    if errors:
        raise _merged(type(instance), errors)
    return candidate


def _merged(document: type["Document"], errors: list[ValidationError]) -> ValidationError:
    if len(errors) == 1:
        return errors[0]
    lines: list[Any] = [line for error in errors for line in error.errors(include_url=False)]
    return ValidationError.from_exception_data(document.__name__, lines)


def attribute_names(document: type["Document"], stored_under: Iterable[str]) -> frozenset[str]:
    """Stored names -> the attributes' names."""
    attributes = {alias: name for name, alias in stored_names(document).items()}
    return frozenset(attributes.get(name, name) for name in stored_under)


def after(known: dict[str, Any], changed: dict[str, Any], removed: tuple[str, ...]) -> dict[str, Any]:
    """What the database has after a write, as far as we know."""
    return {name: value for name, value in {**known, **changed}.items() if name not in removed}


def settle(
    instance: "Document", patch: Changes, operations: Sequence[Operation], row: dict[str, Any], elsewhere: Any
) -> frozenset[str]:
    """Have an instance know that a patch was written.

    Args:
        instance: what was updated; it has the patch's values already.
        patch: what was set and removed.
        operations: what the server computed.
        row: what the operations made of their fields.
        elsewhere: the collection, if it is not the document's own.

    Returns:
        The names of the fields that changed.
    """
    _take_over(instance, operations, row)
    changed = {**patch.changed, **row}
    removed = (*patch.removed, *(operation.top for operation in operations if operation.top not in row))
    known = loaded(instance).row()
    if known is not None:  # else nothing is known about the other fields, and nothing is assumed
        remember(instance, after(known, changed, removed), elsewhere)
    return attribute_names(type(instance), {*changed, *removed})


def _take_over(instance: "Document", operations: Sequence[Operation], row: dict[str, Any]) -> None:
    """Have an instance have what the server made of the fields that operations changed.

    It is written, so a value that does not fit its field is taken as it is.
    """
    partial = type(instance).meta.document.proxy_document
    for operation in operations:
        name, alias = operation.attribute, operation.top
        value = stored(row.get(alias))
        with suppress(Exception):
            if alias in row:
                value = validated_as_stored(partial, {alias: value}).__dict__[name]
            else:
                value = type(instance).model_fields[name].get_default(call_default_factory=True)
        instance.__dict__[name] = value
        instance.__pydantic_fields_set__.add(name)


def validated_values(document: type["Document"], values: dict[str, Any]) -> dict[str, Any]:
    """Values for some fields, as the fields make them. One that is validated with others stays as it is.

    Args:
        document: whose fields they are.
        values: attribute name -> value.

    Raises:
        pydantic.ValidationError: a value does not fit its field.
    """
    alone = {name: value for name, value in values.items() if not asks_for_others(document, name)}
    instance = document.meta.document.proxy_document.__pydantic_validator__.validate_python(
        alone, by_alias=False, by_name=True
    )
    return {name: instance.__dict__[name] if name in alone else value for name, value in values.items()}
