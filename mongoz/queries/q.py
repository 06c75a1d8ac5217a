"""`Q`: conditions and sort keys by name."""

from collections.abc import Mapping
from typing import Any

from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.queries.expressions import Expression, FieldProxy, Order, SortExpression, make_expression
from mongoz.queries.operands import ValueRefused
from mongoz.settings import provide_operators

__all__ = ["Q"]


class Q:
    """Conditions for `query` and sort keys for `sort`. A field is given by its name or as `Document.field`.

    A dict is a value: operators in it have no effect. Strings match literally, except with `pattern`.

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
        """The field equals the value, or is a list with an equal item."""
        return make_expression(key, "eq", value)

    @staticmethod
    def neq(key: Any, value: Any) -> Expression:
        """The field is not equal to the value."""
        return make_expression(key, "neq", value)

    @staticmethod
    def not_(key: Any, value: Any) -> Expression:
        """The field is not equal to the value. To negate an expression, write `~expression`."""
        return make_expression(key, "neq", value)

    @staticmethod
    def in_(key: Any, values: list[Any] | tuple[Any, ...]) -> Expression:
        """The field is equal to one of the values.

        Raises:
            OperatorInvalid: `values` is neither a list nor a tuple. The error is an AssertionError too.
        """
        return make_expression(key, "in_", values)

    @staticmethod
    def not_in(key: Any, values: list[Any] | tuple[Any, ...]) -> Expression:
        """The field is equal to none of the values; errors as for `in_`."""
        return make_expression(key, "not_in", values)

    @staticmethod
    def contains(key: Any, value: Any) -> Expression:
        """A string contains the value, a list contains an equal item, or a field of another type is equal."""
        return make_expression(key, "contains", value)

    @staticmethod
    def icontains(key: Any, value: Any) -> Expression:
        """Like `contains`, but ignores case."""
        return make_expression(key, "icontains", value)

    @staticmethod
    def startswith(key: Any, value: str) -> Expression:
        """The string starts with the value."""
        return make_expression(key, "startswith", value)

    @staticmethod
    def istartswith(key: Any, value: str) -> Expression:
        """Like `startswith`, but ignores case."""
        return make_expression(key, "istartswith", value)

    @staticmethod
    def endswith(key: Any, value: str) -> Expression:
        """The string ends with the value."""
        return make_expression(key, "endswith", value)

    @staticmethod
    def iendswith(key: Any, value: str) -> Expression:
        """Like `endswith`, but ignores case."""
        return make_expression(key, "iendswith", value)

    @staticmethod
    def pattern(key: Any, value: Any) -> Expression:
        """The string matches a regular expression, given as a str or compiled.

        Raises:
            FieldDefinitionError: the field holds no strings. (If the key is a name, only the query raises this.)
        """
        return make_expression(key, "pattern", value)

    @staticmethod
    def where(key: Any, js: str) -> Expression:
        """JavaScript that is true for the document, which is `this`.

        It is code: never include a user's input.

        Args:
            key: the field. It only helps readers of the code: the condition does not contain it.
            js: a str or a bson.Code.

        Raises:
            OperatorInvalid: `js` has another type.
        """
        return make_expression(key, "where", js)

    @staticmethod
    def gt(key: Any, value: Any) -> Expression:
        """The field is greater than the value.

        Raises:
            OperatorInvalid: the value is None, a bool or a regular expression, which have no order.
        """
        return _compared(key, "gt", value)

    @staticmethod
    def gte(key: Any, value: Any) -> Expression:
        """The field is greater than the value, or equal; errors as for `gt`."""
        return _compared(key, "gte", value)

    @staticmethod
    def lt(key: Any, value: Any) -> Expression:
        """The field is less than the value; errors as for `gt`."""
        return _compared(key, "lt", value)

    @staticmethod
    def lte(key: Any, value: Any) -> Expression:
        """The field is less than the value, or equal; errors as for `gt`."""
        return _compared(key, "lte", value)

    @staticmethod
    def exists(key: Any, value: bool = True) -> Expression:
        """The document has the field, even if its value is None. With False: the document lacks the field."""
        return make_expression(key, "exists", value)

    @staticmethod
    def and_(*conditions: Any) -> Expression:
        """All conditions are true. They are expressions, MongoDB queries as dicts, or lists of these.

        Raises:
            OperatorInvalid: there is no condition.
            InvalidKeyError: an argument is no condition.
        """
        return _joined("$and", conditions)

    @staticmethod
    def or_(*conditions: Any) -> Expression:
        """At least one condition is true; arguments and errors as for `and_`."""
        return _joined("$or", conditions)

    @staticmethod
    def nor_(*conditions: Any) -> Expression:
        """No condition is true; arguments and errors as for `and_`."""
        return _joined("$nor", conditions)


provide_operators(Q)


def _compared(key: Any, operator: str, value: Any) -> Expression:
    if isinstance(value, bool):
        raise ValueRefused(f"Q.{operator}({str(key)!r}, {value!r}): a bool has no order; use Q.eq.")
    return make_expression(key, operator, value)


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
