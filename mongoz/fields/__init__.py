"""Fields: the factories that declare them, and the types, rules and stored forms of their values."""

from mongoz.fields.base import BaseField
from mongoz.fields.factories import (
    UUID,
    Array,
    ArrayList,
    Binary,
    Boolean,
    Email,
    Embed,
    NullableObjectId,
    Object,
    String,
)
from mongoz.fields.foreign_key import ForeignKey, ForeignKeyField
from mongoz.fields.moments import Date, DateTime, Time
from mongoz.fields.numbers import Decimal, Double, Integer
from mongoz.fields.object_id import ObjectId

__all__ = [
    "UUID",
    "Array",
    "ArrayList",
    "BaseField",
    "Binary",
    "Boolean",
    "Date",
    "DateTime",
    "Decimal",
    "Double",
    "Email",
    "Embed",
    "ForeignKey",
    "ForeignKeyField",
    "Integer",
    "NullableObjectId",
    "Object",
    "ObjectId",
    "String",
    "Time",
]
