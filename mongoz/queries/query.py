"""The one lazy query engine: an immutable plan, builders that derive new ones, terminals that run them.

Query -> Writing -> Reading -> Builders
"""

from typing import TYPE_CHECKING, Any, Self, TypeVar

from mongoz.queries.writes import Writing
from mongoz.synonyms import OF_QUERIES, did_you_mean

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Query", "method_named"]

D = TypeVar("D", bound="Document")


class Query(Writing[D]):
    """A lazy query over one document class.

    Every builder returns a new query, so one can be kept and refined many times:

        >>> adults = User.objects.filter(age__gte=18)
        >>> await adults.count()
        >>> await adults.sort("name").limit(10)
    """

    if not TYPE_CHECKING:  # else type checkers would take any name for a method

        def __getattr__(self, name: str) -> Any:
            hint = "" if name.startswith("_") else _hint(name)
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.{hint}", name=name)

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


def method_named(name: str) -> str | None:
    """The method of managers that a name means: its own name, or one that another library has for it."""
    method = OF_QUERIES.get(name, name)
    return method if not method.startswith("_") and hasattr(Query, method) else None


def _hint(name: str) -> str:
    return did_you_mean(name, (each for each in dir(Query) if not each.startswith("_")), OF_QUERIES)
