"""Limits of fields that operations must keep: put into the filter of the write, or checked on each document."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_origin

import annotated_types
from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from mongoz.fields.storage import stored
from mongoz.persistence.operations.operation import Operation
from mongoz.persistence.operations.places import kinds_of, place_at, rules_of
from mongoz.persistence.operations.preview import preview
from mongoz.persistence.rows.hydration import validated_as_stored

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Limits", "limits_of", "require_within"]

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
_OF_LISTS: Final = frozenset({"$push", "$addToSet", "$pullAll"})


class Limits(NamedTuple):
    """What operations must keep.

    Attributes:
        conditions: that hold for a document if what comes out is within the limits; for a filter.
        others: there are rules that no filter can express: each document must be looked at.
    """

    conditions: tuple[Mapping[str, Any], ...] = ()
    others: bool = False

    def __bool__(self) -> bool:
        return bool(self.conditions or self.others)

    @property
    def broken(self) -> dict[str, Any]:
        """What holds for a document if one of the conditions does not."""
        return {"$nor": [{"$and": list(self.conditions)}]}


def limits_of(document: type["Document"], operations: Iterable[Operation]) -> Limits:
    """The limits of the fields that operations are about.

    `$min`, `$max` and `$unset` keep them by themselves, since their values were validated: except what a document
    that is embedded demands of several of its fields.
    """
    conditions: list[Mapping[str, Any]] = []
    others = False
    for operation in operations:
        computed = operation.operator == "$inc" or operation.operator in _OF_LISTS
        if not computed and operation.path == operation.top:
            continue
        place = place_at(document, operation.path)
        rules, more = rules_of(place.annotation), place.is_checked
        if place.is_item:  # which a filter can't name, and which is null where it is unset or was skipped
            others = True
            continue
        if operation.operator not in ("$unset", "$pullAll"):
            conditions += [{path: {"$exists": True}} for path in place.unmade]
        if not computed:
            others = others or more
            continue
        chosen = any(get_origin(kind) is Literal or _is_enum(kind) for kind in kinds_of(place.annotation))
        if chosen and operation.operator == "$inc":
            more = True
        kinds = _COMPARISONS if operation.operator == "$inc" else _LENGTHS
        checks = []
        for rule in rules:
            found = kinds.get(type(rule))
            if found is None:
                more = True
            else:
                checks.append({found[1]: ["$$it", _literal(getattr(rule, found[0]))]})
        if checks:
            conditions.append(_condition(operation, checks))
        others = others or more
    return Limits(tuple(conditions), others)


def _condition(operation: Operation, checks: list[dict[str, Any]]) -> dict[str, Any]:
    """That the checks hold for `it`: the number that comes out, or the length of the list that does."""
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
    # What has another type the server refuses by itself, in its own words.
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


def require_within(
    document: type["Document"], namespace: str, row: Mapping[str, Any], operations: Sequence[Operation]
) -> None:
    """Refuse operations on a document that would leave a field with a value that does not fit it.

    Args:
        document: the class.
        namespace: of the collection, for the message.
        row: the document as the database has it, or at least its `_id` and the operated fields.
        operations: what is to be sent.

    Raises:
        pydantic.ValidationError: names collection, `_id`, field and value.
    """
    after = preview(row, operations)
    if after is None:  # the server refuses them, in its own words
        return
    attributes = {operation.top: operation.attribute for operation in operations}
    lines: list[InitErrorDetails] = []
    for alias, value in after.items():
        try:
            validated_as_stored(document.proxy_document, {alias: value})
        except ValidationError as error:
            lines += [
                InitErrorDetails(
                    type=PydanticCustomError(line["type"], line["msg"]), loc=line["loc"], input=line["input"]
                )
                for line in error.errors(include_url=False)
            ]
    if lines:
        title = f"{document.__name__} with _id {row['_id']!r} of {namespace}"
        refused = ValidationError.from_exception_data(title, lines)
        shown = ", ".join(f"{attributes[alias]}={value!r}" for alias, value in after.items())
        refused.add_note(
            f"The update would make it {shown[:200]}, so nothing was written. Have the query select only "
            "documents that can take the change, or ask for a smaller one."
        )
        raise refused
