"""Converts instances to valid rows."""

from collections.abc import Iterable
from typing import Any, TypeVar

from mongoz.fields.storage import SCALARS, stored, stored_values
from mongoz.ids import new_id
from mongoz.model.base import Model
from mongoz.model.partial import is_partial, not_loaded, require_all_fields
from mongoz.model.parts import holds_parts
from mongoz.model.reserved import refuse_stamp
from mongoz.persistence.rows.changes import differing_fields
from mongoz.persistence.rows.flat import flat_row
from mongoz.persistence.rows.hydration import validate_stored
from mongoz.persistence.rows.invariants import has_invariants, needs_other_fields

__all__ = ["adopt_fields", "id_of", "new_row", "validate_row", "validate_values", "validated_row"]

D = TypeVar("D", bound=Model)


def id_of(instance: Model) -> Any:
    """The stored `_id` of an instance; its type may differ from that of `instance.id`."""
    id_ = instance.id
    return id_ if type(id_) in SCALARS else stored_values(type(instance), {"id": id_})["_id"]


def new_row(instance: Model) -> dict[str, Any]:
    """The row to insert: validated, with an id.

    Raises:
        AttributeError: the instance was loaded without some of its fields.
        pydantic.ValidationError: the instance does not fit the model.
    """
    if is_partial(type(instance)):
        require_all_fields(instance)
        _require_whole_values(instance)
    row = validated_row(instance)
    if row.get("_id") is None:
        row["_id"] = new_id()
    return row


def _require_whole_values(instance: Model) -> None:
    """Refuse to insert an instance with embedded documents that were loaded in part."""
    for name, value in instance.__dict__.items():
        if holds_parts(value):
            raise not_loaded(instance, name)


def validated_row(instance: Model) -> dict[str, Any]:
    """The row to store. It is validated, because pydantic does not see changes in lists and embedded documents.

    Raises:
        pydantic.ValidationError: the instance does not fit the model.
    """
    document = type(instance)
    if instance.__pydantic_extra__:
        refuse_stamp(document, instance.__pydantic_extra__)
    else:
        flat = flat_row(document, instance.__dict__)
        if flat is not None:
            return flat
    # The stored form is validated: pydantic does not validate instances of embedded documents again.
    given = stored(instance)
    checked = validate_row(document, given)
    row: dict[str, Any] = stored(checked)
    if has_invariants(document):
        adopt_fields(instance, checked, differing_fields(document, given, row))
    return row


def validate_row(document: type[D], row: dict[str, Any]) -> D:
    """Validate a row with all validators of the model; returns an instance that is not loaded: it has no snapshot.

    Raises:
        pydantic.ValidationError: the row violates the model.
    """
    instance: D = validate_stored(document, row)
    return instance


def validate_values(document: type[Model], values: dict[str, Any]) -> dict[str, Any]:
    """Validate values for some fields. A value whose validator needs other fields stays unchanged.

    Args:
        document: the class.
        values: attribute name -> value.

    Raises:
        pydantic.ValidationError: a value does not fit its field.
    """
    alone = {name: value for name, value in values.items() if not needs_other_fields(document, name)}
    instance = document.meta.document.proxy_document.__pydantic_validator__.validate_python(
        alone, by_alias=False, by_name=True
    )
    return {name: instance.__dict__[name] if name in alone else value for name, value in values.items()}


def adopt_fields(instance: Model, other: Model, names: Iterable[str]) -> None:
    """Copy some fields from another instance, without validation."""
    for name in names:
        if name in other.__dict__:
            instance.__dict__[name] = other.__dict__[name]
