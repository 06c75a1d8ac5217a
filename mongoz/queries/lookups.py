"""Keyword filters: how a keyword is taken apart, and which operator its lookup stands for."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.model.joins import Join
from mongoz.model.paths import Path, take_apart
from mongoz.queries.conditions import condition, operator_named
from mongoz.settings import settings
from mongoz.synonyms import OF_LOOKUPS, did_you_mean, nearest

__all__ = ["Compiled", "compile_lookups", "refuse_positional"]

_DIRECTIONS: Final = {"asc": 1, "desc": -1}


class Compiled(NamedTuple):
    """What keyword filters ask for.

    Attributes:
        conditions: MongoDB conditions that all hold.
        joins: the referenced documents that they look into, each once.
        order: `(stored name, 1 or -1)`.
    """

    conditions: tuple[dict[str, Any], ...] = ()
    joins: tuple[Join, ...] = ()
    order: tuple[tuple[str, int], ...] = ()


class _NotAKeyword(InvalidKeyError, TypeError):
    """Python's own TypeError would only count the arguments."""


class _NeitherFieldNorLookup(InvalidKeyError, OperatorInvalid):
    """Behind an embedded document or a reference a name can be either."""


def compile_lookups(document: Any, lookups: Mapping[str, Any]) -> Compiled:
    """One MongoDB condition per keyword, except for `asc` and `desc`, which are sort keys (if true).

    Args:
        document: the class that is queried.
        lookups: `{"age__gte": 18, "address.city": "Bonn", "pk": id, "boss_id__name": "Ada", "name__desc": True}`.

    Raises:
        InvalidKeyError: no such field.
        OperatorInvalid: no such lookup, or a value of the wrong kind for it.
        FieldDefinitionError: the lookup makes no sense for the field.
    """
    conditions: list[dict[str, Any]] = []
    joins: dict[Join, None] = {}
    order: list[tuple[str, int]] = []
    for keyword, value in lookups.items():
        path, operator = _parse(document, keyword)
        joins.update(dict.fromkeys(path.joins))
        if operator not in _DIRECTIONS:
            conditions.append(condition(path, operator, value))
        elif value:
            order.append((path.attached, _DIRECTIONS[operator]))
    return Compiled(tuple(conditions), tuple(joins), tuple(order))


def refuse_positional(call: str, things: tuple[Any, ...]) -> None:
    """Raise where a call that takes keyword filters got something else.

    Raises:
        InvalidKeyError: which is a TypeError too.
    """
    if things:
        raise _NotAKeyword(
            f"{call}() takes keywords, such as age=3 or age__gte=3, not {things[0]!r}. Expressions and dicts go "
            "into query(), which can be chained with it."
        )


def _parse(document: Any, keyword: str) -> tuple[Path, str]:
    path, lookup = take_apart(document, keyword)
    if lookup is None:
        return path, "eq"
    operators = settings.filter_operators
    if lookup == "date":  # no single operator of Q
        return path, "date"
    if lookup in operators:
        operator = operators[lookup]
        if operator in _DIRECTIONS:
            return path, operator
        operator = operator_named(operator)
        if operator == "where" and not settings.allow_javascript:
            raise OperatorInvalid(
                f"{keyword!r} of {document.__name__} would run JavaScript on the server. Keywords often come from "
                "a request, so they may carry code only with the setting allow_javascript=True (see "
                "MONGOZ_SETTINGS_MODULE). Code of your own goes into where('...') or Q.where(...)."
            )
        return path, operator
    valid = f"Valid are: {', '.join(sorted(operators))}."
    place = f"(in {keyword!r} of {document.__name__})"
    if path.below:
        hint = did_you_mean(lookup, [*path.below, *operators], OF_LOOKUPS) or nearest(lookup, path.below)
        raise _NeitherFieldNorLookup(f"There is neither a field nor a lookup {lookup!r} {place}.{hint} {valid}")
    hint = did_you_mean(lookup, operators, OF_LOOKUPS)
    if path.shape.open and not hint:  # a plain dict, say
        hint = f" A key inside of {path.path!r} is written with a dot: **{{{f'{path.path}.{lookup}'!r}: ...}}."
    raise OperatorInvalid(f"There is no lookup {lookup!r} {place}.{hint} {valid}")
