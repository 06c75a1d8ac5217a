"""Joins: references that a query follows to another document."""

from typing import Any, NamedTuple

from mongoz.exceptions import ImproperlyConfigured
from mongoz.fields.storage import stored_names

__all__ = ["Join", "make_join"]


class Join(NamedTuple):
    """One `$lookup`.

    Two references to one collection (a match has a home team and a guest team) are two joins with the same name.
    So the rows of each join first have a name of their own, the `slot`, which the conditions use. After the
    conditions are applied, the rows of both slots are attached together under the name of the collection.

    Attributes:
        local: the stored, dotted name of the referencing field. If the field belongs to a document that an earlier
            join attached, the name begins with the `slot` of that join.
        document: the referenced document class.
        name: the name under which the rows are attached: the foreign collection's name.
    """

    local: str
    document: Any
    name: str

    @property
    def slot(self) -> str:
        """The name of the referenced rows until they are attached. Conditions use this name."""
        return f"_joined_{self.local.replace('.', '__')}"


def make_join(document: Any, target: Any, local: str) -> Join:
    """Make the join of a reference.

    Args:
        document: the queried class.
        target: the referenced class.
        local: the stored, dotted name of the referencing field.

    Raises:
        ImproperlyConfigured: the classes can't be joined.
        AbstractDocumentError: the target has no collection.
    """
    foreign, own = target.meta.require_collection(), document.meta.database
    if own is not None and foreign.database.name != own.name:
        raise ImproperlyConfigured(
            f"{document.__name__} and {target.__name__} are in different databases ({own.name!r} and "
            f"{foreign.database.name!r}): MongoDB joins only within one database. Query {target.__name__} first."
        )
    if foreign.name in stored_names(document).values():
        raise ImproperlyConfigured(
            f"Rows joined to {document.__name__} are attached under their collection's name, {foreign.name!r}, "
            f"but {document.__name__} has a field that is stored under this name. Give the field an alias."
        )
    return Join(local, target, foreign.name)
