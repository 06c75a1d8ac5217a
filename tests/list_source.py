"""A source of change events that reads a list: the minimal source for the dispatcher."""

import asyncio
import datetime
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import bson
from bson import Timestamp

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import EventBatch, Start
from dispatcher.core.resume_tokens import token_at, token_time
from dispatcher.exceptions import AccessDenied, HistoryLost
from dispatcher.stream.source import RememberStamp
from mongoz.stamps import Stamp

__all__ = ["ListSource", "event"]


def event(number: int, operation: str, id_: Any, *, second: int, place: str = "shop.things", **more: Any) -> bytes:
    """An undecoded change event. Events of one second have one cluster time, as in a transaction.

    Args:
        number: its place in the list.
        operation: the operation of the change.
        id_: the `_id` of the document.
        second: the second of the cluster time.
        place: database and collection.
        more: further fields of the event.
    """
    database, _, collection = place.partition(".")
    time = Timestamp(second, 1)
    return bson.encode(
        {
            "_id": {"_data": f"{token_at(time)}2B{number:08X}"},
            "operationType": operation,
            "clusterTime": time,
            "wallTime": datetime.datetime.fromtimestamp(second, datetime.UTC),
            "ns": {"db": database, "coll": collection},
            "documentKey": {"_id": id_},
            **more,
        }
    )


class ListSource:
    """Reads events from a growing list.

    Args:
        events: in order.
        stamps: of earlier writes, with their wall times.
        forgets: whether the source has lost the changes before its first event.

    Attributes:
        requested: the number of requested batches.
        fails_after: the number of batches before the source fails.
    """

    name = "the list"
    pairs_deletes = False

    def __init__(
        self,
        events: Sequence[bytes] = (),
        stamps: Sequence[tuple[Stamp, datetime.datetime]] = (),
        *,
        forgets: bool = False,
    ) -> None:
        self.events = [RawEvent(one) for one in events]
        self.batch_size = 3
        self.connected = False
        self.requested = 0
        self.fails_after: int | None = None
        self._stamps = stamps
        self._forgets = forgets

    def topic_gauges(self) -> None:
        """Return None: there is no topic."""

    async def now(self) -> Start:
        """The token of the last event."""
        return Start(token=token_of(self.events[-1]))

    def time_of(self, position: str) -> Timestamp:
        """The cluster time of a token."""
        return token_time(position)

    async def batches(self, start: Start) -> AsyncGenerator[EventBatch]:
        """The events after `start` in small batches; empty batches at the end."""
        if start.token is not None:
            begin = start.token
        else:
            assert start.cluster_time is not None
            begin = token_at(start.cluster_time)
        if self._forgets and self.events and begin < token_of(self.events[0]):
            raise HistoryLost("The list does not reach back so far.")
        self.connected = True
        while True:
            if self.requested == self.fails_after:
                raise AccessDenied("the list is closed")
            self.requested += 1
            found = [one for one in self.events if token_of(one) > begin][: self.batch_size]
            begin = token_of(found[-1]) if found else begin
            yield EventBatch(found, begin)
            if not found:
                await asyncio.sleep(0.01)

    async def recall(self, before: str, remember: RememberStamp) -> float:
        """Passes all known stamps to `remember`."""
        for stamp, wall_time in self._stamps:
            remember(stamp, wall_time)
        return 0.0


def token_of(one: RawEvent) -> str:
    """The token of an event."""
    return str(one["_id"]["_data"])
