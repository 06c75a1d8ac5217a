"""The sort keys of a query, in all forms that `sort` accepts."""

from collections.abc import Mapping
from typing import Any

from mongoz.exceptions import InvalidKeyError
from mongoz.model.paths import split_keyword
from mongoz.queries.expressions import Order, SortExpression
from mongoz.queries.lookups import CompiledLookups, compile_lookups
from mongoz.settings import settings

__all__ = ["compile_sort"]


def compile_sort(document: Any, key: Any, direction: Any, lookups: Mapping[str, Any]) -> CompiledLookups:
    """The sort keys of one call of `sort`, and the joins that they need.

    Args:
        document: the queried class.
        key: a field's name, `Document.field`, a SortExpression, a list of these or of `(key, direction)`; None if
            only `lookups` give sort keys.
        direction: 1 or -1, for a single `key` that is no SortExpression.
        lookups: the keywords of the call, such as `{"name__asc": True}`.

    Raises:
        InvalidKeyError: there is no such field or direction.
    """
    items = [] if key is None else key if isinstance(key, list) else [(key, direction)]
    ways = {}
    for item in items:
        name, way = _pair(item)
        ways[_keyword(name, way)] = True
        split_keyword(document, str(name))  # checked here, so that an error contains the name that the caller gave
    for keyword in lookups:
        if keyword.rpartition(settings.lookup_prefix)[2] not in ("asc", "desc"):
            raise InvalidKeyError(f"sort() takes name__asc or name__desc, not {keyword!r}.")
    ways.update(lookups)
    return compile_lookups(document, ways)


def _pair(item: Any) -> tuple[Any, Any]:
    key, direction = item if isinstance(item, tuple) else (item, Order.ASCENDING)
    return (key.key, key.direction) if isinstance(key, SortExpression) else (key, direction)


def _keyword(key: Any, direction: Any) -> str:
    if direction not in (Order.ASCENDING, Order.DESCENDING):
        raise InvalidKeyError(f"{direction!r} is no direction for the sort key {str(key)!r}; use 1 or -1.")
    if str(key).startswith("-"):
        raise InvalidKeyError(f"sort() has no key {str(key)!r}; write sort({str(key)[1:]!r}, Order.DESCENDING).")
    way = "asc" if direction == Order.ASCENDING else "desc"
    return f"{key}{settings.lookup_prefix}{way}"
