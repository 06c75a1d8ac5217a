"""Names of fields, dotted ones included: from what the application calls them to what is stored."""

import inspect
import types
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Union, get_args, get_origin

import bson
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mongoz.exceptions import InvalidKeyError, nearest
from mongoz.fields.storage import stored_names
from mongoz.settings import settings

__all__ = ["Path", "QueriedDocument", "resolve", "stored_id"]


class QueriedDocument(Protocol):
    """What a query needs to know of a document class."""

    __name__: str
    model_fields: Any


class Path(NamedTuple):
    """A resolved name.

    Attributes:
        path: the stored, dotted name.
        is_id: it names the primary key, and that is an ObjectId.
    """

    path: str
    is_id: bool = False


def resolve(document: Any, name: str) -> Path:
    """What a field is called in the database.

    Args:
        document: the document class.
        name: a field's name, its alias, `id`, `_id`, `pk`, or a dotted path into embedded documents.

    Raises:
        InvalidKeyError: there is no such field; the message names the nearest.
    """
    if name in settings.parsed_ids:
        return Path("_id", is_id=_is_object_id(document.model_fields["id"]))
    first, *rest = name.split(".")
    field_name, field = _field(document, document, first, name)
    path = [stored_names(document)[field_name]]
    models = list(_models(field.annotation))
    for step in rest:
        # Below a plain dict, and in lists (whose items are numbered), anything goes.
        if not models or step.isdigit():
            path.append(step)
            continue
        field_name, field = _field(models[0], document, step, name)
        path.append(stored_names(models[0])[field_name])
        models = list(_models(field.annotation))
    return Path(".".join(path))


def _field(model: type[BaseModel], document: Any, step: str, name: str) -> tuple[str, FieldInfo]:
    fields = model.model_fields
    if step in fields:
        return step, fields[step]
    for field_name, alias in stored_names(model).items():
        if alias == step:
            return field_name, fields[field_name]
    raise InvalidKeyError(f"{document.__name__} has no field {name!r}.{nearest(step, fields)}")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation lets a path descend into: X, X | None, list[X]."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list, tuple, set):
        for argument in get_args(annotation):
            yield from _models(argument)


def _is_object_id(field: FieldInfo) -> bool:
    candidates = (field.annotation, *get_args(field.annotation))
    return any(inspect.isclass(kind) and issubclass(kind, bson.ObjectId) for kind in candidates)


def stored_id(value: Any) -> Any:
    """An id as it is stored: a string of 24 hexadecimal digits is an ObjectId, anything else is itself."""
    if isinstance(value, str) and bson.ObjectId.is_valid(value):
        return bson.ObjectId(value)
    return value
