"""The interface of a source of change events."""

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from bson.timestamp import Timestamp

from dispatcher.core.events import EventBatch, Start
from dispatcher.core.stats import TopicGauges
from mongoz.stamps import Stamp

RememberStamp = Callable[[Stamp | None, Any], object]
"""Takes two values of an event: its stamp (None if it is not readable), and its wall time."""


class Source(Protocol):
    """Change events of one partition, in the order of their tokens.

    A position is a text, and positions are ordered as texts.

    Attributes:
        batch_size: maximum number of events per batch, from the next batch on.
        pairs_deletes: whether a delete has the stamp of its marker, see `StampedDelete`.
    """

    batch_size: int
    pairs_deletes: bool

    @property
    def name(self) -> str:
        """The name of the source, for messages."""

    @property
    def connected(self) -> bool:
        """Returns whether the source is open and answers."""

    def topic_gauges(self) -> TopicGauges | None:
        """The current gauges of the topic; None if the source is no topic."""

    async def now(self) -> Start:
        """The present position: all later changes can be read from it. The result has a token."""

    def time_of(self, position: str) -> Timestamp:
        """The cluster time of a position."""

    def batches(self, start: Start) -> AsyncGenerator[EventBatch]:
        """Read the events after `start`, without an end. An idle source yields an empty batch about once a second.

        If the source breaks, it opens itself again after the last batch.

        Raises:
            HistoryLost: the source does not hold the changes after `start` any more.
            DispatcherError: an error is permanent.
        """

    async def recall(self, before: str, remember: RememberStamp) -> float:
        """Read the stamps of the last writes before a position, and pass them to `remember`.

        The last `HORIZON` seconds before the position are enough, see `stream/origins.py`: a copy of an older
        stamp never counts as an original.

        Args:
            before: the position.
            remember: called with each stamp.

        Returns:
            A time in seconds since 1970. All stamps from this time on were read.
        """
