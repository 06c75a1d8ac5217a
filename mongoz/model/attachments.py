"""Referenced instances that a joining query attached: beside the fields, so never dumped, compared or written."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["attach", "attached"]


def attach(instance: "Document", found: dict[str, list[Any]]) -> None:
    """Have `instance.<name>` give these lists of instances."""
    object.__setattr__(instance, "_attached", found)


def attached(instance: "Document") -> dict[str, list[Any]]:
    """What was attached, by name."""
    try:
        found: dict[str, list[Any]] = object.__getattribute__(instance, "_attached")
    except AttributeError:  # a slot that was never set
        return {}
    return found
