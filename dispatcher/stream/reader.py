"""Converts the events of a source to changes: decodes, checks stamps, looks up documents, joins delete markers."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from bson.codec_options import CodecOptions

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import Change, EventBatch
from dispatcher.core.undecodable import Undecodable
from dispatcher.stream.decode import decode, decoded_together
from dispatcher.stream.delete_markers import FINISHED_MARKER, DeleteMarkers
from dispatcher.stream.layout import EventLayouts
from dispatcher.stream.lookup import DocumentLookup
from dispatcher.stream.origins import Origins
from dispatcher.stream.scope import Scope
from dispatcher.stream.source import Source

# Number of events that are decoded together: enough to share a lookup, but too few to block the event loop.
_CHUNK: Final = 100


class UnreadableEvent(NamedTuple):
    """An event that can't be decoded.

    Attributes:
        error: the reason; it contains the token.
    """

    event: bytes
    error: Undecodable


class LostEvent(NamedTuple):
    """An event that can't be read. It lies between two tokens.

    Attributes:
        why: the reason, for people.
    """

    after: str
    before: str
    why: str


class Reader:
    """Reads the batches of one source, in their order.

    Args:
        is_finished: returns whether an earlier process has finished the change with this token.
        may_be_finished: returns whether `is_finished` can still be true for a later event. Called for each part of
            a batch, so that most changes need no check of their own.
        scope: the watched collections, if the source also has events of other collections; otherwise None.
    """

    def __init__(
        self,
        source: Source,
        images: DocumentLookup,
        *,
        group: str,
        codec_options: CodecOptions[Any],
        is_finished: Callable[[str], bool] = lambda _token: False,
        may_be_finished: Callable[[], bool] = lambda: True,
        scope: Scope | None = None,
    ) -> None:
        self._source = source
        self._images = images
        self._codec_options = codec_options
        self._is_finished = is_finished
        self._may_be_finished = may_be_finished
        self._scope = scope
        self._origins = Origins(group, paired=source.pairs_deletes)
        self._markers = DeleteMarkers()
        self._layouts = EventLayouts()

    async def recall(self, before: str) -> None:
        """Read the stamps of the last writes before a position: later events may contain copies of them."""
        self._origins.since = await self._source.recall(before, self._origins.remember)

    def skip_to(self, time: float) -> None:
        """Record that the stamps of all writes before a time, in seconds since 1970, are unknown."""
        self._origins.since = time

    async def read(self, batch: EventBatch) -> AsyncGenerator[list[Change] | UnreadableEvent | LostEvent]:
        """Read a batch in parts, in the order of the stream. For markers see `DeleteMarkers.settle`."""
        if batch.lost_after is not None:
            yield LostEvent(batch.lost_after, batch.token, batch.lost_why)
        for i in range(0, len(batch.events), _CHUNK):
            for part in self._decoded(batch.events[i : i + _CHUNK]):
                if isinstance(part, UnreadableEvent):
                    yield part
                    continue
                async for changes in self._images.complete(part):
                    yield self._markers.settle(changes)
        if self._markers and not batch.events:
            yield self._markers.give_up()

    def rest(self) -> list[Change]:
        """At the end of reading: the changes that still wait for a delete, see `DeleteMarkers`."""
        return self._markers.give_up()

    def _decoded(self, events: Sequence[RawEvent]) -> Iterator[list[Change] | UnreadableEvent]:
        changes: list[Change] = []
        may_be_finished = self._may_be_finished()
        for event, found in zip(events, decoded_together(events, self._codec_options, self._layouts), strict=True):
            try:
                change = found if isinstance(found, Change) else decode(event, self._codec_options, found)
            except Undecodable as error:
                if not self._is_finished(error.token):
                    yield changes
                    yield UnreadableEvent(event.raw, error)
                    changes = []
                continue
            if self._scope is not None and not self._scope.concerns(change.operation, change.namespace):
                changes.append(change._replace(operation="elsewhere"))
                continue
            if change.stamp is not None:  # `judge` must see each stamp once, even if the change is finished
                change = self._origins.judge(change)
            if may_be_finished and self._is_finished(change.token):
                marker = change.operation == "marker"
                change = change._replace(operation=FINISHED_MARKER if marker else "finished")
            changes.append(change)
        yield changes
