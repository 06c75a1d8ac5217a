"""What came of calls: what the caller sees, what receivers were told, and what the server reports."""

import datetime
import re
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from bson import ObjectId
from pydantic import ValidationError
from pymongo.errors import PyMongoError

from mongoz.stamps import FIELD, Stamp
from tests.listening.calls import Row, is_numbered, number_of
from tests.listening.documents import Way

__all__ = ["Change", "Outcome", "Told", "plain", "seen", "seen_error", "seen_result", "stripped"]

_ID: Final = re.compile(r"ObjectId\('([0-9a-f]{24})'\)")
_LONG_AGO: Final = datetime.datetime(2021, 1, 1)  # what is later is now


class Told(NamedTuple):
    """What one receiver was told."""

    signal: str
    id: ObjectId | None
    instance: Row
    created: bool | None
    update_fields: frozenset[str] | None
    previous: Row | None
    token: str

    def __str__(self) -> str:
        told = {"created": self.created, "update_fields": self.update_fields, "previous": seen(self.previous)}
        more = "".join(f", {name}={value}" for name, value in told.items() if value is not None)
        return f"{self.signal}({seen(self.instance)}{more})"


class Change(NamedTuple):
    """What the server reports of one change that the calls made."""

    operation: str
    id: ObjectId
    names: frozenset[str]
    before: Row | None
    after: Row | None
    stamp: Stamp | None

    def __str__(self) -> str:
        return f"the {self.operation} of {seen(self.id)}, {self.before} -> {self.after}"


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        way: who listened.
        documents: in the database afterwards, without stamps.
        results: of the calls, as far as they returned.
        error: what they raised.
        conflicted: that was the server's wish to have the transaction again.
        instances: what the caller had loaded or made, afterwards.
        told: what receivers were told, in order.
        changes: what the server reports of the calls' writes, in order.
        theirs: the other client's document, after its write.
        reached: the other client's write was between the commands that the scene wants.
    """

    way: Way
    documents: dict[Any, Row] = field(default_factory=dict)
    results: list[Any] = field(default_factory=list)
    error: Any = None
    conflicted: bool = False
    instances: dict[Any, Row] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    theirs: Row | None = None
    reached: bool = True


def plain(instance: Any) -> Row:
    """The values of an instance as they are, whether they fit its fields or not."""
    return {**instance.__dict__, **(instance.__pydantic_extra__ or {})}


def stripped(row: Row) -> Row:
    """Without the stamp, and without the id."""
    return {name: seen(value) for name, value in row.items() if name not in ("_id", FIELD)}


def seen(value: Any) -> Any:
    """The same for whatever is new in each run: ids, and now."""
    match value:
        case ObjectId():
            return number_of(value) if is_numbered(value) else "new"
        case datetime.datetime():
            return "now" if value > _LONG_AGO else "then"
        case dict():
            return {name: seen(each) for name, each in value.items()}
        case list():
            return [seen(each) for each in value]
    return value


def seen_result(result: Any) -> Any:
    """What a call returns, as it is now."""
    if isinstance(result, list):
        return [seen_result(each) for each in result]
    return seen(plain(result)) if hasattr(result, "__pydantic_extra__") else result


def seen_error(error: Exception) -> Any:
    """What two errors have in common that mean the same to the caller."""
    kind = type(error).__name__
    if isinstance(error, ValidationError):
        return kind, [(line["type"], line["loc"], line["msg"]) for line in error.errors(include_url=False)]
    if isinstance(error, PyMongoError):
        return kind, getattr(error, "code", None)
    return kind, _ID.sub(lambda found: str(seen(ObjectId(found[1]))), str(error))
