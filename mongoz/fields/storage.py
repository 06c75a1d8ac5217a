"""From Python values to what is stored: models become dicts under their stored names, nothing is shared.

Scalars stay as they are, but for decimals; the codec options of the registry know how to encode dates and times.
"""

import datetime
import decimal
import uuid
from enum import Enum
from typing import Any, Final

import bson
from pydantic import BaseModel

from mongoz.fields.compiled import compiled

__all__ = ["SCALARS", "stored", "stored_names"]

SCALARS: Final = frozenset(
    {
        str, int, float, bool, bytes, type(None), bson.ObjectId, uuid.UUID, datetime.datetime, datetime.date,
        datetime.time, bson.Decimal128, bson.Int64, bson.Binary, bson.Timestamp,
    }
)  # fmt: skip


@compiled
def stored_names(model: Any) -> dict[str, str]:
    """Attribute name -> the name under which it is stored, for each field of a model."""
    return {name: field.serialization_alias or field.alias or name for name, field in model.model_fields.items()}


def stored(value: Any) -> Any:
    """A value as it is stored. Containers are copied, so that later changes to `value` don't show.

    Args:
        value: a scalar, a model, or a list, tuple, set, mapping or enum of such.
    """
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is list or isinstance(value, list | tuple | set | frozenset):
        return [item if type(item) in SCALARS else stored(item) for item in value]
    if isinstance(value, BaseModel):
        return _stored_model(value)
    if isinstance(value, dict):
        return {key: stored(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return stored(value.value)
    # A decimal of whatever class: like this every codec can encode it.
    return bson.Decimal128(value) if isinstance(value, decimal.Decimal) else value


def _stored_model(model: BaseModel) -> dict[str, Any]:
    names = stored_names(type(model))
    row = {
        names[name]: value if type(value) in SCALARS else stored(value)  # most are, and a call is saved for each
        for name, value in model.__dict__.items()
        if name in names
    }
    for name, value in (model.__pydantic_extra__ or {}).items():
        row[name] = stored(value)
    return row
