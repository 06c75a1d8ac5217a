"""Decides the next step after a failed attempt: another attempt, a dead letter, or a dropped delivery."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple

from dispatcher.core.events import Calls, Change
from dispatcher.core.output.logs import log
from dispatcher.core.retry import Pause, pause_after, retry
from dispatcher.core.stats import Stats
from dispatcher.core.undecodable import UndecodableValue
from dispatcher.delivery.attempt import Attempt
from dispatcher.delivery.log import described, log_attempt, log_failed, log_postponed, log_undelivered
from dispatcher.delivery.outcome import Decision, Failure, Reason, RetriedLetter, Waiting
from dispatcher.delivery.ports import DeadLetters
from dispatcher.delivery.transactions import Transactions, is_transient
from mongoz.exceptions import RetryAfter
from mongoz.signals.receivers import Receiver

# During this time, transient transaction errors use up no attempt. Transactions of other clients end after a
# minute at most. So if a receiver still has conflicts after this time, its own writes cause them.
_TRANSIENT_FOR: Final = timedelta(minutes=5)

# During this time, `RetryAfter` uses up no attempt. So if a receiver always asks for another attempt, the delivery
# becomes a dead letter in the end. This time is also the longest wait that a receiver can ask for.
_POSTPONED_FOR: Final = timedelta(days=1)


class _TooManyHops(Exception):
    """Receivers have triggered each other too many times in a row."""


class FailedAttempt(NamedTuple):
    """An attempt that failed.

    Attributes:
        began: the time of the delivery's first attempt.
        retried: the dead letter that the delivery repeats; None if it repeats none.
    """

    attempt: Attempt
    error: BaseException
    began: datetime
    retried: RetriedLetter | None = None


class Failures(NamedTuple):
    """Decides the next step after failed attempts, and writes dead letters.

    Args:
        dead_letters: the store of dead letters; None to log them only.
        transactions: knows which transactions are committed; None if no transactions are used.
        pause: waits before a failed read or write is repeated.
    """

    term: int
    stats: Stats
    pause: Pause
    dead_letters: DeadLetters | None = None
    transactions: Transactions | None = None

    async def decide(self, failed: FailedAttempt) -> Decision:
        """Decide the next step.

        Returns:
            If another attempt follows, its `Waiting`: the caller must let the delivery wait. Otherwise True if the
            transaction of the delivery was committed; False if the delivery was given up. In this
            case it is a dead letter already, or dropped.
        """
        another = self.another(failed)
        if another is not None:
            return another
        attempt, error, began, _ = failed
        terms, number = attempt.target.terms, attempt.delivery.attempt
        if terms.on_failure != "block":
            return await self._give_up(failed)
        if number == terms.retry.attempts:
            text = "a receiver fails; later changes of this document wait"
            log_failed(text, "blocked", attempt.delivery, attempt.change.id, error)
        else:
            log_attempt(attempt.delivery, terms, error)
        return Waiting("blocked", _pause_after(failed), number, began, error)

    def postponed(self, failed: FailedAttempt) -> Waiting | None:
        """The wait that a receiver asks for by `RetryAfter`; None without it, or a day after the first attempt."""
        attempt, error, began, _ = failed
        if not isinstance(error, RetryAfter) or not attempt.target.terms.postponable:
            return None
        if datetime.now(UTC) - began >= _POSTPONED_FOR:
            return None
        seconds = _pause_after(failed)
        attempt.target.figures.postponed += 1
        log_postponed(attempt.delivery, seconds)
        return Waiting("retry_after", seconds, attempt.delivery.attempt - 1, began, error)

    def another(self, failed: FailedAttempt) -> Waiting | None:
        """The wait for the next attempt; None if the options of the receiver allow no further attempt."""
        postponed = self.postponed(failed)
        if postponed is not None:
            return postponed
        attempt, error, began, _ = failed
        terms, number, seconds = attempt.target.terms, attempt.delivery.attempt, _pause_after(failed)
        if terms.transactional and is_transient(error) and datetime.now(UTC) - began < _TRANSIENT_FOR:
            return Waiting("retrying", seconds, number - 1, began, error)
        if number < terms.retry.attempts:
            log_attempt(attempt.delivery, terms, error)
            return Waiting("retrying", seconds, number, began, error)
        return None

    async def _give_up(self, failed: FailedAttempt) -> bool:
        """Drop a delivery after its last attempt, or write its dead letter.

        Returns:
            True if the transaction of the delivery was committed. Then nothing else is done.
        """
        attempt, error, began, retried = failed
        target, delivery, id_ = attempt.target, attempt.delivery, attempt.change.id
        if target.terms.transactional and await self._is_committed(attempt):
            return True
        self.stats.failed += 1
        target.figures.failed += 1
        text = "a receiver failed in every attempt"
        if target.terms.on_failure == "drop" and retried is None:
            log_failed(f"{text}; the delivery is dropped", "dropped", delivery, id_, error)
        else:
            failure = Failure(error, began, delivery.attempt)
            await self._keep(attempt.change, attempt.calls, target.receiver, failure, retried)
            log_failed(f"{text}; the delivery is a dead letter", "dead_lettered", delivery, id_, error)
        return False

    async def _is_committed(self, attempt: Attempt) -> bool:
        """Returns whether the transaction of a failed attempt is committed: maybe only the reply was lost."""
        if self.transactions is None:
            return False
        report = partial(
            log.warning,
            "it is unknown whether a transaction was committed, asking again",
            action="delivery.unknown",
            **described(attempt.delivery),
        )
        ask = partial(self.transactions.is_committed, attempt)
        return await retry(ask, report, pauses=attempt.target.terms.retry, pause=self.pause)

    async def _keep(
        self, change: Change, calls: Calls, receiver: Receiver, failure: Failure, retried: RetriedLetter | None
    ) -> None:
        if self.dead_letters is not None:
            await self.dead_letters.keep_delivery(
                change, calls, receiver, failure, retried, term=self.term, pause=self.pause
            )

    # -- changes for which no receiver can be called ---------------------------------------------------------

    async def refuse_document(
        self, change: Change, calls: Calls, error: BaseException, retried: RetriedLetter | None = None
    ) -> None:
        """Write dead letters for a document that can't be converted to an instance."""
        self.stats.invalid += 1
        if isinstance(error, UndecodableValue):
            log_undelivered("a change can't be decoded", "change.undecodable", change, calls, error)
            await self._refuse(change, calls, error, "undecodable", retried)
        else:
            log_undelivered("a document does not fit its model", "change.invalid", change, calls, error)
            await self._refuse(change, calls, error, "invalid", retried)

    async def refuse_hops(self, change: Change, calls: Calls) -> None:
        """Write dead letters for a change with too many hops."""
        error = _TooManyHops(
            f"{calls.hops} receivers in a row led to this change: the write of each one triggered the next one."
        )
        text = "receivers trigger each other without end"
        log_undelivered(text, "change.too_many_hops", change, calls, error)
        await self._refuse(change, calls, error, "too_many_hops", None)

    async def _refuse(
        self, change: Change, calls: Calls, error: BaseException, reason: Reason, retried: RetriedLetter | None
    ) -> None:
        """Write dead letters, even for `on_failure="block"`: only a new version of the application can succeed."""
        failure = Failure(error, datetime.now(UTC), 0, reason)
        for receiver in calls.receivers:
            self.stats.figures_of(receiver.name, calls.signal).refused += 1
            if receiver.options.on_failure != "drop" or retried is not None:
                await self._keep(change, calls, receiver, failure, retried)

    async def keep_unreadable(self, event: bytes, token: str, error: Exception) -> None:
        """Write a dead letter for an event that can't be decoded. Afterwards the position may pass the event."""
        if self.dead_letters is not None:
            failure = Failure(error, datetime.now(UTC), 0, "undecodable")
            await self.dead_letters.keep_event(event, token, failure, term=self.term)


def _pause_after(failed: FailedAttempt) -> float:
    """Seconds until the next attempt: those that the receiver asks for, or those of its options."""
    error, terms = failed.error, failed.attempt.target.terms
    if isinstance(error, RetryAfter) and terms.postponable:
        return min(error.seconds, _POSTPONED_FOR.total_seconds())
    return pause_after(failed.attempt.delivery.attempt, terms.retry)
