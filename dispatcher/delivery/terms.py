"""The number of attempts of a delivery, and the time limit of one attempt."""

from typing import Final, NamedTuple

from dispatcher.settings import Settings
from mongoz.signals.options import OnFailure, Options, Retry

# The server aborts transactions after 60 s, commit included.
_LONGEST_TRANSACTION: Final = 50.0


class Terms(NamedTuple):
    """The options of one receiver, completed by the operator's settings.

    Attributes:
        timeout: the time limit of one attempt in seconds.
        postponable: whether `RetryAfter` postpones the delivery. If False, it is a failure like any other error.
    """

    retry: Retry
    timeout: float
    on_failure: OnFailure
    transactional: bool
    options: Options
    postponable: bool = True


class Policy(NamedTuple):
    """The operator's settings for deliveries.

    Attributes:
        attempts: number of attempts of a delivery, unless the receiver's options set it.
        timeout: the time limit of one attempt in seconds, unless the receiver's options set it.
        park_after: a delivery is parked if its next attempt would begin more than this number of seconds after its
            first attempt.
        slow_after: seconds after which the log names a receiver as slow.
        once: make one attempt and keep no dead letter, regardless of the options of a receiver.
        blocking: whether `on_failure="block"` blocks the document. If False, the delivery becomes a dead letter.
        log_each: log each delivery, at level debug.
    """

    attempts: int
    timeout: float
    park_after: float = 5.0
    slow_after: float = 5.0
    once: bool = False
    blocking: bool = True
    log_each: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "Policy":
        """The policy of a dispatcher with these settings."""
        return cls(
            settings.attempts,
            settings.timeout,
            settings.park_after,
            settings.slow_after,
            log_each=settings.log_level == "debug",
        )

    def terms_of(self, options: Options) -> Terms:
        """The terms of a receiver with these options."""
        seconds = self.timeout if options.timeout is None else options.timeout
        if options.transactional:
            seconds = min(seconds, _LONGEST_TRANSACTION)
        retry, on_failure = options.retry or Retry(self.attempts), options.on_failure
        if self.once:
            retry, on_failure = Retry(1), "drop"
        elif on_failure == "block" and not self.blocking:
            on_failure = "dead_letter"
        return Terms(retry, seconds, on_failure, options.transactional, options, postponable=not self.once)
