"""Plans as what the driver takes: arguments of `find`, and the aggregation of a query that joins."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from mongoz.model.joins import attachments
from mongoz.queries.plan import Plan, conjunction

__all__ = [
    "OPTIONS",
    "command_options",
    "find_arguments",
    "is_for_find_only",
    "last_of",
    "own_filter",
    "pipeline",
]

OPTIONS: Final = {"hint": "hint", "collation": "collation", "max_time_ms": "maxTimeMS", "batch_size": "batchSize"}
"""Options of a query -> what commands call them. (`find` of the drivers takes our names.)"""

_FIND_ONLY: Final = frozenset({"$where", "$near", "$nearSphere"})


def find_arguments(plan: Plan, projection: Any = None) -> dict[str, Any]:
    """The arguments of the driver's `find`, without the session."""
    return {
        "filter": plan.filter,
        "projection": projection,
        "sort": list(plan.order) or None,
        "skip": plan.skip,
        "limit": plan.limit,
        **plan.options,
    }


def command_options(plan: Plan, *names: str) -> dict[str, Any]:
    """Those of the query's options as arguments of `aggregate`, `count_documents` and `distinct`."""
    options = {OPTIONS[name]: value for name, value in plan.options.items() if name in names}
    if isinstance(options.get("hint"), list | tuple):  # find() translates the pairs of an index by itself
        options["hint"] = dict(options["hint"])
    return options


def pipeline(plan: Plan, projection: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The aggregation stages of a plan: what can be matched before documents are joined is."""
    early, late = _parted(plan)
    stages: list[dict[str, Any]] = [{"$match": conjunction(early)}] if early else []
    for join in plan.joins:
        stages += join.stages()
    if late:
        stages.append({"$match": conjunction(late)})
    stages += attachments(plan.joins)
    if plan.order:
        stages.append({"$sort": dict(plan.order)})
    for stage, count in (("$skip", plan.skip), ("$limit", plan.limit)):
        if count:
            stages.append({stage: count})
    if projection:
        stages.append({"$project": dict(projection)})
    return stages


def own_filter(plan: Plan) -> dict[str, Any]:
    """The conditions that are not about joined documents, as one MongoDB filter."""
    return conjunction(_parted(plan)[0])


def _parted(plan: Plan) -> tuple[list[Any], list[Any]]:
    """The conditions that hold for a document alone, and those about what is joined to it."""
    slots = {join.slot for join in plan.joins}
    early: list[Any] = []
    late: list[Any] = []
    for condition in plan.conditions:
        (late if slots and _mentions(condition, slots) else early).append(condition)
    return early, late


def last_of(plan: Plan) -> list[dict[str, Any]]:
    """The stages after those of a plan that leave its last row; without a sort, that with the highest `_id`."""
    if not plan.order:
        return [{"$sort": {"_id": -1}}, {"$limit": 1}]
    return [{"$group": {"_id": None, "row": {"$last": "$$ROOT"}}}, {"$replaceRoot": {"newRoot": "$row"}}]


def is_for_find_only(condition: Any) -> bool:
    """Whether a condition uses an operator that an aggregation has not."""
    if isinstance(condition, Mapping):
        return any(key in _FIND_ONLY or is_for_find_only(value) for key, value in condition.items())
    return isinstance(condition, list | tuple) and any(map(is_for_find_only, condition))


def _mentions(condition: Any, names: Collection[str]) -> bool:
    """Whether a condition is about something joined; in doubt it is: it is then only checked later."""
    if isinstance(condition, Mapping):
        return any(_is_below(key, names) or _mentions(value, names) for key, value in condition.items())
    if isinstance(condition, list | tuple):
        return any(_mentions(item, names) for item in condition)
    return isinstance(condition, str) and condition.startswith("$") and _is_below(condition.lstrip("$"), names)


def _is_below(path: Any, names: Collection[str]) -> bool:
    return isinstance(path, str) and path.partition(".")[0] in names
