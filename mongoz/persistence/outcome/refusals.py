"""Adds notes to the errors of writes that the server refuses, perhaps because of the origin stamp."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import bson
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.fields.storage import UNSTORABLE, explain_value, stored
from mongoz.model.base import Model
from mongoz.stamps import FIELD

__all__ = [
    "BSON_TOO_LARGE",
    "VALIDATION_FAILED",
    "explain_refusal",
    "explain_refused_marker",
    "explain_unstorable",
    "refuses_stamp",
]

VALIDATION_FAILED: Final = 121
"""DocumentValidationFailure: the collection's validator does not accept the document."""

BSON_TOO_LARGE: Final = 17419
"""The document would be larger than 16 MB after the update."""

_SIZE_NOTE: Final = (
    f"The registry is dispatched, so the write contained the reserved field {FIELD!r}. A document of nearly 16 MB "
    "has no room for this field. Make the document smaller, or remove some of its data in the same update."
)
_REMEDY: Final = (
    f"Add {{{FIELD}: {{bsonType: 'binData'}}}} to the properties of the validator's $jsonSchema, or remove "
    "'additionalProperties: false'."
)
_STAMP_NOTE: Final = (
    f"The collection's validator refuses {FIELD!r}, the reserved field in writes of a dispatched registry. "
    f"{_REMEDY}"
)
_MARKER_NOTE: Final = (
    "The server refused the marker by which dispatchers recognize this delete, and ended the transaction. Outside "
    "of your transaction, mongoz would delete the document without a marker."
)
_POSSIBLE_STAMP_NOTE: Final = (
    f"The registry is dispatched, so the write contained the reserved field {FIELD!r}, which the collection's "
    f"validator may refuse. {_REMEDY}"
)


def explain_refused_marker(error: PyMongoError) -> None:
    """Add notes to the error of a delete in the caller's transaction, if the server refused its marker.

    Args:
        error: the driver's error.
    """
    if refuses_stamp(error):
        explain_refusal(error)
        error.add_note(_MARKER_NOTE)


def explain_unstorable(error: BaseException, instance: Model) -> None:
    """If BSON has no type for a value, add a note with the field and the value to the error.

    Other errors stay unchanged.

    Args:
        error: the driver's error, raised before anything was sent.
        instance: the instance of the write.
    """
    if not isinstance(error, UNSTORABLE):
        return
    with suppress(*UNSTORABLE):  # if `stored` raises the error, the error has its note already
        for name, value in stored(instance).items():
            try:
                bson.encode({name: value}, codec_options=CODEC_OPTIONS)
            except Exception:  # errors of any type: this field is the cause
                explain_value(error, type(instance), name, value)


def explain_refusal(error: PyMongoError) -> None:
    """Add a note to the error of a stamped write, if the stamp may be the reason for the refusal.

    Other errors stay unchanged. A note is added once.

    Args:
        error: the driver's error.
    """
    for refusal in _refusals(error):
        note = _note(refusal)
        if note is not None:
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            return


def refuses_stamp(error: PyMongoError) -> bool:
    """Whether the stamp may be the reason for the refusal."""
    return any(refusal.get("code") in (VALIDATION_FAILED, BSON_TOO_LARGE) for refusal in _refusals(error))


def _refusals(error: PyMongoError) -> Iterator[Mapping[str, Any]]:
    """The server's answers: one for each failed write of a bulk write."""
    details = error.details if isinstance(error, OperationFailure) else None
    if isinstance(error, BulkWriteError):
        yield from (details or {}).get("writeErrors", ())
    elif isinstance(error, OperationFailure):
        yield {"code": error.code, **(details or {})}


def _note(refusal: Mapping[str, Any]) -> str | None:
    code = refusal.get("code")
    if code == VALIDATION_FAILED:
        return _STAMP_NOTE if _names_the_stamp(refusal.get("errInfo")) else _POSSIBLE_STAMP_NOTE
    return _SIZE_NOTE if code == BSON_TOO_LARGE else None


def _names_the_stamp(details: Any) -> bool:
    """Whether the server's explanation lists the stamp among the additional properties."""
    if isinstance(details, Mapping):
        extra = details.get("additionalProperties")
        if isinstance(extra, list) and FIELD in extra:
            return True
        return any(_names_the_stamp(value) for value in details.values())
    return isinstance(details, list) and any(_names_the_stamp(item) for item in details)
