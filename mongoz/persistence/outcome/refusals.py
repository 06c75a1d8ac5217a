"""Writes that the server refuses, and that the origin stamp may be the reason for."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import bson
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.fields.storage import UNSTORABLE, explain_value, stored
from mongoz.stamps import FIELD

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = [
    "BSON_TOO_LARGE",
    "VALIDATION_FAILED",
    "explain_refusal",
    "explain_refused_marker",
    "explain_unstorable",
    "refuses_stamp",
]

VALIDATION_FAILED: Final = 121
"""DocumentValidationFailure: the collection's validator does not accept what would be stored."""

BSON_TOO_LARGE: Final = 17419
"""The document would be larger than 16 MB after the update."""

_SIZE_NOTE: Final = (
    f"The registry is dispatched, so the write brought the reserved field {FIELD!r}, for which a document of "
    "nearly 16 MB has no room. Keep it smaller, or remove something from it in the same update."
)
_MEND: Final = (
    f"Add {{{FIELD}: {{bsonType: 'binData'}}}} to the properties of its $jsonSchema, or do without "
    "'additionalProperties: false'."
)
_NAMED_NOTE: Final = (
    f"The collection's validator refuses {FIELD!r}, the reserved field that writes of a dispatched registry "
    f"bring. {_MEND}"
)
_MARKER_NOTE: Final = (
    "It was the mark by which a dispatcher tells this delete from others, and the server has ended the "
    "transaction with it. Outside of a transaction such a document is deleted without a mark."
)
_MAYBE_NOTE: Final = (
    f"The registry is dispatched, so the write brought the reserved field {FIELD!r}, and the collection's "
    f"validator may be what refuses it. {_MEND}"
)


def explain_refused_marker(error: PyMongoError) -> None:
    """Add notes to the error of a delete in the caller's transaction, if the server refused its mark.

    Args:
        error: what the driver raised.
    """
    if refuses_stamp(error):
        explain_refusal(error)
        error.add_note(_MARKER_NOTE)


def explain_unstorable(error: BaseException, instance: "Document") -> None:
    """Add a note to the error of a write whose values BSON has no type for: of which field, and what.

    Other errors stay as they are.

    Args:
        error: what the driver raised before it sent anything.
        instance: what was to be written.
    """
    if not isinstance(error, UNSTORABLE):
        return
    with suppress(*UNSTORABLE):  # else it has no row, and the error names the field already
        for name, value in stored(instance).items():
            try:
                bson.encode({name: value}, codec_options=CODEC_OPTIONS)
            except Exception:  # whatever it is: this is the field
                explain_value(error, type(instance), name, value)


def explain_refusal(error: PyMongoError) -> None:
    """Add a note to the error of a stamped write that the server refused, if the stamp may be the reason.

    Other errors stay as they are, and one that has its note gets no second one.

    Args:
        error: what the driver raised.
    """
    for refusal in _refusals(error):
        note = _note(refusal)
        if note is not None:
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            return


def refuses_stamp(error: PyMongoError) -> bool:
    """Whether the stamp may be what the server refuses, rather than what it was put on."""
    return any(refusal.get("code") in (VALIDATION_FAILED, BSON_TOO_LARGE) for refusal in _refusals(error))


def _refusals(error: PyMongoError) -> Iterator[Mapping[str, Any]]:
    """What the server said: of a bulk write one answer for each write that failed."""
    details = error.details if isinstance(error, OperationFailure) else None
    if isinstance(error, BulkWriteError):
        yield from (details or {}).get("writeErrors", ())
    elif isinstance(error, OperationFailure):
        yield {"code": error.code, **(details or {})}


def _note(refusal: Mapping[str, Any]) -> str | None:
    code = refusal.get("code")
    if code == VALIDATION_FAILED:
        return _NAMED_NOTE if _names_the_stamp(refusal.get("errInfo")) else _MAYBE_NOTE
    return _SIZE_NOTE if code == BSON_TOO_LARGE else None


def _names_the_stamp(details: Any) -> bool:
    """Whether the server's explanation lists the stamp among the properties that are too many."""
    if isinstance(details, Mapping):
        extra = details.get("additionalProperties")
        if isinstance(extra, list) and FIELD in extra:
            return True
        return any(_names_the_stamp(value) for value in details.values())
    return isinstance(details, list) and any(_names_the_stamp(item) for item in details)
