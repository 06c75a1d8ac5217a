"""`Q`: conditions and sort keys by name."""

from collections.abc import Mapping
from typing import Any

from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.queries.expressions import Expression, FieldProxy, Order, SortExpression, made
from mongoz.queries.operands import ValueRefused
from mongoz.settings import provide_operators

__all__ = ["Q"]


class Q:
    """Conditions for `query` and sort keys for `sort`; fields are given by name or as `Document.field`.

    A value is a value: a dict is compared with, operators in it have no effect. Strings are matched literally,
    except by `pattern`.

    Examples:
        >>> await Movie.query(Q.or_(Q.startswith("name", "Al"), Q.in_(Movie.year, [1979, 1986])))
    """

    @staticmethod
    def asc(key: Any) -> SortExpression:
        """Ascending."""
        return SortExpression(key, Order.ASCENDING)

    @staticmethod
    def desc(key: Any) -> SortExpression:
        """Descending."""
        return SortExpression(key, Order.DESCENDING)

    @staticmethod
    def eq(key: Any, value: Any) -> Expression:
        """It is equal; a list also if it has an item that is equal."""
        return made(key, "eq", value)

    @staticmethod
    def neq(key: Any, value: Any) -> Expression:
        """It is not equal."""
        return made(key, "neq", value)

    @staticmethod
    def not_(key: Any, value: Any) -> Expression:
        """It is not equal. To negate an expression write `~expression`."""
        return made(key, "neq", value)

    @staticmethod
    def in_(key: Any, values: list[Any] | tuple[Any, ...]) -> Expression:
        """It is equal to one of a list's or tuple's.

        Raises:
            OperatorInvalid: neither a list nor a tuple (an AssertionError, too).
        """
        return made(key, "in_", values)

    @staticmethod
    def not_in(key: Any, values: list[Any] | tuple[Any, ...]) -> Expression:
        """It is equal to none of them; errors as for `in_`."""
        return made(key, "not_in", values)

    @staticmethod
    def contains(key: Any, value: Any) -> Expression:
        """A string has the value in it; a list has an item that equals it; anything else equals it."""
        return made(key, "contains", value)

    @staticmethod
    def icontains(key: Any, value: Any) -> Expression:
        """The same without regard to case."""
        return made(key, "icontains", value)

    @staticmethod
    def startswith(key: Any, value: str) -> Expression:
        """A string starts with the value."""
        return made(key, "startswith", value)

    @staticmethod
    def istartswith(key: Any, value: str) -> Expression:
        """The same without regard to case."""
        return made(key, "istartswith", value)

    @staticmethod
    def endswith(key: Any, value: str) -> Expression:
        """A string ends with the value."""
        return made(key, "endswith", value)

    @staticmethod
    def iendswith(key: Any, value: str) -> Expression:
        """The same without regard to case."""
        return made(key, "iendswith", value)

    @staticmethod
    def pattern(key: Any, value: Any) -> Expression:
        """A string matches a regular expression, a str or a compiled one.

        Raises:
            FieldDefinitionError: the field holds no strings. (With a name for a key, when the query is made.)
        """
        return made(key, "pattern", value)

    @staticmethod
    def where(key: Any, js: str) -> Expression:
        """JavaScript that is true of the document, which it calls `this`.

        It is code: never put a user's input into it.

        Args:
            key: the field that it is about; for readers only.
            js: a str or a bson.Code.

        Raises:
            OperatorInvalid: anything else.
        """
        return made(key, "where", js)

    @staticmethod
    def gt(key: Any, value: Any) -> Expression:
        """It is greater.

        Raises:
            OperatorInvalid: the value is None, a bool or a regular expression: these have no order.
        """
        return _compared(key, "gt", value)

    @staticmethod
    def gte(key: Any, value: Any) -> Expression:
        """It is greater or equal; errors as for `gt`."""
        return _compared(key, "gte", value)

    @staticmethod
    def lt(key: Any, value: Any) -> Expression:
        """It is less; errors as for `gt`."""
        return _compared(key, "lt", value)

    @staticmethod
    def lte(key: Any, value: Any) -> Expression:
        """It is less or equal; errors as for `gt`."""
        return _compared(key, "lte", value)

    @staticmethod
    def exists(key: Any, value: bool = True) -> Expression:
        """The document has the field (or has not, with False); None is a value."""
        return made(key, "exists", value)

    @staticmethod
    def and_(*conditions: Any) -> Expression:
        """All of them hold: expressions, MongoDB queries as dicts, or a list of such.

        Raises:
            OperatorInvalid: there is none.
            InvalidKeyError: something else.
        """
        return _joined("$and", conditions)

    @staticmethod
    def or_(*conditions: Any) -> Expression:
        """At least one of them holds; arguments and errors as for `and_`."""
        return _joined("$or", conditions)

    @staticmethod
    def nor_(*conditions: Any) -> Expression:
        """None of them holds; arguments and errors as for `and_`."""
        return _joined("$nor", conditions)


provide_operators(Q)


def _compared(key: Any, operator: str, value: Any) -> Expression:
    if isinstance(value, bool):
        raise ValueRefused(f"Q.{operator}({str(key)!r}, {value!r}): a bool has no order; ask for equality.")
    return made(key, operator, value)


def _joined(operator: str, conditions: tuple[Any, ...]) -> Expression:
    every: list[Any] = []
    for each in conditions:
        every += each if isinstance(each, list | tuple) else [each]
    for each in every:
        if not isinstance(each, Expression | Mapping):
            hint = " Conditions on a field begin with Q.eq and the like." if isinstance(each, FieldProxy) else ""
            raise InvalidKeyError(f"Q.{operator[1:]}_ takes expressions, not {each!r}.{hint}")
    if not every:
        raise OperatorInvalid(f"Q.{operator[1:]}_ takes at least one expression.")
    return Expression(None, operator, tuple(every))
