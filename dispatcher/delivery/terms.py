"""How often a delivery is tried, and how long one attempt may take."""

from typing import Final, NamedTuple

from mongoz.signals.options import OnFailure, Options, Retry

__all__ = ["Terms", "terms_of"]

# The server ends transactions after 60 s, and the commit takes its time.
_LONGEST_TRANSACTION: Final = 50.0


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
