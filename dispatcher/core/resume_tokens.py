"""Converts resume tokens to texts and to short hashes.

A token holds the `_id` of the document, and may be a megabyte long. The document of a position also records the
finished changes after the position, as hashes of their tokens: ten bytes each.
"""

from bisect import bisect_left
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from bson.timestamp import Timestamp

from dispatcher.exceptions import PositionError

_BITS: Final = "."
_TIMESTAMP_TAG: Final = "82"

# Maximum characters of a shortened token: a key of several hundred bytes fits.
_SHORT: Final = 1_000

# Sorts after the digits of tokens.
_LAST: Final = "~"

DIGEST: Final = 10
"""Number of bytes in the hash of a token.

A million hashes fit into a document. If two changes had the same hash, one of the changes could be skipped. For a
million changes, the probability of this is one in a million millions.
"""


def token_of(id_: Mapping[str, Any]) -> str:
    """The text of a resume token. Texts sort in the order of their changes.

    Args:
        id_: the token as the server sent it: the `_id` of an event, or the token after a batch.

    If the `_id` of a document holds numbers that are not 32-bit integers, the server needs their types to find the
    change again, and sends them beside the data.
    """
    bits = id_.get("_typeBits")
    return str(id_["_data"]) if bits is None else f"{id_['_data']}{_BITS}{bytes(bits).hex().upper()}"


def token_time(token: str) -> Timestamp:
    """The cluster time inside a resume token.

    A token starts with the tag of a timestamp and its eight bytes. The token after a batch also
    has a time, but maybe not the time of a change.

    Raises:
        PositionError: the text does not look like a token.
    """
    try:
        if not token.startswith(_TIMESTAMP_TAG):
            raise ValueError(token)
        return Timestamp(int(token[2:10], 16), int(token[10:18], 16))
    except ValueError as error:
        raise PositionError(
            f"{token!r} in the saved position is no resume token.",
            remedy="Was it edited by hand? Delete the position's document while no dispatcher runs. The next "
            "start then begins at the present time.",
        ) from error


def token_at(time: Timestamp) -> str:
    """A text that sorts before the tokens of all changes of a cluster time: their common beginning."""
    return f"{_TIMESTAMP_TAG}{time.time:08X}{time.inc:08X}"


def time_after(token: str) -> str:
    """The shortest text that sorts after the tokens of all changes of the same cluster time."""
    return f"{token[:18]}FF"


def as_sent(token: str) -> dict[str, Any]:
    """The resume token for the server."""
    data, _, bits = token.rstrip(_BITS).partition(_BITS)
    return {"_data": data, "_typeBits": bytes.fromhex(bits)} if bits else {"_data": data}


def directly_after(token: str) -> str:
    """A text that sorts after a token, and before the tokens of all later changes.

    No change has this text as its token, because no token begins with another one. `as_sent` makes the same resume
    token from both.
    """
    return f"{token}{_BITS}"


def shortened(token: str) -> str:
    """The beginning of a token: at most `_SHORT` characters. Among other tokens, it sorts like the whole token.

    The time of a token, and the place in its transaction, precede the document's key. So tokens differ before the
    part that this function leaves out.
    """
    return token[:_SHORT]


def after_shortened(token: str) -> str:
    """Like `directly_after`, for a token that is shortened first: at most `_SHORT` + 1 characters."""
    return directly_after(token) if len(token) <= _SHORT else f"{token[:_SHORT]}{_LAST}"


def data_of(token: str) -> str:
    """A token without types. Ids and hashes are made from it, as in earlier versions, which knew no types."""
    return token.partition(_BITS)[0]


def digest_of(token: str) -> bytes:
    """The hash of a token."""
    return blake2b(data_of(token).encode(), digest_size=DIGEST).digest()


def split(digests: bytes) -> list[bytes]:
    """The hashes, one by one."""
    return [digests[i : i + DIGEST] for i in range(0, len(digests), DIGEST)]


def holds(digests: bytes, digest: bytes) -> bool:
    """Returns whether a hash is among sorted hashes."""
    at = bisect_left(range(len(digests) // DIGEST), digest, key=lambda i: digests[i * DIGEST : (i + 1) * DIGEST])
    return digests[at * DIGEST : (at + 1) * DIGEST] == digest
