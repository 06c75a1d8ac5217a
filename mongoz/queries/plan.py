"""What a query asks for, as a value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mongoz.model.joins import Join

__all__ = ["Plan", "conjunction"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a query asks for. Never changed; builders make new ones.

    Attributes:
        conditions: MongoDB conditions that all hold, on stored names.
        joins: referenced documents that the conditions look into.
        order: `(stored name, 1 or -1)`, the primary one first.
        limit: at most so many documents; 0 is no limit.
        skip: leave out so many first.
        only: attribute names to load, the id included; None for all.
        defer: attribute names not to load.
        database: the name of another database than the document's own.
        session: the driver's session, where one was given.
        options: `hint`, `collation`, `max_time_ms`, `batch_size`: for the driver, as they are.
        nothing: matches nothing, without asking the server.
    """

    conditions: tuple[Mapping[str, Any], ...] = ()
    joins: tuple[Join, ...] = ()
    order: tuple[tuple[str, int], ...] = ()
    limit: int = 0
    skip: int = 0
    only: frozenset[str] | None = None
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
        """A plan with these conditions, joins and sort keys as well; a join that is there already is kept once."""
        return replace(
            self,
            conditions=(*self.conditions, *conditions),
            joins=(*self.joins, *(join for join in joins if join not in self.joins)),
            order=(*self.order, *order),
        )

    def at_most(self, count: int) -> "Plan":
        """A plan for no more than `count` documents, its own limit kept."""
        return replace(self, limit=min(self.limit or count, count))

    @property
    def reversed_order(self) -> tuple[tuple[str, int], ...]:
        """The sort keys that begin with what now comes last; without any, the highest `_id`."""
        return tuple((name, -way) for name, way in self.order) or (("_id", -1),)


def conjunction(conditions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Conditions that all hold, as one MongoDB filter."""
    every = [dict(condition) for condition in conditions]
    if len(every) > 1:
        return {"$and": every}
    return every[0] if every else {}
