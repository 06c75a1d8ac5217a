"""Documents and their parts, which applications declare."""

from mongoz.documents.base import Document
from mongoz.model.embedded import EmbeddedDocument
from mongoz.model.indexes import Index, IndexType

__all__ = ["Document", "EmbeddedDocument", "Index", "IndexType"]
