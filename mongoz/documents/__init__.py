"""Documents: what an application declares."""

from mongoz.documents.base import Document
from mongoz.documents.embedded import EmbeddedDocument
from mongoz.model.indexes import Index, IndexType

__all__ = ["Document", "EmbeddedDocument", "Index", "IndexType"]
