"""Operations: changes that the server computes, as checked update operators."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mongoz.exceptions import InvalidKeyError

__all__ = ["Operation", "with_operations"]


class Operation(NamedTuple):
    """One operator on one field, checked and ready to send.

    Attributes:
        operator: MongoDB's operator: `"$inc"`.
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
        """The stored name of the field."""
        return self.path.partition(".")[0]


def with_operations(
    patch: Mapping[str, Mapping[str, Any]], operations: Iterable[Operation]
) -> dict[str, dict[str, Any]]:
    """The update document of a patch and some operations.

    Raises:
        InvalidKeyError: two operations change the same path; MongoDB refuses that.
    """
    update = {operator: dict(values) for operator, values in patch.items()}
    seen: set[str] = set()
    for operation in operations:
        if operation.path in seen:
            raise InvalidKeyError(f"{operation.path!r} is changed twice in one update; MongoDB refuses that.")
        seen.add(operation.path)
        update.setdefault(operation.operator, {})[operation.path] = operation.value
    return update
