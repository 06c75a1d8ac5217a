"""Events over the 16 MB that the server can send, and the shapes in which it can still send them.

The server fails when it comes to such an event, and sends none of the events before it in the batch. So the events
before it are read one by one, and then it alone is requested: in fragments, where the server can split it, else
with fewer images, at last with nothing but its key.
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
from dispatcher.stream.cursor import EventShape

_IMAGES: Final = {"fullDocument": "whenAvailable", "fullDocumentBeforeChange": "whenAvailable"}

WHOLE: Final = EventShape(_IMAGES)
"""The usual shape."""

SINGLY: Final = EventShape(_IMAGES, size=1)
"""One event per round trip."""

SPLIT: Final = EventShape(_IMAGES, ({"$changeStreamSplitLargeEvent": {}},), size=1)
"""In fragments. This needs MongoDB 6.0.9 or 7.0, and every field must fit into a fragment."""

_KEY: Final = dict.fromkeys(
    ("operationType", "clusterTime", "wallTime", "ns", "documentKey", "lsid", "txnNumber", HASH), 1
)

# Characters of a token, which holds the document's key: events that can't be sent in any shape have a longer one.
_LONG_TOKEN: Final = 2_000_000

WITHOUT: Final = EventShape(
    _IMAGES, ({"$match": {"$expr": {"$lt": [{"$strLenBytes": "$_id._data"}, _LONG_TOKEN]}}},), size=1
)
"""Without the events that can't be sent in any shape: even their token is too large."""

# Of two events the first one is used. With a single event the server would send its token twice.
SMALLER: Final = {
    "without the pre image": EventShape({"fullDocument": "whenAvailable"}, size=2),
    "without images": EventShape({}, size=2),
    "with its key only": EventShape({}, ({"$project": _KEY},), size=2),
}
"""Shapes with less and less of an event, in the order in which they are tried."""

# The end of the tokens of first fragments, which holds their number; the token of the whole event has no number.
_FIRST: Final = "2904"
_END: Final = "04"


async def joined(batches: AsyncGenerator[Batch]) -> AsyncGenerator[Batch]:
    """Join the fragments of events; ends after the first event that is whole, and closes `batches`.

    A stream that does not split can't resume from the token of a fragment, so the event gets the token that it has
    in such a stream.
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
    """One event of its fragments. Its documents are not decoded, as perhaps they can't be."""
    parts = {one.name: one for fragment in fragments for one in elements(bytes(fragment.raw))}
    del parts[b"splitEvent"]
    token = {"_id": {"_data": _whole(str(fragments[0]["_id"]["_data"]))}}
    parts[b"_id"] = next(elements(bson.encode(token)))
    return RawEvent(document_of(*parts.values()))
