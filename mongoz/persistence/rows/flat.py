"""Validates flat documents, and turns them into rows in the same pass.

The fields of a flat document are scalars and lists of scalars.

Pydantic makes an instance from validated values, and the instance would have to be converted to a row afterwards.
So each flat class gets a second schema, whose validation returns the row itself, with stored names and copied
lists.
"""

import datetime
import uuid
from collections.abc import Callable, Iterable
from types import UnionType
from typing import Any, Final, NamedTuple, Union, get_args, get_origin

import bson
from pydantic import BaseModel, ValidationError
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from mongoz.fields.class_cache import cached_per_class
from mongoz.fields.email import LOADING, loading_schema
from mongoz.fields.object_id import ObjectId
from mongoz.fields.storage import SCALARS, stored, stored_names
from mongoz.fields.stored_schema import DATA, from_stored
from mongoz.model.base import Model

__all__ = ["assigned_row", "flat_row", "loads_unchanged", "reloaded_values"]

_PLAIN: Final = frozenset(
    {
        str,
        int,
        float,
        bool,
        bytes,
        type(None),
        datetime.datetime,
        datetime.date,
        bson.ObjectId,
        ObjectId,
        uuid.UUID,
    }
)


_EXACT: Final = frozenset({"str", "int", "float", "bool"})
"""Schemas of these types turn an instance of a subclass, such as a member of an enum, into a plain value.
A schema for dates returns the instance itself."""

_KEPT: Final = {"str": str, "int": int, "float": float, "bool": bool, "datetime": datetime.datetime}
"""The type of a schema -> the Python type whose values the schema does not change, if no option in
`_TEXT_CHANGES` is set."""

_CHECKS: Final = frozenset(
    {
        "min_length", "max_length", "pattern", "regex_engine", "coerce_numbers_to_str", "multiple_of", "le", "ge",
        "lt", "gt", "allow_inf_nan", "microseconds_precision",
    }
)  # fmt: skip
"""Keys of the schemas in `_KEPT` that change no value of the Python type. `microseconds_precision` is about
strings."""

_TEXT_CHANGES: Final = ("str_strip_whitespace", "str_to_lower", "str_to_upper")
"""Options of a class that change the texts of all fields."""


def flat_row(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any] | None:
    """The row of an instance of a flat model; None if the model is not flat, or the values are invalid.

    Args:
        model: the class.
        values: attribute name -> value. Names that are no fields are left out.
    """
    form = _flat_form(model)
    if form is None:
        return None
    validate, unproven = form
    try:
        row: dict[str, Any] = validate(values, context=LOADING)
    except ValidationError:  # the model's own validator has the right message
        return None
    for name in unproven:
        value = row[name]
        if type(value) not in SCALARS:  # lists too, because a function may return the list of the instance
            row[name] = stored(value)
    return row


def assigned_row(model: type[BaseModel], present: dict[str, Any], values: dict[str, Any]) -> dict[str, Any] | None:
    """The row of an instance of a flat model after an assignment of valid values.

    Returns None if the model is not flat, if a value is invalid, or if an assignment might have another result
    than the validation of the row.

    Args:
        model: the class.
        present: attribute name -> present value.
        values: attribute name -> new value.
    """
    if not values.keys() <= _assignable_fields(model):
        return None
    for value in values.values():
        if type(value) not in SCALARS and not (type(value) is list and SCALARS.issuperset(map(type, value))):
            return None
    after = present.copy()  # `{**present, **values}` takes twice as long
    after.update(values)
    return flat_row(model, after)


@cached_per_class
def _assignable_fields(model: Any) -> frozenset[str]:
    """The fields of a flat model that are validated in a row exactly as in an assignment."""
    fields, config = model.model_fields, model.model_config
    is_usual = model.__setattr__ is Model.__setattr__ and config.get("validate_assignment")
    if _flat_form(model) is None or not is_usual or config.get("frozen"):
        return frozenset()
    schemas = model.__pydantic_core_schema__["schema"]["fields"]
    return frozenset(
        name for name, field in fields.items() if not field.frozen and not _calls_functions(schemas[name])
    )


def reloaded_values(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any] | None:
    """Load values of the database, and return the stored form of the loaded values.

    Returns None if the model is not flat, or if a value is invalid.

    Args:
        model: the class.
        values: stored name -> value, for any fields.
    """
    validator = _reloading_validator(model)
    if validator is None:
        return None
    try:
        reloaded: dict[str, Any] = validator.validate_python(values, context=LOADING)
    except ValidationError:
        return None
    return {name: stored(value) for name, value in reloaded.items()}


def loads_unchanged(model: type[BaseModel], known: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether it is certain that `reloaded_values` changes none of these values of the database.

    It returns them unchanged, or refuses them.

    Args:
        model: the class.
        known: stored name -> value in the database.
        names: the stored names to check.
    """
    kinds = _unchanged_kinds(model)
    for name in names:  # noqa: SIM110 - `all` takes twice as long
        if name not in known or type(known[name]) not in kinds.get(name, ()):
            return False
    return True


@cached_per_class
def _unchanged_kinds(model: Any) -> dict[str, frozenset[type]]:
    """Stored name -> the types whose values `reloaded_values` returns unchanged or refuses."""
    names, config = stored_names(model), model.__pydantic_core_schema__.get("config", {})
    if _reloading_validator(model) is None or any(config.get(name) for name in _TEXT_CHANGES):
        return {}
    return {names[name]: _kinds_kept_by(schema) for name, schema in (_flat_fields(model) or {}).items()}


def _kinds_kept_by(schema: Any) -> frozenset[type]:
    """The types whose values a schema returns unchanged or refuses; none if the schema has an unknown key."""
    kind, keys = schema["type"], schema.keys() - {"type", "metadata", "strict"}
    if kind == "nullable" and keys == {"schema"}:
        inner = _kinds_kept_by(schema["schema"])
        return inner and inner | {type(None)}
    if kind in _KEPT and keys <= _CHECKS:
        return frozenset({_KEPT[kind]})
    return frozenset()


class _FlatForm(NamedTuple):
    """How the instances of a flat model become rows.

    Attributes:
        validate: makes a row from the attributes of an instance.
        unproven: the stored names of the fields whose valid values may have to be converted to their stored form.
    """

    validate: Callable[..., dict[str, Any]]
    unproven: tuple[str, ...]


@cached_per_class
def _flat_form(model: Any) -> _FlatForm | None:
    """How the instances of a flat model become rows; None if the model is not flat."""
    fields, names = _flat_fields(model), stored_names(model)
    if fields is None:
        return None
    row = {
        names[name]: core_schema.typed_dict_field(schema, validation_alias=name) for name, schema in fields.items()
    }
    validator = _dict_validator(row, model.__pydantic_core_schema__.get("config", {}))
    unproven = tuple(names[name] for name, schema in fields.items() if not _is_exact(schema))
    return _FlatForm(validator.validate_python, unproven)


def _is_exact(schema: Any) -> bool:
    """Whether each value of a schema is its own stored form."""
    inner = {"nullable": "schema", "list": "items_schema"}.get(schema["type"])
    return schema["type"] in _EXACT if inner is None else inner in schema and _is_exact(schema[inner])


@cached_per_class
def _reloading_validator(model: Any) -> SchemaValidator | None:
    """The validator for `reloaded_values`; None if the model is not flat."""
    fields, names = _flat_fields(model), stored_names(model)
    if fields is None or not all(isinstance(f.validation_alias, str | None) for f in model.model_fields.values()):
        return None
    row = {
        names[name]: core_schema.typed_dict_field(from_stored(schema), required=False)
        for name, schema in fields.items()
    }
    return _dict_validator(row, from_stored(model.__pydantic_core_schema__.get("config", {})))


def _dict_validator(fields: dict[str, core_schema.TypedDictField], config: dict[str, Any]) -> SchemaValidator:
    by_alias = {"validate_by_alias": True, "validate_by_name": False}
    settings: Any = {**config, **by_alias, "extra_fields_behavior": "ignore"}
    # A typed dict has its own config: pydantic ignores the config of the `SchemaValidator`.
    return SchemaValidator(core_schema.typed_dict_schema(fields, config=settings))


@cached_per_class
def _flat_fields(model: Any) -> dict[str, CoreSchema] | None:
    """The schemas of the fields, without their defaults; None if the model is not flat."""
    decorators, schema = model.__pydantic_decorators__, model.__pydantic_core_schema__
    model_validators = decorators.model_validators or decorators.root_validators
    # Validators of fields may use `info.field_name` or `info.data`, which differ for rows.
    field_validators = decorators.field_validators or decorators.validators
    if model_validators or field_validators or schema["type"] != "model" or schema.get("post_init"):
        return None
    fields = schema["schema"]
    if fields["type"] != "model-fields" or not all(_is_plain(f.annotation) for f in model.model_fields.values()):
        return None
    bare = {name: _without_default(field["schema"]) for name, field in fields["fields"].items()}
    return None if any(map(_takes_info, bare.values())) else bare


def _without_default(schema: CoreSchema) -> CoreSchema:
    """The schema of a field, without its default."""
    bare: CoreSchema = loading_schema(schema["schema"] if schema["type"] == "default" else schema)
    return bare


def _takes_info(schema: Any) -> bool:
    """Whether a function in a schema takes `info`."""
    if isinstance(schema, dict):
        return schema.get("type") == "with-info" or any(map(_takes_info, schema.values()))
    return isinstance(schema, list) and any(map(_takes_info, schema))


def _calls_functions(schema: Any) -> bool:
    """Whether a schema calls a function other than `bson.ObjectId`.

    A function may return a value of another type. In a row, the function for e-mail addresses only looks for an
    @-sign. In an assignment it validates the whole address.
    """
    if isinstance(schema, list | tuple):
        return any(map(_calls_functions, schema))
    if not isinstance(schema, dict):
        return False
    if str(schema.get("type")).startswith("function-") and schema["function"]["function"] is not bson.ObjectId:
        return True
    return any(_calls_functions(value) for key, value in schema.items() if key not in DATA)


def _is_plain(annotation: Any) -> bool:
    if annotation in _PLAIN:
        return True
    origin = get_origin(annotation)
    return origin in (list, Union, UnionType) and all(_is_plain(argument) for argument in get_args(annotation))
