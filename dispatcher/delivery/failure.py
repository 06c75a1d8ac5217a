"""What becomes of deliveries that fail: another attempt, a dead letter, or nothing."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple

from dispatcher.core.events import Calls, Change
from dispatcher.core.output.logs import Stats, get_logger
from dispatcher.core.retry import Pause, pause_after, retry
from dispatcher.core.stats import ReceiverFigures
from dispatcher.core.undecodable import UndecodableValue
from dispatcher.delivery.log import described, log_attempt, log_failed, log_undelivered
from dispatcher.delivery.outcome import Again, Failure, Reason, Waiting
from dispatcher.delivery.ports import DeadLetters
from dispatcher.delivery.terms import Terms
from dispatcher.delivery.transactions import Transactions, is_transient
from mongoz.signals import Delivery
from mongoz.signals.receivers import Receiver

__all__ = ["Failing", "Try"]

log = get_logger()

# For how long what the server wants repeated uses up no attempt. No transaction that it meets lasts longer than a
# minute; what still fails after this fails by itself: a receiver may conflict with its own writes.
_TRANSIENT_FOR: Final = timedelta(minutes=5)


class _TooManyHops(Exception):
    """A change that receivers of dispatchers have passed on to each other too often."""


class Try(NamedTuple):
    """A delivery of one change to one receiver, of which an attempt failed."""

    change: Change
    calls: Calls
    receiver: Receiver
    delivery: Delivery
    terms: Terms
    figures: ReceiverFigures
    began: datetime
    again: Again | None = None


class Failing:
    """Deals with what failed.

    Args:
        term: of the position that this process owns.
        stats: counters.
        dead_letters: where failed deliveries are kept; without it they are only logged.
        transactions: knows whether a transaction was committed; without it there are none.
        pause: waits between attempts.
    """

    def __init__(
        self,
        *,
        term: int,
        stats: Stats,
        dead_letters: DeadLetters | None,
        transactions: Transactions | None,
        pause: Pause,
    ) -> None:
        self._term = term
        self._stats = stats
        self._dead_letters = dead_letters
        self._transactions = transactions
        self._pause = pause

    async def what_now(self, one: Try, error: BaseException) -> Waiting | bool:
        """What becomes of a delivery of which an attempt failed: what it waits for, or whether it succeeded."""
        terms, failed = one.terms, one.delivery.attempt
        seconds = pause_after(failed, terms.retry)
        if terms.transactional and is_transient(error) and datetime.now(UTC) - one.began < _TRANSIENT_FOR:
            return Waiting("retrying", seconds, failed - 1, one.began, error)
        if failed < terms.retry.attempts:
            log_attempt(one.delivery, terms, error)
            return Waiting("retrying", seconds, failed, one.began, error)
        if terms.on_failure != "block":
            return await self._give_up(one, Failure(error, one.began, failed))
        if failed == terms.retry.attempts:
            log_failed(
                "a receiver fails; later changes of this document wait",
                "blocked",
                one.delivery,
                one.change.id,
                failed,
                error,
            )
        else:
            log_attempt(one.delivery, terms, error)
        return Waiting("blocked", seconds, failed, one.began, error)

    async def _give_up(self, one: Try, failure: Failure) -> bool:
        """Keep, or forget, a delivery that failed in every attempt; whether it turns out to have succeeded."""
        if one.terms.transactional and await self._happened(one):
            return True
        self._stats.failed += 1
        one.figures.failed += 1
        what = "a receiver failed in every attempt"
        if one.terms.on_failure == "drop" and one.again is None:
            log_failed(
                f"{what}; the delivery is dropped",
                "dropped",
                one.delivery,
                one.change.id,
                failure.attempts,
                failure.error,
            )
        else:
            await self._keep(one.change, one.calls, one.receiver, failure, one.again)
            log_failed(
                f"{what}; the delivery is a dead letter",
                "dead_lettered",
                one.delivery,
                one.change.id,
                failure.attempts,
                failure.error,
            )
        return False

    async def _happened(self, one: Try) -> bool:
        """Whether a transaction whose outcome is unknown was committed after all."""
        if self._transactions is None:
            return False
        report = partial(
            log.warning,
            "whether a transaction was committed can't be told yet, asking again",
            action="delivery.unknown",
            **described(one.delivery),
        )
        ask = partial(self._transactions.happened, one.receiver, one.calls, one.delivery)
        return await retry(ask, report, pauses=one.terms.retry, pause=self._pause)

    async def _keep(
        self, change: Change, calls: Calls, receiver: Receiver, failure: Failure, again: Again | None = None
    ) -> None:
        if self._dead_letters is not None:
            await self._dead_letters.keep_delivery(
                change, calls, receiver, failure, again, term=self._term, pause=self._pause
            )

    async def misfit(self, change: Change, calls: Calls, error: BaseException, again: Again | None = None) -> None:
        """A document can't become an instance."""
        self._stats.invalid += 1
        if isinstance(error, UndecodableValue):
            log_undelivered("a change can't be decoded", "change.undecodable", change, calls, error)
            await self._refuse(change, calls, error, "undecodable", again)
        else:
            log_undelivered("a document does not fit its model", "change.invalid", change, calls, error)
            await self._refuse(change, calls, error, "invalid", again)

    async def _refuse(
        self, change: Change, calls: Calls, error: BaseException, reason: Reason, again: Again | None = None
    ) -> None:
        """Keep the deliveries of a change that no receiver can be called for.

        Those that block are kept as well: only another version of the application can deliver them.
        """
        for receiver in calls.receivers:
            self._stats.figures_of(receiver.name, calls.signal).refused += 1
            if receiver.options.on_failure != "drop" or again is not None:
                await self._keep(change, calls, receiver, Failure(error, datetime.now(UTC), 0, reason), again)

    async def stop_hopping(self, change: Change, calls: Calls, hops: int) -> None:
        """Keep the deliveries of a change that receivers have passed on to each other too often."""
        error = _TooManyHops(
            f"It came over {hops} receivers of dispatchers; each made the next write, so they trigger each other."
        )
        log_undelivered(
            "receivers trigger each other without an end", "change.too_many_hops", change, calls, error
        )
        await self._refuse(change, calls, error, "too_many_hops")

    async def keep_unreadable(self, event: bytes, token: str, error: Exception) -> None:
        """Keep a change event that can't be decoded; when this returns it may be skipped.

        Args:
            event: as the server sent it.
            token: its resume token.
            error: why.
        """
        if self._dead_letters is not None:
            failure = Failure(error, datetime.now(UTC), 0, "undecodable")
            await self._dead_letters.keep_event(event, token, failure, term=self._term)
