"""Protocols for the services that deliveries need from the packages above this one."""

import asyncio
from collections.abc import Set
from typing import Any, Final, Protocol

from dispatcher.core.events import Calls, Change, Job
from dispatcher.core.retry import Pause
from dispatcher.delivery.attempt import Attempt, HeldDelivery
from dispatcher.delivery.outcome import Decision, Failure, RetriedLetter, Waiting
from mongoz.signals.receivers import Receiver


class HeldDeliveries(Protocol):
    """The deliveries of one stream that wait in the database."""

    @property
    def watched(self) -> Set[str]:
        """The names of receivers whose next delivery may have to wait. Nearly always empty."""

    def is_paused(self, name: str) -> bool:
        """Returns whether an operator paused a receiver."""

    async def holds(self, change: Change, calls: Calls, receiver: Receiver) -> bool:
        """Write a delivery to the database if it must wait for other deliveries. Returns whether it must wait."""

    async def park(
        self,
        change: Change,
        calls: Calls,
        receiver: Receiver,
        waiting: Waiting,
        *,
        after: "asyncio.Task[Any] | None" = None,
    ) -> None:
        """Write a delivery that waits. After this call, the delivery survives a failover.

        Args:
            after: the task of the last attempt, if it still runs. The next attempt waits for the end of the task.
        """


class OpenClaims(Protocol):
    """The undecided claims of writing processes."""

    def defers(self, job: Job, change: Change, calls: Calls, receiver: Receiver) -> bool:
        """Let a delivery wait if an earlier delivery of the same document to the same receiver waits.

        Returns:
            Whether the delivery waits.
        """


class _NoClaims:
    def defers(self, job: Job, change: Change, calls: Calls, receiver: Receiver) -> bool:  # noqa: ARG002
        return False


NO_CLAIMS: Final[OpenClaims] = _NoClaims()
"""No claims: `defers` lets no delivery wait."""


class _Gathered(Exception):
    """The delivery waits for its batch."""


GATHERED: Final = _Gathered()
"""The result of `BatchGate.gather`. It is neither a success nor a failure."""


class BatchGate(Protocol):
    """Gathers the deliveries of batch receivers."""

    async def gather(self, attempt: Attempt) -> BaseException:
        """Let a delivery wait for its batch. This wait becomes a separate part of the job of the delivery.

        The job goes on with its other receivers, and ends when all its parts have ended.

        Returns:
            `GATHERED`.
        """

    async def deliver_alone(self, held: HeldDelivery) -> Decision:
        """Make one attempt at a delivery that waited in the database, as a batch of one event."""


class DeadLetters(Protocol):
    """The store of dead letters."""

    async def keep_delivery(
        self,
        change: Change,
        calls: Calls,
        receiver: Receiver,
        failure: Failure,
        retried: RetriedLetter | None,
        *,
        term: int,
        pause: Pause,
    ) -> None:
        """Write a dead letter. After this call, the dead letter survives a failover.

        Args:
            retried: the dead letter that this delivery repeats; the new dead letter replaces it. None if the
                delivery repeats no dead letter.
            pause: waits between attempts to write.
        """

    async def keep_event(self, event: bytes, token: str, failure: Failure, *, term: int) -> None:
        """Write the dead letter of a change event that can't be decoded."""


class SessionRegister(Protocol):
    """The server sessions in which this process opens transactions."""

    async def announce(self, session: Any) -> None:
        """Register a session, so that other processes can end its transaction if this process dies.

        Raises:
            PyMongoError: the command failed.
        """
