"""What the dispatcher needs of a source of change events."""

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from bson.timestamp import Timestamp

from dispatcher.core.events import Batch, Start
from mongoz.stamps import Stamp

Saw = Callable[[Stamp | None, Any], object]
"""Takes a stamp, if it is readable, and the wall time of its event."""


class Source(Protocol):
    """Change events of one partition, in the order of their tokens.

    A position is a text, and positions sort as texts.

    Attributes:
        batch_size: events per batch, at most, from the next one on.
    """

    batch_size: int

    @property
    def connected(self) -> bool:
        """Whether the source is open, and answers."""

    async def now(self) -> str:
        """The position of this moment: all later changes can be read from it."""

    def time_of(self, position: str) -> Timestamp:
        """The cluster time of a position."""

    def batches(self, start: Start) -> AsyncGenerator[Batch]:
        """The events after `start`, without an end; an idle source has an empty batch about once a second.

        The source opens itself again whenever it breaks, after the last batch.

        Raises:
            HistoryLost: the source does not hold the changes after `start` any more.
            DispatcherError: an error is permanent.
        """

    async def recall(self, before: str, saw: Saw) -> float:
        """Show the stamps of the last writes before a position, as far back as copies of them may still count.

        Args:
            before: the position.
            saw: is called with each.

        Returns:
            The time from which on it saw all stamps, in seconds since 1970.
        """
