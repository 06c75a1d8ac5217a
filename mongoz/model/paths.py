"""Paths: converts the names of fields, which may be dotted, to stored names."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import bson
from pydantic.fields import FieldInfo

from mongoz.exceptions import InvalidKeyError
from mongoz.fields.foreign_key import ForeignKeyField
from mongoz.fields.storage import stored_names
from mongoz.model.joins import Join, make_join
from mongoz.model.shapes import OPEN, FieldShape, shape_of
from mongoz.settings import settings
from mongoz.synonyms import did_you_mean, nearest

__all__ = ["Path", "resolve_path", "split_keyword"]


_Cut = tuple[str, str, str | None]


class Path(NamedTuple):
    """A resolved name.

    Attributes:
        path: the stored, dotted name; within the referenced document, if there are joins.
        shape: the values that the field can hold.
        joins: the references on the way, in order; the last one leads to the document with this `path`.
        items: the number of names in `path` up to the innermost list, including the name of the list. The list
            may be the field itself. A list does not count if `path` names one of its items by number, as in
            `tags.0`. If no list counts, this is 0.
        field: the declaration of the field, if there is one.
    """

    path: str
    shape: FieldShape = OPEN
    joins: tuple[Join, ...] = ()
    items: int = 0
    field: FieldInfo | None = None

    @property
    def is_id(self) -> bool:
        """Whether the field holds no lists, and can hold an ObjectId: for example a primary key or a reference."""
        return not self.shape.depth and self.shape.holds(bson.ObjectId)

    @property
    def inner_names(self) -> list[str]:
        """The names of the fields inside of the values."""
        target = _referenced_document(self.field)
        models = (*self.shape.models, *([target] if target else ()))
        return [name for model in models for name in model.model_fields]

    @property
    def attached(self) -> str:
        """The dotted name to sort by. For a field of a joined document it begins with the name of the join."""
        return f"{self.joins[-1].name}.{self.path}" if self.joins else self.path


def resolve_path(document: Any, name: str) -> Path:
    """The path of a field.

    Args:
        document: the document class.
        name: a field's name, its alias, `id`, `_id`, `pk`, or a path into embedded documents, dotted or with
            double underscores.

    Raises:
        InvalidKeyError: there is no such field, or it belongs to a referenced document.
    """
    path, rest = split_keyword(document, name)
    if rest is not None:
        raise _unknown_field(document, name, rest, path.inner_names)
    if path.joins:
        raise InvalidKeyError(
            f"{document.__name__}: {name!r} is a field of the referenced {path.joins[-1].document.__name__}. Only "
            "keyword filters support conditions on it."
        )
    return path


def split_keyword(document: Any, keyword: str) -> tuple[Path, str | None]:
    """The field at the start of a filter's keyword, and the rest: the name of a lookup, or None.

    A name that can be both a field and a lookup is the field.

    Raises:
        InvalidKeyError: there is no such field.
    """
    if not isinstance(keyword, str):
        raise InvalidKeyError(f"{document.__name__} has no field {keyword!r}; names are strings.")
    if "\0" in keyword:
        raise InvalidKeyError(f"{keyword!r} is no field: names in MongoDB can't contain a null character.")
    if not document.__pydantic_complete__:  # a class in its annotations is not defined yet
        return _walk(document, keyword)
    return _cached_walk(document, keyword, settings.lookup_prefix, tuple(settings.parsed_ids))


@lru_cache(maxsize=4096)
def _cached_walk(document: Any, keyword: str, *_settings: Any) -> tuple[Path, str | None]:
    """The result of a walk. It is cached, because a walk takes a tenth of the time of a command to the server."""
    return _walk(document, keyword)


def _walk(document: Any, keyword: str) -> tuple[Path, str | None]:
    walk = _PathWalk(document, keyword)
    while walk.rest is not None and walk.step():
        pass
    return walk.path, walk.rest


class _PathWalk:
    """A walk through the models, from the document along the names of a keyword."""

    def __init__(self, document: Any, keyword: str) -> None:
        self.document = document
        self.keyword = keyword
        self.rest: str | None = keyword
        self.separator = ""
        self.shape = FieldShape(models=(document,))
        self.field: FieldInfo | None = None
        self.steps: list[str] = []
        self.joins: list[Join] = []
        self.lists: list[int] = []

    @property
    def path(self) -> Path:
        """The path so far."""
        items = self.lists[-1] if self.lists else 0
        return Path(".".join(self.steps), self.shape, tuple(self.joins), items, self.field)

    def step(self) -> bool:
        """Take one name off the rest; False if the rest does not begin with the name of a field."""
        cuts = list(_cuts(self.rest or ""))
        if self._take_reference(cuts) or self._take_item(cuts) or self._take_field(self.shape, cuts):
            return True
        if self.shape.open and self.separator != settings.lookup_prefix:
            self._take_anything()
            return False
        if self.separator != settings.lookup_prefix:
            raise _unknown_field(self.document, self.keyword, cuts[-1][0], self.path.inner_names)
        return False

    def _take_field(self, shape: FieldShape, cuts: list[_Cut]) -> bool:
        for name, separator, rest in cuts:
            for model in shape.models:
                found = _field(model, name)
                if found:
                    stored_name, self.field = found
                    self.steps.append(stored_name)
                    self.shape = shape_of(self.field.annotation)
                    self.separator, self.rest = separator, rest
                    if self.shape.depth:
                        self.lists.append(len(self.steps))
                    return True
        return False

    def _take_item(self, cuts: list[_Cut]) -> bool:
        name, separator, rest = cuts[-1]
        if not (self.shape.depth and name.isdecimal()):
            return False
        self.steps.append(name)
        self.shape = self.shape._replace(depth=self.shape.depth - 1)
        self.separator, self.rest = separator, rest
        self.lists.pop()
        if self.shape.depth:
            self.lists.append(len(self.steps))
        return True

    def _take_reference(self, cuts: list[_Cut]) -> bool:
        target = _referenced_document(self.field)
        if target is None:
            return False
        for name, separator, rest in cuts:
            if name in settings.parsed_ids:  # the stored reference is this id: no join is needed
                self.separator, self.rest, self.field = separator, rest, None
                return True
        if not any(_field(target, name) for name, _, _ in cuts):
            return False
        prefix = f"{self.joins[-1].slot}." if self.joins else ""
        self.joins.append(make_join(self.document, target, prefix + ".".join(self.steps)))
        self.steps, self.lists = [], []
        return self._take_field(FieldShape(models=(target,)), cuts)

    def _take_anything(self) -> None:
        """Take all names as keys of a plain dict. The text after the last `lookup_prefix` is the lookup."""
        text = self.rest or ""
        names, _, lookup = text.rpartition(settings.lookup_prefix)
        self.rest = lookup if names else None
        self.steps += (names or text).split(".")
        self.shape = OPEN


def _cuts(text: str) -> Iterator[_Cut]:
    """The possible first names: (name, separator, rest), the longest name first."""
    yield text, "", None
    ends = list(re.finditer(rf"(?=(\.|{re.escape(settings.lookup_prefix)}))", text))
    for end in reversed(ends):
        separator = end[1]
        if end.start():
            yield text[: end.start()], separator, text[end.start() + len(separator) :]


def _field(model: Any, name: str) -> tuple[str, FieldInfo] | None:
    """The stored name of a field, and the field."""
    fields, names = model.model_fields, stored_names(model)
    if name in settings.parsed_ids and names.get("id") == "_id":
        return "_id", fields["id"]
    if name in fields:
        return names[name], fields[name]
    return next(((alias, fields[field]) for field, alias in names.items() if alias == name), None)


def _referenced_document(field: FieldInfo | None) -> Any:
    """The document that a foreign key references."""
    return field.to if isinstance(field, ForeignKeyField) else None


def _unknown_field(document: Any, keyword: str, name: str, known: list[str]) -> InvalidKeyError:
    hint = did_you_mean(name, known)
    if not hint:
        hint = f"{nearest(name, known)} For a key that is stored but not declared, use query({{name: ...}})."
    place = "" if name == keyword else f" (in {keyword!r})"
    return InvalidKeyError(f"{document.__name__} has no field {name!r}{place}.{hint}")
