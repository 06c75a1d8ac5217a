"""Objects for conditions and sort keys. `Document.field == value` and `Q` make such objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Union

import pymongo

from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.fields.storage import stored
from mongoz.model.paths import Path, resolve_path
from mongoz.queries.conditions import SPELLINGS, make_condition, operator_named
from mongoz.queries.operands import convert_operand

__all__ = [
    "Condition",
    "Expression",
    "FieldProxy",
    "Order",
    "SortExpression",
    "compile_condition",
    "make_expression",
]


class Order:
    """The directions of sort keys."""

    ASCENDING = pymongo.ASCENDING
    DESCENDING = pymongo.DESCENDING


@dataclass(frozen=True, slots=True)
class Expression:
    """One condition. Combine conditions with `&`, `|` and `~`.

    Args:
        key: a field's name or `Document.field`; None for combined conditions.
        operator: the name of an operator of `Q`, such as `"gte"`, or of MongoDB, such as `"$gte"`.
        value: the value to compare with. MongoDB executes operators inside the value only if `operator` takes
            other operators, as `"$elemMatch"` does.
        options: further operators beside this one, such as `{"$options": "i"}`. A string, such as `"i"`, is short
            for `{"$options": "i"}`.

    Examples:
        >>> await User.query((User.age >= 18) & ~Expression("name", "startswith", "A"))
    """

    key: Any
    operator: str
    value: Any
    options: Mapping[str, Any] | str | None = None

    def compile(self) -> dict[str, Any]:
        """The MongoDB condition. If the key is a string, the condition uses it as the stored name.

        Raises:
            OperatorInvalid: there is no such operator, or it does not support the value.
        """
        return _compiled(None, self)

    def __and__(self, other: "Condition") -> "Expression":
        return _combined("$and", self, other)

    def __rand__(self, other: "Condition") -> "Expression":
        return _combined("$and", other, self)

    def __or__(self, other: "Condition") -> "Expression":
        return _combined("$or", self, other)

    def __ror__(self, other: "Condition") -> "Expression":
        return _combined("$or", other, self)

    def __invert__(self) -> "Expression":
        return Expression(None, "$nor", (self,))

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} is a condition for a query, and has no truth value. Combine conditions with & | ~."
        )


# Type checkers take `Document.age >= 18` for a bool, because `age` of an instance is an int. At run time the
# comparison is an Expression.
Condition = Union[Expression, Mapping[Any, Any], bool]  # noqa: UP007 - it is used above, as a string


def _combined(operator: str, *conditions: Condition) -> Expression:
    if not all(isinstance(each, Expression | Mapping) for each in conditions):
        return NotImplemented  # type: ignore[no-any-return]  # then Python raises a TypeError with both operands
    return Expression(None, operator, conditions)


@dataclass(frozen=True, slots=True)
class SortExpression:
    """One sort key and its direction."""

    key: Any
    direction: int = Order.ASCENDING


class FieldProxy:
    """`Document.field`: makes expressions, stands for the field in sort keys, and gives the fields inside of it.

    It has no public attributes: every name belongs to the embedded documents.
    """

    # Dunders, since fields can't have such names.
    __slots__ = ("__document__", "__resolved__", "__spelling__")

    __iter__ = None  # else __getitem__ would make it iterable without an end
    __contains__ = None

    def __init__(self, document: Any, name: str) -> None:
        self.__document__ = document
        self.__spelling__ = name
        self.__resolved__ = resolve_path(document, name)

    def __getattr__(self, name: str) -> "FieldProxy":
        if name.startswith("__"):  # copy, inspect and pydantic look up dunders
            raise AttributeError(name)
        return FieldProxy(self.__document__, f"{self.__spelling__}.{name}")

    def __getitem__(self, key: int | str) -> "FieldProxy":
        return FieldProxy(self.__document__, f"{self.__spelling__}.{key}")

    def __eq__(self, value: object) -> Any:
        if isinstance(value, FieldProxy):  # proxies are keys of dicts
            return self.__document__ is value.__document__ and str(self) == str(value)
        return make_expression(self, "eq", value)

    def __ne__(self, value: object) -> Any:
        if isinstance(value, FieldProxy):
            return not self == value
        return make_expression(self, "neq", value)

    def __lt__(self, value: Any) -> Expression:
        return make_expression(self, "lt", value)

    def __le__(self, value: Any) -> Expression:
        return make_expression(self, "lte", value)

    def __gt__(self, value: Any) -> Expression:
        return make_expression(self, "gt", value)

    def __ge__(self, value: Any) -> Expression:
        return make_expression(self, "gte", value)

    def __hash__(self) -> int:
        return hash((self.__document__, self.__resolved__.path))

    def __str__(self) -> str:
        return self.__resolved__.path

    def __repr__(self) -> str:
        return f"{self.__document__.__name__}.{self.__spelling__}"


def make_expression(key: Any, operator: str, value: Any) -> Expression:
    """Make an expression. Errors that don't depend on the document are raised here, before the query runs.

    Raises:
        InvalidKeyError: the key is neither a name nor `Document.field`.
        OperatorInvalid: the operator does not support the value.
        FieldDefinitionError: the field does not support the operator.
    """
    expression = Expression(key, operator, value)
    expression.compile()
    return expression


_JUNCTIONS: Final = {"$and": "$and", "$or": "$or", "$nor": "$nor", "and_": "$and", "or_": "$or", "nor_": "$nor"}
_COMPARISONS: Final = frozenset(
    {"$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$all", "$not", "$elemMatch"}
)


def compile_condition(document: Any, given: Condition) -> dict[str, Any]:
    """Compile an argument of `query` or `raw` to a MongoDB condition.

    Args:
        document: the queried class.
        given: an Expression, or a MongoDB query. The query may have operators, and `Document.field` as keys.

    Raises:
        InvalidKeyError: `given` is no condition, or the field of an expression is unknown.
        OperatorInvalid: there is no such operator, or it does not support the value.
        FieldDefinitionError: a field does not support its operator.
    """
    if isinstance(given, Expression):
        return _compiled(document, given)
    if isinstance(given, Mapping):
        return dict(_native_item(document, key, value) for key, value in given.items())
    raise InvalidKeyError(
        f"query() takes expressions and dicts, not {given!r}. Sort keys are for sort(), keywords for filter()."
    )


def _compiled(document: Any, expression: Expression) -> dict[str, Any]:
    operator, value = expression.operator, expression.value
    if operator in _JUNCTIONS:
        members = [compile_condition(document, each) for each in value]
        if not members:
            raise OperatorInvalid(f"{operator} takes at least one condition.")
        return {_JUNCTIONS[operator]: members}
    path, options = _path(document, expression.key), expression.options or {}
    if isinstance(options, str):
        options = {"$options": options}
    if _is_native(operator):
        return {path.path: {operator: convert_operand(path, value), **options}}
    compiled = make_condition(path, operator_named(operator), value)
    return {key: {**inner, **options} for key, inner in compiled.items()} if options else compiled


def _is_native(operator: Any) -> bool:
    """Whether this is an operator of MongoDB that has no name in `Q`."""
    return isinstance(operator, str) and operator.startswith("$") and operator not in SPELLINGS


def _path(document: Any, key: Any) -> Path:
    if isinstance(key, FieldProxy):
        return key.__resolved__
    if not isinstance(key, str):
        raise InvalidKeyError(f"The key of a condition is a field's name or Document.field, not {key!r}.")
    return Path(key) if document is None else resolve_path(document, key)


def _native_item(document: Any, key: Any, value: Any) -> tuple[str, Any]:
    if isinstance(key, str) and key.startswith("$"):
        if key in _JUNCTIONS and isinstance(value, list | tuple):
            return key, [compile_condition(document, each) for each in value]
        return key, stored(value)
    try:
        path = _path(document, key)
    except InvalidKeyError:
        if not isinstance(key, str):
            raise
        path = Path(key)  # a MongoDB query may contain keys that are not declared
    return path.path, _native_value(path, value)


def _native_value(path: Path, value: Any) -> Any:
    """Convert the value of a key in a MongoDB query to stored form."""
    if isinstance(value, Mapping) and any(str(key).startswith("$") for key in value):
        return {
            key: _native_value(path, inner) if key in _COMPARISONS else stored(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_native_value(path, item) for item in value]
    return convert_operand(path, value)
