"""The reserved field, which holds origin stamps: users neither see nor set it."""

from collections.abc import Mapping
from typing import Any

from mongoz.exceptions import InvalidKeyError
from mongoz.stamps import FIELD

__all__ = ["refuse_stamp", "without_stamps"]


def refuse_stamp(document: type, values: Mapping[str, Any]) -> None:
    """Refuse values for a document, a stamp among them.

    Raises:
        InvalidKeyError: names the field.
    """
    if FIELD in values:
        raise InvalidKeyError(
            f"{document.__name__} can't have a field {FIELD!r}: it is reserved for the origin stamps of writes. "
            f"Leave it out; {document.__name__}.from_row(row) makes an instance of a row of the database."
        )


def without_stamps(row: dict[str, Any]) -> dict[str, Any]:
    """The same row without stamps, at whatever depth: documents are joined and grouped into each other."""
    row.pop(FIELD, None)
    for value in row.values():
        kind = type(value)
        if kind is list or kind is dict:
            _strip(value)
    return row


def _strip(value: Any) -> None:
    if type(value) is dict:
        without_stamps(value)
        return
    for item in value:
        kind = type(item)
        if kind is dict or kind is list:
            _strip(item)
