"""Keyword filters: the field and the lookup of each keyword, as a MongoDB condition."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.model.joins import Join
from mongoz.model.paths import Path, split_keyword
from mongoz.queries.conditions import make_condition, operator_named
from mongoz.settings import settings
from mongoz.synonyms import OF_LOOKUPS, did_you_mean, nearest

__all__ = ["CompiledLookups", "compile_lookups", "refuse_positional"]

_DIRECTIONS: Final = {"asc": 1, "desc": -1}


class CompiledLookups(NamedTuple):
    """Keyword filters in MongoDB's terms.

    Attributes:
        conditions: MongoDB conditions; all of them must be true.
        joins: the joins that the conditions and the order use, each once.
        order: `(stored name, 1 or -1)` of each sort key.
    """

    conditions: tuple[dict[str, Any], ...] = ()
    joins: tuple[Join, ...] = ()
    order: tuple[tuple[str, int], ...] = ()


class _NotAKeyword(InvalidKeyError, TypeError):
    """The error of a positional argument. Python's own TypeError would only say how many arguments are allowed."""


class _NeitherFieldNorLookup(InvalidKeyError, OperatorInvalid):
    """The error of a name after an embedded document or a reference. The name is neither a field nor a lookup."""


def compile_lookups(document: Any, lookups: Mapping[str, Any]) -> CompiledLookups:
    """Compile keyword filters.

    Each keyword becomes a condition. A keyword with `asc` or `desc` becomes a sort key, if its value is true.

    Args:
        document: the queried class.
        lookups: `{"age__gte": 18, "address.city": "Bonn", "pk": id, "boss_id__name": "Ada", "name__desc": True}`.

    Raises:
        InvalidKeyError: there is no such field.
        OperatorInvalid: there is no such lookup, or it does not support the value.
        FieldDefinitionError: the field does not support the lookup.
    """
    conditions: list[dict[str, Any]] = []
    joins: dict[Join, None] = {}
    order: list[tuple[str, int]] = []
    for keyword, value in lookups.items():
        path, operator = _parse(document, keyword)
        joins.update(dict.fromkeys(path.joins))
        if operator not in _DIRECTIONS:
            conditions.append(make_condition(path, operator, value))
        elif value:
            order.append((path.attached, _DIRECTIONS[operator]))
    return CompiledLookups(tuple(conditions), tuple(joins), tuple(order))


def refuse_positional(method: str, arguments: tuple[Any, ...]) -> None:
    """Refuse positional arguments of a method with keyword filters.

    Raises:
        InvalidKeyError: there are positional arguments. The error is a TypeError too.
    """
    if arguments:
        raise _NotAKeyword(
            f"{method}() takes keywords, for example age=3 or age__gte=3, not {arguments[0]!r}. Expressions and "
            "dicts are arguments of query(). Both methods can be chained."
        )


def _parse(document: Any, keyword: str) -> tuple[Path, str]:
    path, lookup = split_keyword(document, keyword)
    if lookup is None:
        return path, "eq"
    operators = settings.filter_operators
    if lookup == "date":  # Q has no such operator
        return path, "date"
    if lookup in operators:
        operator = operators[lookup]
        if operator in _DIRECTIONS:
            return path, operator
        operator = operator_named(operator)
        if operator == "where" and not settings.allow_javascript:
            raise OperatorInvalid(
                f"{keyword!r} of {document.__name__} would run JavaScript on the server. Keywords often come from "
                "a request, so they may contain code only with the setting allow_javascript=True (see "
                "MONGOZ_SETTINGS_MODULE). For your own code use where('...') or Q.where(...)."
            )
        return path, operator
    valid = f"Valid are: {', '.join(sorted(operators))}."
    place = f"(in {keyword!r} of {document.__name__})"
    inner = path.inner_names
    if inner:
        hint = did_you_mean(lookup, [*inner, *operators], OF_LOOKUPS) or nearest(lookup, inner)
        raise _NeitherFieldNorLookup(f"There is neither a field nor a lookup {lookup!r} {place}.{hint} {valid}")
    hint = did_you_mean(lookup, operators, OF_LOOKUPS)
    if path.shape.open and not hint:  # for example a plain dict
        hint = f" A key inside of {path.path!r} is written with a dot: **{{{f'{path.path}.{lookup}'!r}: ...}}."
    raise OperatorInvalid(f"There is no lookup {lookup!r} {place}.{hint} {valid}")
