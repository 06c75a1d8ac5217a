"""Expressions: conditions and sort keys as values, made by `Document.field == value` and by `Q`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Union

import pymongo

from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.fields.storage import stored
from mongoz.model.paths import Path, resolve
from mongoz.queries.conditions import SPELLINGS, condition, operator_named
from mongoz.queries.operands import comparable

__all__ = ["Condition", "Expression", "FieldProxy", "Order", "SortExpression", "compile_condition", "made"]


class Order:
    """Directions to sort in."""

    ASCENDING = pymongo.ASCENDING
    DESCENDING = pymongo.DESCENDING


@dataclass(frozen=True, slots=True)
class Expression:
    """One condition. Combine them with `&`, `|` and `~`.

    Args:
        key: a field's name or `Document.field`; None where conditions are combined.
        operator: a name of `Q`'s, `"gte"`, or MongoDB's, `"$gte"`.
        value: what it compares with; a value is a value, an operator in it has no effect. (Except with MongoDB's
            operators that take others by their nature, `"$elemMatch"` for example.)
        options: further operators beside it, `{"$options": "i"}`; or the options of a pattern, `"i"`.

    Examples:
        >>> await User.query((User.age >= 18) & ~Expression("name", "startswith", "A"))
    """

    key: Any
    operator: str
    value: Any
    options: Mapping[str, Any] | str | None = None

    def compile(self) -> dict[str, Any]:
        """The MongoDB condition; a key that is only a name is taken as the stored name.

        Raises:
            OperatorInvalid: no such operator, or it takes no such value.
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
        raise TypeError(f"{self!r} is a condition for a query; whether it holds only the database knows.")


# A bool is what type checkers take `Document.age >= 18` for, since instances have an int there; none gets here.
Condition = Union[Expression, Mapping[Any, Any], bool]  # noqa: UP007 - it is named above, as a string


def _combined(operator: str, *conditions: Condition) -> Expression:
    if not all(isinstance(each, Expression | Mapping) for each in conditions):
        return NotImplemented  # type: ignore[no-any-return]  # Python then says what is wrong with the operands
    return Expression(None, operator, conditions)


@dataclass(frozen=True, slots=True)
class SortExpression:
    """One sort key and its direction."""

    key: Any
    direction: int = Order.ASCENDING


class FieldProxy:
    """`Document.field`: makes expressions, names the field in sort keys, and leads to the fields inside of it.

    It has no public attributes of its own: every name belongs to the embedded documents.
    """

    # Dunders, which no field can be called.
    __slots__ = ("__document__", "__resolved__", "__spelling__")

    __iter__ = None  # else __getitem__ would make it iterable, without an end
    __contains__ = None

    def __init__(self, document: Any, name: str) -> None:
        self.__document__ = document
        self.__spelling__ = name
        self.__resolved__ = resolve(document, name)

    def __getattr__(self, name: str) -> "FieldProxy":
        if name.startswith("__"):  # what copy, inspect and pydantic ask everything for
            raise AttributeError(name)
        return FieldProxy(self.__document__, f"{self.__spelling__}.{name}")

    def __getitem__(self, key: int | str) -> "FieldProxy":
        return FieldProxy(self.__document__, f"{self.__spelling__}.{key}")

    def __eq__(self, value: object) -> Any:
        if isinstance(value, FieldProxy):  # in dicts and lists proxies must find their like
            return self.__document__ is value.__document__ and str(self) == str(value)
        return made(self, "eq", value)

    def __ne__(self, value: object) -> Any:
        if isinstance(value, FieldProxy):
            return not self == value
        return made(self, "neq", value)

    def __lt__(self, value: Any) -> Expression:
        return made(self, "lt", value)

    def __le__(self, value: Any) -> Expression:
        return made(self, "lte", value)

    def __gt__(self, value: Any) -> Expression:
        return made(self, "gt", value)

    def __ge__(self, value: Any) -> Expression:
        return made(self, "gte", value)

    def __hash__(self) -> int:
        return hash((self.__document__, self.__resolved__.path))

    def __str__(self) -> str:
        return self.__resolved__.path

    def __repr__(self) -> str:
        return f"{self.__document__.__name__}.{self.__spelling__}"


def made(key: Any, operator: str, value: Any) -> Expression:
    """An expression; what can be told without the document is checked at once.

    Raises:
        InvalidKeyError: the key is no name.
        OperatorInvalid: the operator takes no such value.
        FieldDefinitionError: the operator makes no sense for the field.
    """
    expression = Expression(key, operator, value)
    expression.compile()
    return expression


_JUNCTIONS: Final = {"$and": "$and", "$or": "$or", "$nor": "$nor", "and_": "$and", "or_": "$or", "nor_": "$nor"}
_COMPARISONS: Final = frozenset(
    {"$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$all", "$not", "$elemMatch"}
)


def compile_condition(document: Any, thing: Condition) -> dict[str, Any]:
    """The MongoDB condition that an argument of `query` or `raw` is.

    Args:
        document: the class that is queried.
        thing: an Expression; or a MongoDB query, operators included, whose keys may be `Document.field`.

    Raises:
        InvalidKeyError: something else, or no such field in an expression.
        OperatorInvalid: no such operator, or it takes no such value.
        FieldDefinitionError: an operator makes no sense for its field.
    """
    if isinstance(thing, Expression):
        return _compiled(document, thing)
    if isinstance(thing, Mapping):
        return dict(_native_item(document, key, value) for key, value in thing.items())
    raise InvalidKeyError(
        f"query() takes expressions and dicts, not {thing!r}. Sort keys are for sort(), keywords for filter()."
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
    if _is_mongodbs_own(operator):
        return {path.path: {operator: comparable(path, value), **options}}
    compiled = condition(path, operator_named(operator), value)
    return {key: {**inner, **options} for key, inner in compiled.items()} if options else compiled


def _is_mongodbs_own(operator: Any) -> bool:
    """Whether it is an operator that `Q` has no name for."""
    return isinstance(operator, str) and operator.startswith("$") and operator not in SPELLINGS


def _path(document: Any, key: Any) -> Path:
    if isinstance(key, FieldProxy):
        return key.__resolved__
    if not isinstance(key, str):
        raise InvalidKeyError(f"A condition is on a field's name or on Document.field, not on {key!r}.")
    return Path(key) if document is None else resolve(document, key)


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
        path = Path(key)  # in MongoDB's own language one may ask for what the model does not know
    return path.path, _native_value(path, value)


def _native_value(path: Path, value: Any) -> Any:
    """What stands behind a name in a MongoDB query, with values as the field stores them."""
    if isinstance(value, Mapping) and any(str(key).startswith("$") for key in value):
        return {
            key: _native_value(path, inner) if key in _COMPARISONS else stored(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_native_value(path, item) for item in value]
    return comparable(path, value)
