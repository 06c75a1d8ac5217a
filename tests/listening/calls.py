"""Calls of the ODM as data that hypothesis can draw, shrink and print."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bson import ObjectId

from mongoz import U
from tests.listening.documents import COLLECTION

__all__ = [
    "Call",
    "Create",
    "CreateMany",
    "Delete",
    "DeleteMany",
    "Foreign",
    "GetOrCreate",
    "Place",
    "Query",
    "Row",
    "Save",
    "Scene",
    "Update",
    "UpdateMany",
    "Values",
    "is_numbered",
    "key",
    "number_of",
]

_ANY_CASE: Final = {"locale": "en", "strength": 2}

Row = dict[str, Any]
Values = Mapping[str, Any]
Place = int | str | tuple[str, int]
"""Names an instance: the number of an existing document, `new` for a created one, or `("new", 1)` for the second
one that `create_many` created."""


def key(number: int) -> ObjectId:
    """The `_id` of the document with this number."""
    return ObjectId(f"{number:024x}")


def is_numbered(id_: ObjectId) -> bool:
    """Whether the id comes from `key`."""
    return not any(id_.binary[:11])


def number_of(id_: ObjectId) -> int:
    """The number in the id."""
    return id_.binary[11]


def _with_key(values: Values) -> dict[str, Any]:
    return {name: key(value) if name == "id" else value for name, value in values.items()}


def _shown(values: Values, *before: str) -> str:
    return ", ".join([*before, *(f"{name}={value!r}" for name, value in values.items())])


def _meets(row: Row, lookup: str, value: Any, any_case: bool) -> bool:
    name, _, operator = lookup.partition("__")
    found = row.get(name)
    if any_case and isinstance(value, str):
        found, value = _in_lower_case(found), value.lower()
    match operator:
        case "gt":
            return isinstance(found, int) and found > value
        case "lt":
            return isinstance(found, int) and found < value
        case "in":
            return found in value
    return bool(found == value or (isinstance(found, list) and value in found))


def _in_lower_case(found: Any) -> Any:
    if isinstance(found, list):
        return [_in_lower_case(each) for each in found]
    return found.lower() if isinstance(found, str) else found


@dataclass(frozen=True)
class Query:
    """The selection of a queryset; with `any_case` a collation considers "A" and "a" equal."""

    filter: Values = field(default_factory=dict)
    sort: tuple[str, int] | None = None
    skip: int = 0
    limit: int = 0
    any_case: bool = False

    def __str__(self) -> str:
        parts = [f".filter({_shown(self.filter)})"] if self.filter else []
        parts += [f".sort{self.sort}"] if self.sort else []
        parts += [f".{name}({value})" for name, value in (("skip", self.skip), ("limit", self.limit)) if value]
        parts += [".options(collation=...)"] if self.any_case else []
        return "objects" + "".join(parts)

    def matches(self, id_: ObjectId, row: Row) -> bool:
        """Whether the filter selects a document."""
        row, filter = {"id": id_, **row}, _with_key(self.filter)
        return all(_meets(row, lookup, value, self.any_case) for lookup, value in filter.items())

    def of(self, document: Any) -> Any:
        found = document.objects.filter(**_with_key(self.filter)) if self.filter else document.objects
        found = found.options(collation=_ANY_CASE) if self.any_case else found
        found = found.sort(*self.sort) if self.sort else found
        found = found.skip(self.skip) if self.skip else found
        return found.limit(self.limit) if self.limit else found


class Call(ABC):
    """One call."""

    def loads(self) -> Place | None:
        """The document whose instance the call uses."""
        return None

    @abstractmethod
    async def run(self, document: Any, loaded: dict[Any, Any]) -> Any:
        """Makes the call; returns its result.

        Args:
            document: the class.
            loaded: instances by their `Place`; `Create` and `CreateMany` add their new instances.
        """

    @abstractmethod
    def fired(self) -> str:
        """The `post_*` signal."""

    @property
    def query(self) -> Query | None:
        """The selection of the call, if any."""
        return None


@dataclass(frozen=True)
class Create(Call):
    """Creates a document. `how` is one of `create`, `save` and `objects`."""

    how: str
    values: Values

    def __str__(self) -> str:
        return f"{self.how}: create({_shown(self.values)})"

    async def run(self, document: Any, loaded: dict[Any, Any]) -> Any:
        values = _with_key(self.values)
        if self.how == "objects":
            loaded["new"] = await document.objects.create(**values)
            return loaded["new"]
        instance = loaded["new"] = document(**values)
        return await (instance.save() if self.how == "save" else instance.create())

    def fired(self) -> str:
        return "post_save"


@dataclass(frozen=True)
class Save(Call):
    """`save()` after these assignments, if any."""

    number: Place
    values: Values

    def __str__(self) -> str:
        return f"{self.number}: save() after ({_shown(self.values)})"

    def loads(self) -> Place:
        return self.number

    async def run(self, document: Any, loaded: dict[Any, Any]) -> Any:
        instance = loaded[self.number]
        for name, value in self.values.items():
            setattr(instance, name, value)
        return await instance.save()

    def fired(self) -> str:
        return "post_save"


def _shown_changes(values: Values, operations: tuple[tuple[str, Values], ...]) -> str:
    shown = [f"U.{operator}({_shown(about)})" for operator, about in operations]
    return _shown(values, *shown)


def _changes(operations: tuple[tuple[str, Values], ...]) -> list[Any]:
    return [
        U.unset(*values) if operator == "unset" else getattr(U, operator)(**values)
        for operator, values in operations
    ]


@dataclass(frozen=True)
class Update(Call):
    """`update()` of an instance."""

    number: Place
    values: Values = field(default_factory=dict)
    operations: tuple[tuple[str, Values], ...] = ()

    def __str__(self) -> str:
        return f"{self.number}: update({_shown_changes(self.values, self.operations)})"

    def loads(self) -> Place:
        return self.number

    async def run(self, document: Any, loaded: dict[Any, Any]) -> Any:
        return await loaded[self.number].update(*_changes(self.operations), **self.values)

    def fired(self) -> str:
        return "post_update"


@dataclass(frozen=True)
class Delete(Call):
    """`delete()` of an instance."""

    number: Place

    def __str__(self) -> str:
        return f"{self.number}: delete()"

    def loads(self) -> Place:
        return self.number

    async def run(self, document: Any, loaded: dict[Any, Any]) -> Any:
        return await loaded[self.number].delete()

    def fired(self) -> str:
        return "post_delete"


@dataclass(frozen=True)
class CreateMany(Call):
    """Creates documents. `how` is one of `create_many`, `bulk_create` and `document`."""

    how: str
    models: tuple[Values, ...]

    def __str__(self) -> str:
        return f"{self.how}([{', '.join(f'({_shown(values)})' for values in self.models)}])"

    async def run(self, document: Any, loaded: dict[Any, Any]) -> Any:
        models = [document(**_with_key(values)) for values in self.models]
        loaded.update({("new", place): model for place, model in enumerate(models)})
        if self.how == "document":
            return await document.create_many(models)
        return await getattr(document.objects, self.how)(models)

    def fired(self) -> str:
        return "post_save"


@dataclass(frozen=True)
class UpdateMany(Call):
    """Updates by a query. `how` is the method: `update`, `update_many`, `bulk_update` or `update_count`."""

    how: str
    selected: Query
    values: Values = field(default_factory=dict)
    operations: tuple[tuple[str, Values], ...] = ()

    def __str__(self) -> str:
        return f"{self.selected}.{self.how}({_shown_changes(self.values, self.operations)})"

    async def run(self, document: Any, loaded: dict[Any, Any]) -> Any:
        call = getattr(self.selected.of(document), self.how)
        return await call(*_changes(self.operations), **self.values)

    def fired(self) -> str:
        return "post_update"

    @property
    def query(self) -> Query:
        return self.selected


@dataclass(frozen=True)
class DeleteMany(Call):
    """`delete()` of a queryset."""

    selected: Query

    def __str__(self) -> str:
        return f"{self.selected}.delete()"

    async def run(self, document: Any, loaded: dict[Any, Any]) -> Any:
        return await self.selected.of(document).delete()

    def fired(self) -> str:
        return "post_delete"

    @property
    def query(self) -> Query:
        return self.selected


@dataclass(frozen=True)
class GetOrCreate(Call):
    """`get_or_create` with these values."""

    lookups: Values
    defaults: Values

    def __str__(self) -> str:
        return f"objects.get_or_create({dict(self.defaults)}, {_shown(self.lookups)})"

    async def run(self, document: Any, loaded: dict[Any, Any]) -> Any:
        return await document.objects.get_or_create(dict(self.defaults), **_with_key(self.lookups))

    def fired(self) -> str:
        return "post_save"


@dataclass(frozen=True)
class Foreign:
    """Another client's write of one document.

    Attributes:
        kind: one of `set`, `inc`, `unset`, `replace`, `insert` and `delete`.
        number: the number of the document.
        values: the values to set, add or insert. `unset` removes the fields with these names.
    """

    kind: str
    number: int
    values: Values = field(default_factory=dict)

    def __str__(self) -> str:
        return f"another client: {self.kind} {self.number} {dict(self.values) or ''}"

    def command(self) -> Row:
        """The command for the server."""
        id_ = key(self.number)
        match self.kind:
            case "insert":
                return {"insert": COLLECTION, "documents": [{"_id": id_, **self.values}]}
            case "delete":
                return {"delete": COLLECTION, "deletes": [{"q": {"_id": id_}, "limit": 1}]}
            case "replace":
                update: Row = dict(self.values)
            case _:
                update = {f"${self.kind}": dict(self.values)}
        return {"update": COLLECTION, "updates": [{"q": {"_id": id_}, "u": update}]}


@dataclass(frozen=True)
class Scene:
    """The initial documents, the calls, and a write of another client.

    Attributes:
        kind: the kind of the document class, one of `KINDS` in `documents.py`.
        rows: the initial documents by number.
        calls: in sequence.
        within: `committed` or `aborted` if the calls are in a transaction, otherwise None.
        foreign: another client's write.
        at: the number of the command that follows the other client's write.
    """

    kind: str
    rows: Mapping[int, Values]
    calls: tuple[Call, ...]
    within: str | None = None
    foreign: Foreign | None = None
    at: int = 0

    def __str__(self) -> str:
        rows = [f"    {number}: {dict(row)}" for number, row in self.rows.items()]
        calls = [f"    {call}" for call in self.calls]
        within = [f"in a transaction, {self.within}:"] if self.within else []
        foreign = [f"{self.foreign} before command {self.at}"] if self.foreign else []
        return "\n".join([f"{self.kind} documents:", *rows, *within, *calls, *foreign])
