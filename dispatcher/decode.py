"""From BSON to a Change."""

from collections.abc import Sequence
from typing import Any, Final

import bson
from bson.codec_options import CodecOptions

from dispatcher.codec import Undecoded, lenient
from dispatcher.events import Change
from mongoz.stamps import FIELD, Stamp

__all__ = ["Undecodable", "decode", "decoded_together"]

_NOTHING: Final[frozenset[str]] = frozenset()

# They are nothing without the document.
_NEED_DOCUMENT: Final = frozenset({"insert", "replace"})


class Undecodable(Exception):
    """A change event that this process can't read. It carries the event's token, so that the stream goes on."""

    def __init__(self, token: str, key: Any, reason: str) -> None:
        super().__init__(reason)
        self.token = token
        self.key = key


def decoded_together(
    events: Sequence[Undecoded], codec_options: CodecOptions[Any]
) -> Sequence[dict[str, Any] | None]:
    """The documents of some events, for `decode`; None of each, if one of them can't be decoded.

    A call of its own for each would cost a sixth more.
    """
    if len(events) == 1:
        return (None,)
    try:
        return bson.decode_all(b"".join([event.raw for event in events]), codec_options)
    except Exception:  # whose that is, decoding them one by one will show
        return (None,) * len(events)


def decode(raw: Undecoded, codec_options: CodecOptions[Any], event: dict[str, Any] | None = None) -> Change:
    """One change event.

    Args:
        raw: as the server sent it.
        codec_options: the registry's, so that receivers get the types that the application is used to.
        event: the same decoded, if it is already.

    Raises:
        Undecodable: it contains a value that has no Python counterpart, or too little to tell anybody of.
    """
    data = bytes(raw.raw)
    if event is None:
        event = _decoded(data, codec_options)
    operation: str = event["operationType"]
    names, stamp = _NOTHING, None
    document = event.get("fullDocument")
    if operation == "update":
        description = event.get("updateDescription")
        if description is None:
            raise _bare(event)
        names = _changed_names(description)
        value = description["updatedFields"].get(FIELD)
        if value is not None:
            stamp = Stamp.unpack(value)
    elif document is None and operation in _NEED_DOCUMENT:
        raise _bare(event)
    elif operation == "insert":
        value = document.get(FIELD) if document else None
        if value is not None:
            stamp = Stamp.unpack(value)
    namespace = event.get("ns") or {}
    key = event.get("documentKey")
    transaction = None
    if "txnNumber" in event and "lsid" in event:
        transaction = (bytes(raw["lsid"].raw), event["txnNumber"])
    return Change(
        event["_id"]["_data"],
        operation,
        (namespace.get("db", ""), namespace.get("coll", "")),
        key["_id"] if key else None,
        event["clusterTime"],
        event.get("wallTime"),
        document,
        event.get("fullDocumentBeforeChange"),
        "post" if document is not None else "key",
        names,
        stamp,
        len(data),
        data,
        None,
        transaction,
    )


def _decoded(data: bytes, codec_options: CodecOptions[Any]) -> dict[str, Any]:
    try:
        return bson.decode(data, codec_options=codec_options)
    except Exception as error:
        return _without_images(data, codec_options, error)


def _bare(event: dict[str, Any]) -> Undecodable:
    """The server could only send that something happened, see `oversize`."""
    key = event.get("documentKey") or {}
    return Undecodable(
        event["_id"]["_data"], key.get("_id"), "the event is larger than 16 MB, even without images"
    )


def _changed_names(description: dict[str, Any]) -> frozenset[str]:
    """Top-level names that an update touched; the server reports dotted ones."""
    names = {name.partition(".")[0] for name in description["updatedFields"]}
    names.update(name.partition(".")[0] for name in description["removedFields"])
    names.update(array["field"].partition(".")[0] for array in description.get("truncatedArrays") or ())
    names.discard(FIELD)
    return frozenset(names)


def _without_images(data: bytes, codec_options: CodecOptions[Any], reason: Exception) -> dict[str, Any]:
    """An event whose documents can't be decoded, without them: an update or delete can be told all the same.

    Raises:
        Undecodable: an insert or a replace is nothing without its document.
    """
    event = bson.decode(data, codec_options=lenient(codec_options))
    if event["operationType"] in _NEED_DOCUMENT:
        key = event.get("documentKey") or {}
        raise Undecodable(event["_id"]["_data"], key.get("_id"), str(reason)) from reason
    return dict(event) | {"fullDocument": None, "fullDocumentBeforeChange": None}
