"""Flat documents, whose fields are scalars and lists of them: checked and turned into rows in one pass.

Pydantic makes an instance of what it validates, and that would have to be taken apart again. So out of the schema
of a class another one is made, once, whose validation gives the row itself: under the stored names, lists copied.
"""

import datetime
import uuid
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

import bson
from pydantic import BaseModel, ValidationError
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from mongoz.fields.class_cache import compiled
from mongoz.fields.email import LOADING, loading_schema
from mongoz.fields.object_id import ObjectId
from mongoz.fields.storage import SCALARS, stored, stored_names

__all__ = ["flat_row"]

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


def flat_row(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any] | None:
    """The row of an instance of a flat model; None if it must be made otherwise.

    Args:
        model: the class.
        values: by the attributes' names. What is no field is left out.
    """
    validator = _row_validator(model)
    if validator is None:
        return None
    try:
        row: dict[str, Any] = validator.validate_python(values, context=LOADING)
    except ValidationError:  # the model's own validator has the right words for it
        return None
    for name, value in row.items():
        kind = type(value)
        if kind not in SCALARS and not (kind is list and SCALARS.issuperset(map(type, value))):
            row[name] = stored(value)
    return row


@compiled
def _row_validator(model: Any) -> SchemaValidator | None:
    """What makes rows of the attributes of a model, if it is flat."""
    decorators, schema = model.__pydantic_decorators__, model.__pydantic_core_schema__
    looks_at_the_whole = decorators.model_validators or decorators.root_validators
    # What would tell a field of a row from one of a model: `info.field_name`, `info.data`.
    looks_around = decorators.field_validators or decorators.validators
    if looks_at_the_whole or looks_around or schema["type"] != "model" or schema.get("post_init"):
        return None
    fields = schema["schema"]
    if fields["type"] != "model-fields" or not all(_is_plain(f.annotation) for f in model.model_fields.values()):
        return None
    names = stored_names(model)
    row = {
        names[name]: core_schema.typed_dict_field(_without_default(field["schema"]), validation_alias=name)
        for name, field in fields["fields"].items()
    }
    if any(_takes_info(field["schema"]) for field in row.values()):
        return None
    config = dict(schema.get("config", {})) | {"extra_fields_behavior": "ignore"}
    return SchemaValidator(core_schema.typed_dict_schema(row), config)  # type: ignore[arg-type]


def _without_default(schema: CoreSchema) -> CoreSchema:
    """For a value that is there."""
    bare: CoreSchema = loading_schema(schema["schema"] if schema["type"] == "default" else schema)
    return bare


def _takes_info(schema: Any) -> bool:
    """Whether a function in a schema asks where the value is that it is given."""
    if isinstance(schema, dict):
        return schema.get("type") == "with-info" or any(map(_takes_info, schema.values()))
    return isinstance(schema, list) and any(map(_takes_info, schema))


def _is_plain(annotation: Any) -> bool:
    if annotation in _PLAIN:
        return True
    origin = get_origin(annotation)
    return origin in (list, Union, UnionType) and all(_is_plain(argument) for argument in get_args(annotation))
