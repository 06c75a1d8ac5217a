"""Origin stamps, by which a dispatcher distinguishes an application's own writes from all others.

A stamp is a BSON binary of the user-defined subtype, in the reserved field `_mongoz`. It is one scalar, so no
pipeline update or partial `$set` can split it. It lists the receivers that ran (or will run) for this one write in
the writing process. The dispatcher delivers to all other receivers.

Layout, version 1, big-endian:

    byte 0       version
    byte 1       signal of the call (1 post_save, created; 2 post_save; 3 post_update; 4 post_delete)
    byte 2       kind (0 receivers, 1 muted, 2 hops)
    3..14        token: an ObjectId, made for this write
    15..22       key: a hash of namespace and _id, which shows whether a client has copied the document
    23           length of the group's name in bytes
    24..         the group, UTF-8
    then         kind 0: the ids of the receivers that run in process, 8 bytes each; kind 2: one byte, the hops

If the process claims receivers, the ids are replaced by:

    6 bytes      a mark; no id begins with it
    2 bytes      the number of the claimed receivers
    8 * n bytes  the ids of the claimed receivers, with all bits inverted
    8 * m bytes  the ids of the other receivers
    8 bytes      the incarnation
    8 bytes      the number of the claim

An earlier version, which has no claims, reads all this as a list of ids, and knows none of the inverted ids. So it
delivers to the claimed receivers, and fires the signal of the call.

A context follows the ids of the receivers. A stamp with a context has kind 0, even if the write has hops:

    8 * n bytes  the context as JSON in UTF-8, padded with zero bytes, and combined with the salt by XOR
    8 bytes      the salt
    5 bytes      a mark; no id contains it
    1 byte       the hops
    2 bytes      the length of the JSON in bytes

An earlier version reads the bytes of the context as ids of receivers. They match no receiver. The salt is random,
so no client can choose a value whose bytes are the id of a receiver.

Nothing here does I/O. The ODM makes stamps with this module, and the dispatcher reads them.
"""

import json
import os
from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import bson
from bson.binary import USER_DEFINED_SUBTYPE, Binary
from bson.codec_options import CodecOptions

from mongoz.keys import KEY_CODEC, canonical

__all__ = [
    "FIELD",
    "Call",
    "Claim",
    "ContextValues",
    "Form",
    "Stamp",
    "claiming_form",
    "context_of",
    "form_of",
    "key_hash",
    "packed_context",
    "receiver_id",
]

ContextValues = Mapping[str, str | int | bool]
"""The values of a context, by name."""

FIELD: Final = "_mongoz"
"""The reserved field that holds the stamp. Users of the ODM never see it."""

_VERSION: Final = 1
_FIXED: Final = 24
_RECEIVERS, _MUTED, _HOPS = range(3)
_CLAIMED: Final = b"claims"  # the first bytes of a list of ids with a claim
_OPENING: Final = len(_CLAIMED) + 2
_NUMBERED: Final = 16  # bytes of the incarnation and the number
_CONTEXT: Final = b"cntxt"  # the bytes after the salt of a context
_CONTEXT_END: Final = 16  # bytes from the salt to the end
_INVERTED: Final = bytes(range(255, -1, -1))  # a table for `bytes.translate`
_KEPT_FORMS: Final = 1024
_KEPT_CONTEXTS: Final = 128  # a forged context may have 64 kB
_LONGEST: Final = 16_384  # maximum bytes of a tail (about 2,000 receivers), because the cache keeps tails
_OBJECT_ID: Final = bson.encode({"": bson.ObjectId()})[:6]  # the bytes before the id; a zero byte follows the id


class Call(IntEnum):
    """The signal that a write of the ODM fires. The server's event does not distinguish `save` and `update`."""

    CREATED = 1
    SAVED = 2
    UPDATED = 3
    DELETED = 4


class Claim(NamedTuple):
    """The claim of a process to some of the receivers of a write, see `mongoz/claims`.

    Attributes:
        incarnation: eight random bytes, which identify the book of claims.
        number: the number of the claim in this book.
        receivers: ids of the claimed receivers. If the process dies, a dispatcher takes them over.
    """

    incarnation: bytes
    number: int
    receivers: frozenset[bytes]


class Stamp(NamedTuple):
    """One write's origin.

    Attributes:
        group: the group of dispatchers (`Registry(dispatched="group")`).
        call: the signal that the write fires.
        token: the id of this write; in process it is the `delivery.id`.
        key: `key_hash` of the written document.
        receivers: ids of the receivers that the writing process runs.
        muted: this write must not be delivered.
        hops: for a write by a receiver in a dispatcher, one more than the hops of the change that the receiver
            got; 0 for other writes.
        claim: the claim to some of the receivers, or None.
        context: the context of the write as JSON, see `context_of`; "" for a write without one. The stamps of
            muted writes have none, because no receiver would get it.
    """

    group: str
    call: Call
    token: bson.ObjectId
    key: bytes
    receivers: frozenset[bytes] = frozenset()
    muted: bool = False
    hops: int = 0
    claim: Claim | None = None
    context: str = ""

    def pack(self) -> Binary:
        """The stamp as it is stored.

        Raises:
            ValueError: the group's name is longer than 255 bytes.
        """
        context, hops = b"", self.hops
        if self.context and not self.muted:
            context, hops = packed_context(self.context, hops), 0
        if self.claim is None:
            form = form_of(self.group, self.call, self.receivers, self.muted, hops)
            return form.filled(self.token.binary, self.key, context)
        incarnation, number, claimed = self.claim
        form = claiming_form(self.group, self.call, self.receivers, claimed)
        return form.filled(self.token.binary, self.key, context + incarnation + number.to_bytes(8, "big"))

    @classmethod
    def unpack(cls, value: object) -> "Stamp | None":
        """Read a stored stamp; None if it is unreadable: garbage, a later version, another type.

        A change with an unreadable stamp must be delivered.
        """
        if not isinstance(value, bytes) or len(value) < _FIXED:
            return None
        listed, end, claim, context, hops_of_context = _FIXED + value[23], len(value), None, "", 0
        has_claim = value[2] == _RECEIVERS and value.startswith(_CLAIMED, listed)
        if has_claim:
            end -= _NUMBERED
            if end < listed + _OPENING:
                return None
        tail = value[23:end]
        if value[2] == _RECEIVERS and value[max(listed, end - 8) : end - 3] == _CONTEXT:
            found = _unpacked_context(value[listed:end])
            if found is None:
                return None
            ids, context, hops_of_context = found
            tail = value[23:listed] + ids
        common = None if len(tail) > _LONGEST else _read_common(value[:3], tail)
        if common is None:
            return None
        group, call, receivers, muted, hops, claimed = common
        if claimed is not None:
            claim = Claim(value[end : end + 8], int.from_bytes(value[end + 8 :], "big"), claimed)
        token, hops = bson.ObjectId(value[3:15]), hops or hops_of_context
        return cls(group, call, token, value[15:23], receivers, muted, hops, claim, context)


class Form(NamedTuple):
    """The common parts of the stamps of many writes.

    Attributes:
        head: the bytes before the token.
        tail: the bytes after the key.
    """

    head: bytes
    tail: bytes

    def filled(self, token: bytes, key: bytes, rest: bytes = b"") -> Binary:
        """The stored stamp of one write.

        Args:
            token: the token of the write.
            key: `key_hash` of the written document.
            rest: the packed context, if the write has one; then incarnation and number, if the form claims
                receivers.
        """
        return Binary(self.head + token + key + self.tail + rest, USER_DEFINED_SUBTYPE)


@lru_cache(maxsize=_KEPT_FORMS)
def form_of(group: str, call: Call, receivers: frozenset[bytes], muted: bool, hops: int) -> Form:
    """The form of stamps with these attributes; see `Stamp`.

    Raises:
        ValueError: the group's name is longer than 255 bytes.
    """
    kind, rest = _RECEIVERS, b"".join(sorted(receivers))
    if muted:
        kind, rest = _MUTED, b""
    elif hops:
        kind, rest = _HOPS, bytes((min(hops, 255),))
    return _form(group, call, kind, rest)


@lru_cache(maxsize=_KEPT_FORMS)
def claiming_form(group: str, call: Call, receivers: frozenset[bytes], claimed: frozenset[bytes]) -> Form:
    """The form of stamps that claim some of the receivers.

    Args:
        group: as in `Stamp`.
        call: as in `Stamp`.
        receivers: all receivers that the process runs.
        claimed: the receivers among them that the process claims.

    Raises:
        ValueError: the group's name is longer than 255 bytes.
    """
    hidden = b"".join(sorted(claimed)).translate(_INVERTED)
    opening = _CLAIMED + len(claimed).to_bytes(2, "big")
    return _form(group, call, _RECEIVERS, opening + hidden + b"".join(sorted(receivers - claimed)))


def _form(group: str, call: Call, kind: int, rest: bytes) -> Form:
    name = group.encode()
    if len(name) > 255:
        raise ValueError(f"a group's name has at most 255 bytes, {group!r} has {len(name)}")
    return Form(bytes((_VERSION, call, kind)), bytes((len(name),)) + name + rest)


class _Common(NamedTuple):
    """The attributes that the stamps of many writes have in common; except for `claimed`, they are as in `Stamp`.

    Attributes:
        claimed: the claimed receivers; None if the stamp has no claim.
    """

    group: str
    call: Call
    receivers: frozenset[bytes] = frozenset()
    muted: bool = False
    hops: int = 0
    claimed: frozenset[bytes] | None = None


@lru_cache(maxsize=_KEPT_FORMS)
def _read_common(head: bytes, tail: bytes) -> _Common | None:
    """Undo `_form`; None if these are not the bytes of a stamp.

    Args:
        head: the bytes before the token.
        tail: the bytes after the key, without context, incarnation and number.
    """
    version, called, kind = head
    end = 1 + tail[0]
    rest = tail[end:]
    if version != _VERSION or end > len(tail):
        return None
    try:
        common = _Common(tail[1:end].decode(), Call(called))
    except ValueError:
        return None
    if kind == _RECEIVERS:
        return _with_receivers(common, rest)
    if kind == _MUTED and not rest:
        return common._replace(muted=True)
    return common._replace(hops=rest[0]) if kind == _HOPS and len(rest) == 1 else None


def _with_receivers(common: _Common, rest: bytes) -> _Common | None:
    if len(rest) % 8:
        return None
    if not rest.startswith(_CLAIMED):
        return common._replace(receivers=_ids_in(rest))
    end = _OPENING + 8 * int.from_bytes(rest[len(_CLAIMED) : _OPENING], "big")
    if len(rest) < end:
        return None
    claimed = _ids_in(rest[_OPENING:end].translate(_INVERTED))
    return common._replace(receivers=claimed | _ids_in(rest[end:]), claimed=claimed)


def _ids_in(listed: bytes) -> frozenset[bytes]:
    return frozenset(listed[i : i + 8] for i in range(0, len(listed), 8))


def packed_context(context: str, hops: int) -> bytes:
    """The bytes of a context in a stamp. Each call returns other bytes, because the salt is random.

    Args:
        context: the values as JSON; at most 65,535 bytes.
        hops: the hops of the write.
    """
    text, salt = context.encode(), os.urandom(8)
    end = _CONTEXT + bytes((min(hops, 255),)) + len(text).to_bytes(2, "big")
    return _salted(text + bytes(-len(text) % 8), salt) + salt + end


def _unpacked_context(listed: bytes) -> tuple[bytes, str, int] | None:
    """Read the context at the end of a list of ids.

    Returns:
        The ids before the context, the context, and the hops; None if the context is not readable.
    """
    size = int.from_bytes(listed[-2:], "big")
    begin, end = len(listed) - _CONTEXT_END - size - -size % 8, len(listed) - _CONTEXT_END
    if begin < 0:
        return None
    try:
        context = _salted(listed[begin:end], listed[end : end + 8])[:size].decode()
    except ValueError:
        return None
    return None if context_of(context) is None else (listed[:begin], context, listed[-3])


def _salted(text: bytes, salt: bytes) -> bytes:
    """Combine each 8 bytes of a text with the salt. A second call with the result returns the text."""
    combined = int.from_bytes(text, "big") ^ int.from_bytes(salt * (len(text) // 8), "big")
    return combined.to_bytes(len(text), "big")


@lru_cache(maxsize=_KEPT_CONTEXTS)
def context_of(context: str) -> ContextValues | None:
    """The values of a context, read-only.

    Args:
        context: the values as JSON. Any client may have written it.

    Returns:
        The values; None for "" and for a text that is no JSON object of strings, integers and booleans.
    """
    try:
        values = json.loads(context)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not all(isinstance(value, str | int) for value in values.values()):
        return None
    return MappingProxyType(values)


def key_hash(namespace: str, id_: object, codec_options: CodecOptions[Any] = KEY_CODEC) -> bytes:
    """Eight bytes that identify one document. A stamp with the key of another document is a copy.

    Args:
        namespace: `"database.collection"`.
        id_: the `_id`, of any type that can be encoded.
        codec_options: the options for encoding. The default is enough for an `_id` that the driver decoded.
    """
    if isinstance(id_, bson.ObjectId):  # the most frequent type, encoded here for a quarter of the cost
        encoded = _OBJECT_ID + id_.binary + b"\0"
    else:
        encoded = canonical(id_, codec_options)
    hashed = _hash_of(namespace).copy()
    hashed.update(encoded)
    return hashed.digest()


@lru_cache(maxsize=_KEPT_FORMS)
def _hash_of(namespace: str) -> blake2b:
    """The hash of a namespace, to be copied and continued with a key."""
    return blake2b(namespace.encode(), digest_size=8)


def receiver_id(parts: Iterable[str]) -> bytes:
    """Eight bytes that identify one receiver by its sender, its signal and its name."""
    return blake2b("\0".join(parts).encode(), digest_size=8).digest()
