"""What becomes of a delivery, as values: it waits, or it failed for good."""

from datetime import datetime
from typing import Literal, NamedTuple

HoldReason = Literal["retrying", "blocked", "paused", "retry", "interrupted", "orphaned", "malformed"]
"""Why a delivery waits."""

Reason = Literal["failed", "invalid", "undecodable", "too_many_hops"]
"""Why a delivery failed for good."""


class Waiting(NamedTuple):
    """A delivery waits for its next attempt.

    Attributes:
        seconds: until the next attempt.
        began: the time of the first attempt; None if there was no attempt.
        error: of the last attempt; None likewise.
    """

    reason: HoldReason
    seconds: float = 0.0
    attempts: int = 0
    began: datetime | None = None
    error: BaseException | None = None


class Failure(NamedTuple):
    """A delivery failed for good.

    Attributes:
        error: of the last attempt, or what made an attempt impossible.
        began: the time of the first attempt.
    """

    error: BaseException
    began: datetime
    attempts: int
    reason: Reason = "failed"


class Again(NamedTuple):
    """The dead letter that a delivery repeats.

    Attributes:
        retries: how many earlier retries of the letter failed.
    """

    letter: str
    retries: int


Decision = Waiting | bool
"""What follows a failed attempt: a wait for the next one, or the end; True if the delivery succeeded after all."""
