"""Joins: conditions on fields of a referenced document."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from mongoz.exceptions import ImproperlyConfigured
from mongoz.fields.storage import stored_names

__all__ = ["Join", "attachments", "join_to"]


class Join(NamedTuple):
    """One `$lookup`.

    Two references to one collection (a match has a home team and a guest team) are two joins of the same name,
    so each has a slot of its own for its conditions; `attachments` merges the slots in the end.

    Attributes:
        local: the stored, dotted name of the referencing field; below a slot, where it is of a joined document.
        document: the document class that it refers to.
        name: under which the matching rows are attached: the foreign collection's name.
    """

    local: str
    document: Any
    name: str

    @property
    def slot(self) -> str:
        """Where the referenced rows are until they are attached; conditions are on this name."""
        return f"_joined_{self.local.replace('.', '__')}"

    def stages(self) -> list[dict[str, Any]]:
        """The aggregation stages that fill the slot."""
        lookup = {"from": self.name, "localField": self.local, "foreignField": "_id", "as": self.slot}
        return [{"$lookup": lookup}]


def join_to(document: Any, target: Any, local: str) -> Join:
    """The join that follows a reference.

    Args:
        document: the class that is queried.
        target: the class that is referred to.
        local: the stored, dotted name of the referencing field.

    Raises:
        ImproperlyConfigured: the two can't be joined.
        AbstractDocumentError: the target has no collection.
    """
    foreign, own = target.meta.require_collection(), document.meta.database
    if own is not None and foreign.database.name != own.name:
        raise ImproperlyConfigured(
            f"{document.__name__} and {target.__name__} are in different databases ({own.name!r} and "
            f"{foreign.database.name!r}): MongoDB joins within one only. Query {target.__name__} first."
        )
    if foreign.name in stored_names(document).values():
        raise ImproperlyConfigured(
            f"Rows joined to {document.__name__} are attached under their collection's name, {foreign.name!r}, "
            "and it has a field that is stored under this name. Give the field an alias."
        )
    return Join(local, target, foreign.name)


def attachments(joins: Iterable[Join]) -> list[dict[str, Any]]:
    """The stages that move what was joined from the slots to the names of the foreign collections.

    They belong behind what matches, and before what sorts.
    """
    slots: dict[str, list[str]] = {}
    for join in joins:
        slots.setdefault(join.name, []).append(join.slot)
    if not slots:
        return []
    merged = {name: {"$concatArrays": [f"${slot}" for slot in of_name]} for name, of_name in slots.items()}
    return [{"$set": merged}, {"$unset": [slot for of_name in slots.values() for slot in of_name]}]
