"""`U`: update operators, for changes that the server computes."""

import decimal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from mongoz.exceptions import InvalidKeyError, OperatorInvalid
from mongoz.fields.storage import stored, stored_names
from mongoz.model.paths import resolve_path
from mongoz.model.shapes import shape_of
from mongoz.persistence.operations.operation import (
    ALL_ITEMS,
    Operation,
    merge_operations,
    refuse_overlaps,
)
from mongoz.persistence.operations.places import FieldPlace, place_at
from mongoz.queries.operands import convert_operand
from mongoz.settings import settings
from mongoz.synonyms import nearest

__all__ = ["U", "UpdateOperator", "resolve_update"]

_NUMBERS: Final = (int, float, decimal.Decimal)


class UpdateOperator(NamedTuple):
    """An update operator with its fields; made by `U`.

    Attributes:
        operator: the name of MongoDB's operator, for example `"$inc"`.
        values: field -> operand, as the caller gave it.
    """

    operator: str
    values: Mapping[Any, Any]


class U:
    """Changes that the server computes, so that concurrent changes add up.

    Pass a field as a keyword, or pass its name or `Document.field` as the first argument. A dotted name is a field
    of an embedded document, or an item of a list. One update may have several `push`, `add_to_set` or `pull` of
    one field. MongoDB does not execute an operator inside a value.

    Examples:
        >>> await user.update(U.inc(logins=1), U.push("tags", "new"), name="Ada")
        >>> await User.objects.filter(active=True).update(U.inc(User.credit, 10))
    """

    @staticmethod
    def set(field: Any = None, value: Any = None, /, **values: Any) -> UpdateOperator:
        """Set a field, or a part of it: `U.set("items.0.qty", 3)`. The step `$[]` stands for every item of a list.

        A keyword argument of `update()` does the same: `update(name="Ada", **{"address.city": "Lyon"})`.
        """
        return UpdateOperator("$set", _merged(field, value, values))

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
        """Remove every item of a list that equals one of the given items.

        In a list of embedded documents, a dict removes each document that has all values of the dict:
        `U.pull(items={"sku": "a"})`.
        """
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


def resolve_update(
    document: Any, operators: Sequence[Any], fields: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[Operation, ...]]:
    """Check the arguments of an `update` against the fields of a document.

    Args:
        document: the class.
        operators: changes made by `U`.
        fields: name, alias or dotted name -> new value.

    Returns:
        The new values by attribute name, not validated; and the operations that the server computes. A new value
        for a dotted name is one of these operations.

    Raises:
        InvalidKeyError: a field does not exist or is the id, a required field is unset, or changes overlap.
        OperatorInvalid: a change is not made by `U`, or an operand has a wrong type.
        pydantic.ValidationError: a value of an operation does not fit its field.
    """
    names = stored_names(document)
    if not operators:  # the most frequent case; the code below does the same, but slower
        ids = settings.parsed_ids
        for field in fields:
            if field not in names or field in ids:
                break
        else:
            return {**fields}, ()
    values: dict[str, Any] = {}
    operations: list[Operation] = []
    sets = list(fields.items())
    for change in operators:
        if not isinstance(change, UpdateOperator):
            raise OperatorInvalid(f"update() takes changes made by U, U.inc(age=1) for example, not {change!r}.")
        if change.operator == "$set":
            sets += change.values.items()
        else:
            operations += [
                _operation(document, change.operator, str(key), each) for key, each in change.values.items()
            ]
    written = []
    for key, value in sets:
        name = _field_name(document, names, str(key))
        if name is None:
            operations.append(_operation(document, "$set", str(key), value))
        else:
            values[name] = value
            written.append(names[name])
    if not operations and len(written) == len(values):
        return values, ()
    merged = merge_operations(operations)
    refuse_overlaps([*written, *(operation.path for operation in merged)])
    return values, merged


def _field_name(document: Any, names: Mapping[str, str], given: str) -> str | None:
    """The attribute with this name or alias; None for a dotted name.

    Raises:
        InvalidKeyError: there is no such field, or it is the id.
    """
    name = given if given in names else next((name for name, alias in names.items() if alias == given), given)
    if name in settings.parsed_ids:
        raise _id_refused(document)
    if name in names:
        return name
    if "." in given:
        return None
    first, _, rest = given.partition(settings.lookup_prefix)
    dotted = ".".join([first, *rest.split(settings.lookup_prefix)])
    hint = f" A part of a field is written with dots: **{{{dotted!r}: ...}}." if rest and first in names else ""
    raise InvalidKeyError(
        f"{document.__name__} has no field {given!r}.{hint or nearest(given, names.keys() - {'id'})}"
    )


def _id_refused(document: Any) -> InvalidKeyError:
    return InvalidKeyError(f"The id of a {document.__name__} can't be updated.")


def _operation(document: Any, operator: str, key: str, value: Any) -> Operation:
    path = _written_path(document, key)
    if path == "_id":
        raise _id_refused(document)
    place = place_at(document, path)
    if operator == "$pullAll" and any(isinstance(item, Mapping) for item in value):
        models = resolve_path(document, key.replace(ALL_ITEMS, "0")).shape.models
        if models:
            return Operation(
                "$pull", path, place.names[0], {"$or": [_part(document, key, item) for item in value]}
            )
    return Operation(operator, path, place.names[0], _VALUES[operator](place, value))


def _written_path(document: Any, key: str) -> str:
    """The stored path to write at.

    Raises:
        InvalidKeyError: there is no such field, or a step is a positional operator other than `$[]`.
    """
    steps = key.split(".")
    if not any(step.startswith("$") for step in steps):
        return resolve_path(document, key).path
    wrong = [step for step in steps if step.startswith("$") and step != ALL_ITEMS]
    if wrong:
        raise InvalidKeyError(
            f"{document.__name__}: {key!r} can't contain {wrong[0]!r}. Write the number of an item, or "
            f"{ALL_ITEMS} for every item."
        )
    found = resolve_path(document, ".".join("0" if step == ALL_ITEMS else step for step in steps)).path.split(".")
    return ".".join(ALL_ITEMS if step == ALL_ITEMS else name for step, name in zip(steps, found, strict=True))


def _part(document: Any, key: str, item: Any) -> dict[str, Any]:
    """The condition that an item of a list has all values of a dict."""
    if not isinstance(item, Mapping) or not item:
        raise OperatorInvalid(
            f"U.pull of {document.__name__}.{key} can't take {item!r} here. Pass only embedded documents, or only "
            "dicts. A dict must not be empty: its values say which items to remove."
        )
    path = resolve_path(document, key.replace(ALL_ITEMS, "0")).path
    condition = {}
    for name, value in item.items():
        inner = resolve_path(document, f"{path}.{name}")
        condition[inner.path.removeprefix(f"{path}.")] = {"$eq": convert_operand(inner, value)}
    return condition


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
    "$set": _bound,
    "$min": _bound,
    "$max": _bound,
}
