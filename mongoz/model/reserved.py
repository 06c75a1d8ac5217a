"""The reserved field of origin stamps: applications neither see nor set it."""

from collections.abc import Mapping
from typing import Any

from mongoz.exceptions import InvalidKeyError
from mongoz.stamps import FIELD

__all__ = ["refuse_attribute", "refuse_stamp", "without_stamps"]


def refuse_stamp(document: type, values: Mapping[str, Any]) -> None:
    """Refuse the values of a document if they contain the reserved field.

    Raises:
        InvalidKeyError: `values` contain the field. The message gives its name.
    """
    if FIELD in values:
        raise InvalidKeyError(
            f"{document.__name__} can't have a field {FIELD!r}: it is reserved for the origin stamps of writes. "
            f"Leave it out; {document.__name__}.from_row(row) makes an instance from a row of the database."
        )


def refuse_attribute(instance: Any, value: Any) -> None:
    """Refuse to set the reserved name on an instance.

    Raises:
        InvalidKeyError: always. The message gives the reserved name.
    """
    refuse_stamp(type(instance), {FIELD: value})


def without_stamps(row: dict[str, Any]) -> dict[str, Any]:
    """Remove the stamps from a row, at any depth.

    A pipeline can nest documents, and its `$objectToArray` turns the fields of a document into pairs.
    """
    row.pop(FIELD, None)
    for name, value in row.items():
        kind = type(value)
        if kind is list or kind is dict:
            row[name] = _stripped(value)
    return row


def _stripped(value: Any) -> Any:
    if type(value) is dict:
        return without_stamps(value)
    return [
        _stripped(item) if type(item) is dict or type(item) is list else item
        for item in value
        if not _is_stamp(item)
    ]


def _is_stamp(item: Any) -> bool:
    """Whether an item is a pair that `$objectToArray` made from a stamp."""
    return type(item) is dict and item.get("k") == FIELD and item.keys() == {"k", "v"}
