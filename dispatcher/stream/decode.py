"""Makes a `Change` of the BSON of a change event."""

from collections.abc import Sequence
from typing import Any, Final

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions

from dispatcher.core.bson_codec import Undecoded
from dispatcher.core.bson_elements import Element, elements, field, joined, keyed, raw_field, readable
from dispatcher.core.events import Change
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import token_of
from dispatcher.core.undecodable import (
    AFTER,
    BEFORE,
    KEY,
    NAMES,
    Fault,
    Undecodable,
    UndecodableValue,
    UndecodedKey,
    decoded,
)
from mongoz.stamps import FIELD, Stamp

__all__ = ["decode", "decoded_together"]

_ANY: Final = CodecOptions[dict[str, Any]](uuid_representation=UuidRepresentation.STANDARD)
_NOTHING: Final[frozenset[str]] = frozenset()

# Events of these operations always come with their document.
_NEED_DOCUMENT: Final = frozenset({"insert", "replace"})


def decoded_together(
    events: Sequence[Undecoded], codec_options: CodecOptions[Any]
) -> Sequence[dict[str, Any] | None]:
    """Some events decoded in one call, for `decode`; None for each, if one of them can't be decoded.

    One call per event costs a sixth more.
    """
    if len(events) == 1:
        return (None,)
    try:
        return bson.decode_all(b"".join([event.raw for event in events]), codec_options)
    except Exception:  # `decode` finds out which event it is
        return (None,) * len(events)


def decode(raw: Undecoded, codec_options: CodecOptions[Any], event: dict[str, Any] | None = None) -> Change:
    """One change event.

    Args:
        codec_options: the registry's, so that receivers get the types of the application.
        event: the decoded event, if `decoded_together` has it.

    Returns:
        The change; `fault` tells if a document of it can't be decoded.

    Raises:
        Undecodable: no receiver can get it.
    """
    data = bytes(raw.raw)
    if event is None:
        try:
            event = bson.decode(data, codec_options=codec_options)
        except Exception:  # the driver raises several, and decoders of the application any
            return _carefully(data, codec_options)
    operation: str = event["operationType"]
    names, stamp = _NOTHING, None
    document = event.get("fullDocument")
    if operation == "update":
        description = event.get("updateDescription")
        if description is None:
            raise _bare(event)
        names = _changed_names(description)
        if not names:
            operation = "untouched"
        value = description["updatedFields"].get(FIELD)
        if value is not None:
            stamp = Stamp.unpack(value)
    elif document is None and operation in _NEED_DOCUMENT:
        raise _bare(event)
    elif operation == "replace":
        if _is_untouched(event.get("fullDocumentBeforeChange"), document):
            operation = "untouched"
    elif operation == "insert":
        value = document.get(FIELD) if document else None
        if value is not None:
            stamp = Stamp.unpack(value)
    namespace = event.get("ns") or {}
    key = event.get("documentKey")
    id_ = event["_id"]
    transaction = None
    if "txnNumber" in event and "lsid" in event:
        transaction = (bytes(raw["lsid"].raw), event["txnNumber"])
    return Change(
        id_["_data"] if len(id_) == 1 else token_of(id_),
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


def _bare(event: dict[str, Any]) -> Undecodable:
    """The error of an event that the server could send only without its document, see `large_events`."""
    key = event.get("documentKey") or {}
    return Undecodable(
        token_of(event["_id"]), key.get("_id"), "the event is larger than 16 MB, even without images"
    )


def _changed_names(description: dict[str, Any]) -> frozenset[str]:
    """The top-level names that an update changed; the server reports paths with dots."""
    names = {name.partition(".")[0] for name in description["updatedFields"]}
    names.update(name.partition(".")[0] for name in description["removedFields"])
    names.update(array["field"].partition(".")[0] for array in description.get("truncatedArrays") or ())
    names.discard(FIELD)
    return frozenset(names)


def _is_untouched(before: dict[str, Any] | None, after: dict[str, Any] | None) -> bool:
    """Whether documents differ in the stamp only: the server reports some updates by pipelines as replaces.

    Without a pre image the answer is no.
    """
    if not before or not after or not (FIELD in before or FIELD in after):
        return False
    one, other = ({name: doc[name] for name in doc if name != FIELD} for doc in (before, after))
    # In Python 1 == 1.0 == True.
    return one == other and bson.encode(one, codec_options=_ANY) == bson.encode(other, codec_options=_ANY)


# The documents of an event, which clients wrote.
_AFTER: Final = "fullDocument"
_BEFORE: Final = "fullDocumentBeforeChange"
_DESCRIPTION: Final = "updateDescription"
_DOCUMENT_KEY: Final = "documentKey"
_CLIENTS: Final = frozenset({_AFTER, _BEFORE, _DESCRIPTION, _DOCUMENT_KEY})


def _carefully(data: bytes, codec_options: CodecOptions[Any]) -> Change:
    """A change of which something can't be decoded: decode each of its documents by itself.

    Raises:
        Undecodable: the event itself can't be decoded, which no server sends, or its document is missing.
    """
    event = _of_the_server(data, codec_options)
    token, operation = token_of(event["_id"]), event["operationType"]
    documents = {name: raw_field(data, name) for name in _CLIENTS}
    faults: list[Fault] = []

    def attempt(name: str, where: str) -> dict[str, Any] | None:
        raw = documents[name]
        try:
            return None if raw is None else decoded(raw, codec_options, where)
        except UndecodableValue as error:
            faults.append(error.fault)
            return None

    key = attempt(_DOCUMENT_KEY, KEY)
    id_ = key["_id"] if key else _undecoded_key(documents[_DOCUMENT_KEY])
    document = attempt(_AFTER, AFTER)
    names, stamp = _NOTHING, None
    description = documents[_DESCRIPTION]
    if operation == "update" and description is not None:
        known = len(faults)
        names, stamp = _told_by(description, codec_options, faults), _stamp_of(description)
        if not names and len(faults) == known:
            operation = "untouched"
    elif operation == "insert":
        stamp = _stamp_in(documents[_AFTER])
    missing = description if operation == "update" else documents[_AFTER]
    if missing is None and operation in ("insert", "replace", "update"):
        raise Undecodable(token, id_, "the event is larger than 16 MB, even without images")
    fault = faults[0] if faults else None
    before = attempt(_BEFORE, BEFORE)
    if before is None and documents[_BEFORE] is not None and fault is None:
        log.warning(
            "the document before a change can't be decoded; receivers are called without it",
            action="change.before_undecodable",
            token=token,
            id=repr(id_),
            error=str(faults[-1]),
        )
    namespace = event.get("ns") or {}
    transaction = None
    if "txnNumber" in event and "lsid" in event:
        transaction = (raw_field(data, "lsid"), event["txnNumber"])
    return Change(
        token,
        operation,
        (namespace.get("db", ""), namespace.get("coll", "")),
        id_,
        event["clusterTime"],
        event.get("wallTime"),
        document,
        before,
        "post" if documents[_AFTER] is not None else "key",
        names,
        stamp,
        len(data),
        data,
        None,
        transaction,
        None,
        fault,
    )


def _of_the_server(data: bytes, codec_options: CodecOptions[Any]) -> dict[str, Any]:
    """The fields of an event, without the documents, which clients wrote."""
    event: dict[str, Any] = {}
    for one in elements(data):
        name = one.name.decode("utf-8", "replace")
        if name not in _CLIENTS:
            try:
                event[name] = bson.decode(keyed(one), codec_options=codec_options)[""]
            except Exception as error:
                known = readable(data)
                key = (known.get(_DOCUMENT_KEY) or {}).get("_id")
                raise Undecodable(token_of(known["_id"]), key, f"{name}: {error}") from error
    return event


def _undecoded_key(document_key: bytes | None) -> Any:
    found = None if document_key is None else field(document_key, "_id")
    return None if found is None else UndecodedKey(keyed(found))


def _told_by(description: bytes, codec_options: CodecOptions[Any], faults: list[Fault]) -> frozenset[str]:
    """The names that an update changed; values are not decoded."""
    updated = raw_field(description, "updatedFields")
    told: dict[str, Any] = {"updatedFields": _names_in(updated, codec_options, faults)}
    for name in ("removedFields", "truncatedArrays"):
        found = field(description, name)
        try:
            told[name] = () if found is None else decoded(keyed(found), codec_options, NAMES)[""] or ()
        except UndecodableValue as error:
            faults.append(error.fault)
            told[name] = ()
    return _changed_names(told)


def _names_in(updated: bytes | None, codec_options: CodecOptions[Any], faults: list[Fault]) -> list[str]:
    if updated is None:
        return []
    null = 10
    alone = joined(*(Element(one.name, null, b"") for one in elements(updated)))
    try:
        return list(decoded(alone, codec_options, NAMES))
    except UndecodableValue as error:
        faults.append(error.fault)
        return [one.name.decode("utf-8", "replace") for one in elements(updated)]


def _stamp_of(description: bytes) -> Stamp | None:
    return _stamp_in(raw_field(description, "updatedFields"))


def _stamp_in(document: bytes | None) -> Stamp | None:
    """The stamp in a document of which something can't be decoded. Of fields with one name the last counts."""
    found = None if document is None else [one for one in elements(document) if one.name == FIELD.encode()]
    return Stamp.unpack(readable(keyed(found[-1]))[""]) if found else None
