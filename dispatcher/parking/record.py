"""Converts a held delivery to a document and back, so that another process can make the delivery later.

A held delivery is a parked delivery or a dead letter.

docs/reference/state.md lists the fields of a document. `parts` has BSON in binary: `document` (after the change),
`before` (the pre image), `event` (the whole event, if it can't be decoded).

A very long `key` or `update_fields` is a part instead of a field: {"": value}. A key that no driver decodes is a
part, too.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import bson
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from dispatcher.core.bson_elements import DOCUMENT, Element, elements, field, first_fields, joined, keyed, readable
from dispatcher.core.error_text import text_of, trace_of, words_of
from dispatcher.core.events import Calls, Change, delivery_id, delivery_id_of
from dispatcher.core.partitions import hash_of
from dispatcher.core.state import CODEC_OPTIONS
from dispatcher.core.undecodable import KEY, UndecodableValue, UndecodedKey, decoded
from dispatcher.delivery.instances import Originals, key_of, name_of, originals_of, with_documents
from dispatcher.delivery.outcome import Failure
from mongoz.signals.receivers import Receiver
from mongoz.stamps import Stamp

# Bytes of a short id: a state with a million dead letters has two equal short ids with a probability of 1 in 500.
_SHORT: Final = 6

# Maximum bytes of a value that is a field; longer values are parts.
_FINDABLE: Final = 100_000

# Maximum characters of a recorded error message. For example, a ValidationError quotes its input, which can be
# long.
_LONGEST_MESSAGE: Final = 10_000

_IMAGES: Final = (("fullDocument", "document"), ("fullDocumentBeforeChange", "before"))


class Record(NamedTuple):
    """A held delivery on its way to the database.

    Attributes:
        fields: the document without its parts.
        parts: BSON by name.
    """

    fields: dict[str, Any]
    parts: dict[str, bytes]

    @property
    def id(self) -> str:
        """The `_id` of the document. A delivery has the same `_id` whenever it is held."""
        return str(self.fields["_id"])


def record_of(
    change: Change, calls: Calls, receiver: Receiver, *, term: int, group: str, name: str = ""
) -> Record:
    """The record of the delivery of a change to one receiver.

    Args:
        name: an earlier name of the receiver, under which the delivery is written; "" for the present one.
    """
    known = (receiver.name, *receiver.options.formerly)
    # Receivers of different signals may have the same present name. So `name` may be a former name of another
    # receiver with this present name, and no name of this receiver. Then use the present id of this receiver.
    number = known.index(name) if name in known else 0
    fields = {
        "group": group,
        "receiver": name or receiver.name,
        "receiver_id": receiver.ids[number].hex(),
        "document": name_of(calls.document),
        "signal": calls.signal,
        "created": calls.created,
        "hops": calls.hops,
        "run": calls.run,
        "delivery_id": delivery_id_of(change, calls.run),
        "term": term,
        "token": change.token,
        "operation": change.operation,
        "namespace": {"db": change.namespace[0], "coll": change.namespace[1]},
        "cluster_time": change.cluster_time,
        "image": change.image,
        "size": change.size,
    }
    if change.context:
        fields["context"] = change.context
    if change.takeover:
        fields["takeover"] = {"superseded": change.superseded}
    elif change.is_claimed:  # the decision about the claim is still open
        assert change.origin is not None
        fields["stamp"] = change.origin.pack()
    parts = {name: raw for name, raw in originals_of(change)._asdict().items() if raw is not None}
    # The codec options decide how bytes that are not UTF-8 are decoded; BSON may not accept the resulting text.
    names = sorted(name.encode("utf-8", "replace").decode() for name in change.names)
    values: dict[str, Any] = {"key": key_of(change), "update_fields": names}
    # `change_of` searches for the time and the key in the bytes, so they are the first fields.
    first: dict[str, Any] = {"wall_time": change.wall_time}
    for part, value in values.items():
        odd = isinstance(value, UndecodedKey)
        encoded = value.raw if odd else bson.encode({"": value}, codec_options=CODEC_OPTIONS)
        if odd or len(encoded) > _FINDABLE:
            parts[part] = encoded
        else:
            first[part] = value
    return Record({"_id": record_id(fields), **first, **fields}, parts)


def short_id(letter: str) -> str:
    """A short name of a dead letter. It is a hash, because all `_id`s of one change begin with the same text."""
    return blake2b(letter.encode("utf-8", "surrogatepass"), digest_size=_SHORT).hexdigest()


def record_id(fields: Mapping[str, Any]) -> str:
    """The `_id` of a held delivery."""
    return f"{fields['delivery_id']}:{fields['receiver_id']}:{fields['document']}"


def undecodable_event(event: bytes, failure: Failure, *, token: str, term: int, group: str) -> Record:
    """The dead letter of a change event that can't be decoded. It represents all deliveries of the event."""
    absent = dict.fromkeys(("receiver", "receiver_id", "document", "signal", "operation"))
    own = {"_id": event_record_id(token), "delivery_id": delivery_id(token)}
    fields = {**own, "group": group, **absent, "term": term, "token": token}
    return failed(Record(fields, {"event": event}), failure)


def event_record_id(token: str) -> str:
    """The `_id` of the dead letter of a change event that can't be decoded."""
    return f"{delivery_id(token)}:event"


def failed(record: Record, failure: Failure) -> Record:
    """The dead letter of a delivery that failed permanently."""
    kind = type(failure.error)
    fault: dict[str, Any] = {}
    if isinstance(failure.error, UndecodableValue):
        found = failure.error.fault._asdict()
        fault["fault"] = {name: words_of(text) for name, text in found.items()}
    outcome = {
        "attempts": failure.attempts,
        "reason": failure.reason,
        "error": {
            "type": f"{kind.__module__}.{kind.__qualname__}",
            "message": text_of(failure.error, _LONGEST_MESSAGE),
            "traceback": trace_of(failure.error),
        },
        **fault,
        "first_attempt_at": failure.began,
        "last_attempt_at": datetime.now(UTC),
    }
    return record._replace(fields={**record.fields, **outcome})


def change_of(record: RawBSONDocument, parts: Mapping[str, bytes], codec_options: CodecOptions[Any]) -> Change:
    """The change of a held delivery. Receivers get the same values as from the stream.

    Returns:
        The change. If its document or its key can't be decoded, `fault` tells the reason.
    """
    fields = dict(record.items())
    found = first_fields(bytes(record.raw), ("key", "wall_time"))
    key = parts["key"] if found["key"] is None else keyed(found["key"])
    names = fields["update_fields"] if "update_fields" in fields else readable(parts["update_fields"])[""]
    wall_time = found["wall_time"]
    event = [Element(name.encode(), DOCUMENT, parts[part]) for name, part in _IMAGES if part in parts]
    document_key = Element(b"documentKey", DOCUMENT, keyed(next(elements(key)), "_id"))
    namespace = fields["namespace"]
    fault, id_ = None, UndecodedKey(key)
    try:
        id_ = decoded(key, codec_options, KEY)[""]
    except UndecodableValue as error:
        fault = error.fault
    change = Change(
        token=fields["token"],
        operation=fields["operation"],
        namespace=(namespace["db"], namespace["coll"]),
        id=id_,
        cluster_time=fields["cluster_time"],
        wall_time=None if wall_time is None else bson.decode(keyed(wall_time), codec_options=codec_options)[""],
        document={},
        before={},
        image=fields["image"],
        names=frozenset(names),
        stamp=None,
        size=fields.get("size", 0),
        raw=joined(document_key, *event),
        delivery_id=fields["delivery_id"],
        fault=fault,
        origin=Stamp.unpack(fields.get("stamp")),
        takeover="takeover" in fields,
        superseded=bool((fields.get("takeover") or {}).get("superseded")),
        context=str(fields.get("context", "")),
    )
    originals = Originals(parts.get("document"), parts.get("before"))
    return with_documents(change, originals, codec_options)


def raw_key_of(record: bytes, parts: Mapping[str, bytes]) -> bytes:
    """The `_id` of the document that changed, as BSON: {"": _id}.

    Args:
        record: the delivery, as BSON.
    """
    key = field(record, "key")
    return parts["key"] if key is None else keyed(key)


def hash_of_key(parts: Any) -> dict[str, Any]:
    """An expression for the hash of a delivery's key, which is a field or one of these parts."""
    raw = parts.get("key") if isinstance(parts, Mapping) else None
    found = field(raw, "") if isinstance(raw, bytes) else None
    return hash_of("$key") if found is None else {"$toHashedIndexKey": RawBSONDocument(keyed(found, "$literal"))}
