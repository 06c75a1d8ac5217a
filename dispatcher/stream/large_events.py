"""Events that are larger than the 16 MB which the server can send: the shapes in which they still can be had.

The server fails as soon as it comes to such an event, and none of the events before it in the batch arrives. So it
is gone up to it one by one, and then it alone is asked for: in fragments, where the server can split it, else with
fewer images, and with nothing but its key at last.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import bson

from dispatcher.core.bson_codec import RawEvent, Undecoded
from dispatcher.core.bson_elements import elements
from dispatcher.core.bson_elements import joined as document_of
from dispatcher.core.events import Batch
from dispatcher.core.partitions import HASH
from dispatcher.core.resume_tokens import token_of
from dispatcher.stream.cursor import Shape

__all__ = ["SINGLY", "SMALLER", "SPLIT", "WHOLE", "WITHOUT", "joined"]

_IMAGES: Final = {"fullDocument": "whenAvailable", "fullDocumentBeforeChange": "whenAvailable"}

WHOLE: Final = Shape(_IMAGES)
"""As events are asked for nearly always."""

SINGLY: Final = Shape(_IMAGES, size=1)
"""One by one."""

SPLIT: Final = Shape(_IMAGES, ({"$changeStreamSplitLargeEvent": {}},), size=1)
"""In fragments. It needs 6.0.9 or 7.0, and every single field must fit into one."""

_KEY: Final = dict.fromkeys(
    ("operationType", "clusterTime", "wallTime", "ns", "documentKey", "lsid", "txnNumber", HASH), 1
)

# Characters of a token that holds the document's key: it must be longer than that where nothing of all can be had.
_LONG_TOKEN: Final = 2_000_000

WITHOUT: Final = Shape(
    _IMAGES, ({"$match": {"$expr": {"$lt": [{"$strLenBytes": "$_id._data"}, _LONG_TOKEN]}}},), size=1
)
"""Without the events that can't be had at all: even their token is too large."""

# Of two events the first one is taken. Beside a single one the server sends its token once more.
SMALLER: Final = {
    "without the pre image": Shape({"fullDocument": "whenAvailable"}, size=2),
    "without images": Shape({}, size=2),
    "with its key only": Shape({}, ({"$project": _KEY},), size=2),
}
"""What can be had of an event, one after another."""

# What fragments end with that were numbered zero; the token of the event as a whole lacks the number.
_FIRST: Final = "2904"
_END: Final = "04"


async def joined(batches: AsyncGenerator[Batch]) -> AsyncGenerator[Batch]:
    """Events that were split as one again; ends behind a batch that is not in need of that, and closes the others.

    The tokens of fragments are of no use to a stream that does not split, so that the event gets the token that it
    has there.
    """
    fragments: list[Undecoded] = []
    async with aclosing(batches):
        async for batch in batches:
            if not batch.events and not fragments:
                return
            for event in batch.events:  # it is one at most
                if "splitEvent" not in event:
                    yield batch
                    return
                fragments.append(event)
                if event["splitEvent"]["fragment"] == event["splitEvent"]["of"]:
                    whole = _as_one(fragments)
                    fragments = []
                    yield Batch([whole], token_of(whole["_id"]))


def _whole(token: str) -> str:
    """The token of an event, from that of its first fragment."""
    if not token.endswith(_FIRST):
        raise ValueError(f"{token!r} is no token of a first fragment")
    return token[: -len(_FIRST)] + _END


def _as_one(fragments: list[Undecoded]) -> RawEvent:
    """One event. What clients wrote is not decoded: maybe it can't be."""
    parts = {one.name: one for fragment in fragments for one in elements(bytes(fragment.raw))}
    del parts[b"splitEvent"]
    token = {"_id": {"_data": _whole(str(fragments[0]["_id"]["_data"]))}}
    parts[b"_id"] = next(elements(bson.encode(token)))
    return RawEvent(document_of(*parts.values()))
