"""`Document.objects` and `Document.query`: two spellings of the one engine."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mongoz.queries.engine import Query
from mongoz.queries.expressions import Expression

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Manager", "ObjectsDescriptor", "QueryDescriptor", "QuerySet"]

D = TypeVar("D", bound="Document")


class Manager(Query[D]):
    """What `Document.objects` is."""

    def query(self, *conditions: Expression | Mapping[Any, Any]) -> "Manager[D]":
        """Only documents for which all of these hold: expressions, or MongoDB queries as dicts."""
        return self.where_all(conditions)


class QuerySet(Query[D]):
    """What `Document.query(...)` is; calling it again adds conditions."""

    def __call__(self, *conditions: Expression | Mapping[Any, Any]) -> "QuerySet[D]":
        """Only documents for which all of these hold: expressions, or MongoDB queries as dicts.

        Example:
            >>> await User.query(User.age >= 18, {"name": {"$exists": True}})
        """
        return self.where_all(conditions) if conditions else self

    query = __call__


class ObjectsDescriptor:
    """Makes `objects` a fresh Manager of whatever document it is read from."""

    def __get__(self, instance: Any, owner: type[D]) -> Manager[D]:
        return Manager(owner)


class QueryDescriptor:
    """Makes `query` a fresh QuerySet of whatever document it is read from."""

    def __get__(self, instance: Any, owner: type[D]) -> QuerySet[D]:
        return QuerySet(owner)
