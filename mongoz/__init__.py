"""An async pydantic ODM for MongoDB, with signals that fire no matter who wrote.

Examples:
    >>> import mongoz
    >>> registry = mongoz.Registry("mongodb://localhost:27017/?replicaSet=rs0", dispatched=True)
    >>> class User(mongoz.Document):
    ...     name: str = mongoz.String()
    ...
    ...     class Meta:
    ...         registry = registry
    ...         database = "shop"
"""

from typing import TYPE_CHECKING, Any

import mongoz.installation  # noqa: F401 - the first import: it refuses a second package called mongoz

# isort: split
from mongoz import fields
from mongoz.connection import Collection, Database, Registry
from mongoz.documents import Document, EmbeddedDocument, Index, IndexType
from mongoz.exceptions import (
    AbstractDocumentError,
    BatchError,
    DocumentNotFound,
    FieldDefinitionError,
    ImproperlyConfigured,
    InvalidKeyError,
    InvalidObjectIdError,
    MongozException,
    MultipleDocumentsReturned,
    OperatorInvalid,
    RetryAfter,
    SignalError,
    TransactionError,
    WriteConflict,
)

# Not in __all__: `import *` would hide the built-in IndexError. Type checkers need the alias.
from mongoz.exceptions import IndexError as IndexError
from mongoz.fields import (
    UUID,
    Array,
    ArrayList,
    Binary,
    Boolean,
    Date,
    DateTime,
    Decimal,
    Double,
    Email,
    Embed,
    ForeignKey,
    Integer,
    NullableObjectId,
    Object,
    ObjectId,
    String,
    Time,
)
from mongoz.fields.nullable import Nullable
from mongoz.queries import Expression, Manager, Order, QuerySet, QuerySetManager, SortExpression
from mongoz.queries.q import Q
from mongoz.queries.update_operators import U
from mongoz.settings import settings
from mongoz.signals import Batch, BatchEvent, Delivery, Signal, context
from mongoz.sync import run_sync

if TYPE_CHECKING:
    from mongoz.settings_class import MongozSettings
else:

    def __getattr__(name: str) -> Any:
        """Import `MongozSettings` when it is first used."""
        if name == "MongozSettings":
            from mongoz.settings_class import MongozSettings  # noqa: PLC0415 - pydantic-settings takes 0.1 s

            return MongozSettings
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "UUID",
    "AbstractDocumentError",
    "Array",
    "ArrayList",
    "Batch",
    "BatchError",
    "BatchEvent",
    "Binary",
    "Boolean",
    "Collection",
    "Database",
    "Date",
    "DateTime",
    "Decimal",
    "Delivery",
    "Document",
    "DocumentNotFound",
    "Double",
    "Email",
    "Embed",
    "EmbeddedDocument",
    "Expression",
    "FieldDefinitionError",
    "ForeignKey",
    "ImproperlyConfigured",
    "Index",
    "IndexType",
    "Integer",
    "InvalidKeyError",
    "InvalidObjectIdError",
    "Manager",
    "MongozException",
    "MongozSettings",
    "MultipleDocumentsReturned",
    "Nullable",
    "NullableObjectId",
    "Object",
    "ObjectId",
    "OperatorInvalid",
    "Order",
    "Q",
    "QuerySet",
    "QuerySetManager",
    "Registry",
    "RetryAfter",
    "Signal",
    "SignalError",
    "SortExpression",
    "String",
    "Time",
    "TransactionError",
    "U",
    "WriteConflict",
    "__version__",
    "context",
    "fields",
    "run_sync",
    "settings",
]
