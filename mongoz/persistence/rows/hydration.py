"""Makes instances from rows."""

from collections.abc import Callable
from contextlib import suppress
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import bson
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from mongoz.connection import Collection
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.fields.class_cache import cached_per_class
from mongoz.fields.email import LOADING, loading_schema
from mongoz.fields.storage import stored, stored_names
from mongoz.fields.stored_schema import DATA, from_stored, validator_of
from mongoz.model.base import Model
from mongoz.model.partial import default_of, fill_in_defaults, is_partial, loaded_from
from mongoz.model.state import Loaded, loaded, remember, restore
from mongoz.stamps import FIELD

__all__ = [
    "hydrate",
    "hydrate_leniently",
    "make_bare_instance",
    "previous_instance",
    "validate_stored",
]

D = TypeVar("D", bound=Model)


def hydrate(document: type[D], row: dict[str, Any], collection: Collection | None = None) -> D:
    """Make an instance from a row of the database.

    The stamp is removed from the row, and the instance keeps the row.

    Args:
        document: the class.
        row: the decoded row.
        collection: the collection of the row; None if it is the document's own.

    Raises:
        pydantic.ValidationError: the row violates the model. The message has the collection, `_id` and field.
    """
    row.pop(FIELD, None)
    validate, can_share = _loader(document)
    try:
        instance = validate(row, context=LOADING, by_alias=True, by_name=False)
    except ValidationError:
        try:  # the class's own rule for e-mail addresses has the better message
            instance = validate_stored(document, row)
        except ValidationError as error:
            raise _located(error, document, row, collection) from None
    # The instance must not be able to change the snapshot. Validation copies lists and dicts of declared types, so
    # the row itself is the snapshot of most documents.
    shares = can_share or instance.__pydantic_extra__
    snapshot = bson.encode(row, codec_options=CODEC_OPTIONS) if shares else row
    state = tuple.__new__(Loaded, (snapshot, collection))  # `Loaded(...)` takes 100 ns longer
    object.__setattr__(instance, "_loaded", state)
    return instance  # type: ignore[no-any-return]


@cached_per_class
def _loader(document: Any) -> tuple[Callable[..., Any], bool]:
    """The function that validates rows, with e-mail addresses checked by pydantic's own code.

    Returns:
        The function, and whether its instances can share a mutable value with their row.
    """
    schema = loading_schema(from_stored(document.__pydantic_core_schema__))
    return validator_of(schema).validate_python, _can_share_values(document)


@cached_per_class
def _explaining_loader(document: Any) -> Callable[..., Any]:
    """The function that validates rows, with all rules of the class and their messages."""
    own = document.__pydantic_core_schema__
    schema = from_stored(own)
    if schema is own:
        return document.__pydantic_validator__.validate_python  # type: ignore[no-any-return]
    return validator_of(schema).validate_python


def validate_stored(document: Any, row: dict[str, Any]) -> Any:
    """Validate a row; returns an instance that is not loaded: it has no snapshot. The row stays unchanged.

    Raises:
        pydantic.ValidationError: the row violates the model.
    """
    return _explaining_loader(document)(row, context=LOADING, by_alias=True, by_name=False)


def make_bare_instance(document: type[D], id_: Any, collection: Collection | None = None) -> D:
    """Make an instance that has only an id; reading its other fields raises AttributeError."""
    instance = document.__new__(document)
    object.__setattr__(instance, "__dict__", {"id": id_})
    object.__setattr__(instance, "__pydantic_fields_set__", {"id"})
    object.__setattr__(instance, "__pydantic_extra__", {})
    object.__setattr__(instance, "__pydantic_private__", None)
    restore(instance, Loaded(None, collection))
    return instance


def hydrate_leniently(document: type[D], row: dict[str, Any], collection: Collection | None = None) -> D:
    """Make an instance like `hydrate`. A row that violates the model raises no error.

    In this case invalid fields get their stored values. Reading a required field that the row lacks raises
    AttributeError.
    """
    try:
        return hydrate(document, row, collection)
    except Exception:  # errors of any type, because the application's validators run
        return _hydrate_unvalidated(document, row, collection)


def _hydrate_unvalidated(document: type[D], row: dict[str, Any], collection: Collection | None) -> D:
    attributes = {alias: name for name, alias in stored_names(document).items()}
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for alias, value in stored(row).items():
        name = attributes.get(alias)
        if name is None:
            extra[alias] = value
            continue
        try:
            values[name] = validate_stored(document.proxy_document, {alias: value}).__dict__[name]
        except Exception:
            values[name] = value
    assigned = set(values)
    for name in attributes.values():
        field = document.model_fields[name]
        if name not in values and not field.is_required():
            with suppress(Exception):  # errors of the application's factory
                values[name] = default_of(field, values)
    instance = document.__new__(document)
    private = {}
    for name, attribute in document.__private_attributes__.items():
        with suppress(Exception):
            private[name] = attribute.get_default()
    object.__setattr__(instance, "__dict__", values)
    object.__setattr__(instance, "__pydantic_fields_set__", assigned)
    object.__setattr__(instance, "__pydantic_extra__", extra)
    object.__setattr__(instance, "__pydantic_private__", private or None)
    remember(instance, bson.encode(row, codec_options=CODEC_OPTIONS), collection)
    return instance


def previous_instance(instance: D) -> D | None:
    """A new instance with the loaded values; None if nothing was loaded, or if the model refuses the values."""
    state = loaded(instance)
    row = state.row()
    if row is None:
        return None
    try:
        # A copy of the row: receivers get this instance and must not change the snapshot.
        untouched = hydrate(type(instance), stored(row), state.collection)
    except Exception:  # the model became stricter since the load
        return None
    if is_partial(type(instance)):
        fill_in_defaults(untouched, instance.__dict__.keys() - instance.model_fields_set)
    return untouched


def _can_share_values(model: Any) -> bool:
    """Whether instances of a model can share a mutable value with their row."""
    schema = model.__pydantic_core_schema__
    while schema and "fields" not in schema:
        schema = schema.get("schema")
    schemas = schema["fields"] if schema else {}  # a recursive class has its fields elsewhere
    return any(
        _can_share(field.annotation)
        or (_is_generic(field.annotation) and (name not in schemas or _can_return_input(schemas[name])))
        for name, field in model.model_fields.items()
    )


def _is_generic(annotation: Any) -> bool:
    """Whether an annotation is a container of other types, such as `list[str] | None`."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return any(map(_is_generic, get_args(annotation)))
    return isinstance(origin, type)


def _can_return_input(schema: Any) -> bool:
    """Whether a schema may return the list or dict that it gets, for example because a function validates it."""
    if isinstance(schema, list | tuple):
        return any(map(_can_return_input, schema))
    if not isinstance(schema, dict):
        return False
    kind = schema.get("type")
    if kind in ("any", "function-plain", "function-wrap"):
        return True
    if kind == "is-instance":
        return isinstance([], schema["cls"]) or isinstance({}, schema["cls"])
    return any(_can_return_input(value) for key, value in schema.items() if key not in DATA)


def _can_share(annotation: Any) -> bool:
    if annotation is Any or annotation in (dict, list, set):
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True  # pydantic does not copy undeclared keys of an embedded document
    return bool(get_origin(annotation)) and any(_can_share(argument) for argument in get_args(annotation))


def _located(
    error: ValidationError, document: type[Model], row: dict[str, Any], collection: Collection | None
) -> ValidationError:
    """The error, with collection and `_id` in its title."""
    lines = [
        InitErrorDetails(
            type=PydanticCustomError(line["type"], line["msg"]),
            loc=line["loc"],
            input=line["input"],
        )
        for line in error.errors(include_url=False)
    ]
    return ValidationError.from_exception_data(loaded_from(document, collection, row.get("_id")), lines)
