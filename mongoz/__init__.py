"""An async pydantic ODM for MongoDB, with signals that fire no matter who wrote.

Example:
    >>> import mongoz
    >>> registry = mongoz.Registry("mongodb://localhost:27017/?replicaSet=rs0", dispatched=True)
    >>> class User(mongoz.Document):
    ...     name: str = mongoz.String()
    ...
    ...     class Meta:
    ...         registry = registry
    ...         database = "shop"
"""

from mongoz import fields
from mongoz.connection import Collection, Database, Registry
from mongoz.documents import Document, EmbeddedDocument
from mongoz.exceptions import (
    AbstractDocumentError,
    DocumentNotFound,
    FieldDefinitionError,
    ImproperlyConfigured,
    InvalidKeyError,
    InvalidObjectIdError,
    MongozException,
    MultipleDocumentsReturned,
    OperatorInvalid,
    SignalError,
)
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
from mongoz.queries import Expression, Manager, Order, QuerySet, SortExpression
from mongoz.settings import MongozSettings, settings
from mongoz.signals import Signal

__version__ = "0.1.0"

__all__ = [
    "UUID",
    "AbstractDocumentError",
    "Array",
    "Boolean",
    "Collection",
    "Database",
    "Date",
    "DateTime",
    "Document",
    "DocumentNotFound",
    "Double",
    "Email",
    "Embed",
    "EmbeddedDocument",
    "Expression",
    "FieldDefinitionError",
    "ImproperlyConfigured",
    "Integer",
    "InvalidKeyError",
    "InvalidObjectIdError",
    "Manager",
    "MongozException",
    "MongozSettings",
    "MultipleDocumentsReturned",
    "Object",
    "ObjectId",
    "OperatorInvalid",
    "Order",
    "QuerySet",
    "Registry",
    "Signal",
    "SignalError",
    "SortExpression",
    "String",
    "__version__",
    "fields",
    "settings",
]
