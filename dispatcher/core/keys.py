"""Compares `_id`s as the server does, not as Python does. See `mongoz.keys`."""

import math
from collections.abc import Hashable, Mapping
from contextlib import suppress
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final

import bson
from bson.decimal128 import Decimal128
from bson.json_util import loads

from mongoz.keys import KEY_CODEC, canonical

# Python's default precision, in a context that the application can't change. Numbers that differ only after
# the 28th digit may share a lane.
_DIGITS: Final = Context(prec=28, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999, traps=[])


def document_key(namespace: Hashable, id_: Any) -> Hashable:
    """A dictionary key for one document of the deployment."""
    if isinstance(id_, bson.ObjectId):
        return (namespace, id_.binary)  # bytes cache their hash
    if type(id_) is str:
        return (namespace, id_)
    return (namespace, None, canonical(id_))


def lane_key(id_: Any) -> bytes:
    """The bytes of an `_id` in the names of parked lanes. `_id`s that the server considers equal have equal bytes.

    Earlier versions stored names of lanes with these bytes, and this version must find the stored lanes. So this
    function can't return the bytes of `canonical`.
    """
    value = bson.decode(canonical(id_), codec_options=KEY_CODEC)[""]
    return bson.encode({"": _tagged(value)}, codec_options=KEY_CODEC)


def _tagged(value: Any) -> Any:
    """A value with its numbers as texts, and its documents as lists of names and values."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float | Decimal128):
        return {"number": _number(value)}
    if isinstance(value, Mapping):
        return [[name, _tagged(item)] for name, item in value.items()]
    if isinstance(value, list):
        return {"list": [_tagged(item) for item in value]}
    return value


def _number(value: float | Decimal128) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    number = value.to_decimal() if isinstance(value, Decimal128) else Decimal(value)
    return "0" if number == 0 else str(number.normalize(_DIGITS))


def keys_named(text: str) -> list[Any]:
    """All `_id`s that a text can mean: the text, an ObjectId, a number, extended JSON."""
    found: list[Any] = [text]
    if bson.ObjectId.is_valid(text):
        found.append(bson.ObjectId(text))
    with suppress(ValueError, TypeError):
        found.append(loads(text))
    return found
