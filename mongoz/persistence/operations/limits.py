"""Limits that operations must keep: conditions for the filter of the write, and checks of single documents."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, get_origin

import annotated_types
from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from mongoz.fields.storage import stored
from mongoz.model.base import Model
from mongoz.persistence.operations.operation import ALL_ITEMS, Operation
from mongoz.persistence.operations.places import kinds_of, place_at, rules_of
from mongoz.persistence.operations.preview import preview_operations
from mongoz.persistence.rows.hydration import validate_stored

__all__ = ["OperationLimits", "limits_of", "require_within_limits"]

_COMPARISONS: Final = {
    annotated_types.Ge: ("ge", "$gte"),
    annotated_types.Gt: ("gt", "$gt"),
    annotated_types.Le: ("le", "$lte"),
    annotated_types.Lt: ("lt", "$lt"),
}
_LENGTHS: Final = {
    annotated_types.MinLen: ("min_length", "$gte"),
    annotated_types.MaxLen: ("max_length", "$lte"),
}
_LIST_OPERATORS: Final = frozenset({"$push", "$addToSet", "$pullAll", "$pull"})
_REMOVING: Final = frozenset({"$unset", "$pullAll", "$pull"})


class OperationLimits(NamedTuple):
    """The limits that operations must keep.

    Attributes:
        conditions: filter conditions that are true if the results of the operations are within the limits.
        has_others: there are rules that no filter can express, so each document must be checked.
    """

    conditions: tuple[Mapping[str, Any], ...] = ()
    has_others: bool = False

    def __bool__(self) -> bool:
        return bool(self.conditions or self.has_others)

    @property
    def exceeded(self) -> dict[str, Any]:
        """The filter condition that is true if a limit would be exceeded."""
        return {"$nor": [{"$and": list(self.conditions)}]}


def limits_of(document: type[Model], operations: Iterable[Operation]) -> OperationLimits:
    """The limits of the fields that the operations change.

    `$set`, `$min` and `$max` keep the limits, because their operands were validated. `$unset` keeps the limits,
    because it is refused for required fields. These operators need no check on a whole field. They need a check
    on a path inside of a field, because the enclosing document or list may have rules of its own.
    """
    conditions: list[Mapping[str, Any]] = []
    others = False
    for operation in operations:
        computed = operation.operator == "$inc" or operation.operator in _LIST_OPERATORS
        if not computed and operation.path == operation.top:
            continue
        place = place_at(document, operation.path)
        rules, needs_check = rules_of(place.annotation), place.is_checked
        # Each document must be checked, because a filter can't name an item of a list. The check also finds items
        # that the server sets to null: an item that `$unset` removes, and the items that fill the gap when a new
        # item is set after the end of the list.
        if place.is_item:
            others = True
            continue
        if operation.operator not in _REMOVING:
            conditions += [{path: {"$exists": True}} for path in place.incomplete]
            conditions += [{path: {"$not": {"$type": "null"}}} for path in place.nullable]
        if not computed:
            others = others or needs_check
            continue
        has_choices = any(get_origin(kind) is Literal or _is_enum(kind) for kind in kinds_of(place.annotation))
        if has_choices and operation.operator == "$inc":
            needs_check = True
        kinds = _COMPARISONS if operation.operator == "$inc" else _LENGTHS
        checks = []
        for rule in rules:
            found = kinds.get(type(rule))
            if found is None or operation.operator == "$pull":
                needs_check = True
            else:
                checks.append({found[1]: ["$$it", _literal(getattr(rule, found[0]))]})
        if checks:
            conditions.append(_condition(operation, checks))
        others = others or needs_check
    return OperationLimits(tuple(conditions), others)


def _condition(operation: Operation, checks: list[dict[str, Any]]) -> dict[str, Any]:
    """A condition that is true if the result of the operation passes the checks.

    In the checks, `$$it` is the new number, or the length of the new list.
    """
    present: Any = f"${operation.path}"
    if operation.operator == "$inc":
        now: Any = {"$ifNull": [present, 0]}
        after: Any = {"$add": [now, _literal(operation.value)]}
        fits = {"$isNumber": now}
    else:
        now = {"$ifNull": [present, []]}
        fits = {"$isArray": [now]}
        after = _length(operation, now)
    within = {"$let": {"vars": {"it": after}, "in": {"$and": checks}}}
    # If the present value has another type, the condition is true: the server itself refuses the operation then.
    return {"$expr": {"$cond": [fits, within, True]}}


def _length(operation: Operation, now: Any) -> dict[str, Any]:
    if operation.operator == "$push":
        return {"$add": [{"$size": now}, len(operation.value["$each"])]}
    if operation.operator == "$addToSet":
        new = {"$setDifference": [_literal(operation.value["$each"]), now]}
        return {"$add": [{"$size": now}, {"$size": new}]}
    kept = {"$not": [{"$in": ["$$one", _literal(operation.value)]}]}
    return {"$size": {"$filter": {"input": now, "as": "one", "cond": kept}}}


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _literal(value: Any) -> dict[str, Any]:
    return {"$literal": stored(value)}


def require_within_limits(
    document: type[Model], namespace: str, row: Mapping[str, Any], operations: Sequence[Operation]
) -> None:
    """Refuse operations on a document if a result would not fit its field.

    Args:
        document: the class.
        namespace: the namespace of the collection, for the message.
        row: the document in the database, or at least its `_id` and the fields that the operations change.
        operations: the operations.

    Raises:
        pydantic.ValidationError: a result would not fit. The message contains the collection, the `_id`, the field
            and the value.
    """
    after = preview_operations(row, operations)
    title = f"{document.__name__} with _id {row['_id']!r} of {namespace}"
    if empty := _first_empty(row, operations):
        raise ValidationError.from_exception_data(title, [empty])
    if after is None:  # the server refuses the operations, or the result is unknown
        return
    attributes = {operation.top: operation.attribute for operation in operations}
    lines: list[InitErrorDetails] = []
    for alias, value in after.items():
        try:
            validate_stored(document.proxy_document, {alias: value})
        except ValidationError as error:
            lines += [
                InitErrorDetails(
                    type=PydanticCustomError(line["type"], line["msg"]), loc=line["loc"], input=line["input"]
                )
                for line in error.errors(include_url=False)
            ]
    if lines:
        refused = ValidationError.from_exception_data(title, lines)
        shown = ", ".join(f"{attributes[alias]}={value!r}" for alias, value in after.items())
        refused.add_note(
            f"The update would result in {shown[:200]}, so nothing was written. Select only documents that stay "
            "valid with this change, or make a smaller change."
        )
        raise refused


def _first_empty(row: Mapping[str, Any], operations: Iterable[Operation]) -> InitErrorDetails | None:
    """The error of the first operation whose path goes through a None. If there is no such operation, None."""
    for operation in operations:
        if operation.operator in _REMOVING:
            continue
        steps = operation.path.split(".")
        for number in range(1, len(steps)):
            if any(value is None for value in _values_at(row, steps[:number])):
                place = ".".join(steps[:number])
                message = f"{place} is None, so {operation.path} can't be changed; set {place} as a whole"
                return InitErrorDetails(
                    type=PydanticCustomError("inside_of_none", message), loc=(place,), input=None
                )
    return None


def _values_at(place: Any, steps: list[str]) -> list[Any]:
    """The present values at a path."""
    if not steps:
        return [place]
    step, rest = steps[0], steps[1:]
    if isinstance(place, Mapping):
        return _values_at(place[step], rest) if step in place else []
    if not isinstance(place, list):
        return []
    items = place if step == ALL_ITEMS else place[int(step) : int(step) + 1] if step.isdecimal() else []
    return [value for item in items for value in _values_at(item, rest)]
