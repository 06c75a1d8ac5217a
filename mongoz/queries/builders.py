"""The builders of a query: each derives a new one."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from mongoz.connection import Collection
from mongoz.exceptions import InvalidKeyError
from mongoz.queries.expressions import Expression, FieldProxy, Order, SortExpression
from mongoz.queries.lookups import conditions
from mongoz.queries.paths import resolve
from mongoz.queries.plan import Plan
from mongoz.settings import settings

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Builders"]

D = TypeVar("D", bound="Document")


class Builders(Generic[D]):
    """An immutable plan over one document class, and what refines it."""

    def __init__(self, document: type[D], plan: Plan | None = None) -> None:
        self._document = document
        self._plan = plan or Plan()

    def _derive(self, **changes: Any) -> Self:
        return type(self)(self._document, replace(self._plan, **changes))

    def filter(self, **lookups: Any) -> Self:
        """Only documents for which all of these hold: `name="Ada"`, `age__gte=18`, `**{"address.city": "Bonn"}`.

        Raises:
            InvalidKeyError: no such field.
            OperatorInvalid: no such lookup.
        """
        return self._derive(conditions=self._plan.conditions + conditions(self._document, lookups))

    def where_all(self, expressions: Iterable[Expression | Mapping[Any, Any]]) -> Self:
        """Only documents for which all of these hold: expressions, or MongoDB queries as dicts."""
        more = [e.compile() if isinstance(e, Expression) else _by_name(e) for e in expressions]
        return self._derive(conditions=(*self._plan.conditions, *more))

    def sort(self, key: Any = None, direction: int = Order.ASCENDING, /, **lookups: Any) -> Self:
        """Order by a key; calls append, and the first key is the primary one.

        Args:
            key: a field's name, `Document.field`, a SortExpression, or a list of `(key, direction)`.
            direction: `Order.ASCENDING` (1) or `Order.DESCENDING` (-1).
            **lookups: `name__asc=True`, `age__desc=True`.

        Raises:
            InvalidKeyError: no such field, or no such direction.
        """
        keys = [] if key is None else [_sort_key(item) for item in _as_list(key, direction)]
        for name in lookups:
            path, _, way = name.rpartition(settings.lookup_prefix)
            if way not in ("asc", "desc"):
                raise InvalidKeyError(f"sort() takes name__asc or name__desc, not {name!r}.")
            keys.append((path, Order.ASCENDING if way == "asc" else Order.DESCENDING))
        order = [(resolve(self._document, str(name)).path, way) for name, way in keys]
        for stored_name, sense in order:
            if sense not in (Order.ASCENDING, Order.DESCENDING):
                raise InvalidKeyError(f"{sense!r} is no direction to sort {stored_name!r} in; use 1 or -1.")
        return self._derive(order=(*self._plan.order, *order))

    def limit(self, count: int) -> Self:
        """At most `count` documents; 0 is no limit.

        Raises:
            ValueError: count is negative.
        """
        return self._derive(limit=_not_negative("limit", count))

    def skip(self, count: int) -> Self:
        """Leave out the first `count` documents.

        Raises:
            ValueError: count is negative.
        """
        return self._derive(skip=_not_negative("skip", count))

    @property
    def _target(self) -> Collection:
        """Our collection that this query works on."""
        return self._document.meta.require_collection()

    @property
    def _collection(self) -> Any:
        """The driver's collection, for the running event loop."""
        return self._target._collection


def _by_name(query: Mapping[Any, Any]) -> dict[str, Any]:
    """A MongoDB query as it was given; `Document.field` may stand for a name."""
    if not isinstance(query, Mapping):
        raise InvalidKeyError(f"query() takes expressions and dicts, not {query!r}.")
    return {str(key) if isinstance(key, FieldProxy) else key: value for key, value in query.items()}


def _as_list(key: Any, direction: int) -> list[Any]:
    return list(key) if isinstance(key, list) else [(key, direction)]


def _sort_key(item: Any) -> tuple[Any, int]:
    if isinstance(item, tuple):
        key, direction = item
        return (key.key, key.direction) if isinstance(key, SortExpression) else (key, direction)
    return (item.key, item.direction) if isinstance(item, SortExpression) else (item, Order.ASCENDING)


def _not_negative(what: str, count: int) -> int:
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"{what}({count!r}): a number of documents is an int from 0 on.")
    return count
