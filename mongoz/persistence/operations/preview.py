"""Computes the result of update operations before the server runs them, for validation."""

import copy
import decimal
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import bson
from bson.decimal128 import create_decimal128_context

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.persistence.operations.operation import Operation

__all__ = ["preview_operations"]

_MISSING: Final = object()


def preview_operations(row: Mapping[str, Any], operations: Iterable[Operation]) -> dict[str, Any] | None:
    """The changed fields of a row after the operations, by stored name. Removed fields are left out.

    Args:
        row: the document in the database. It stays unchanged.
        operations: the operations.

    Returns:
        None if the server will refuse the operations, or the result can't be computed here.
    """
    after = {name: copy.deepcopy(row[name]) for name in {each.top for each in operations} if name in row}
    try:
        for operation in operations:
            _apply(after, operation)
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError):
        return None
    return after


def _apply(document: dict[str, Any], operation: Operation) -> None:
    *parents, last = operation.path.split(".")
    creates = operation.operator not in ("$unset", "$pullAll")
    place: Any = document
    for name in parents:
        key: Any = int(name) if isinstance(place, list) else name
        if not _has_key(place, key):
            if not creates:
                return
            _put(place, key, {})
        place = place[key]
    key = int(last) if isinstance(place, list) else last
    present = place[key] if _has_key(place, key) else _MISSING
    if present is _MISSING and not creates:
        return
    value = _OPERATORS[operation.operator](present, operation.value)
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
    "$unset": lambda _present, _value: _MISSING,
    "$min": _min,
    "$max": _max,
}
