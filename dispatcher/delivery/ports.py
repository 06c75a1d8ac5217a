"""Protocols for the services that deliveries need from the packages above this one."""

import asyncio
from collections.abc import Set
from typing import Any, Protocol

from dispatcher.core.events import Calls, Change
from dispatcher.core.retry import Pause
from dispatcher.delivery.outcome import Again, Failure, Waiting
from mongoz.signals.receivers import Receiver


class HeldDeliveries(Protocol):
    """The deliveries of one stream that wait in the database."""

    @property
    def watched(self) -> Set[str]:
        """The names of receivers whose next delivery may have to wait. Nearly always empty."""

    def is_paused(self, name: str) -> bool:
        """Whether an operator paused a receiver."""

    async def holds(self, change: Change, calls: Calls, receiver: Receiver) -> bool:
        """Whether a delivery must wait after others. If it must, this writes it to the database."""

    async def park(
        self,
        change: Change,
        calls: Calls,
        receiver: Receiver,
        waiting: Waiting,
        *,
        behind: "asyncio.Task[Any] | None" = None,
    ) -> None:
        """Write a delivery that waits. When this returns, it survives a failover.

        Args:
            behind: the task of the last attempt, if it still runs. The next attempt begins after its end.
        """


class DeadLetters(Protocol):
    """The store of dead letters."""

    async def keep_delivery(
        self,
        change: Change,
        calls: Calls,
        receiver: Receiver,
        failure: Failure,
        again: Again | None,
        *,
        term: int,
        pause: Pause,
    ) -> None:
        """Write a dead letter. When this returns, it survives a failover.

        Args:
            again: the dead letter that this delivery repeats; the new one replaces it.
            pause: waits between attempts to write.
        """

    async def keep_event(self, event: bytes, token: str, failure: Failure, *, term: int) -> None:
        """Write the dead letter of a change event that can't be decoded."""


class SessionRegister(Protocol):
    """The server sessions in which this process opens transactions."""

    async def announce(self, session: Any) -> None:
        """Register a session, so that others can end its transaction if this process dies.

        Raises:
            PyMongoError: the command failed.
        """
