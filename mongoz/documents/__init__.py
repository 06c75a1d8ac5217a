"""Documents: what an application declares."""

from mongoz.documents.base import Document
from mongoz.documents.embedded import EmbeddedDocument

__all__ = ["Document", "EmbeddedDocument"]
