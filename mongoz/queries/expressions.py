"""Expressions: conditions and sort keys as values, made by `Document.field == value` and friends."""

from dataclasses import dataclass
from typing import Any, NoReturn

import pymongo

from mongoz.exceptions import InvalidKeyError
from mongoz.fields.storage import stored
from mongoz.queries.paths import resolve, stored_id

__all__ = ["Expression", "FieldProxy", "Order", "SortExpression"]


class Order:
    """Directions to sort in."""

    ASCENDING = pymongo.ASCENDING
    DESCENDING = pymongo.DESCENDING


@dataclass(frozen=True, slots=True)
class Expression:
    """One condition.

    Args:
        key: the stored, dotted name of the field.
        operator: MongoDB's, `"$gte"` for example.
        value: what it compares with; a value is a value, an operator in it has no effect.
        options: further operators beside it, `{"$options": "i"}` for example.
    """

    key: Any
    operator: str
    value: Any
    options: dict[str, Any] | None = None

    def compile(self) -> dict[str, Any]:
        """The MongoDB condition."""
        return {str(self.key): {self.operator: stored(self.value), **(self.options or {})}}

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self!r} is a condition for a query; whether it holds only the database knows.")


@dataclass(frozen=True, slots=True)
class SortExpression:
    """One sort key and its direction."""

    key: Any
    direction: int = Order.ASCENDING


class FieldProxy:
    """`Document.field`: makes expressions, and names the field in sort keys."""

    __slots__ = ("_document", "_name", "_path")

    def __init__(self, document: Any, name: str) -> None:
        self._document = document
        self._name = name
        self._path = resolve(document, name)

    def __getattr__(self, name: str) -> "FieldProxy":
        if name.startswith("__"):  # what copy, inspect and pydantic ask everything for
            raise AttributeError(name)
        return FieldProxy(self._document, f"{self._name}.{name}")

    def _expression(self, operator: str, value: Any) -> Expression:
        if value is None and operator not in ("$eq", "$ne"):
            raise InvalidKeyError(f"{self._name} can't be compared with None by {operator}.")
        return Expression(self._path.path, operator, stored_id(value) if self._path.is_id else value)

    def __eq__(self, value: object) -> Expression:  # type: ignore[override]
        return self._expression("$eq", value)

    def __ne__(self, value: object) -> Expression:  # type: ignore[override]
        return self._expression("$ne", value)

    def __lt__(self, value: Any) -> Expression:
        return self._expression("$lt", value)

    def __le__(self, value: Any) -> Expression:
        return self._expression("$lte", value)

    def __gt__(self, value: Any) -> Expression:
        return self._expression("$gt", value)

    def __ge__(self, value: Any) -> Expression:
        return self._expression("$gte", value)

    def __hash__(self) -> int:
        return hash((self._document, self._name))

    def __str__(self) -> str:
        return self._path.path

    def __repr__(self) -> str:
        return f"{self._document.__name__}.{self._name}"
