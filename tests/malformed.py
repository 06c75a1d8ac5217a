"""Generates malformed documents: servers store them, but drivers do not write them.

A `Story` is the history of one document: writes with malformed values. `write` sends stories as raw BSON, and
counts the resulting changes.
"""

import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from mongoz.stamps import FIELD

__all__ = ["IMAGELESS", "KINDS", "WITH_IMAGES", "Story", "Write", "stories", "write"]

WITH_IMAGES: Final = "malformed"
IMAGELESS: Final = "malformed_bare"

# The number of stories in one command.
_AT_ONCE: Final = 50


class Value(NamedTuple):
    """A value in BSON.

    Attributes:
        type: the number of its type.
        raw: its bytes.
    """

    type: int
    raw: bytes


Chance = random.Random


def _document(*fields: tuple[bytes, Value], type: int = 3) -> Value:
    body = b"".join(bytes((value.type,)) + name + b"\0" + value.raw for name, value in fields)
    return Value(type, struct.pack("<i", len(body) + 5) + body + b"\0")


def _text(content: bytes, type: int = 2) -> Value:
    return Value(type, struct.pack("<i", len(content) + 1) + content + b"\0")


def _binary(content: bytes, subtype: int) -> Value:
    return Value(5, struct.pack("<i", len(content)) + bytes((subtype,)) + content)


def _number(n: int) -> Value:
    return Value(18, struct.pack("<q", n))


def _no_utf8(chance: Chance) -> bytes:
    return chance.choice(
        (b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80", b"ok \xe2\x82")
    )


def _old_binary(chance: Chance) -> Value:
    inner = chance.choice((-9, 0, 2, 9, 2**31 - 1))
    return _binary(chance.choice((b"", b"ab", struct.pack("<i", inner) + b"abc")), 2)


def _date(chance: Chance) -> Value:
    far = chance.choice((2**63 - 1, -(2**63), -62135596800001, 253402300800000, 2**55 + chance.getrandbits(20)))
    return Value(9, struct.pack("<q", far))


def _scoped(chance: Chance) -> Value:
    inner = _text(_no_utf8(chance)).raw + _document((b"u", _binary(b"123", 4))).raw
    return Value(15, struct.pack("<i", len(inner) + 4) + inner)


def _wrong_uuid(chance: Chance) -> Value:
    return _binary(chance.randbytes(chance.choice((0, 1, 3, 15, 17, 40))), 4)


_NULL: Final = Value(10, b"")

UNDECODABLE: Final[dict[str, Callable[[Chance], Value]]] = {
    "a UUID of the wrong length": _wrong_uuid,
    "an old binary with two lengths": _old_binary,
    "a date beyond Python's range": _date,
    "text that is not UTF-8": lambda chance: _text(_no_utf8(chance)),
    "code that is not UTF-8": lambda chance: _text(_no_utf8(chance), 13),
    "a symbol that is not UTF-8": lambda chance: _text(_no_utf8(chance), 14),
    "code with a scope": _scoped,
    "a DBPointer that is not UTF-8": lambda chance: Value(12, _text(_no_utf8(chance)).raw + chance.randbytes(12)),
    "a pattern that is not UTF-8": lambda chance: Value(11, _no_utf8(chance) + b"\0x\0"),
    "a name that is not UTF-8": lambda chance: _document((_no_utf8(chance), _NULL)),
    "a DBRef that is not UTF-8": lambda chance: _document(
        (b"$ref", _text(_no_utf8(chance))), (b"$id", _number(1))
    ),
}
"""Values that the driver can't decode with the options of a registry."""

ODD: Final[dict[str, Callable[[Chance], Value]]] = {
    "a legacy UUID of the wrong length": lambda chance: _binary(chance.randbytes(5), 3),
    "an MD5 of one byte": lambda chance: _binary(b"1", 5),
    "an empty encrypted value": lambda _: _binary(b"", 6),
    "a broken column": lambda chance: _binary(chance.randbytes(4), 7),
    "a broken vector": lambda chance: _binary(chance.choice((b"", b"\x27", b"\x03\x09\x01")), 9),
    "an application's own subtype": lambda chance: _binary(chance.randbytes(3), chance.randrange(128, 256)),
    "text with a zero byte": lambda _: _text(b"a\0b"),
    "undefined": lambda _: Value(6, b""),
    "a DBPointer": lambda chance: Value(12, _text(b"a.b").raw + chance.randbytes(12)),
    "a malformed pattern": lambda _: Value(11, b"(\0zzz\0"),
    "a malformed decimal": lambda chance: Value(
        19, chance.randbytes(15) + bytes((chance.choice((0x6F, 0x7F, 0xFF)),))
    ),
    "not a number": lambda _: Value(1, b"\xff" * 8),
    "a huge integer": lambda chance: _number(chance.choice((2**63 - 1, -(2**63)))),
    "equal names": lambda _: _document((b"a", _NULL), (b"a", _number(1)), (b"a", _text(b"x"))),
    "empty names": lambda _: _document((b"", _NULL), (b"", _document((b"", _NULL)))),
    "names with dollars": lambda _: _document((b"x", _NULL), (b"$set", _NULL), (b"a.b", _number(1))),
    "an array without order": lambda _: _document(
        (b"7", _NULL), (b"x", _NULL), (b"\xff", _NULL), (b"7", _NULL), type=4
    ),
    "a malformed reference": lambda _: _document((b"$ref", _number(1)), (b"$id", _NULL), (b"$db", _number(2))),
    "the smallest and the largest": lambda _: _document((b"a", Value(255, b"")), (b"b", Value(127, b""))),
}
"""Unusual values that the driver decodes."""

KINDS: Final = (*UNDECODABLE, *ODD, "maximum depth")


class Write(NamedTuple):
    """One write of a story.

    Attributes:
        what: the operation: `"insert"`, `"update"`, `"replace"` or `"delete"`.
        raw: the document, or the update; empty for a delete.
        kind: the kind of the malformed value.
    """

    what: str
    raw: bytes
    kind: str


class Story(NamedTuple):
    """The history of one document.

    Attributes:
        collection: the collection of the document.
        id: the `_id` of the document, as BSON: {"_id": _id}.
        writes: the writes, in order.
    """

    collection: str
    id: bytes
    writes: tuple[Write, ...]


def stories(chance: Chance, count: int, first: int = 0) -> Iterator[Story]:
    """Generates stories. Equal arguments give equal stories. All kinds of values are equally frequent.

    Args:
        chance: the source of random choices.
        count: the number of stories.
        first: the number of the first story; stories of the same number may have the same `_id`.
    """
    kinds: list[str] = []
    for number in range(first, first + count):
        if not kinds:
            kinds = chance.sample(KINDS, len(KINDS))
        yield _story(chance, number, kinds.pop())


def _story(chance: Chance, number: int, kind: str) -> Story:
    collection = chance.choice((WITH_IMAGES, IMAGELESS))
    id_ = _id(chance, number, kind)
    # In one of four stories the first write is valid: there, only later writes can have malformed values.
    first = "fine" if chance.random() < 0.25 else kind
    writes = [Write("insert", _whole(chance, id_, first), first)]
    for what in chance.sample(("update", "update", "replace"), chance.randrange(1, 4)):
        then = chance.choice((kind, kind, "fine"))
        raw = _whole(chance, id_, then) if what == "replace" else _change(chance, then)
        writes.append(Write(what, raw, then))
    if chance.random() < 0.6:
        writes.append(Write("delete", b"", "fine"))
    return Story(collection, _document((b"_id", id_)).raw, tuple(writes))


def _id(chance: Chance, number: int, kind: str) -> Value:
    """A new `_id`. In one of four stories it has a value of this kind, if the server allows that in an `_id`."""
    unique = struct.pack(">i", number)
    if chance.random() >= 0.25:
        return Value(7, ObjectId(chance.randbytes(8) + unique).binary)
    if kind == "text that is not UTF-8":
        return _text(unique.hex().encode() + _no_utf8(chance))
    if kind == "a UUID of the wrong length":
        return _binary(unique + chance.randbytes(3), 4)
    if kind == "an old binary with two lengths":
        return _binary(b"\x7f" + unique, 2)
    if kind == "a date beyond Python's range":
        return Value(9, struct.pack("<q", 2**55 + number))
    if kind in ("a DBRef that is not UTF-8", "a malformed reference", "names with dollars", "maximum depth"):
        return _document((b"n", _number(number)), (b"v", _text(b"fine")))
    return _document((b"n", _number(number)), (b"v", _value(chance, kind)))


def _value(chance: Chance, kind: str) -> Value:
    if kind == "fine":
        return _number(chance.getrandbits(40))
    if kind == "maximum depth":
        deep = _document((b"d", chance.choice((_NULL, _binary(b"123", 4)))))
        for _ in range(175):
            deep = _document((b"d", deep))
        return deep
    return {**UNDECODABLE, **ODD}[kind](chance)


def _whole(chance: Chance, id_: Value, kind: str) -> bytes:
    value = _value(chance, kind)
    # The dispatcher ignores an update that changes only the stamp, so each write also changes `n`.
    n = (b"n", _number(chance.getrandbits(30)))
    fields = [(b"_id", id_), (b"name", _text(b"fine")), n, *_placed(chance, value)]
    return _document(*fields).raw


def _placed(chance: Chance, value: Value) -> list[tuple[bytes, Value]]:
    """Places the value in a field of the model, an unknown field, an array, a document, or the stamp's field."""
    if value.raw.count(b"d\0") > 100:  # a deeper place would exceed the maximum depth
        return [(b"data", value)]
    places: tuple[Callable[[], list[tuple[bytes, Value]]], ...] = (
        lambda: [(b"data", value)],
        lambda: [(b"unknown", value)],
        lambda: [(b"data", _document((b"0", _NULL), (b"1", value), type=4))],
        lambda: [(b"data", _document((b"a", _document((b"b", value))), (b"c", _number(1))))],
        lambda: [(b"unknown", _number(1)), (b"data", value), (b"last", value)],
        lambda: [(FIELD.encode(), value)],
    )
    return chance.choice(places)()


def _change(chance: Chance, kind: str) -> bytes:
    value = _value(chance, kind)
    changed = _document((b"n", _number(chance.getrandbits(30))), *_placed(chance, value))
    return _document((b"$set", changed)).raw


def write(database: Database[Any], written: Sequence[Story]) -> Counter[str]:
    """Sends stories to the server as raw BSON.

    Returns:
        The number of changes by collection; the writes of one document keep their order.
    """
    changes: Counter[str] = Counter()
    for begin in range(0, len(written), _AT_ONCE):
        part = written[begin : begin + _AT_ONCE]
        for step in range(max(len(story.writes) for story in part)):
            for collection in (WITH_IMAGES, IMAGELESS):
                here = [
                    (one, one.writes[step])
                    for one in part
                    if one.collection == collection and step < len(one.writes)
                ]
                changes[collection] += _send(database, collection, here)
    return changes


def _send(database: Database[Any], collection: str, here: list[tuple[Story, Write]]) -> int:
    inserts = [RawBSONDocument(one.raw) for _, one in here if one.what == "insert"]
    updates = [
        {"q": _filter(story), "u": RawBSONDocument(one.raw)}
        for story, one in here
        if one.what in ("update", "replace")
    ]
    deletes = [{"q": _filter(story), "limit": 1} for story, one in here if one.what == "delete"]
    count = 0
    if inserts:
        count += _done(database.command({"insert": collection, "documents": inserts, "ordered": False}), "n")
    if updates:
        count += _done(database.command({"update": collection, "updates": updates, "ordered": False}), "nModified")
    if deletes:
        count += _done(database.command({"delete": collection, "deletes": deletes, "ordered": False}), "n")
    return count


def _done(reply: dict[str, Any], counted: str) -> int:
    assert not reply.get("writeErrors"), reply["writeErrors"][0]
    return int(reply[counted])


def _filter(story: Story) -> RawBSONDocument:
    return RawBSONDocument(story.id)
