"""Protocols for the services that batches need from the packages above this one."""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from dispatcher.batches.gathering import GatheredDelivery
from dispatcher.delivery.outcome import Waiting


class HeldSource(Protocol):
    """The source of deliveries that waited in the database."""

    async def settle(
        self,
        decided: Sequence[tuple[GatheredDelivery, bool]],
        waits: Sequence[tuple[GatheredDelivery, Waiting]],
        stuck: "asyncio.Task[Any] | None",
    ) -> None:
        """Record the result of a batch.

        Args:
            decided: the deliveries that succeeded (True) or were given up (False). The deliveries of one document
                are in order.
            waits: the deliveries that must wait again, each with its wait. The deliveries of one document are
                in order: the first one waits for its next attempt, and the others follow it.
            stuck: the task of the last attempt if it still runs, otherwise None. The next attempts begin after
                the end of this task.

        Raises:
            Interrupted: the process ends, and the write has not succeeded. The deliveries will be repeated.
        """

    def forget(self, one: GatheredDelivery) -> None:
        """Record that a delivery was not attempted, because an earlier one of its document must wait."""
