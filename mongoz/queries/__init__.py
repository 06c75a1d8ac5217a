"""Queries: managers and querysets, expressions, lookups and update operators."""

from mongoz.queries.expressions import Expression, Order, SortExpression
from mongoz.queries.managers import Manager, QuerySet, QuerySetManager

__all__ = ["Expression", "Manager", "Order", "QuerySet", "QuerySetManager", "SortExpression"]
