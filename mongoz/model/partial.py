"""Rows with only some of the fields: their class, and the handling of the missing fields."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from mongoz.connection import Collection
from mongoz.fields.storage import stored_names

__all__ = [
    "PARTIAL_VALIDATOR",
    "default_of",
    "fill_in_defaults",
    "is_partial",
    "loaded_from",
    "make_partial_class",
    "not_loaded",
    "require_all_fields",
    "takes_info",
]


class _Unloaded:
    """The placeholder of a missing field, until the row is validated."""

    def __repr__(self) -> str:
        return "<not loaded>"


_UNLOADED: Final = _Unloaded()

PARTIAL_VALIDATOR: Final = "_drop_unloaded"
"""The name of the only model validator in the class of partial rows."""


def make_partial_class(document: Any, convert: Callable[[str, Any], Any] | None = None, **more: Any) -> Any:
    """Make the class of a document's partial rows. In these rows, any field may be missing.

    The class has no computed fields, no Meta and no signals of its own, and is in no registry. Validators that may
    read several fields do not run.

    Args:
        document: the class.
        convert: makes the new annotation of a field from its stored name and its present annotation. None keeps
            all annotations.
        **more: further attributes of the class.
    """
    body = {
        "__module__": document.__module__,
        "__qualname__": document.__qualname__,
        "__doc__": document.__doc__,
        "model_config": ConfigDict(defer_build=True),  # built once, at the end of this function
        "model_post_init": BaseModel.model_post_init,
        PARTIAL_VALIDATOR: model_validator(mode="after")(_drop_unloaded),
        **more,
    }
    # The metaclass is bypassed: it would make a Meta and register the class.
    partial: Any = type(BaseModel).__new__(type(document), document.__name__, (document,), body)
    decorators = partial.__pydantic_decorators__
    for found in (decorators.model_validators, decorators.root_validators, decorators.computed_fields):
        for name in found.keys() - {PARTIAL_VALIDATOR}:
            del found[name]
    for each in list(decorators.field_validators.values()):
        if takes_info(each):
            del decorators.field_validators[each.cls_var_name]
    decorators.validators.clear()
    names = stored_names(document)
    for name, field in partial.__pydantic_fields__.items():  # copies of the document's fields
        field.default, field.default_factory, field.validate_default = _UNLOADED, None, False
        if convert is not None:
            field.annotation = convert(names[name], field.annotation)
    partial.model_rebuild(force=True)
    partial.model_fields = document.model_fields  # with the document's defaults and requirements
    return partial


def takes_info(validator: Any) -> bool:
    """Whether a field's validator takes `info`, besides the value and (in mode "wrap") the inner validator."""
    try:
        parameters = inspect.signature(validator.func).parameters.values()
    except ValueError:  # some built-in functions have no signature
        return False
    needed = [one for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    return len(needed) > (2 if validator.info.mode == "wrap" else 1)


def _drop_unloaded(instance: Any) -> Any:
    """Remove the placeholders, so that a read of a missing field raises an AttributeError."""
    values = instance.__dict__
    for name in [name for name, value in values.items() if value is _UNLOADED]:
        del values[name]
    return instance


def is_partial(document: Any) -> bool:
    """Whether this is the class of partial rows."""
    return document is not document.meta.document


def fill_in_defaults(instance: Any, names: Iterable[str], title: str = "") -> None:
    """Give fields their defaults. These fields don't count as assigned.

    Raises:
        pydantic.ValidationError: one of the fields is required.
    """
    document, wanted = type(instance), set(names)
    missing: list[InitErrorDetails] = []
    for name, field in document.model_fields.items():  # in this order: a factory may use earlier fields
        if name not in wanted:
            continue
        if field.is_required():
            missing.append({"type": "missing", "loc": (stored_names(document)[name],), "input": {}})
            continue
        try:
            instance.__dict__[name] = _valid_default(document, name, default_of(field, instance.__dict__))
        except KeyError:  # the factory needs a field that is not loaded, so this field gets no value
            if not field.default_factory_takes_validated_data:
                raise
    if missing:
        raise ValidationError.from_exception_data(title or document.__name__, missing)


def _valid_default(partial: Any, name: str, default: Any) -> Any:
    """A default, validated if the class or the field wants that."""
    wanted = partial.model_fields[name].validate_default
    if not (partial.model_config.get("validate_default") if wanted is None else wanted):
        return default
    valid = partial.__pydantic_validator__.validate_python({name: default}, by_alias=False, by_name=True)
    return valid.__dict__[name]


def default_of(field: Any, values: dict[str, Any]) -> Any:
    """A new default of a field.

    Args:
        field: the field; it is not required.
        values: attribute name -> value, for a factory that uses other fields.

    Raises:
        KeyError: the factory uses a field that has no value.
    """
    takes_values = field.default_factory_takes_validated_data
    return field.get_default(call_default_factory=True, validated_data=dict(values) if takes_values else None)


def loaded_from(document: Any, collection: Collection | None, id_: Any) -> str:
    """A text for messages about a row: its class, its collection and its `_id`."""
    where = collection or document.meta.collection
    return f"{document.__name__} loaded from {where.namespace if where else 'a row'} with _id {id_!r}"


def not_loaded(instance: Any, name: str) -> AttributeError:
    """The error of reading a field that was not loaded."""
    cls = type(instance).__name__
    return AttributeError(
        f"{cls}.{name} was not loaded for {instance}. Await refresh() of the instance, or change only() or "
        f"defer() of the query so that it loads {name!r}."
    )


def require_all_fields(instance: Any) -> None:
    """Refuse to insert an instance that was loaded without some of its fields.

    Raises:
        AttributeError: a field was not loaded.
    """
    for name in type(instance).__pydantic_fields__:
        if name not in instance.__dict__:
            raise not_loaded(instance, name)
