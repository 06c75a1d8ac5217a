"""Equality conditions of a query, as values for a new document."""

from collections.abc import Iterable, Mapping
from typing import Any

from mongoz.fields.storage import stored_names

__all__ = ["find_equalities", "put_value"]


def find_equalities(document: Any, conditions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Attribute name -> value, for each field with an equality condition.

    Args:
        document: the queried class.
        conditions: MongoDB conditions on stored names; dotted names become nested dicts.
    """
    values: dict[str, Any] = {}
    for path, value in _pairs(conditions):
        put_value(document, values, path, value)
    return values


def put_value(document: Any, values: dict[str, Any], path: str, value: Any) -> None:
    """Put a value into nested values, at a dotted path; do nothing if a step leads into a value that is no dict.

    Args:
        document: the class with the field of the first step. The step may be an alias of the field.
        values: attribute name -> value. The function changes this dict.
        path: the path.
        value: the value.
    """
    first, *rest = path.split(".")
    attributes = {alias: name for name, alias in stored_names(document).items()}
    place, key = values, attributes.get(first, first)
    for step in rest:
        place, key = place.setdefault(key, {}), step
        if not isinstance(place, dict):
            return
    place[key] = value


def _pairs(conditions: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, Any]]:
    for condition in conditions:
        for path, value in condition.items():
            if path == "$and":
                yield from _pairs(value)
            elif path.startswith("$"):
                continue
            elif not _has_operators(value):
                yield path, value
            elif "$eq" in value:
                yield path, value["$eq"]


def _has_operators(value: Any) -> bool:
    return isinstance(value, Mapping) and any(str(key).startswith("$") for key in value)
