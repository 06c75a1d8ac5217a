"""Deliver one change: make its instance, call its receivers in order, try again those that fail.

A delivery is finished when its receiver returned, when its dead letter is written, or when the receiver's options
say that it may be dropped.
"""

import asyncio
import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import blake2b
from time import monotonic, time
from typing import Any, NamedTuple

from bson.codec_options import CodecOptions
from pymongo.errors import PyMongoError

from dispatcher.calling import Caller
from dispatcher.dead_letters import DeadLetters, Failure, Reason, letter_of, text_of, unreadable_letter
from dispatcher.events import Calls, Change, Job
from dispatcher.failures import in_short
from dispatcher.instances import keywords_of, untouched
from dispatcher.measuring import ReceiverFigures, seconds_of
from dispatcher.observe import Stats, get_logger
from dispatcher.retrying import Pause, Terms, pause_after, terms_of
from dispatcher.transactional import Transactions
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.signals import Delivery
from mongoz.signals.hops import MOST_HOPS, current_hops, inside_dispatcher
from mongoz.signals.receivers import Receiver

__all__ = ["Deliverer", "delivery_id"]

log = get_logger()


class _TooManyHops(Exception):
    """A change that receivers of dispatchers have passed on to each other too often."""


class _Try(NamedTuple):
    """A delivery of one change to one receiver, whose first attempt failed."""

    change: Change
    calls: Calls
    receiver: Receiver
    delivery: Delivery
    terms: Terms
    figures: ReceiverFigures
    began: datetime


class _Known(NamedTuple):
    """What is looked up of a receiver once, and needed for each of its deliveries."""

    terms: Terms
    figures: ReceiverFigures
    receiver: Receiver


class Deliverer:
    """Works off jobs.

    Args:
        term: of the position that this process owns.
        attempts: at a delivery, at most, where the receiver does not say.
        timeout: seconds that one attempt may take, where the receiver does not say.
        stats: counters.
        codec_options: the registry's.
        dead_letters: where failed deliveries are kept; without it they are only logged.
        transactions: calls transactional receivers; without it they are called like others.
        once: call each receiver once, whatever its options say, and keep no letters.
        pause: waits between attempts.
        log_each: log every delivery, at level debug.
        cutting: whether deliveries in flight are being cancelled because the process ends.
    """

    def __init__(  # noqa: PLR0913 - all that tells one dispatcher's deliveries from another's
        self,
        *,
        term: int,
        attempts: int,
        timeout: float,
        stats: Stats,
        codec_options: CodecOptions[Any] = CODEC_OPTIONS,
        dead_letters: DeadLetters | None = None,
        transactions: Transactions | None = None,
        once: bool = False,
        pause: Pause = asyncio.sleep,
        log_each: bool = False,
        cutting: Callable[[], bool] = lambda: False,
    ) -> None:
        self._term = term
        self._attempts = attempts
        self._timeout = timeout
        self._stats = stats
        self._codec_options = codec_options
        self._dead_letters = dead_letters
        self._transactions = transactions
        self._once = once
        self._pause = pause
        self._log_each = log_each
        self._caller = Caller(cutting, timeout)
        # By the identity of the receiver, which they keep alive.
        self._known: dict[int, _Known] = {}

    async def watch(self) -> None:
        """Cancel the receivers that hang. Runs for ever, beside the workers."""
        await self._caller.watch()

    async def work(self, job: Job) -> None:
        """Deliver one change to all of its receivers. Raises nothing but cancellation, and what `pause` raises."""
        change = job.change
        assert change is not None
        if len(job.calls) == 1:
            await self._enter(change, job.calls[0])
            return
        for calls in job.calls:
            # An instance takes its row over: several document classes on one collection need a copy each.
            await self._enter(copy.deepcopy(change), calls)

    async def _enter(self, change: Change, calls: Calls) -> None:
        """Have writes of the receivers carry how far they are from the first one."""
        hops = calls.hops
        if hops > MOST_HOPS:
            await self._stop_hopping(change, calls, hops)
        elif current_hops() == hops + 1:  # as nearly always: workers are started like this
            await self._deliver(change, calls)
        else:
            with inside_dispatcher(hops):
                await self._deliver(change, calls)

    async def _deliver(self, change: Change, calls: Calls) -> None:
        try:
            image, keywords = keywords_of(change, calls)
        except Exception as error:  # ValidationErrors, and whatever the application's validators raise
            self._stats.invalid += 1
            _log_undelivered("a document does not fit its model", "change.invalid", change, calls, error)
            await self._refuse(change, calls, error, "invalid")
            return
        id_ = delivery_id(change.token)
        for number, receiver in enumerate(calls.receivers, 1):
            terms, figures, _ = self._known.get(id(receiver)) or self._get_to_know(receiver, calls.signal)
            delivery = Delivery(
                id_,
                calls.signal,
                receiver.name,
                "stream",
                1,
                self._term,
                change.cluster_time,
                change.wall_time,
                image,
            )
            began = monotonic()
            observed = figures.wants(began)
            if observed:
                self._observe_latency(change, figures)
            failure = await self._attempt(change, calls, receiver, delivery, keywords, terms)
            if observed:
                figures.duration.observe(monotonic() - began)
            if failure is not None:
                since = datetime.now(UTC) - timedelta(seconds=monotonic() - began)
                one = _Try(change, calls, receiver, delivery, terms, figures, since)
                delivered = await self._insist(one, failure)
                if delivered:
                    self._delivered(change, delivery, figures, began)
                if number < len(calls.receivers):
                    # With a new instance: what failed attempts did to this one is not for others to see.
                    rest = calls._replace(receivers=calls.receivers[number:])
                    await self._deliver(untouched(change, self._codec_options), rest)
                return
            self._delivered(change, delivery, figures, began)

    def _delivered(self, change: Change, delivery: Delivery, figures: ReceiverFigures, began: float) -> None:
        self._stats.delivered += 1
        figures.delivered += 1
        if self._log_each:
            _log_delivered(change, delivery, monotonic() - began)

    def _observe_latency(self, change: Change, figures: ReceiverFigures) -> None:
        committed = seconds_of(change.wall_time)
        if committed is not None:  # its clock may be ahead of ours
            figures.latency.observe(max(0.0, time() + self._stats.clock_offset - committed))

    def _get_to_know(self, receiver: Receiver, signal: str) -> _Known:
        terms = terms_of(receiver.options, attempts=self._attempts, timeout=self._timeout, once=self._once)
        self._caller.expect(terms.timeout)
        known = _Known(terms, self._stats.figures_of(receiver.name, signal), receiver)
        self._known[id(receiver)] = known
        return known

    async def _attempt(
        self,
        change: Change,
        calls: Calls,
        receiver: Receiver,
        delivery: Delivery,
        keywords: dict[str, Any],
        terms: Terms,
    ) -> BaseException | None:
        """Call a receiver once; what it raised, if it did."""
        function = receiver.function
        if terms.transactional and self._transactions is not None:
            function = partial(self._transactions.run, receiver, calls, partial(self._anew, change, calls))
        return await self._caller.call(function, calls.document, delivery, keywords, terms.timeout)

    def _anew(self, change: Change, calls: Calls) -> dict[str, Any]:
        """Keywords with an instance that nobody has seen."""
        return keywords_of(untouched(change, self._codec_options), calls)[1]

    async def _insist(self, one: _Try, error: BaseException) -> bool:
        """Try a delivery again whose first attempt failed; whether it succeeded in the end."""
        change, calls, receiver, delivery, terms, figures, began = one
        most = terms.retry.attempts
        while True:
            failed = delivery.attempt
            if failed == most:
                if terms.on_failure != "block":
                    return await self._give_up(one, Failure(error, began, failed))
                _log_failed("a receiver fails; later changes of this document wait", "blocked", one, failed, error)
            else:
                _log_attempt(delivery, terms, error)
            await self._pause(pause_after(terms.retry, failed))
            self._stats.retried += 1
            figures.retried += 1
            delivery = delivery._replace(attempt=failed + 1)
            try:
                keywords = self._anew(change, calls)
            except Exception as invalid:  # a validator that can't make up its mind
                again: BaseException | None = invalid
            else:
                retried = monotonic()
                again = await self._attempt(change, calls, receiver, delivery, keywords, terms)
                figures.duration.observe(monotonic() - retried)
            if again is None:
                return True
            error = again

    async def _give_up(self, one: _Try, failure: Failure) -> bool:
        """Keep, or forget, a delivery that failed in every attempt; whether it turns out to have succeeded."""
        if one.terms.transactional and await self._happened(one):
            return True
        self._stats.failed += 1
        one.figures.failed += 1
        what = "a receiver failed in every attempt"
        if one.terms.on_failure == "drop":
            _log_failed(f"{what}; the delivery is dropped", "dropped", one, failure.attempts, failure.error)
        else:
            await self._keep(one.change, one.calls, one.receiver, failure)
            _log_failed(
                f"{what}; the delivery is a dead letter", "dead_lettered", one, failure.attempts, failure.error
            )
        return False

    async def _happened(self, one: _Try) -> bool:
        """Whether a transaction whose outcome is unknown was committed after all."""
        attempt = 0
        while self._transactions is not None:
            try:
                return await self._transactions.happened(one.receiver, one.calls, one.delivery)
            except PyMongoError as error:
                attempt += 1
                log.warning(
                    "whether a transaction was committed can't be told yet, asking again",
                    action="delivery.unknown",
                    **_described(one.delivery),
                    error=in_short(error),
                )
            await self._pause(pause_after(one.terms.retry, attempt))
        return False

    async def _keep(self, change: Change, calls: Calls, receiver: Receiver, failure: Failure) -> None:
        if self._dead_letters is None:
            return
        letter = letter_of(
            change,
            calls,
            receiver,
            failure,
            delivery_id=delivery_id(change.token),
            term=self._term,
            group=self._dead_letters.group,
        )
        await self._dead_letters.keep(letter, self._pause)

    async def _refuse(self, change: Change, calls: Calls, error: Exception, reason: Reason) -> None:
        """Keep the deliveries of a change that no receiver can be called for.

        Those that block are kept as well: only another version of the application can deliver them.
        """
        for receiver in calls.receivers:
            if receiver.options.on_failure != "drop":
                await self._keep(change, calls, receiver, Failure(error, datetime.now(UTC), 0, reason))

    async def _stop_hopping(self, change: Change, calls: Calls, hops: int) -> None:
        error = _TooManyHops(
            f"It came over {hops} receivers of dispatchers; each made the next write, so they trigger each other."
        )
        _log_undelivered(
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
        if self._dead_letters is None:
            return
        failure = Failure(error, datetime.now(UTC), 0, "undecodable")
        letter = unreadable_letter(
            event,
            failure,
            token=token,
            delivery_id=delivery_id(token),
            term=self._term,
            group=self._dead_letters.group,
        )
        await self._dead_letters.keep(letter)


def _log_delivered(change: Change, delivery: Delivery, seconds: float) -> None:
    log.debug(
        "delivered",
        action="delivery.done",
        **_described(delivery),
        operation=change.operation,
        namespace=".".join(change.namespace),
        key=str(change.id),
        image=delivery.image,
        wall_time=change.wall_time.isoformat() if change.wall_time else None,
        began=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(),
    )


def _log_undelivered(what: str, action: str, change: Change, calls: Calls, error: Exception) -> None:
    log.error(
        f"{what}; its receivers are not called, and get dead letters",
        action=action,
        document=calls.document.__name__,
        operation=change.operation,
        namespace=".".join(change.namespace),
        id=repr(change.id),
        receivers=[receiver.name for receiver in calls.receivers],
        error=text_of(error),
    )


def _log_attempt(delivery: Delivery, terms: Terms, error: BaseException) -> None:
    log.warning(
        "a receiver failed",
        action="delivery.attempt_failed",
        **_described(delivery),
        of=terms.retry.attempts,
        error=text_of(error),
    )


def _log_failed(what: str, how: str, one: _Try, attempts: int, error: BaseException) -> None:
    described = _described(one.delivery) | {"attempt": attempts}
    log.error(
        what,
        action=f"delivery.{how}",
        **described,
        id=repr(one.change.id),
        error=text_of(error),
        exc_info=_from_the_receiver_on(error),
    )


def _from_the_receiver_on(error: BaseException) -> BaseException:
    """The error without the frame of ours that called the receiver."""
    trace = error.__traceback__
    return error if trace is None or trace.tb_next is None else error.with_traceback(trace.tb_next)


def _described(delivery: Delivery) -> dict[str, Any]:
    return {
        "delivery_id": delivery.id,
        "signal": delivery.signal,
        "receiver": delivery.receiver,
        "attempt": delivery.attempt,
    }


def delivery_id(token: str) -> str:
    """The id of the deliveries of a change: the same whenever the change is read again."""
    return blake2b(token.encode(), digest_size=12).hexdigest()
