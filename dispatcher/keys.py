"""When two `_id`s are the same document: as the server sees it, not as Python does.

To the server 1, 1.0 and Decimal128("1.0") are one value, and true is another. To Python 1 == True, NaN is
nobody's equal, and a dict has no hash.
"""

import math
from collections.abc import Hashable, Mapping
from decimal import Decimal
from typing import Any, Final

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from bson.decimal128 import Decimal128

__all__ = ["comparable", "document_key"]

_CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)


def document_key(namespace: Hashable, id_: Any) -> Hashable:
    """One document of the deployment, as a dictionary key.

    Args:
        namespace: (database, collection).
        id_: the `_id`, of any type.
    """
    if type(id_) is bson.ObjectId:
        return (namespace, id_.binary)  # bytes remember their hash
    if type(id_) is str:
        return (namespace, id_)
    return (namespace, None, comparable(id_))


def comparable(id_: Any) -> bytes:
    """The same bytes for all `_id`s that the server holds to be equal, in every process."""
    return bson.encode({"": _canonical(id_)}, codec_options=_CODEC)


def _canonical(value: Any) -> Any:
    """The same for all that the server holds to be equal."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float | Decimal128):
        return {"number": _number(value)}
    if isinstance(value, Mapping):
        return [[name, _canonical(item)] for name, item in value.items()]
    if isinstance(value, list):
        return {"list": [_canonical(item) for item in value]}
    return value


def _number(value: float | Decimal128) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    number = value.to_decimal() if isinstance(value, Decimal128) else Decimal(value)
    if number.is_nan():
        return "NaN"
    return "0" if number == 0 else str(number.normalize())
