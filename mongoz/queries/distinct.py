"""Values of one field, loaded without their documents."""

import types
from collections import deque
from functools import cache
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import SchemaValidator

from mongoz.fields.email import LOADING
from mongoz.fields.storability import resolve_alias
from mongoz.fields.storage import stored_names
from mongoz.fields.stored_schema import from_stored, validator_of
from mongoz.model.shapes import shape_of

__all__ = ["load_values"]

_CONFIG: Final = ConfigDict(arbitrary_types_allowed=True)


def load_values(document: Any, path: str, values: list[Any]) -> list[Any]:
    """Convert stored values to the types that they would have in a loaded document.

    Args:
        document: the class.
        path: the stored name of the field; may be dotted.
        values: the decoded values; for a list field, its items.
    """
    adapter = _adapter(document, path)
    return values if adapter is None else [_adapted(adapter, value) for value in values]


@cache
def _adapter(document: Any, path: str) -> SchemaValidator | None:
    field = _field_at(document, [step for step in path.split(".") if not step.isdigit()])
    if field is None:
        return None
    # The constraints of a list field, such as limits, apply to the list and not to its items.
    kind: Any = _items(field.annotation) or Annotated[(field.annotation, *field.metadata, "")]
    return validator_of(from_stored(_type_adapter(kind).core_schema))


def _type_adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind, config=_CONFIG)
    except PydanticUserError:  # a model, dataclass or typed dict has a configuration of its own
        return TypeAdapter(kind)


def _field_at(model: Any, steps: list[str]) -> FieldInfo | None:
    """The field at a path of stored names; None if no such field is declared."""
    names = {alias: name for name, alias in stored_names(model).items()}
    if steps[0] not in names:
        return None
    field: FieldInfo = model.model_fields[names[steps[0]]]
    if not steps[1:]:
        return field
    models = shape_of(field.annotation).models
    return _field_at(models[0], steps[1:]) if models else None


def _items(annotation: Any) -> Any:
    """The type of the items of a list; None if the annotation is no list."""
    annotation = resolve_alias(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return next((items for each in get_args(annotation) if (items := _items(each)) is not None), None)
    if get_origin(annotation) in (list, set, frozenset, tuple, deque):
        return get_args(annotation)[0]
    return None


def _adapted(adapter: SchemaValidator, value: Any) -> Any:
    try:
        return adapter.validate_python(value, context=LOADING, by_alias=True, by_name=False)
    except ValidationError:  # other clients may have stored values of another type
        return value
