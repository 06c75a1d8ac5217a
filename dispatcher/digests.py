"""Hashes of resume tokens: of changes that are finished, though the position is still before them.

A token holds the document's `_id`, and may be a megabyte long. That it was seen before takes ten bytes.
"""

from bisect import bisect_left
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

__all__ = ["DIGEST", "digest_of", "digests_of", "holds", "split"]

DIGEST: Final = 10
"""Bytes of the hash of a token.

A million of them fit into a document. That one of a million changes has the hash of another one, and is skipped,
is as likely as one in a million millions.
"""


def digest_of(token: str) -> bytes:
    """The hash of a token."""
    return blake2b(token.encode(), digest_size=DIGEST).digest()


def digests_of(tokens: Iterable[str]) -> bytes:
    """Hashes of tokens, in order, to look them up."""
    return b"".join(sorted({digest_of(token) for token in tokens}))


def split(digests: bytes) -> list[bytes]:
    """One by one."""
    return [digests[i : i + DIGEST] for i in range(0, len(digests), DIGEST)]


def holds(digests: bytes, digest: bytes) -> bool:
    """Whether a hash is among others, which are in order."""
    at = bisect_left(range(len(digests) // DIGEST), digest, key=lambda i: digests[i * DIGEST : (i + 1) * DIGEST])
    return digests[at * DIGEST : (at + 1) * DIGEST] == digest
