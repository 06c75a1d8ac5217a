"""Decodes the BSON of a change event to a `Change`."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from bson.dbref import DBRef

from dispatcher.core.bson_codec import RawEvent, StampedDelete
from dispatcher.core.bson_elements import Element, elements, field, joined, keyed, raw_field, readable
from dispatcher.core.events import Change, Namespace, StreamChange
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
from dispatcher.stream.layout import EventHead, EventLayouts
from mongoz.stamps import FIELD, Stamp

_ANY: Final = CodecOptions[dict[str, Any]](uuid_representation=UuidRepresentation.STANDARD)
_NOTHING: Final[frozenset[str]] = frozenset()
_EMPTY: Final = bson.encode({})

# Events of these operations always come with their document.
_NEED_DOCUMENT: Final = frozenset({"insert", "replace"})


class DecodedEvent(NamedTuple):
    """A decoded event.

    Attributes:
        head: the head, if it was read without decoding it. Then `fields` lacks the fields of the head.
        fields: the fields of the event.
    """

    head: EventHead | None
    fields: dict[str, Any]


def decoded_together(
    events: Sequence[RawEvent], codec_options: CodecOptions[Any], layouts: EventLayouts
) -> Sequence[Change | DecodedEvent | None]:
    """Decode events in one call. One call per event would take a sixth more time.

    Returns:
        For each event the change, or what `decode` needs to make it. None for each event if one can't be decoded.
    """
    try:
        heads, parts = layouts.split(events)
        documents = bson.decode_all(parts, codec_options)
        return [
            DecodedEvent(head, document)
            if head is None or head[3] is None
            else _change_of(event, head, head[3], document, codec_options)
            for event, head, document in zip(events, heads, documents, strict=True)
        ]
    except Exception:  # `decode` finds the undecodable event
        return (None,) * len(events)


def _change_of(
    event: RawEvent,
    head: EventHead,
    namespace: Namespace,
    document: dict[str, Any],
    codec_options: CodecOptions[Any],
) -> Change:
    """The change of an event of which only the document was decoded: an insert, or a replace without pre image."""
    token, operation, seconds, _ = head
    data = event.raw
    # A replace has no stamp of its own, see `CALLED`.
    stamp = document.get(FIELD) if operation == "insert" else None
    return tuple.__new__(  # `StreamChange(...)` takes 150 ns longer
        StreamChange,
        (
            token,
            operation,
            namespace,
            document["_id"],
            seconds,
            codec_options,
            document,
            None,
            "post",
            _NOTHING,
            None if stamp is None else Stamp.unpack(stamp),
            len(data),
            data,
            None,
            None,
            None,
            None,
            "",
            "",
            False,
            False,
            False,
            "",
        ),
    )


def decode(raw: RawEvent, codec_options: CodecOptions[Any], found: DecodedEvent | None = None) -> Change:
    """Decode one change event.

    Args:
        codec_options: the codec options of the registry, so that receivers get the types of the application.
        found: the decoded event, if `decoded_together` has decoded it.

    Returns:
        The change. If its document, its `_id` or its changed names can't be decoded, `fault` tells the reason.

    Raises:
        Undecodable: the event can't be delivered to any receiver.
    """
    data = raw.raw
    fault: Fault | None = None
    head: EventHead | None = None
    try:
        head, event = found or (None, bson.decode(data, codec_options=codec_options))
        is_misread = _has_reference(event)
    except Exception:  # the driver and the application's decoders raise many types of errors
        is_misread = True
    if is_misread:
        event, fault = _decoded_in_parts(data, codec_options)
    kind: type[Change] = Change if head is None else StreamChange
    token, operation, cluster_time, wall_time = _head_in(event) if head is None else (*head[:3], codec_options)
    names, stamp = _NOTHING, None  # the stamp is not unpacked yet
    document = event.get("fullDocument")
    if operation == "update":
        description = event.get("updateDescription")
        if description is None:
            raise _without_document(event, token)
        names = _changed_names(description)
        if not names:
            operation = "untouched"
        stamp = description["updatedFields"].get(FIELD)
    elif document is None and operation in _NEED_DOCUMENT:
        raise _without_document(event, token)
    elif operation == "replace":
        if fault is None and _is_untouched(event.get("fullDocumentBeforeChange"), document):
            operation = "untouched"
    elif operation == "insert":
        stamp = document.get(FIELD) if document else None
    elif operation == "delete" and isinstance(raw, StampedDelete):
        stamp = raw.stamp
    namespace = event.get("ns") or {}
    key = event.get("documentKey")
    transaction = None
    if "txnNumber" in event and "lsid" in event:
        transaction = (raw_field(data, "lsid"), event["txnNumber"])
    return tuple.__new__(  # `Change(...)` takes 150 ns longer
        kind,
        (
            token,
            operation,
            (namespace.get("db", ""), namespace.get("coll", "")),
            key["_id"] if key else None,
            cluster_time,
            wall_time,
            None if fault is not None and isinstance(document, _Placeholder) else document,
            event.get("fullDocumentBeforeChange"),
            "post" if document is not None else "key",
            names,
            None if stamp is None else Stamp.unpack(stamp),
            len(data),
            data,
            None,
            transaction,
            None,
            fault,
            "",
            "",
            False,
            False,
            False,
            "",
        ),
    )


def _has_reference(event: dict[str, Any]) -> bool:
    """Returns whether the driver has made a reference of a document, because it has fields `$ref` and `$id`.

    The driver does this only with documents inside of other documents, such as events.
    """
    description = event.get(_DESCRIPTION)
    return (
        type(event.get(_AFTER)) is DBRef
        or type(event.get(_BEFORE)) is DBRef
        or (description is not None and type(description["updatedFields"]) is DBRef)
    )


def _head_in(event: dict[str, Any]) -> tuple[str, str, Any, Any]:
    """The token, the operation and the times of a decoded event."""
    id_ = event["_id"]
    token = id_["_data"] if len(id_) == 1 else token_of(id_)
    return token, event["operationType"], event["clusterTime"], event.get("wallTime")


def _without_document(event: dict[str, Any], token: str) -> Undecodable:
    """The error for an event that the server can send only without its document, see `stream/large_events.py`."""
    key = event.get("documentKey") or {}
    return Undecodable(token, key.get("_id"), "the event is larger than 16 MB, even without images")


def _changed_names(description: dict[str, Any]) -> frozenset[str]:
    """The top-level names that an update changed; the server reports paths with dots."""
    names = {name.partition(".")[0] for name in description["updatedFields"]}
    names.update(name.partition(".")[0] for name in description["removedFields"])
    names.update(array["field"].partition(".")[0] for array in description.get("truncatedArrays") or ())
    names.discard(FIELD)
    return frozenset(names)


def _is_untouched(before: dict[str, Any] | None, after: dict[str, Any] | None) -> bool:
    """Returns whether a replace changed only the stamp. The server reports some updates by pipelines as replaces.

    Returns False if the pre image is missing.
    """
    if not before or not after or not (FIELD in before or FIELD in after):
        return False
    one, other = ({name: doc[name] for name in doc if name != FIELD} for doc in (before, after))
    # In Python 1 == 1.0 == True, so the BSON of the documents is compared too.
    return one == other and bson.encode(one, codec_options=_ANY) == bson.encode(other, codec_options=_ANY)


# The fields of an event with values that clients wrote.
_AFTER: Final = "fullDocument"
_BEFORE: Final = "fullDocumentBeforeChange"
_DESCRIPTION: Final = "updateDescription"
_DOCUMENT_KEY: Final = "documentKey"
_CLIENTS: Final = frozenset({_AFTER, _BEFORE, _DESCRIPTION, _DOCUMENT_KEY})


class _Placeholder(dict[str, Any]):
    """Replaces a document that can't be decoded. It contains only the stamp."""


def _decoded_in_parts(data: bytes, codec_options: CodecOptions[Any]) -> tuple[dict[str, Any], Fault | None]:
    """Decode an event that can't be decoded as a whole: each of its documents is decoded separately.

    Returns:
        The event, and the fault of the first undecodable value that receivers need.

    Raises:
        Undecodable: a field of the event itself can't be decoded. No known server sends this.
    """
    event = _server_fields(data, codec_options)
    faults: list[Fault] = []

    def attempt(name: str, where: str, instead: Callable[[bytes], Any]) -> None:
        raw = raw_field(data, name)
        if raw is not None:
            try:
                event[name] = decoded(raw, codec_options, where)
            except UndecodableValue as error:
                faults.append(error.fault)
                event[name] = instead(raw)

    attempt(_DOCUMENT_KEY, KEY, _undecoded_key)
    attempt(_AFTER, AFTER, lambda raw: _Placeholder(_stamp_in(raw)))
    description = raw_field(data, _DESCRIPTION)
    if description is not None:
        event[_DESCRIPTION] = _names_of(description, codec_options, faults)
    fault = faults[0] if faults else None
    attempt(_BEFORE, BEFORE, lambda _raw: None)
    if fault is None and faults:
        log.warning(
            "the document before a change can't be decoded; receivers are called without it",
            action="change.before_undecodable",
            token=token_of(event["_id"]),
            id=repr(event.get(_DOCUMENT_KEY, {}).get("_id")),
            error=str(faults[-1]),
        )
    return event, fault


def _server_fields(data: bytes, codec_options: CodecOptions[Any]) -> dict[str, Any]:
    """Decode the fields of an event, except the fields with values that clients wrote."""
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


def _undecoded_key(document_key: bytes) -> dict[str, Any]:
    found = field(document_key, "_id")
    return {} if found is None else {"_id": UndecodedKey(keyed(found))}


def _names_of(description: bytes, codec_options: CodecOptions[Any], faults: list[Fault]) -> dict[str, Any]:
    """Decode the names of the fields that an update changed, and the stamp. Other values are not decoded."""
    updated = raw_field(description, "updatedFields") or _EMPTY
    names: dict[str, Any] = {
        "updatedFields": {**dict.fromkeys(_names_in(updated, codec_options, faults)), **_stamp_in(updated)}
    }
    for name in ("removedFields", "truncatedArrays"):
        found = field(description, name)
        raw = _EMPTY if found is None else keyed(found)
        try:
            names[name] = decoded(raw, codec_options, NAMES).get("") or ()
        except UndecodableValue as error:
            faults.append(error.fault)
            names[name] = readable(raw)[""]
    return names


def _names_in(updated: bytes, codec_options: CodecOptions[Any], faults: list[Fault]) -> list[str]:
    null = 10
    alone = joined(*(Element(one.name, null, b"") for one in elements(updated)))
    try:
        return list(decoded(alone, codec_options, NAMES))
    except UndecodableValue as error:
        faults.append(error.fault)
        return [one.name.decode("utf-8", "replace") for one in elements(updated)]


def _stamp_in(document: bytes) -> dict[str, Any]:
    """The stamp of a document that can't be decoded. If several fields are named `_mongoz`, the last counts."""
    found = [one for one in elements(document) if one.name == FIELD.encode()]
    return {FIELD: readable(keyed(found[-1]))[""]} if found else {}
