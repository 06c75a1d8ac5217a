"""How often a delivery is tried, how long one attempt may take, and how long to wait in between."""

import random
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from mongoz.signals.options import OnFailure, Options, Retry

__all__ = ["Pause", "Terms", "pause_after", "terms_of"]

Pause = Callable[[float], Awaitable[None]]
"""Waits some seconds, without keeping others from being delivered."""

# The server ends transactions after 60 s, and the commit takes its time.
_LONGEST_TRANSACTION: Final = 50.0

# From here on doubling has long met any cap, and would meet the limits of a float.
_MOST_DOUBLINGS: Final = 60


class Terms(NamedTuple):
    """What holds for the deliveries to one receiver: its options, or else the operator's settings.

    Attributes:
        retry: attempts and pauses.
        timeout: seconds for one attempt.
        on_failure: what happens after the last one.
        transactional: each attempt is a transaction.
        options: of the receiver, as they are.
    """

    retry: Retry
    timeout: float
    on_failure: OnFailure
    transactional: bool
    options: Options


def terms_of(options: Options, *, attempts: int, timeout: float, once: bool = False) -> Terms:
    """The terms of a receiver with these options.

    Args:
        options: of the receiver.
        attempts: where it says nothing.
        timeout: likewise.
        once: a single attempt, whatever it says, and nobody waits for another.
    """
    seconds = timeout if options.timeout is None else options.timeout
    if options.transactional:
        seconds = min(seconds, _LONGEST_TRANSACTION)
    if once:
        return Terms(Retry(1), seconds, "drop", options.transactional, options)
    return Terms(options.retry or Retry(attempts), seconds, options.on_failure, options.transactional, options)


def pause_after(retry: Retry, attempt: int) -> float:
    """Seconds to wait after a failed attempt: doubling, with jitter, since others may have failed with it.

    Args:
        retry: of the receiver.
        attempt: the one that failed: 1, 2, ...
    """
    return min(retry.cap, retry.base * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS)) * random.uniform(0.5, 1.0)
