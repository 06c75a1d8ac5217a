"""`U`: update operators, for changes that the server computes."""

import decimal
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.fields.storage import stored
from mongoz.model.paths import resolve_path
from mongoz.model.shapes import shape_of
from mongoz.persistence.operations.operation import Operation
from mongoz.persistence.operations.places import FieldPlace, place_at

__all__ = ["U", "UpdateOperator", "resolve_operators"]

_NUMBERS: Final = (int, float, decimal.Decimal)


class UpdateOperator(NamedTuple):
    """An update operator with its fields; made by `U`.

    Attributes:
        operator: MongoDB's operator: `"$inc"`.
        values: field -> operand, as the caller gave it.
    """

    operator: str
    values: Mapping[Any, Any]


class U:
    """Changes that the server computes, so that concurrent changes add up.

    Pass a field as a keyword, or as the first argument: its name or `Document.field`. A dotted name is a field of
    an embedded document. MongoDB does not execute an operator inside a value.

    Examples:
        >>> await user.update(U.inc(logins=1), U.push("tags", "new"), name="Ada")
        >>> await User.objects.filter(active=True).update(U.inc(User.credit, 10))
    """

    @staticmethod
    def inc(field: Any = None, amount: Any = 1, /, **amounts: Any) -> UpdateOperator:
        """Add a number; a missing field counts as 0."""
        return UpdateOperator("$inc", _merged(field, amount, amounts))

    @staticmethod
    def push(field: Any = None, /, *items: Any, **item_by_field: Any) -> UpdateOperator:
        """Append items to a list."""
        return UpdateOperator(
            "$push", _merged(field, items, {name: (item,) for name, item in item_by_field.items()})
        )

    @staticmethod
    def pull(field: Any = None, /, *items: Any, **item_by_field: Any) -> UpdateOperator:
        """Remove every item of a list that equals one of the given items."""
        return UpdateOperator(
            "$pullAll", _merged(field, items, {name: (item,) for name, item in item_by_field.items()})
        )

    @staticmethod
    def add_to_set(field: Any = None, /, *items: Any, **item_by_field: Any) -> UpdateOperator:
        """Append the items that a list does not contain yet."""
        return UpdateOperator(
            "$addToSet", _merged(field, items, {name: (item,) for name, item in item_by_field.items()})
        )

    @staticmethod
    def unset(*fields: Any) -> UpdateOperator:
        """Remove stored fields; the attributes of instances get their defaults."""
        return UpdateOperator("$unset", dict.fromkeys(fields, ""))

    @staticmethod
    def min(field: Any = None, value: Any = None, /, **values: Any) -> UpdateOperator:
        """Set a field to the value if the value is less than the current one, or if the field is missing."""
        return UpdateOperator("$min", _merged(field, value, values))

    @staticmethod
    def max(field: Any = None, value: Any = None, /, **values: Any) -> UpdateOperator:
        """Set a field to the value if the value is greater than the current one, or if the field is missing."""
        return UpdateOperator("$max", _merged(field, value, values))


def _merged(field: Any, value: Any, others: Mapping[str, Any]) -> dict[Any, Any]:
    return {**({} if field is None else {field: value}), **others}


def resolve_operators(document: Any, changes: Iterable[Any]) -> tuple[Operation, ...]:
    """Check update operators against the fields of a document.

    Raises:
        InvalidKeyError: there is no such field, it is the id, or a required field is unset.
        OperatorInvalid: a change is not made by `U`, or an operand has a wrong type.
        pydantic.ValidationError: a value does not fit its field.
    """
    operations = []
    for change in changes:
        if not isinstance(change, UpdateOperator):
            raise OperatorInvalid(f"update() takes changes made by U, U.inc(age=1) for example, not {change!r}.")
        operations += [_operation(document, change.operator, key, value) for key, value in change.values.items()]
    return tuple(operations)


def _operation(document: Any, operator: str, key: Any, value: Any) -> Operation:
    path = resolve_path(document, str(key)).path
    if path == "_id":
        raise InvalidKeyError(f"The id of a {document.__name__} can't be updated.")
    place = place_at(document, path)
    return Operation(operator, path, place.names[0], _VALUES[operator](place, value))


def _number(place: FieldPlace, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise OperatorInvalid(f"U.inc of {place} takes a number, not {value!r}.")
    shape = shape_of(place.annotation)
    numbers = shape.open or any(issubclass(kind, _NUMBERS) and kind is not bool for kind in shape.scalars)
    if not numbers or shape.depth:
        raise OperatorInvalid(f"{place} holds no numbers, so U.inc can't add {value!r} to it.")
    if not isinstance(value, int) and not (shape.open or shape.holds(float, decimal.Decimal)):
        raise OperatorInvalid(f"{place} is an integer; U.inc can't add {value!r} to it.")
    return stored(value)


def _items(place: FieldPlace, items: Iterable[Any]) -> dict[str, list[Any]]:
    # Wrap the items in $each: the server would execute a bare {"$each": ...} from a user's input.
    return {"$each": place.stored(place.validated_items(list(items)))}


def _bound(place: FieldPlace, value: Any) -> Any:
    return place.stored(place.validated(value))


def _unset(place: FieldPlace, _value: Any) -> str:
    if place.is_required:
        raise InvalidKeyError(f"{place} is required, so it can't be unset.")
    return ""


_VALUES: Final[dict[str, Callable[[FieldPlace, Any], Any]]] = {
    "$inc": _number,
    "$push": _items,
    "$addToSet": _items,
    "$pullAll": lambda place, items: place.stored(list(items)),
    "$unset": _unset,
    "$min": _bound,
    "$max": _bound,
}
