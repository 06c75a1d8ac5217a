"""Rows of which only some fields were loaded: their class, and what is not on them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from mongoz.connection import Collection
from mongoz.fields.storage import stored_names

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = [
    "fill_in",
    "hydrate_partial",
    "is_partial",
    "loaded_from",
    "make_optional",
    "not_loaded",
    "partial_namespace",
    "require_all",
]

D = TypeVar("D", bound="Document")


class _Unloaded:
    """Stands in for a field that is not in a row, until the row is validated."""

    def __repr__(self) -> str:
        return "<not loaded>"


_UNLOADED: Final = _Unloaded()


def partial_namespace(document: type["Document"]) -> dict[str, Any]:
    """The class body of a document's partial rows."""
    return {
        "__module__": document.__module__,
        "__qualname__": document.__qualname__,
        "__doc__": document.__doc__,
        # Built once, after `make_optional`.
        "model_config": ConfigDict(defer_build=True),
        "model_post_init": BaseModel.model_post_init,
        _drop_unloaded.__name__: model_validator(mode="after")(_drop_unloaded),
    }


def _drop_unloaded(instance: Any) -> Any:
    values = instance.__dict__
    for name in [name for name, value in values.items() if value is _UNLOADED]:
        del values[name]
    return instance


def make_optional(partial: Any, document: type["Document"]) -> None:
    """Have a fresh class with `partial_namespace` accept rows in which any field is missing.

    What looks at several fields at once does not run for them: validators of the model, computed fields.
    """
    decorators = partial.__pydantic_decorators__
    for those in (decorators.model_validators, decorators.root_validators, decorators.computed_fields):
        for name in those.keys() - {_drop_unloaded.__name__}:
            del those[name]
    for field in partial.__pydantic_fields__.values():  # copies of the document's
        field.default, field.default_factory, field.validate_default = _UNLOADED, None, None
    partial.model_rebuild(force=True)
    partial.model_fields = document.model_fields  # defaults and requirements are what the document says


def is_partial(document: type["Document"]) -> bool:
    """Whether a class is that of rows of which only some fields were loaded."""
    return document is not document.meta.document


def hydrate_partial(
    partial: type[D], row: dict[str, Any], names: frozenset[str], collection: Collection | None = None
) -> D:
    """The instance that some fields of a stored document make.

    Args:
        partial: the document's `proxy_document`.
        row: what was loaded. It is taken over, and changed.
        names: the fields that were asked for; those that are not stored have their default.
        collection: where it comes from, if that is not the document's own collection.

    Raises:
        pydantic.ValidationError: the row violates the model; names collection, `_id` and field.
    """
    id_ = row.get("_id")
    instance = partial.from_row(row, collection)
    if missing := names - instance.__dict__.keys():
        fill_in(instance, missing, loaded_from(partial, collection, id_))
    return instance


def fill_in(instance: "Document", names: Iterable[str], title: str = "") -> None:
    """Give fields their defaults, without having them count as assigned.

    Raises:
        pydantic.ValidationError: such a field is required.
    """
    document = type(instance)
    missing: list[InitErrorDetails] = []
    for name in names:
        field = document.model_fields[name]
        if field.is_required():
            missing.append({"type": "missing", "loc": (stored_names(document)[name],), "input": {}})
        else:
            instance.__dict__[name] = field.get_default(call_default_factory=True)
    if missing:
        raise ValidationError.from_exception_data(title or document.__name__, missing)


def loaded_from(document: type["Document"], collection: Collection | None, id_: Any) -> str:
    """For messages: of what a row of a document was made."""
    where = collection or document.meta.collection
    return f"{document.__name__} loaded from {where.namespace if where else 'a row'} with _id {id_!r}"


def not_loaded(instance: "Document", name: str) -> AttributeError:
    """The error of reading a field that an instance does not have."""
    cls = type(instance).__name__
    return AttributeError(
        f"{cls}.{name} was not loaded for {instance!r}. Await its refresh(), or load it without leaving out "
        f"{name!r} by only() or defer()."
    )


def require_all(instance: "Document") -> None:
    """Refuse to make a new document of an instance that has some of its fields only.

    Raises:
        AttributeError: a field was not loaded.
    """
    document = type(instance)
    if document is instance.meta.document:  # as nearly always: `is_partial`, the fast way
        return
    for name in document.__pydantic_fields__:
        if name not in instance.__dict__:
            raise not_loaded(instance, name)
