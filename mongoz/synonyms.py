"""Hints for unknown names: the nearest valid name, and the names that replace names of other libraries."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["OF_ARGUMENTS", "OF_INSTANCES", "OF_LOOKUPS", "OF_QUERIES", "closest", "did_you_mean", "nearest"]

OF_QUERIES: Final = {
    "annotate": "aggregate", "bulk_insert": "create_many", "count_documents": "count", "delete_all": "delete",
    "delete_many": "delete", "delete_one": "delete", "destroy": "delete", "distinct": "distinct_values",
    "estimated_document_count": "count", "fetch": "filter", "filter_by": "filter", "find": "filter",
    "find_all": "all", "find_by_id": "get_document_by_id", "find_many": "filter", "find_one": "get_or_none",
    "find_one_or_create": "get_or_create", "get_all": "all", "get_by_id": "get_document_by_id",
    "get_or_404": "get", "get_or_insert": "get_or_create", "insert": "create", "insert_all": "create_many",
    "insert_many": "create_many", "insert_one": "create", "iterator": "all", "length": "count", "list": "all",
    "one": "get", "one_or_none": "get_or_none", "order_by": "sort", "remove": "delete", "scalar": "values_list",
    "search": "filter", "select": "only", "to_list": "all", "update_all": "update", "update_one": "update",
    "upsert": "get_or_create", "upsert_one": "get_or_create",
}  # fmt: skip
"""A method of another library's query, manager or document class -> our method of managers."""

OF_INSTANCES: Final = {
    "as_dict": "model_dump", "commit": "save", "destroy": "delete", "dump": "model_dump", "fetch": "refresh",
    "insert": "create", "insert_one": "create", "modify": "update", "put": "save", "refresh_from_db": "refresh",
    "reload": "refresh", "remove": "delete", "replace": "save", "save_changes": "save", "set": "update",
    "sync": "refresh", "to_dict": "model_dump", "to_json": "model_dump_json", "to_mongo": "model_dump",
}  # fmt: skip
"""A method of another library's instances -> our method of instances."""

OF_LOOKUPS: Final = {
    "begins_with": "startswith", "ge": "gte", "iexact": "pattern", "ilike": "icontains", "iregex": "pattern",
    "isnull": "exists", "le": "lte", "like": "contains", "match": "pattern", "ne": "neq", "nin": "not_in",
    "notin": "not_in", "regex": "pattern", "rlike": "pattern",
}  # fmt: skip
"""A lookup of another library -> our closest lookup."""

OF_ARGUMENTS: Final = {
    "blank": "null", "db_column": "alias", "db_field": "alias", "editable": "read_only", "enum": "choices",
    "max": "maximum", "max_value": "maximum", "min": "minimum", "min_value": "minimum", "nullable": "null",
    "regex": "pattern", "verbose_name": "title",
}  # fmt: skip
"""An argument of another library's fields -> our argument."""

_NEAR: Final = 0.7
"""The minimum similarity by difflib. "find" and "id" have 0.67, and are not near."""


def nearest(name: str, valid: Iterable[str], foreign_names: Mapping[str, str] | None = None) -> str:
    """A hint to append to a message about an unknown name: the nearest valid name, or all valid names.

    Args:
        name: the unknown name.
        valid: the valid names.
        foreign_names: names in other libraries -> valid names.

    Examples:
        >>> nearest("emial", ["email", "name"])
        " Did you mean 'email'?"
    """
    known = sorted(set(valid))
    return did_you_mean(name, known, foreign_names) or (f" There are: {', '.join(known)}." if known else "")


def did_you_mean(name: str, valid: Iterable[str], foreign_names: Mapping[str, str] | None = None) -> str:
    """A hint with the nearest valid name, or "" if no name is near; arguments as for `nearest`."""
    meant = closest(name, valid, foreign_names)
    return f" Did you mean {meant!r}?" if meant else ""


def closest(name: str, valid: Iterable[str], foreign_names: Mapping[str, str] | None = None) -> str | None:
    """The nearest valid name, or None if no name is near; arguments as for `nearest`."""
    known = list(valid)
    meant = (foreign_names or {}).get(name)
    if meant in known:
        return meant
    return next((one for one in difflib.get_close_matches(name, known, n=3) if _is_near(name, one)), None)


def _is_near(name: str, other: str) -> bool:
    if sorted(name) == sorted(other):  # difflib weighs two swapped letters too much in a short name
        return True
    if name.lower().replace("_", "") == other.lower().replace("_", ""):
        return True
    return difflib.SequenceMatcher(None, other, name).ratio() >= _NEAR
