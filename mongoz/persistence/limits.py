"""Limits of fields that operations must keep: put into the filter of the write, or checked on each document."""

from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, Strict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from mongoz.fields.decimals import DecimalRule
from mongoz.fields.rules import NotNone
from mongoz.fields.storage import stored, stored_names
from mongoz.persistence.invariants import has_invariants, has_validator_of
from mongoz.persistence.operations import Operation
from mongoz.persistence.preview import preview
from mongoz.persistence.rows import validated_as_stored

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
        rules, more = _rules(document, operation.path)
        if not computed:
            others = others or more
            continue
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


def _literal(value: Any) -> dict[str, Any]:
    return {"$literal": stored(value)}


def _rules(document: type["Document"], path: str) -> tuple[list[Any], bool]:
    """The rules of what a stored path leads to, and whether there are some that only the model itself knows."""
    model: Any = document
    *parents, last = path.split(".")
    more = False
    for alias in parents:
        field = _field(model, alias)
        if field is None:  # in a field without a model, anything goes
            return [], more
        more = more or bool(field[1].metadata) or has_validator_of(model, field[0])
        model = next((kind for kind in _kinds(field[1].annotation) if _is_model(kind)), None)
        if model is None:  # an item of a list; or what has no model
            rules = _unfolded([*field[1].metadata, *_annotated(field[1].annotation)])
            return [], more or bool(rules) or any(_is_model(k) for k in _within(field[1].annotation))
        more = more or has_invariants(model)
    found = _field(model, last)
    if found is None:
        return [], more
    name, field_ = found
    more = more or has_validator_of(model, name)
    return _unfolded([*field_.metadata, *_annotated(field_.annotation)]), more


def _field(model: Any, alias: str) -> tuple[str, Any] | None:
    for name, stored_as in stored_names(model).items():
        if stored_as == alias:
            return name, model.model_fields[name]
    return None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kinds(annotation: Any) -> list[Any]:
    """The types that a value may have by itself: the members of a union."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _kinds(member)]
    return [annotation]


def _within(annotation: Any) -> list[Any]:
    """All types that an annotation is made of."""
    arguments = get_args(annotation)
    return [annotation, *(kind for argument in arguments for kind in _within(argument))]


def _annotated(annotation: Any) -> list[Any]:
    """The rules in an annotation that are about the value itself, not about what it contains."""
    if get_origin(annotation) is Annotated:
        inner, *rules = get_args(annotation)
        return [*_annotated(inner), *rules]
    if get_origin(annotation) in (Union, UnionType):
        return [rule for member in get_args(annotation) for rule in _annotated(member)]
    return []


def _unfolded(rules: Iterable[Any]) -> list[Any]:
    """Rules that stand for several, as several; without those that operations can't break."""
    found: list[Any] = []
    for rule in rules:
        if isinstance(rule, NotNone | Strict):
            continue
        if isinstance(rule, DecimalRule):
            found += _decimal_rules(rule)
        elif isinstance(rule, annotated_types.GroupedMetadata):
            found += _unfolded(rule)
        elif hasattr(rule, "metadata"):  # pydantic's Field() inside of an annotation
            found += _unfolded(rule.metadata)
        else:
            found.append(rule)
    return found


def _decimal_rules(rule: DecimalRule) -> list[Any]:
    whole = 10 ** (rule.max_digits - (rule.decimal_places or 0))
    rules: list[Any] = [annotated_types.Gt(-whole), annotated_types.Lt(whole)]
    if rule.minimum is not None:
        rules.append(annotated_types.Ge(rule.minimum))
    if rule.maximum is not None:
        rules.append(annotated_types.Le(rule.maximum))
    return [*rules, rule.multiple_of] if rule.multiple_of is not None else rules


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
