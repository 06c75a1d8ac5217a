"""Deliver one change: make its instance, call its receivers in order, try again those that fail.

A delivery is finished when its receiver returned, when its dead letter is written, when the receiver's options say
that it may be dropped, or when it is parked: then it is made later, from what was written down.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from time import time
from typing import Any, Final, NamedTuple

from bson.codec_options import CodecOptions

from dispatcher.core.events import Calls, Change, Job, delivery_id_of
from dispatcher.core.lease import Lease, now
from dispatcher.core.output.logs import Stats
from dispatcher.core.retry import Pause
from dispatcher.core.stats import ReceiverFigures, seconds_of
from dispatcher.delivery.echoes import Echoes
from dispatcher.delivery.failure import Failing, Try
from dispatcher.delivery.instances import keywords_of, untouched
from dispatcher.delivery.invoker import Caller
from dispatcher.delivery.log import log_delivered, log_parked
from dispatcher.delivery.outcome import Again, Stuck, Waiting
from dispatcher.delivery.ports import DeadLetters, HeldDeliveries
from dispatcher.delivery.terms import Terms, terms_of
from dispatcher.delivery.tracing import Tracing
from dispatcher.delivery.transactions import Transactions
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.signals import Delivery
from mongoz.signals.hops import MAX_HOPS, current_hops, inside_dispatcher
from mongoz.signals.receivers import Receiver

__all__ = ["Deliverer"]

# Seconds of waiting that make room for others if it is done in the database, which takes some milliseconds.
_ROOM_FOR: Final = 0.3

# Seconds after its commit for which a change may come from a delivery that has just ended.
_RECENT: Final = 2


class _Known(NamedTuple):
    """What is looked up of a receiver once, and needed for each of its deliveries."""

    terms: Terms
    figures: ReceiverFigures
    direct: bool  # nothing has to be put around it
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
        parking: where deliveries wait that must wait long; without it they wait here.
        park_after: seconds after the first attempt began from which on the next one is far away.
        crowded: whether changes that are read wait for room.
        blocking: receivers may have asked that later changes of a document wait; else they get dead letters.
        slow_after: seconds after which a receiver is slow.
        replace: has somebody else go on with the job of a task that is stuck for ever; without it none is.
        once: call each receiver once, whatever its options say, and keep no letters.
        pause: waits between attempts.
        lease: of the partition: no attempt begins when it has run out. Without it there is nobody else.
        log_each: log every delivery, at level debug.
        tracing: puts a span around each attempt; without it there are none.
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
        parking: HeldDeliveries | None = None,
        park_after: float = 5.0,
        crowded: Callable[[], bool] = lambda: False,
        blocking: bool = True,
        slow_after: float = 5.0,
        replace: Callable[["asyncio.Task[Any]", Callable[[], Awaitable[None]]], None] | None = None,
        once: bool = False,
        pause: Pause = asyncio.sleep,
        lease: Lease | None = None,
        log_each: bool = False,
        tracing: Tracing | None = None,
        cutting: Callable[[], bool] = lambda: False,
    ) -> None:
        self._term = term
        self._attempts = attempts
        self._timeout = timeout
        self._stats = stats
        self._codec_options = codec_options
        self._dead_letters = dead_letters
        self._transactions = transactions
        self._parking = parking
        self._park_after = park_after
        self._crowded = crowded
        self._watched = parking.watched if parking is not None else set[str]()
        self._blocking = blocking
        self._once = once
        self._pause = pause
        self._lease = lease or Lease.for_ever()
        self._log_each = log_each
        self._tracing = tracing
        self._failing = Failing(
            term=term, stats=stats, dead_letters=dead_letters, transactions=transactions, pause=pause
        )
        self._replace = replace
        leaves = parking is not None and replace is not None
        self._caller = Caller(
            cutting, timeout, slow_after=slow_after, on_abandoned=self._on_abandoned if leaves else None
        )
        self._echoes = Echoes()
        # By the identity of the receiver, which they keep alive.
        self._known: dict[int, _Known] = {}

    async def keep_unreadable(self, event: bytes, token: str, error: Exception) -> None:
        """Keep a change event that can't be decoded; when this returns it may be skipped.

        Args:
            event: as the server sent it.
            token: its resume token.
            error: why.
        """
        await self._failing.keep_unreadable(event, token, error)

    def is_calling(self, task: "asyncio.Task[Any]") -> bool:
        """Whether a task is in a receiver."""
        return self._caller.is_calling(task)

    async def watch(self) -> None:
        """Cancel the receivers that hang. Runs for ever, beside the workers."""
        await self._caller.watch()

    def work(self, job: Job) -> Coroutine[Any, Any, None]:
        """Deliver one change to all of its receivers, or run an errand. To be awaited.

        It raises nothing but cancellation, and what `pause` raises.
        """
        change = job.change
        if change is None:
            assert job.errand is not None
            return job.errand()
        if change.cluster_time.time + _RECENT < time() + self._stats.clock_offset:  # there is a backlog
            return self._work(job, change)
        return self._work_in_pace(job, change)

    async def _work_in_pace(self, job: Job, change: Change) -> None:
        """Slow down receivers that answer themselves."""
        key = change.key
        echoes = self._echoes.count(key, change.wall_time, self._stats.clock_offset)
        if echoes:
            names = (receiver.name for calls in job.calls for receiver in calls.receivers)
            seconds = self._echoes.pause(echoes, names, ".".join(change.namespace), change.id)
            if seconds:
                await self._pause(seconds)
        began = now()
        await self._work(job, change)
        self._echoes.delivered(key, began, echoes)

    def _work(self, job: Job, change: Change) -> Coroutine[Any, Any, None]:
        if len(job.calls) == 1:
            calls = job.calls[0]
            if current_hops() == calls.hops + 1 <= MAX_HOPS:  # as nearly always: workers are started like this
                return self._deliver(job, change, calls)
            return self._enter(job, change, calls)
        return self._enter_each(job, change, job.calls)

    async def _enter_each(self, job: Job, change: Change, several: tuple[Calls, ...]) -> None:
        for calls in several:
            # An instance takes its row over: several document classes on one collection need a copy each.
            await self._enter(job, untouched(change, self._codec_options), calls)

    async def _enter(self, job: Job, change: Change, calls: Calls) -> None:
        """Have writes of the receivers carry how far they are from the first one."""
        hops = calls.hops
        if hops > MAX_HOPS:
            await self._failing.stop_hopping(change, calls, hops)
            job.passed += len(calls.receivers)
        elif current_hops() == hops + 1:
            await self._deliver(job, change, calls)
        else:
            with inside_dispatcher(hops):
                await self._deliver(job, change, calls)

    async def _deliver(self, job: Job, change: Change, calls: Calls) -> None:
        try:
            image, keywords = copy_context().run(keywords_of, change, calls)  # validators may set variables
        except BaseException as error:  # ValidationErrors, and whatever the application's validators raise
            await self._failing.misfit(change, calls, error)
            job.passed += len(calls.receivers)
            return
        id_ = delivery_id_of(change, calls.run)
        for number, receiver in enumerate(calls.receivers, 1):
            if self._watched and receiver.name in self._watched and await self._holds(change, calls, receiver):
                job.passed += 1
                continue
            terms, figures, direct, _ = self._known.get(id(receiver)) or self._get_to_know(receiver, calls.signal)
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
                bool(calls.run),
            )
            began = now()
            observed = figures.wants(began)
            if observed:
                self._observe_latency(change, figures)
            if not direct or began >= self._lease.until:
                failure = await self._attempt(change, calls, receiver, delivery, keywords, terms, job)
            else:  # the same for nearly all, with a coroutine less
                failure = await self._caller.call(
                    receiver.function,
                    calls.document,
                    delivery,
                    keywords,
                    terms.timeout,
                    (change, calls, receiver, delivery, terms, job),  # to go on without it, if it hangs on
                )
            if observed:
                figures.duration.observe(now() - began)
            if failure is not None:
                since = datetime.now(UTC) - timedelta(seconds=now() - began)
                one = Try(change, calls, receiver, delivery, terms, figures, since)
                delivered = await self._insist(job, one, failure, began)
                if delivered:
                    self._delivered(change, delivery, figures, began)
                job.passed += 1
                if number < len(calls.receivers):
                    # With a new instance: what failed attempts did to this one is not for others to see.
                    rest = calls._replace(receivers=calls.receivers[number:])
                    await self._deliver(job, untouched(change, self._codec_options), rest)
                return
            job.passed += 1
            self._delivered(change, delivery, figures, began)

    async def _holds(self, change: Change, calls: Calls, receiver: Receiver) -> bool:
        """Whether a delivery has to wait behind parked ones, and is parked by now as well."""
        return self._parking is not None and await self._parking.holds(change, calls, receiver)

    def _delivered(self, change: Change, delivery: Delivery, figures: ReceiverFigures, began: float) -> None:
        self._stats.delivered += 1
        figures.delivered += 1
        if self._log_each:
            log_delivered(change, delivery, now() - began)

    def _observe_latency(self, change: Change, figures: ReceiverFigures) -> None:
        committed = seconds_of(change.wall_time)
        if committed is not None:  # its clock may be ahead of ours
            figures.latency.observe(max(0.0, time() + self._stats.clock_offset - committed))

    def _get_to_know(self, receiver: Receiver, signal: str) -> _Known:
        terms = terms_of(receiver.options, attempts=self._attempts, timeout=self._timeout, once=self._once)
        if terms.on_failure == "block" and not self._blocking:
            terms = terms._replace(on_failure="dead_letter")
        self._caller.expect(terms.timeout)
        direct = not terms.transactional and self._tracing is None
        known = _Known(terms, self._stats.figures_of(receiver.name, signal), direct, receiver)
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
        whose: Job | Stuck,
    ) -> BaseException | None:
        """Call a receiver once; what it raised, if it did.

        If it is left alone, the rest of the job is done without it, or who is `Stuck` is told.

        Raises:
            Interrupted: nothing more is to be started.
        """
        context = (change, calls, receiver, delivery, terms, whose)

        async def call(function: Callable[..., Awaitable[Any]], keywords: dict[str, Any]) -> BaseException | None:
            if now() >= self._lease.until:
                await self._lease.held()
            if self._tracing is not None:
                function = self._tracing.around(function, change, calls, self._stats.clock_offset)
            return await self._caller.call(function, calls.document, delivery, keywords, terms.timeout, context)

        if not terms.transactional or self._transactions is None:
            return await call(receiver.function, keywords)
        return await self._transactions.attempt(
            receiver,
            calls,
            delivery,
            keywords,
            call=call,
            anew=partial(self._anew, change, calls),
            pause=self._pause,
            patience=terms.timeout,
            figures=self._known[id(receiver)].figures,
        )

    def _anew(self, change: Change, calls: Calls) -> dict[str, Any]:
        """Keywords with an instance that nobody has seen."""
        return copy_context().run(keywords_of, untouched(change, self._codec_options), calls)[1]

    async def _insist(self, job: Job, one: Try, error: BaseException, began: float) -> bool:
        """Try a delivery again whose first attempt failed; whether it succeeded in the end."""
        while True:
            waiting = await self._failing.what_now(one, error)
            if isinstance(waiting, bool):
                return waiting
            if self._parking is not None and self._is_long(waiting, now() - began):
                log_parked(one.delivery, waiting)
                await self._parking.park(one.change, one.calls, one.receiver, waiting)
                return False
            await self._pause(waiting.seconds)
            if self._parking is not None and self._parking.is_paused(one.receiver.name):
                await self._parking.park(
                    one.change, one.calls, one.receiver, waiting._replace(reason="paused", seconds=0.0)
                )
                return False
            one = one._replace(delivery=one.delivery._replace(attempt=waiting.attempts + 1))
            again = await self._again(job, one)
            if again is None:
                return True
            error = again

    def _on_abandoned(self, task: "asyncio.Task[Any]", context: Any) -> None:
        assert self._replace is not None
        self._replace(task, partial(self._go_on_without, task, *context))

    async def _go_on_without(
        self,
        task: "asyncio.Task[Any]",
        change: Change,
        calls: Calls,
        receiver: Receiver,
        delivery: Delivery,
        terms: Terms,
        whose: Job | Stuck,
    ) -> None:
        """Do what is left to do of a job whose task is stuck in a receiver.

        The attempt has failed. The next one waits, parked, until the stuck one has ended: one at a time.
        """
        assert self._parking is not None
        error = TimeoutError(f"it took longer than {terms.timeout:g} s, and refuses to be cancelled")
        figures = self._known[id(receiver)].figures
        one = Try(change, calls, receiver, delivery, terms, figures, datetime.now(UTC))
        with inside_dispatcher(calls.hops):
            next_ = await self._failing.what_now(one, error)
            if not isinstance(whose, Job):
                await whose(task, next_)
                return
            if isinstance(next_, Waiting):
                log_parked(delivery, next_)
                await self._parking.park(change, calls, receiver, next_, behind=task)
        whose.passed += 1
        for rest in whose.left:
            await self._enter(whose, untouched(change, self._codec_options), rest)

    def _is_long(self, waiting: Waiting, since: float) -> bool:
        """Whether a delivery is parked until its next attempt: it would be here for long, or takes others' room.

        Args:
            waiting: for it.
            since: seconds since the first one began.
        """
        return (
            waiting.reason != "retrying"
            or since + waiting.seconds > self._park_after
            or (waiting.seconds >= _ROOM_FOR and self._crowded())
        )

    async def _again(self, job: Job, one: Try) -> BaseException | None:
        """An attempt that is not the first one."""
        self._stats.retried += 1
        one.figures.retried += 1
        try:
            keywords = self._anew(one.change, one.calls)
        except BaseException as invalid:  # a validator that can't make up its mind
            return invalid
        began = now()
        error = await self._attempt(one.change, one.calls, one.receiver, one.delivery, keywords, one.terms, job)
        one.figures.duration.observe(now() - began)
        return error

    async def deliver_parked(
        self,
        change: Change,
        calls: Calls,
        waiting: Waiting,
        again: Again | None,
        stuck: Stuck,
    ) -> Waiting | bool:
        """Make an attempt at a delivery that was parked.

        Args:
            change: with documents that nobody has seen.
            calls: a single receiver.
            waiting: what it waited for.
            again: of which dead letter.
            stuck: told if the receiver is left alone; this never returns then.

        Returns:
            What it waits for now; True if it is delivered, False if it was given up.
        """
        with inside_dispatcher(calls.hops):
            return await self._deliver_parked(change, calls, waiting, again, stuck)

    async def _deliver_parked(
        self, change: Change, calls: Calls, waiting: Waiting, again: Again | None, stuck: Stuck
    ) -> Waiting | bool:
        (receiver,) = calls.receivers
        try:
            image, keywords = copy_context().run(keywords_of, change, calls)  # validators may set variables
        except BaseException as misfit:  # its model is another one by now
            await self._failing.misfit(change, calls, misfit, again)
            return False
        terms, figures, _, _ = self._known.get(id(receiver)) or self._get_to_know(receiver, calls.signal)
        attempt = waiting.attempts + 1
        delivery = Delivery(
            delivery_id_of(change, calls.run),
            calls.signal,
            receiver.name,
            "stream",
            attempt,
            self._term,
            change.cluster_time,
            change.wall_time,
            image,
            again is not None or bool(calls.run),
        )
        if attempt > 1:
            self._stats.retried += 1
            figures.retried += 1
        began, since = now(), waiting.began or datetime.now(UTC)
        error = await self._attempt(change, calls, receiver, delivery, keywords, terms, stuck)
        figures.duration.observe(now() - began)
        if error is not None:
            one = Try(change, calls, receiver, delivery, terms, figures, since, again)
            next_ = await self._failing.what_now(one, error)
            if next_ is not True:
                return next_
        self._delivered(change, delivery, figures, began)
        return True
