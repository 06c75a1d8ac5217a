"""Converts plans to commands: arguments of `find`, and the aggregation of a query with joins."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from mongoz.model.joins import Join
from mongoz.queries.plan import Plan, conjunction

__all__ = [
    "OPTIONS",
    "attachment_stages",
    "command_options",
    "find_arguments",
    "is_for_find_only",
    "last_row_stages",
    "own_filter",
    "pipeline",
]

OPTIONS: Final = {"hint": "hint", "collation": "collation", "max_time_ms": "maxTimeMS", "batch_size": "batchSize"}
"""Options of a query -> their names in commands. For the drivers' method `find`, the options keep their names."""

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
    """The options of a query with these names, as arguments of `aggregate`, `count_documents` and `distinct`."""
    options = {OPTIONS[name]: value for name, value in plan.options.items() if name in names}
    # A hint may be a list of pairs: field and direction. Not all methods of the driver convert such a list.
    if isinstance(options.get("hint"), list | tuple):
        options["hint"] = dict(options["hint"])
    return options


def pipeline(plan: Plan, projection: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The aggregation stages of a plan. Conditions on the document alone come before the joins."""
    early, late = _split_conditions(plan)
    stages: list[dict[str, Any]] = [{"$match": conjunction(early)}] if early else []
    for join in plan.joins:
        lookup = {"from": join.name, "localField": join.local, "foreignField": "_id", "as": join.slot}
        stages.append({"$lookup": lookup})
    if late:
        stages.append({"$match": conjunction(late)})
    stages += attachment_stages(plan.joins)
    if plan.order:
        stages.append({"$sort": dict(plan.order)})
    for stage, count in (("$skip", plan.skip), ("$limit", plan.limit)):
        if count:
            stages.append({stage: count})
    if projection:
        stages.append({"$project": dict(projection)})
    return stages


def attachment_stages(joins: Iterable[Join]) -> list[dict[str, Any]]:
    """The stages that move joined rows from the slots of the joins to the names of the foreign collections.

    They come after the conditions and before the sort.
    """
    slots: dict[str, list[str]] = {}
    for join in joins:
        slots.setdefault(join.name, []).append(join.slot)
    if not slots:
        return []
    merged = {name: {"$concatArrays": [f"${slot}" for slot in of_name]} for name, of_name in slots.items()}
    return [{"$set": merged}, {"$unset": [slot for of_name in slots.values() for slot in of_name]}]


def own_filter(plan: Plan) -> dict[str, Any]:
    """The conditions on the document alone, as one MongoDB filter."""
    return conjunction(_split_conditions(plan)[0])


def _split_conditions(plan: Plan) -> tuple[list[Any], list[Any]]:
    """The conditions on the document alone, and the conditions on joined documents."""
    slots = {join.slot for join in plan.joins}
    early: list[Any] = []
    late: list[Any] = []
    for condition in plan.conditions:
        (late if slots and _mentions(condition, slots) else early).append(condition)
    return early, late


def last_row_stages(plan: Plan) -> list[dict[str, Any]]:
    """Further stages that keep only the last row of a plan; without a sort, the row with the highest `_id`."""
    if not plan.order:
        return [{"$sort": {"_id": -1}}, {"$limit": 1}]
    return [{"$group": {"_id": None, "row": {"$last": "$$ROOT"}}}, {"$replaceRoot": {"newRoot": "$row"}}]


def is_for_find_only(condition: Any) -> bool:
    """Whether a condition uses an operator that aggregations don't support."""
    if isinstance(condition, Mapping):
        return any(key in _FIND_ONLY or is_for_find_only(value) for key, value in condition.items())
    return isinstance(condition, list | tuple) and any(map(is_for_find_only, condition))


def _mentions(condition: Any, names: Collection[str]) -> bool:
    """Whether a condition may refer to a joined document. If so, it is checked after the join."""
    if isinstance(condition, Mapping):
        return any(_is_below(key, names) or _mentions(value, names) for key, value in condition.items())
    if isinstance(condition, list | tuple):
        return any(_mentions(item, names) for item in condition)
    return isinstance(condition, str) and condition.startswith("$") and _is_below(condition.lstrip("$"), names)


def _is_below(path: Any, names: Collection[str]) -> bool:
    return isinstance(path, str) and path.partition(".")[0] in names
