"""A delivery as a document: all that is needed to make it later, by another process.

Dead letters and parked deliveries share it:

    group             of dispatchers
    receiver          its name; None for an unreadable event
    receiver_id       what it goes by in origin stamps, hexadecimal; None likewise
    document          `module.qualname` of the document class; None likewise
    signal            `"post_save"`, `"post_update"` or `"post_delete"`; None likewise
    created           what a post_save receiver is told
    hops              of the change
    run               id of the replay or backfill; "" for what was delivered because it was written
    delivery_id       `delivery.id`
    term              of the process that wrote it
    token             resume token of the change (its `_data`); of a backfill: what stands for the document
    operation         `"insert"`, `"update"`, `"replace"` or `"delete"`; None for an unreadable event
    namespace         {db, coll}
    key               `_id` of the document that changed
    cluster_time      of the change
    wall_time         likewise
    image             what `document` below is: `"post"`, `"current"` or `"key"`
    update_fields     stored names that an update changed or removed
    size              bytes of the event as it was sent
    parts             BSON in binary: `document` (after the change), `before` (the pre image), `event` (only of an
                      unreadable one: the whole change event)
    chunked           {part: number of chunks}: those that would not fit are in a collection of their own

`key` and `update_fields` are parts, too, where they are very long, and a key that no driver decodes is one: as
{"": value}.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import bson
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.collection import AsyncCollection

from dispatcher.core.bson_elements import DOCUMENT, Element, elements, field, joined, keyed, readable
from dispatcher.core.error_text import text_of, trace_of, words_of
from dispatcher.core.events import Calls, Change, delivery_id, delivery_id_of
from dispatcher.core.state import CODEC_OPTIONS
from dispatcher.core.state_checks import MOST_CHUNKS
from dispatcher.core.undecodable import KEY, UndecodableValue, UndecodedKey, decoded
from dispatcher.delivery.instances import decoded_again, key_of, name_of, originals_of
from dispatcher.delivery.outcome import Failure
from mongoz.signals.receivers import Receiver

__all__ = [
    "Letter",
    "Parts",
    "change_of",
    "delivery_of",
    "letter_id",
    "letter_of",
    "raw_key_of",
    "short_id",
    "unreadable_letter",
]

# Bytes of a short id: among a million letters two are alike once in five hundred states.
_SHORT: Final = 6

# Bytes of parts that a document holds itself; the server's limit is 16 MB.
_INLINE: Final = 8_000_000
_CHUNK: Final = 8_000_000

# Bytes of a value that is good for finding letters; above, it becomes a part.
_FINDABLE: Final = 100_000

# Characters of an error that are kept: ValidationErrors quote what they object to.
_LONGEST_MESSAGE: Final = 10_000

_IMAGES: Final = (("fullDocument", "document"), ("fullDocumentBeforeChange", "before"))

_NONE: Final[Mapping[str, int]] = {}


class Letter(NamedTuple):
    """A document on its way to the database.

    Attributes:
        fields: the document, but for its parts.
        parts: BSON by name.
    """

    fields: dict[str, Any]
    parts: dict[str, bytes]

    @property
    def id(self) -> str:
        """The same for the same delivery, whenever it fails."""
        return str(self.fields["_id"])


def delivery_of(change: Change, calls: Calls, receiver: Receiver, *, term: int, group: str) -> Letter:
    """One delivery to one receiver, without an `_id`."""
    fields = {
        "group": group,
        "receiver": receiver.name,
        "receiver_id": receiver.id.hex(),
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
        "wall_time": change.wall_time,
        "image": change.image,
        "size": change.size,
    }
    parts = {name: raw for name, raw in originals_of(change)._asdict().items() if raw is not None}
    # Which text comes of bytes that are no UTF-8 is the operator's choice; it may be one that BSON does not take.
    names = sorted(name.encode("utf-8", "replace").decode() for name in change.names)
    values: dict[str, Any] = {"key": key_of(change), "update_fields": names}
    for name, value in values.items():
        odd = isinstance(value, UndecodedKey)
        encoded = value.raw if odd else bson.encode({"": value}, codec_options=CODEC_OPTIONS)
        if odd or len(encoded) > _FINDABLE:
            parts[name] = encoded
        else:
            fields[name] = value
    return Letter(fields, parts)


def short_id(letter: str) -> str:
    """What people call a letter. Its `_id` begins like those of the other receivers of the change.

    Args:
        letter: its `_id`.
    """
    return blake2b(letter.encode("utf-8", "surrogatepass"), digest_size=_SHORT).hexdigest()


def letter_id(fields: Mapping[str, Any]) -> str:
    """The `_id` of the dead letter of a delivery."""
    return f"{fields['delivery_id']}:{fields['receiver_id']}:{fields['document']}"


def letter_of(
    change: Change, calls: Calls, receiver: Receiver, failure: Failure, *, term: int, group: str
) -> Letter:
    """The dead letter of one delivery to one receiver."""
    fields, parts = delivery_of(change, calls, receiver, term=term, group=group)
    return Letter({"_id": letter_id(fields), **fields, **_described(failure)}, parts)


def unreadable_letter(event: bytes, failure: Failure, *, token: str, term: int, group: str) -> Letter:
    """The letter of a change event that nobody here can read, and so of all its deliveries."""
    nobody = dict.fromkeys(("receiver", "receiver_id", "document", "signal", "operation"))
    id_ = delivery_id(token)
    fields = {"_id": f"{id_}:event", "group": group, **nobody, "delivery_id": id_, "term": term}
    return Letter({**fields, **_described(failure), "token": token}, {"event": event})


def _described(failure: Failure) -> dict[str, Any]:
    kind = type(failure.error)
    fault: dict[str, Any] = {}
    if isinstance(failure.error, UndecodableValue):
        found = failure.error.fault._asdict()
        fault["fault"] = {name: words_of(text) for name, text in found.items()}
    return {
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


def change_of(letter: RawBSONDocument, parts: Mapping[str, bytes], codec_options: CodecOptions[Any]) -> Change:
    """The change that a document was made of: receivers get the same as if it came out of the stream.

    Args:
        letter: as it is stored.
        parts: of it.
        codec_options: the registry's.

    Returns:
        The change. Where its document or its key can't be decoded, it says so in `fault`.

    Raises:
        Exception: it is not written as letters are.
    """
    raw = bytes(letter.raw)
    fields = readable(raw)
    key = raw_key_of(raw, parts)
    names = fields["update_fields"] if "update_fields" in fields else readable(parts["update_fields"])[""]
    wall_time = field(raw, "wall_time")
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
    )
    return decoded_again(change, codec_options)


def raw_key_of(letter: bytes, parts: Mapping[str, bytes]) -> bytes:
    """The `_id` of the document that a stored delivery is about, as BSON: {"": _id}.

    Args:
        letter: the delivery.
        parts: of it.
    """
    key = field(letter, "key")
    return parts["key"] if key is None else keyed(key)


class Parts:
    """Writes and reads the parts of documents in one collection; those that do not fit go into another one.

    Args:
        chunks: where they go.
    """

    def __init__(self, chunks: AsyncCollection[dict[str, Any]]) -> None:
        self._chunks = chunks

    async def write(self, letter: Letter) -> dict[str, Any]:
        """Write what does not fit.

        Returns:
            The whole document. It says that the rest is there, so it is to be written after that.

        Raises:
            PyMongoError: as the driver has it.
        """
        inline, chunked = _divided(letter.parts)
        counts = {name: await self._write_chunks(letter.id, name, data) for name, data in chunked.items()}
        return {**letter.fields, "parts": inline, "chunked": counts}

    async def _write_chunks(self, letter: str, part: str, data: bytes) -> int:
        starts = range(0, len(data), _CHUNK)
        for n, start in enumerate(starts):
            id_ = f"{letter}:{part}:{n:04}"
            await self._chunks.replace_one({"_id": id_}, {"data": data[start : start + _CHUNK]}, upsert=True)
        return len(starts)

    async def read(self, document: Mapping[str, Any]) -> dict[str, bytes]:
        """The parts of a document that was read from the database.

        Raises:
            ValueError: the document does not say rightly where they are.
            PyMongoError: as the driver has it.
        """
        parts = {name: bytes(data) for name, data in document["parts"].items()}
        for name, count in document["chunked"].items():
            if not isinstance(count, int) or not 0 < count <= MOST_CHUNKS:
                raise ValueError(
                    f"chunked says {str(count)[:100]} chunks of {name[:100]!r}; there are 1 to {MOST_CHUNKS}"
                )
            ids = [f"{document['_id']}:{name}:{n:04}" for n in range(count)]
            chunks = {chunk["_id"]: chunk["data"] async for chunk in self._chunks.find({"_id": {"$in": ids}})}
            if missing := [id_ for id_ in ids if id_ not in chunks]:
                raise ValueError(f"chunk {missing[0]!r} is missing in {self._chunks.name}")
            parts[name] = b"".join(chunks[id_] for id_ in ids)
        return parts

    async def drop(self, letter: str, *, but: Mapping[str, int] = _NONE) -> None:
        """Remove what did not fit into a document, which does not say any more that it is there.

        Args:
            letter: its `_id`.
            but: chunks to keep, by part.

        Raises:
            PyMongoError: as the driver has it.
        """
        kept = [f"{letter}:{name}:{n:04}" for name, count in but.items() for n in range(count)]
        # ";" is the character after ":", so this is the range of all ids that begin with the letter's.
        await self._chunks.delete_many({"_id": {"$gte": f"{letter}:", "$lt": f"{letter};", "$nin": kept}})


def _divided(parts: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Parts that a document can hold, the small ones first, and those that it can't."""
    inline: dict[str, bytes] = {}
    chunked: dict[str, bytes] = {}
    room = _INLINE
    for name, data in sorted(parts.items(), key=lambda part: len(part[1])):
        if len(data) <= room:
            inline[name] = data
            room -= len(data)
        else:
            chunked[name] = data
    return inline, chunked
