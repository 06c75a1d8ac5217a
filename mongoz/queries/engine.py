"""The one lazy query engine: an immutable plan, builders that derive new ones, terminals that run them.

Query -> Writing -> Reading -> Builders
"""

from typing import TYPE_CHECKING, TypeVar

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
