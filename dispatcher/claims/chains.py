"""Undecided claims, and chains of waiting deliveries. No I/O."""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

from dispatcher.core.events import Calls, Change, Job
from mongoz.stamps import Claim


class UndecidedClaim(NamedTuple):
    """An undecided claim that is not in chains, because no later delivery waits for it.

    Its deliveries together are one part of the job.

    Attributes:
        job: the job of the change.
        key: the key of the document.
        since: the time at which the claim began to wait for a decision.
    """

    job: Job
    change: Change
    claim: Claim
    key: Hashable
    since: float


@dataclass(slots=True)
class UndecidedDocument:
    """The undecided claims of one document, while they are not in chains.

    Attributes:
        claims: the claims in the order of the stream.
        receivers: the ids of the claimed receivers. The ids stay here after their claim is done.
    """

    claims: list[UndecidedClaim]
    receivers: frozenset[bytes]


class WaitingPart(NamedTuple):
    """A waiting delivery: one part of a job.

    Attributes:
        job: the job of the change. The job is finished when all its parts are finished.
        calls: the document class, and the receiver of the delivery.
        claim: the claim of the process to this delivery; None if the delivery only waits for earlier deliveries.
        since: the time at which the delivery began to wait.
    """

    job: Job
    change: Change
    calls: Calls
    claim: Claim | None
    since: float


@dataclass(slots=True)
class WaitingChain:
    """The waiting deliveries of one document to one receiver, in the order of the stream.

    Attributes:
        parts: the deliveries. The first one runs, or waits for the process that made its write.
        runs: whether an errand of the chain is in the lane of the document. The errand makes the first delivery,
            or parks the chain.
    """

    parts: deque[WaitingPart]
    runs: bool = False

    def insert(self, part: WaitingPart) -> None:
        """Add a delivery at its place in the order of the stream. A delivery that runs stays the first."""
        place, first = len(self.parts), int(self.runs)
        while place > first and part.change.token < self.parts[place - 1].change.token:
            place -= 1
        self.parts.insert(place, part)
