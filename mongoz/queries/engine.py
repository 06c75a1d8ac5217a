"""The one lazy query engine: an immutable plan, builders that derive new ones, terminals that run them.

Query -> Writing -> Reading -> Builders
"""

from typing import TYPE_CHECKING, Any, Self, TypeVar

from mongoz.queries.writing import Writing

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Query"]

D = TypeVar("D", bound="Document")


class Query(Writing[D]):
    """A lazy query over one document class.

    Every builder returns a new query, so one can be kept and refined many times:

        >>> adults = User.objects.filter(age__gte=18)
        >>> await adults.count()
        >>> await adults.sort("name").limit(10)
    """

    def get_queryset(self) -> Self:
        """Where a manager starts; for subclasses to override, by refining what this gives.

        Examples:
            >>> def get_queryset(self):
            ...     return super().get_queryset().filter(is_active=True)
        """
        return self

    def __get__(self, instance: object, owner: Any) -> Self:
        """Read from a document's class, or from an instance: the manager of that class."""
        if self._bound is not None or not hasattr(owner, "meta"):
            return self
        manager = self._with(self._plan)
        manager._bound = owner.meta.document
        return manager.get_queryset()
