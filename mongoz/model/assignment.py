"""Assigns values to fields of simple types, which are validated without their instance.

Pydantic copies the whole instance for each assignment, because a validator may read the other fields. For a field
of a simple type, without validators, this takes four times as long as the validation of the value.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import SchemaValidator

from mongoz.fields.class_cache import cached_per_class

__all__ = ["DirectAssignment"]

_ALONE: Final = frozenset(
    {
        *("any", "bool", "bytes", "date", "datetime", "decimal", "float", "int", "literal", "none", "str", "time"),
        *("timedelta", "uuid"),
    }
)
"""The types of schemas that read nothing but the value."""

_INNER: Final = {"default": "schema", "nullable": "schema", "list": "items_schema"}
"""The type of a schema -> the key of the only schema inside of it."""


class DirectAssignment(BaseModel):
    """A model that assigns values of simple types without a copy of the instance, with the result of pydantic."""

    if not TYPE_CHECKING:  # else type checkers would accept any attribute

        def __setattr__(self, name: str, value: Any) -> None:
            validate = _validators(type(self)).get(name)
            if validate is not None:
                try:
                    value = validate(value)
                except ValidationError:
                    validate = None  # pydantic's own error has the place of the value
            if validate is None:
                super().__setattr__(name, value)
            else:
                self.__dict__[name] = value
                self.__pydantic_fields_set__.add(name)


@cached_per_class
def _validators(model: Any) -> Mapping[str, Callable[[Any], Any]]:
    """The fields that are validated without their instance, with their validators."""
    whole, config = model.__pydantic_core_schema__, model.model_config
    if whole["type"] != "model" or whole["schema"]["type"] != "model-fields":
        return {}  # validators of the model run at each assignment
    if config.get("frozen") or not config.get("validate_assignment"):
        return {}
    attributes = {name for base in model.__mro__ for name in vars(base)}
    return {
        name: SchemaValidator(field["schema"], whole.get("config")).validate_python
        for name, field in whole["schema"]["fields"].items()
        if not field.get("frozen") and name not in attributes and _is_alone(field["schema"])
    }


def _is_alone(schema: Any) -> bool:
    """Whether a schema reads nothing but the value."""
    inner = _INNER.get(schema["type"])
    return schema["type"] in _ALONE if inner is None else inner not in schema or _is_alone(schema[inner])
