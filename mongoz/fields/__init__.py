"""Field types, and how they map to pydantic."""

from mongoz.fields.base import BaseField
from mongoz.fields.factories import (
    UUID,
    Array,
    Boolean,
    Date,
    DateTime,
    Double,
    Email,
    Embed,
    Integer,
    Object,
    String,
)
from mongoz.fields.object_id import ObjectId

__all__ = [
    "UUID",
    "Array",
    "BaseField",
    "Boolean",
    "Date",
    "DateTime",
    "Double",
    "Email",
    "Embed",
    "Integer",
    "Object",
    "ObjectId",
    "String",
]
