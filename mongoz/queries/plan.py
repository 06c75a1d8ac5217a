"""What a query asks for, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mongoz.queries.joins import Join

__all__ = ["Plan"]


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
        if not self.conditions:
            return {}
        if len(self.conditions) == 1:
            return dict(self.conditions[0])
        return {"$and": [dict(condition) for condition in self.conditions]}
