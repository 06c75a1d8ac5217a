"""Independent copies of instances and of their values."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from mongoz.model.base import Model

__all__ = ["independent_copy", "independent_values"]

D = TypeVar("D", bound=Model)


def independent_copy(instance: D) -> D:
    """A copy of the instance, with its last known row. Later changes of the original don't affect the copy."""
    try:
        return copy.deepcopy(instance)
    except Exception:  # an attribute that is no field, such as a lock, can't be copied
        copied = copy.copy(instance)
        for values in (copied.__dict__, copied.__pydantic_extra__):
            if values is not None:
                values.update(independent_values(values))
        return copied


def independent_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of these values; a value that can't be copied is shared."""
    copied = {}
    for name, value in values.items():
        try:
            copied[name] = copy.deepcopy(value)
        except Exception:
            copied[name] = value
    return copied
