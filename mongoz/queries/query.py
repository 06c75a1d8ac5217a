"""The lazy query of managers and querysets: an immutable plan, and the methods that refine and run it.

Base classes: Query -> WriteQuery -> ReadQuery -> QueryBuilder
"""

from typing import TYPE_CHECKING, Any, Self, TypeVar

from mongoz.model.base import Model
from mongoz.queries.writes import WriteQuery
from mongoz.synonyms import OF_QUERIES, did_you_mean

__all__ = ["Query", "method_named"]

D = TypeVar("D", bound=Model)


class Query(WriteQuery[D]):
    """A lazy query over one document class.

    Every builder method returns a new query, so a query can be kept and refined many times:

        >>> adults = User.objects.filter(age__gte=18)
        >>> await adults.count()
        >>> await adults.sort("name").limit(10)
    """

    if not TYPE_CHECKING:  # else type checkers would accept any method

        def __getattr__(self, name: str) -> Any:
            hint = "" if name.startswith("_") else _hint(name)
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.{hint}", name=name)

    def get_queryset(self) -> Self:
        """The query that a manager starts with. Subclasses override it, and refine the result of `super()`.

        Examples:
            >>> def get_queryset(self):
            ...     return super().get_queryset().filter(is_active=True)
        """
        return self

    def __get__(self, instance: object, owner: Any) -> Self:
        """The manager of a document class, read from the class or from an instance."""
        if self._bound is not None or not hasattr(owner, "meta"):
            return self
        return self._bind(owner.meta.document).get_queryset()


def method_named(name: str) -> str | None:
    """The manager method that has this name here or in another library; None if there is none."""
    method = OF_QUERIES.get(name, name)
    return method if not method.startswith("_") and hasattr(Query, method) else None


def _hint(name: str) -> str:
    return did_you_mean(name, (each for each in dir(Query) if not each.startswith("_")), OF_QUERIES)
