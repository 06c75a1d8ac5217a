"""Computes the result of update operations before the server runs them, for validation."""

import copy
import decimal
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import bson
from bson.decimal128 import create_decimal128_context

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.persistence.operations.operation import ALL_ITEMS, Operation

__all__ = ["preview_operations"]

_MISSING: Final = object()


def preview_operations(row: Mapping[str, Any], operations: Iterable[Operation]) -> dict[str, Any] | None:
    """The changed fields of a row after the operations, by stored name. Removed fields are left out.

    Args:
        row: the document in the database. It stays unchanged.
        operations: the operations.

    Returns:
        None if the server will refuse the operations, or if the result can't be computed here.
    """
    after = {name: copy.deepcopy(row[name]) for name in {each.top for each in operations} if name in row}
    try:
        for operation in operations:
            _apply(after, operation.path.split("."), operation)
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError):
        return None
    return after


def _apply(place: Any, steps: list[str], operation: Operation) -> None:
    """Apply an operation inside of a document or list.

    Args:
        place: the document or list.
        steps: the steps of the path from there.
        operation: the operation.
    """
    step, *rest = steps
    if step != ALL_ITEMS:
        _apply_at(place, int(step) if isinstance(place, list) else step, rest, operation)
        return
    if not isinstance(place, list):
        raise TypeError
    for index in range(len(place)):
        _apply_at(place, index, rest, operation)


def _apply_at(place: Any, key: Any, rest: list[str], operation: Operation) -> None:
    has_key, creates = _has_key(place, key), operation.operator not in ("$unset", "$pullAll", "$pull")
    if not (has_key or creates):
        return
    if rest:
        if not has_key:
            _put(place, key, {})
        _apply(place[key], rest, operation)
        return
    value = _OPERATORS[operation.operator](place[key] if has_key else _MISSING, operation.value)
    if value is not _MISSING:
        _put(place, key, value)
    elif isinstance(place, list):
        place[key] = None
    else:
        place.pop(key, None)


def _has_key(place: Any, key: Any) -> bool:
    return key < len(place) if isinstance(place, list) else key in place


def _put(place: Any, key: Any, value: Any) -> None:
    if isinstance(place, list):  # the server fills gaps with null
        place += [None] * (key + 1 - len(place))
    place[key] = value


def _inc(present: Any, amount: Any) -> Any:
    if present is _MISSING:
        return amount
    if isinstance(present, bool) or not isinstance(present, int | float | bson.Decimal128):
        raise TypeError
    decimals = [value for value in (present, amount) if isinstance(value, bson.Decimal128)]
    if not decimals:
        return present + amount
    with decimal.localcontext(create_decimal128_context()):
        return bson.Decimal128(_as_decimal(present) + _as_decimal(amount))


def _as_decimal(value: Any) -> decimal.Decimal:
    if isinstance(value, bson.Decimal128):
        return value.to_decimal()
    return decimal.Decimal(f"{value:.14e}" if isinstance(value, float) else value)


def _list(present: Any) -> list[Any]:
    if present is _MISSING:
        return []
    if not isinstance(present, list):
        raise TypeError
    return list(present)


def _push(present: Any, items: Mapping[str, Any]) -> Any:
    return _list(present) + list(items["$each"])


def _add_to_set(present: Any, items: Mapping[str, Any]) -> Any:
    found = _list(present)
    for item in items["$each"]:
        if not any(_equal(item, other) for other in found):
            found.append(item)
    return found


def _pull(present: Any, items: list[Any]) -> Any:
    if present is _MISSING:
        return _MISSING
    return [one for one in _list(present) if not any(_equal(one, item) for item in items)]


def _pull_parts(present: Any, condition: Mapping[str, Any]) -> Any:
    if present is _MISSING:
        return _MISSING
    return [one for one in _list(present) if not any(_has_part(one, part) for part in condition["$or"])]


def _has_part(item: Any, part: Mapping[str, Any]) -> bool:
    """Whether an item has all values of a part of the condition, such as `{"sku": {"$eq": "a"}}`."""
    if not isinstance(item, Mapping):
        return False
    return all(
        any(_equal(value, condition["$eq"]) for value in _values_at(item, path.split(".")))
        for path, condition in part.items()
    )


def _values_at(place: Any, steps: list[str]) -> list[Any]:
    """The values that MongoDB compares with the value of a condition: for a list, the list and its items."""
    if not steps:
        return [place, *place] if isinstance(place, list) else [place]
    if isinstance(place, Mapping):
        return _values_at(place[steps[0]], steps[1:]) if steps[0] in place else [None]
    if isinstance(place, list):
        return [value for item in place if isinstance(item, Mapping) for value in _values_at(item, steps)]
    return [None]


def _min(present: Any, value: Any) -> Any:
    return value if present is _MISSING or _comparable(value) < _comparable(present) else present


def _max(present: Any, value: Any) -> Any:
    return value if present is _MISSING or _comparable(value) > _comparable(present) else present


def _comparable(value: Any) -> Any:
    return value.to_decimal() if isinstance(value, bson.Decimal128) else value


def _equal(one: Any, other: Any) -> bool:
    numbers = int | float | bson.Decimal128
    if (
        isinstance(one, numbers)
        and isinstance(other, numbers)
        and isinstance(one, bool) == isinstance(other, bool)
    ):
        return bool(_comparable(one) == _comparable(other))
    return _encoded(one) == _encoded(other)


def _encoded(value: Any) -> bytes:
    return bson.encode({"": value}, codec_options=CODEC_OPTIONS)


_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "$inc": _inc,
    "$push": _push,
    "$addToSet": _add_to_set,
    "$pullAll": _pull,
    "$pull": _pull_parts,
    "$set": lambda _present, value: value,
    "$unset": lambda _present, _value: _MISSING,
    "$min": _min,
    "$max": _max,
}
