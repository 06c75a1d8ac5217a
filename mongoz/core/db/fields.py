"""The public import path of the fields; the code is in `mongoz.fields`."""

from mongoz.fields import (
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
    ObjectId,
    String,
)

__all__ = [
    "UUID",
    "Array",
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
