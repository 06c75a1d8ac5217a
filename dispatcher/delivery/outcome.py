"""The outcomes of a delivery, as values: it waits, or it failed permanently."""

from datetime import datetime
from typing import Literal, NamedTuple

HoldReason = Literal[
    "retrying",
    "retry_after",
    "limited",
    "blocked",
    "paused",
    "retry",
    "interrupted",
    "orphaned",
    "malformed",
    "claimed",
]
"""The reason why a delivery waits. docs/reference/state.md explains each reason, as a value of `state`."""

Reason = Literal["failed", "invalid", "undecodable", "too_many_hops"]
"""The reason why a delivery failed permanently."""


class Limited(Exception):
    """An attempt was not made, because the limits of the receiver allow no further attempt now."""


class Waiting(NamedTuple):
    """A delivery waits for its next attempt.

    Attributes:
        seconds: seconds until the next attempt.
        began: the time of the first attempt; None before it.
        error: the error of the last attempt; None before the first one.
    """

    reason: HoldReason
    seconds: float = 0.0
    attempts: int = 0
    began: datetime | None = None
    error: BaseException | None = None


class Failure(NamedTuple):
    """A delivery failed permanently.

    Attributes:
        error: the error of the last attempt, or the error that prevented any attempt.
        began: the time of the first attempt, or of the failure if there was no attempt.
    """

    error: BaseException
    began: datetime
    attempts: int
    reason: Reason = "failed"


class RetriedLetter(NamedTuple):
    """The dead letter that a delivery repeats.

    Attributes:
        letter: the id of the dead letter.
        retries: the number of failed retries of the dead letter.
    """

    letter: str
    retries: int


Decision = Waiting | bool
"""The result of an attempt.

True if the delivery succeeded; False if the delivery is given up; `Waiting` if another attempt follows.
"""
