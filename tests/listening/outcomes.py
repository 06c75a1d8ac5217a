"""Outcomes of calls: results of the caller, deliveries of receivers, and changes of the server."""

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
_LONG_AGO: Final = datetime.datetime(2021, 1, 1)  # all later times are shown as "now"


class Told(NamedTuple):
    """One call of a receiver."""

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
    """The server's event of one change by the calls."""

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
    """The outcome of a scene.

    Attributes:
        way: the kind of receivers.
        documents: in the database afterwards, without stamps.
        results: the results of the calls that returned.
        error: the raised error.
        conflicted: whether the error asks for a repetition of the transaction.
        instances: the instances of the caller, afterwards.
        told: the calls of receivers, in order.
        changes: the server's events of the calls' writes, in order.
        theirs: the other client's document, after its write.
        reached: whether the other client's write was between the intended commands.
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
    """The values of an instance, valid or not."""
    return {**instance.__dict__, **(instance.__pydantic_extra__ or {})}


def stripped(row: Row) -> Row:
    """The row without its stamp and its id."""
    return {name: seen(value) for name, value in row.items() if name not in ("_id", FIELD)}


def seen(value: Any) -> Any:
    """The value with fixed replacements for ids and times that differ in each run."""
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
    """The result of a call, in its present state."""
    if isinstance(result, list):
        return [seen_result(each) for each in result]
    return seen(plain(result)) if hasattr(result, "__pydantic_extra__") else result


def seen_error(error: Exception) -> Any:
    """The parts of an error that are equal if two errors have the same meaning for the caller."""
    kind = type(error).__name__
    if isinstance(error, ValidationError):
        return kind, [(line["type"], line["loc"], line["msg"]) for line in error.errors(include_url=False)]
    if isinstance(error, PyMongoError):
        return kind, getattr(error, "code", None)
    return kind, _ID.sub(lambda found: str(seen(ObjectId(found[1]))), str(error))
