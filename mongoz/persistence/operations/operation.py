"""Operations: changes that the server computes, as checked update operators."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, Final, NamedTuple

from mongoz.exceptions import InvalidKeyError

__all__ = ["ALL_ITEMS", "Operation", "merge_operations", "refuse_overlaps", "with_operations"]

ALL_ITEMS: Final = "$[]"
"""In a path, this step stands for every item of a list."""


class Operation(NamedTuple):
    """One operator on one field, checked and ready to send.

    Attributes:
        operator: the name of MongoDB's operator, for example `"$inc"`.
        path: the stored, dotted name.
        attribute: the attribute name of the document's field in which the path begins.
        value: the operand.
    """

    operator: str
    path: str
    attribute: str
    value: Any

    @property
    def top(self) -> str:
        """The stored name of the document's field in which the path begins."""
        return self.path.partition(".")[0]


def with_operations(
    patch: Mapping[str, Mapping[str, Any]], operations: Iterable[Operation]
) -> dict[str, dict[str, Any]]:
    """The update document of a patch and some operations."""
    update = {operator: dict(values) for operator, values in patch.items()}
    for operation in operations:
        update.setdefault(operation.operator, {})[operation.path] = operation.value
    return update


def merge_operations(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    """Combine operations that have the same list operator and the same path."""
    merged: dict[tuple[str, str], list[Operation]] = {}
    for operation in operations:
        merged.setdefault((operation.operator, operation.path), []).append(operation)
    return tuple(each for same in merged.values() for each in _merged(same))


def _merged(same: list[Operation]) -> list[Operation]:
    first = same[0]
    values = [operation.value for operation in same]
    if first.operator in ("$push", "$addToSet"):
        return [first._replace(value={"$each": [item for value in values for item in value["$each"]]})]
    if first.operator == "$pullAll":
        return [first._replace(value=[item for value in values for item in value])]
    if first.operator == "$pull":
        return [first._replace(value={"$or": [part for value in values for part in value["$or"]]})]
    return same


def refuse_overlaps(paths: Iterable[str]) -> None:
    """Refuse an update that changes a path twice, or a path and a part of its value. MongoDB refuses it too.

    Raises:
        InvalidKeyError: there are two such paths; the message gives both.
    """
    for one, other in combinations(paths, 2):
        pairs = zip(one.split("."), other.split("."), strict=False)
        a, b = next(((a, b) for a, b in pairs if a != b), ("", ""))
        if a == b or (ALL_ITEMS in (a, b) and (a.isdecimal() or b.isdecimal())):
            both = f"{one!r} is changed twice" if one == other else f"{one!r} and {other!r} overlap"
            raise InvalidKeyError(f"{both} in one update, which MongoDB refuses. Make two updates, or one change.")
