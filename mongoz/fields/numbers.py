"""The factories of numbers."""

# ruff: noqa: N802 - as in mongoz.fields.factories

import decimal
from typing import Annotated, Any, Literal, Unpack, overload

from mongoz.exceptions import FieldDefinitionError
from mongoz.fields.arguments import Limits
from mongoz.fields.base import declare
from mongoz.fields.decimals import DecimalRule
from mongoz.fields.rules import DigitsRule

__all__ = ["Decimal", "Double", "Integer"]

_Number = int | float | decimal.Decimal


@overload
def Integer(*, null: Literal[True], **arguments: Unpack[Limits]) -> Any: ...
@overload
def Integer(*, null: bool = False, **arguments: Unpack[Limits]) -> int: ...
def Integer(
    *, minimum: int | None = None, maximum: int | None = None, multiple_of: int | None = None, **shared: Any
) -> Any:
    """An `int`.

    Args:
        minimum: the smallest valid value.
        maximum: the largest valid value.
        multiple_of: valid values are multiples of this number.
        **shared: the arguments of all fields, see `mongoz.fields.arguments.Shared`.

    Raises:
        FieldDefinitionError: minimum is above maximum, one of the three limits is no number, or multiple_of is 0.
    """
    return declare(int, **(_limits(minimum, maximum, multiple_of) | shared))


@overload
def Double(
    *,
    max_digits: int | None = None,
    decimal_places: int | None = None,
    null: Literal[True],
    **arguments: Unpack[Limits],
) -> Any: ...
@overload
def Double(
    *,
    max_digits: int | None = None,
    decimal_places: int | None = None,
    null: bool = False,
    **arguments: Unpack[Limits],
) -> float: ...
def Double(
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    multiple_of: float | None = None,
    max_digits: int | None = None,
    decimal_places: int | None = None,
    **shared: Any,
) -> Any:
    """A `float`; errors as for `Integer`.

    Args:
        minimum: the smallest valid value.
        maximum: the largest valid value.
        multiple_of: valid values are multiples of this number.
        max_digits: the largest number of digits, before and after the point together.
        decimal_places: the largest number of digits after the point. If `max_digits` is given too, a value has
            at most `max_digits - decimal_places` digits before the point.
        **shared: the arguments of all fields, see `mongoz.fields.arguments.Shared`.
    """
    limits = _limits(minimum, maximum, multiple_of)
    _check_digits(max_digits, decimal_places)
    if max_digits is None and decimal_places is None:
        return declare(float, **(limits | shared))
    return declare(Annotated[float, DigitsRule(max_digits, decimal_places)], **(limits | shared))


@overload
def Decimal(*, max_digits: int, decimal_places: int, null: Literal[True], **arguments: Unpack[Limits]) -> Any: ...
@overload
def Decimal(
    *, max_digits: int, decimal_places: int, null: bool = False, **arguments: Unpack[Limits]
) -> decimal.Decimal: ...
def Decimal(
    *,
    max_digits: int | None = None,
    decimal_places: int | None = None,
    minimum: _Number | None = None,
    maximum: _Number | None = None,
    multiple_of: _Number | None = None,
    **shared: Any,
) -> Any:
    """A `decimal.Decimal`, stored as Decimal128. A loaded value also equals a `bson.Decimal128` of the same value.

    It accepts strings, decimals, ints and floats. A float means the digits that Python prints: 0.1 is a tenth.

    Args:
        max_digits: a value has at most `max_digits - decimal_places` digits before the point; mandatory.
        decimal_places: the number of digits kept after the point; mandatory. Further digits are cut off, toward
            zero, and do not count for `max_digits`.
        minimum: the smallest valid value.
        maximum: the largest valid value.
        multiple_of: valid values are multiples of this number.
        **shared: the arguments of all fields, see `mongoz.fields.arguments.Shared`.

    Raises:
        FieldDefinitionError: max_digits or decimal_places is missing or invalid, a limit is invalid, or minimum is
            above maximum.

    Examples:
        >>> price: decimal.Decimal = mongoz.Decimal(max_digits=5, decimal_places=2)  # up to 999.99
    """
    if max_digits is None or decimal_places is None:
        raise FieldDefinitionError("Decimal() needs both max_digits= and decimal_places=.")
    _check_digits(max_digits, decimal_places)
    limits = _limits(minimum, maximum, multiple_of).values()
    exactly = [None if limit is None else decimal.Decimal(str(limit)) for limit in limits]
    rule = DecimalRule(max_digits, decimal_places, *exactly)
    # A default may be a float or a string, like any other value.
    return declare(Annotated[decimal.Decimal, rule], **({"validate_default": True} | shared))


def _limits(minimum: Any, maximum: Any, multiple_of: Any) -> dict[str, Any]:
    """The limits by pydantic's names."""
    for name, limit in (("minimum", minimum), ("maximum", maximum), ("multiple_of", multiple_of)):
        if limit is not None and (not isinstance(limit, _Number) or isinstance(limit, bool)):
            raise FieldDefinitionError(f"{name}={limit!r} is no number.")
    if minimum is not None and maximum is not None and minimum > maximum:
        raise FieldDefinitionError(f"minimum={minimum!r} is above maximum={maximum!r}: no value could fit.")
    if multiple_of == 0:
        raise FieldDefinitionError("multiple_of=0: the only multiple of zero is zero.")
    return {"ge": minimum, "le": maximum, "multiple_of": multiple_of}


def _check_digits(max_digits: Any, decimal_places: Any) -> None:
    for name, count, least in (("max_digits", max_digits, 1), ("decimal_places", decimal_places, 0)):
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < least):
            raise FieldDefinitionError(f"{name}={count!r}: a number of digits must be an int of at least {least}.")
    if max_digits is not None and decimal_places is not None and decimal_places > max_digits:
        raise FieldDefinitionError(f"{decimal_places=} is above {max_digits=}: no value could fit.")
