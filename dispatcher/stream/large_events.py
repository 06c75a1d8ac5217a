"""Reads events that are larger than 16 MB, in the shapes in which the server can still send them.

The server fails when it reaches such an event. Then it also does not send the earlier events of the same batch.
So the events before the large event are read one by one. Then the large event is requested alone: in fragments,
if the server can split it; otherwise with fewer images; and finally with its key only.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import bson

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.bson_elements import elements
from dispatcher.core.bson_elements import joined as document_of
from dispatcher.core.events import EventBatch
from dispatcher.core.partitions import HASH
from dispatcher.core.resume_tokens import token_of
from dispatcher.stream.cursor import EventShape

_IMAGES: Final = {"fullDocument": "whenAvailable", "fullDocumentBeforeChange": "whenAvailable"}

WHOLE: Final = EventShape(_IMAGES)
"""The usual shape."""

SINGLY: Final = EventShape(_IMAGES, size=1)
"""One event per round trip."""

SPLIT: Final = EventShape(_IMAGES, ({"$changeStreamSplitLargeEvent": {}},), size=1)
"""Each event in fragments. This needs MongoDB 6.0.9 or 7.0, and every field must fit into a fragment."""

_KEY: Final = dict.fromkeys(
    ("operationType", "clusterTime", "wallTime", "ns", "documentKey", "lsid", "txnNumber", HASH), 1
)

# Maximum characters of a token, which contains the document's key. An event with a longer token can't be sent.
_LONG_TOKEN: Final = 2_000_000

WITHOUT: Final = EventShape(
    _IMAGES, ({"$match": {"$expr": {"$lt": [{"$strLenBytes": "$_id._data"}, _LONG_TOKEN]}}},), size=1
)
"""Skips the events that can't be sent in any shape: even their token is too large."""

# With a size of one, the token of the batch would be the token of the event, so the server would send this long
# token twice. Therefore the size is two, and only the first event is used.
SMALLER: Final = {
    "without the pre image": EventShape({"fullDocument": "whenAvailable"}, size=2),
    "without images": EventShape({}, size=2),
    "with its key only": EventShape({}, ({"$project": _KEY},), size=2),
}
"""Shapes with fewer and fewer fields of an event, in the order in which they are tried."""

# The end of the token of a first fragment contains the fragment's number. A whole event's token has no number.
_FIRST: Final = "2904"
_END: Final = "04"


async def joined(batches: AsyncGenerator[EventBatch]) -> AsyncGenerator[EventBatch]:
    """Join the fragments of events, up to the first event without fragments. Then close `batches`.

    A stream that does not split events can't resume from the token of a fragment. So a joined event gets the token
    that it has in a stream that does not split events.
    """
    fragments: list[RawEvent] = []
    async with aclosing(batches):
        async for batch in batches:
            if not batch.events and not fragments:
                return
            for event in batch.events:  # one event at most
                if "splitEvent" not in event:
                    yield batch
                    return
                fragments.append(event)
                if event["splitEvent"]["fragment"] == event["splitEvent"]["of"]:
                    whole = _as_one(fragments)
                    fragments = []
                    yield EventBatch([whole], token_of(whole["_id"]))


def _whole(token: str) -> str:
    """The token of an event, from the token of its first fragment."""
    if not token.endswith(_FIRST):
        raise ValueError(f"{token!r} is not the token of a first fragment")
    return token[: -len(_FIRST)] + _END


def _as_one(fragments: list[RawEvent]) -> RawEvent:
    """Join the fragments of one event. The documents are not decoded, because they may be undecodable."""
    parts = {one.name: one for fragment in fragments for one in elements(fragment.raw)}
    del parts[b"splitEvent"]
    token = {"_id": {"_data": _whole(str(fragments[0]["_id"]["_data"]))}}
    parts[b"_id"] = next(elements(bson.encode(token)))
    return RawEvent(document_of(*parts.values()))
