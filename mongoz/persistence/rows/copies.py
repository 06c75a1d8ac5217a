"""Copies of instances and their values, which later changes don't reach."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["independent_copy", "independent_values"]

D = TypeVar("D", bound="Document")


def independent_copy(instance: D) -> D:
    """The instance as it is now, whatever happens to it afterwards. It remembers the same of the database."""
    try:
        return copy.deepcopy(instance)
    except Exception:  # of a value that is no field: a cached client, a lock
        copied = copy.copy(instance)
        for values in (copied.__dict__, copied.__pydantic_extra__):
            if values is not None:
                values.update(independent_values(values))
        return copied


def independent_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """These values, copied; what can't be copied is shared."""
    copied = {}
    for name, value in values.items():
        try:
            copied[name] = copy.deepcopy(value)
        except Exception:
            copied[name] = value
    return copied
