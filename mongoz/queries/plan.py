"""The plan of a query, as an immutable value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mongoz.model.joins import Join

__all__ = ["Plan", "conjunction"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a query. It is immutable; builder methods make new plans.

    Attributes:
        conditions: MongoDB conditions on stored names; all of them must be true.
        joins: the joins that the conditions, the order and the columns of `values` use.
        order: `(stored name, 1 or -1)` of each sort key, the most significant one first.
        limit: the maximum number of documents; 0 is no limit.
        skip: the number of documents to leave out at the start.
        only: attribute names to load, the id included; None for all.
        parts: stored, dotted names. If a field in `only` has parts here, only these parts of it are loaded.
        defer: attribute names not to load.
        database: the name of the database; None for the document's own.
        session: the driver's session, if one was given.
        options: `hint`, `collation`, `max_time_ms`, `batch_size`, for the driver.
        nothing: the query has no documents, and sends no command.
    """

    conditions: tuple[Mapping[str, Any], ...] = ()
    joins: tuple[Join, ...] = ()
    order: tuple[tuple[str, int], ...] = ()
    limit: int = 0
    skip: int = 0
    only: frozenset[str] | None = None
    parts: frozenset[str] = frozenset()
    defer: frozenset[str] = frozenset()
    database: str | None = None
    session: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    nothing: bool = False

    @property
    def filter(self) -> dict[str, Any]:
        """All conditions as one MongoDB filter."""
        return conjunction(self.conditions)

    def matching(
        self,
        conditions: Iterable[Mapping[str, Any]] = (),
        joins: Iterable[Join] = (),
        order: Iterable[tuple[str, int]] = (),
    ) -> "Plan":
        """The plan with further conditions, joins and sort keys. Each join is kept once."""
        return replace(
            self,
            conditions=(*self.conditions, *conditions),
            joins=(*self.joins, *(join for join in joins if join not in self.joins)),
            order=(*self.order, *order),
        )

    def at_most(self, count: int) -> "Plan":
        """The plan for at most `count` documents; a smaller limit stays."""
        return replace(self, limit=min(self.limit or count, count))

    @property
    def reversed_order(self) -> tuple[tuple[str, int], ...]:
        """The sort keys of the reversed order; if the plan has no sort keys, descending by `_id`."""
        return tuple((name, -way) for name, way in self.order) or (("_id", -1),)


def conjunction(conditions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One MongoDB filter that is true if all conditions are true."""
    every = [dict(condition) for condition in conditions]
    if len(every) > 1:
        return {"$and": every}
    return every[0] if every else {}
