"""Updates in which the server computes fields, as aggregation pipelines. No I/O."""

from collections.abc import Mapping
from typing import Any


def after(seconds: float) -> dict[str, Any]:
    """An expression for the server's time, some seconds from now."""
    return {"$add": ["$$NOW", round(seconds * 1000)]}


def replaced(document: Mapping[str, Any], computed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Replace the document. `computed` has expressions for some fields of the new document."""
    return [{"$replaceWith": {"$literal": document}}, {"$set": dict(computed)}]


def changed(values: Mapping[str, Any], **computed: Any) -> list[dict[str, Any]]:
    """Set some fields to values. `computed` has expressions for other fields."""
    return [{"$set": {**{name: {"$literal": value} for name, value in values.items()}, **computed}}]
