"""Joins: conditions on fields of a referenced document."""

from typing import Any, NamedTuple

__all__ = ["Join"]


class Join(NamedTuple):
    """One `$lookup`.

    Attributes:
        local: the stored, dotted name of the referencing field.
        document: the document class that it refers to.
        name: under which the matching rows are attached: the foreign collection's name.
    """

    local: str
    document: Any
    name: str

    def stage(self) -> dict[str, Any]:
        """The aggregation stage."""
        return {
            "$lookup": {"from": self.name, "localField": self.local, "foreignField": "_id", "as": self.name},
        }
