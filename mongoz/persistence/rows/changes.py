"""The differences between two rows."""

import datetime
import uuid
from operator import is_
from typing import Any, Final, NamedTuple

import bson
from pydantic import BaseModel

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.exceptions import InvalidKeyError
from mongoz.fields.object_id import ObjectId
from mongoz.fields.storage import stored_names

__all__ = ["Changes", "are_same", "differing_fields", "find_changes"]

_COMPARABLE: Final = frozenset({str, int, bool, type(None), bytes, bson.ObjectId, ObjectId, bson.Int64, uuid.UUID})
"""Types whose values have the same BSON if and only if they are equal."""

_make = tuple.__new__  # looking this up takes as long as calling it


class Changes(NamedTuple):
    """The differences between an old row and a new one, by the stored names of the fields."""

    changed: dict[str, Any]
    removed: tuple[str, ...]

    @property
    def names(self) -> frozenset[str]:
        """The names of all differing fields."""
        return frozenset((*self.changed, *self.removed))

    def as_update(self) -> dict[str, dict[str, Any]]:
        """The update document; empty if nothing changed."""
        update: dict[str, dict[str, Any]] = {"$set": self.changed} if self.changed else {}
        if self.removed:
            update["$unset"] = dict.fromkeys(self.removed, "")
        return update


def find_changes(before: dict[str, Any] | None, row: dict[str, Any]) -> Changes:
    """The changes from the row `before` to `row`. If `before` is None, all fields of `row` are new.

    Raises:
        InvalidKeyError: update operators don't support the name of a changed key.
    """
    known = before or {}
    changed, new = {}, 0
    for name, value in row.items():  # optimized: each save calls it
        try:
            old = known[name]
        except KeyError:
            new += 1
        else:
            if old is value:
                continue
            if type(value) is list is type(old) and len(old) == len(value) and all(map(is_, old, value)):
                continue  # validation copies lists; `are_same` has this check too, but a call takes longer
            if are_same(old, value):
                continue
        if name != "_id":
            changed[name] = value
    removed = () if len(known) + new == len(row) else tuple(name for name in known if name not in row)
    for name in (*changed, *removed) if removed else changed:
        if not name.isidentifier() and ("." in name or name.startswith("$")):
            raise InvalidKeyError(f"The key {name!r} can't be updated: MongoDB reads it as a path or an operator.")
    return _make(Changes, (changed, removed))  # `Changes(...)` takes twice as long


def differing_fields(model: type[BaseModel], one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The names of the fields in which two rows differ."""
    return {name for name, alias in stored_names(model).items() if _differ(one, other, alias)}


def _differ(one: dict[str, Any], other: dict[str, Any], alias: str) -> bool:
    if alias in one and alias in other:
        return not are_same(one[alias], other[alias])
    return alias in one or alias in other


def are_same(a: Any, b: Any) -> bool:
    """Whether two values have the same BSON; 1, 1.0 and True are equal in Python only."""
    kind = type(a)
    if kind is type(b):
        if kind in _COMPARABLE:
            return a == b  # type: ignore[no-any-return]
        if kind is list:
            return len(a) == len(b) and (all(map(is_, a, b)) or all(map(are_same, a, b)))
        # Equal datetimes have the same BSON. Different datetimes may have the same BSON too, because BSON has only
        # whole milliseconds.
        if kind is datetime.datetime and a.tzinfo is None and b.tzinfo is None and a == b:
            return True
    return _encoded(a) == _encoded(b)


def _encoded(value: Any) -> bytes:
    return bson.encode({"": value}, codec_options=CODEC_OPTIONS)
