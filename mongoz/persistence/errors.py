"""Errors of writes whose document does not exist, or changes too fast."""

from typing import Any, Final

from mongoz.exceptions import DocumentNotFound, WriteConflict
from mongoz.model.base import Model
from mongoz.persistence.target import WriteTarget

__all__ = ["ATTEMPTS", "DocumentChanged", "NotWritten", "document_gone", "require_id", "write_conflict"]

ATTEMPTS: Final = 100
"""Maximum number of attempts to write a document that other clients change between the read and the write."""


class NotWritten(Exception):
    """The command was answered, and has written nothing."""


class DocumentChanged(NotWritten):
    """The document changed between the read and the write."""


def require_id(instance: Model) -> None:
    """Refuse an instance that was never saved.

    Raises:
        DocumentNotFound: the instance has no id.
    """
    if instance.id is None:  # {"_id": None} would match a document whose _id is null
        raise DocumentNotFound(f"This {type(instance).__name__} was never saved: it has no id.")


def document_gone(instance: Model, target: WriteTarget) -> DocumentNotFound:
    """The error of a write to a document that was deleted."""
    return DocumentNotFound(f"{target.collection.namespace} has no document with _id {instance.id!r} any more.")


def write_conflict(document: type[Model], target: WriteTarget, id_: Any) -> WriteConflict:
    """The error of a document that changed before each attempt to write it."""
    return WriteConflict(
        f"The document with _id {id_!r} of {target.collection.namespace} changed {ATTEMPTS} times between being "
        f"read and written, so nothing was written. If a pre_update receiver of {document.__name__} writes the "
        "document itself, let it change the instance instead. Otherwise try again when fewer clients write it."
    )
