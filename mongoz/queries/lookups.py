"""Keyword filters: the table of lookups, and how a keyword is taken apart."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import bson

from mongoz.exceptions import OperatorInvalid, did_you_mean
from mongoz.fields.storage import stored
from mongoz.queries.paths import QueriedDocument, resolve, stored_id
from mongoz.settings import settings

__all__ = ["LOOKUPS", "conditions"]


def _members(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _NotAList(f"__in and __not_in take a list or a tuple, not {value!r}.")
    return [stored(member) for member in value]


class _NotAList(OperatorInvalid, AssertionError):
    """A lookup that takes a list was given something else (an AssertionError too: applications catch that)."""


# Every value stands behind an operator of ours: a dict from a user's input is compared, never obeyed.
LOOKUPS: Final[dict[str, Callable[[Any], dict[str, Any]]]] = {
    "exact": lambda value: {"$eq": stored(value)},
    "neq": lambda value: {"$ne": stored(value)},
    "in": lambda value: {"$in": _members(value)},
    "not_in": lambda value: {"$nin": _members(value)},
    "gt": lambda value: {"$gt": stored(value)},
    "gte": lambda value: {"$gte": stored(value)},
    "lt": lambda value: {"$lt": stored(value)},
    "lte": lambda value: {"$lte": stored(value)},
}


def conditions(document: QueriedDocument, lookups: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """One MongoDB condition per keyword.

    Args:
        document: the class that is queried.
        lookups: `{"age__gte": 18, "address.city": "Bonn", "pk": id}`.

    Raises:
        InvalidKeyError: no such field.
        OperatorInvalid: no such lookup, or a value of the wrong kind for it.
    """
    return tuple(_condition(document, keyword, value) for keyword, value in lookups.items())


def _condition(document: QueriedDocument, keyword: str, value: Any) -> dict[str, Any]:
    path, lookup = _take_apart(document, keyword)
    resolved = resolve(document, path)
    if resolved.is_id:
        value = [stored_id(v) for v in value] if isinstance(value, list | tuple) else stored_id(value)
    return _literally(resolved.path, LOOKUPS[lookup](value))


def _literally(path: str, condition: dict[str, Any]) -> dict[str, Any]:
    """The condition on a path; MongoDB refuses `{"$in": [{"$gt": ""}]}`, whereas `$eq` compares such a dict."""
    for operator, junction in (("$in", "$or"), ("$nin", "$nor")):
        members = condition.get(operator, ())
        if any(map(_has_a_meaning_of_its_own, members)):
            return {junction: [{path: {"$eq": member}} for member in members]}
    return {path: condition}


def _has_a_meaning_of_its_own(member: Any) -> bool:
    """What MongoDB would not compare in a list, but refuse or match with."""
    if isinstance(member, re.Pattern | bson.Regex):
        return True
    return isinstance(member, dict) and any(str(key).startswith("$") for key in member)


def _take_apart(document: QueriedDocument, keyword: str) -> tuple[str, str]:
    prefix = settings.lookup_prefix
    if keyword in document.model_fields or prefix not in keyword:
        return keyword, "exact"
    path, _, lookup = keyword.rpartition(prefix)
    if not path:  # "__v" is a name, not a lookup
        return keyword, "exact"
    if lookup not in LOOKUPS:
        raise OperatorInvalid(
            f"There is no lookup {lookup!r} (in {keyword!r} of {document.__name__})."
            f"{did_you_mean(lookup, LOOKUPS)} Valid are: {', '.join(sorted(LOOKUPS))}."
        )
    return path, lookup
