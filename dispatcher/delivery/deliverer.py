"""Delivers a change: makes its instance, calls its receivers in order, and repeats failed attempts.

A delivery is finished in four cases: its receiver returned, its dead letter is written, the receiver's options
drop the delivery, or the delivery is written to the state, to be made later.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic, time
from typing import Any, Final

from bson.codec_options import CodecOptions

from dispatcher.core.events import Calls, Change, Errand, Job
from dispatcher.core.lease import now
from dispatcher.core.stats import Stats
from dispatcher.delivery.attempt import Attempt, HeldDelivery, Target
from dispatcher.delivery.capacity import Capacity
from dispatcher.delivery.echoes import Echoes
from dispatcher.delivery.failure import FailedAttempt, Failures
from dispatcher.delivery.instances import ChangeDelivery, keywords_of, untouched
from dispatcher.delivery.log import log_delivered, log_parked
from dispatcher.delivery.outcome import Decision, Limited, Waiting
from dispatcher.delivery.ports import GATHERED, NO_CLAIMS, BatchGate, HeldDeliveries, OpenClaims
from dispatcher.delivery.steps import Steps
from dispatcher.delivery.terms import Policy
from mongoz.signals.hops import MAX_HOPS, current_hops, inside_dispatcher
from mongoz.signals.receivers import Receiver

# If the queue is crowded, a delivery that must wait at least this long, in seconds, is parked. Shorter waits are
# not parked, because parking costs milliseconds.
_LONG_WAIT: Final = 0.3

# The reasons for which a delivery may wait in memory.
_SHORT: Final = frozenset({"retrying", "retry_after"})

Replace = Callable[[asyncio.Task[Any], Callable[[], Awaitable[None]]], None]
"""Replaces the task of a worker. Another task does the rest of the job."""

# If a change was committed more than this many seconds ago, there is a backlog. Then receivers that are
# triggered by their own writes are not slowed down.
_RECENT: Final = 2


class Deliverer:
    """Delivers changes.

    Args:
        held: the deliveries that wait in the database; None if deliveries wait in memory only.
    """

    def __init__(
        self,
        term: int,
        policy: Policy,
        capacity: Capacity,
        stats: Stats,
        codec_options: CodecOptions[Any],
        *,
        steps: Steps,
        failures: Failures,
        held: HeldDeliveries | None = None,
    ) -> None:
        self._term = term
        self._park_after = policy.park_after
        self._log_each = policy.log_each
        self._capacity = capacity
        self._stats = stats
        self._codec_options = codec_options
        self._steps = steps
        self._failures = failures
        self._held = held
        self._claims: OpenClaims = NO_CLAIMS
        self._batches: BatchGate | None = None
        self._echoes = Echoes()
        self._targets: dict[Receiver, Target] = {}

    def wait_for(self, claims: OpenClaims) -> None:
        """Let deliveries wait for open claims of writing processes from now on."""
        self._claims = claims

    def gather_in(self, batches: BatchGate) -> None:
        """Gather the deliveries of batch receivers. Required before their first delivery."""
        self._batches = batches

    # -- changes of the stream -------------------------------------------------------------------------------

    def work(self, job: Job | Errand) -> Coroutine[Any, Any, None]:
        """Deliver a change to all of its receivers, or run an errand.

        Raises:
            CancelledError: the process ends.
            Interrupted: the lanes stop, or the lease is lost.
        """
        if not isinstance(job, Job):
            return job.run()
        change = job.change
        assert change is not None  # an unfinished job has its change
        # The clock is read each time, because it may be set back.
        if change.seconds + _RECENT < time() + self._stats.clock_offset:  # there is a backlog
            return self._work(job, change)
        return self._work_in_pace(job, change)

    async def _work_in_pace(self, job: Job, change: Change) -> None:
        """Deliver, and slow down receivers that are triggered by their own writes."""
        key = change.key
        echoes = self._echoes.count(key, change.wall_time, self._stats.clock_offset)
        if echoes:
            names = (receiver.name for calls in job.calls for receiver in calls.receivers)
            seconds = self._echoes.pause(echoes, names, ".".join(change.namespace), change.id)
            if seconds:
                await self._capacity.pause(seconds)
        began = now()
        await self._work(job, change)
        self._echoes.delivered(key, began, echoes)

    def _work(self, job: Job, change: Change) -> Coroutine[Any, Any, None]:
        if len(job.calls) == 1:
            calls = job.calls[0]
            if current_hops() == calls.hops + 1 <= MAX_HOPS:  # the usual case: workers start with this hop count
                return self._deliver(job, change, calls)
            return self._enter(job, change, calls)
        return self._enter_each(job, change, job.calls)

    async def _enter_each(self, job: Job, change: Change, several: tuple[Calls, ...]) -> None:
        for calls in several:
            # An instance keeps the dicts of the change that it is made from, and modifies them. So each document
            # class gets its own copy of the change.
            await self._enter(job, untouched(change, self._codec_options), calls)

    async def _enter(self, job: Job, change: Change, calls: Calls) -> None:
        """Call the receivers of one document class. Their writes get the hop count of the change plus one."""
        hops = calls.hops
        if hops > MAX_HOPS:
            await self._failures.refuse_hops(change, calls)
            job.passed += len(calls.receivers)
        elif current_hops() == hops + 1:
            await self._deliver(job, change, calls)
        else:
            with inside_dispatcher(hops):
                await self._deliver(job, change, calls)

    async def _deliver(self, job: Job, change: Change, calls: Calls) -> None:
        """Call the receivers of one document class."""
        try:
            image, keywords = copy_context().run(keywords_of, change, calls)  # validators may set contextvars
        except BaseException as invalid:  # validators of the application may raise any error
            await self._failures.refuse_document(change, calls, invalid)
            job.passed += len(calls.receivers)
            return
        signal, held = calls.signal, self._held
        for receiver in calls.receivers:
            # Earlier deliveries of the document to this receiver may wait: in memory for a claim, or parked in the
            # database. Those in the database are the earlier ones. So if some wait in memory, the delivery waits
            # behind them. Otherwise, if some are parked, it is parked too.
            if self._capacity.waiting and self._claims.defers(job, change, calls, receiver):
                job.passed += 1
                continue
            if held is not None and held.watched and await self._waits(held, change, calls, receiver):
                job.passed += 1
                continue
            target = self._targets.get(receiver) or self._choose_steps(receiver, signal)
            delivery = ChangeDelivery((change, calls, receiver.name, image, 1, self._term, False))
            attempt = Attempt(target, change, calls, delivery, keywords, job, monotonic())
            error = await target.call(attempt)
            if error is None:
                self._succeeded(attempt)
                job.passed += 1
                continue
            await self._retry(attempt, error)
            job.passed += 1
            rest = calls.receivers[calls.receivers.index(receiver) + 1 :]
            if rest:
                # The other receivers get a new instance, because failed attempts may have modified this one.
                await self._deliver(job, untouched(change, self._codec_options), calls.with_receivers(*rest))
            return

    async def _waits(self, held: HeldDeliveries, change: Change, calls: Calls, receiver: Receiver) -> bool:
        """Park a delivery if it must wait for other deliveries. Returns whether it is parked now."""
        return receiver.name in held.watched and await held.holds(change, calls, receiver)

    def _choose_steps(self, receiver: Receiver, signal: str) -> Target:
        target = self._steps.target(receiver, signal)
        if receiver.options.batch is not None:
            assert self._batches is not None  # `gather_in` was called
            target = replace(target, call=self._batches.gather)
        self._targets[receiver] = target
        return target

    def _succeeded(self, attempt: Attempt) -> None:
        self._stats.delivered += 1
        attempt.target.figures.delivered += 1
        if self._log_each:
            log_delivered(attempt.change, attempt.delivery, monotonic() - attempt.began)

    # -- further attempts ------------------------------------------------------------------------------------

    async def _retry(self, attempt: Attempt, error: BaseException | None) -> None:
        """Repeat a failed attempt until an attempt succeeds, the delivery is parked, or it is given up."""
        if error is GATHERED:
            return
        first = attempt.began
        began: datetime | None = None
        while error is not None:
            decision: Decision
            if isinstance(error, Limited):
                decision = Waiting("limited", 0.0, attempt.delivery.attempt - 1, began)
            else:
                began = began or datetime.now(UTC) - timedelta(seconds=monotonic() - first)
                decision = await self._failures.decide(FailedAttempt(attempt, error, began))
            if isinstance(decision, bool):
                if decision:
                    break
                return
            if await self._wait(attempt, decision, monotonic() - first):
                return
            attempt = replace(attempt, delivery=attempt.delivery.replaced(attempt=decision.attempts + 1))
            error = await self._attempt_again(attempt, decision)
        self._succeeded(attempt)

    async def _wait(self, attempt: Attempt, waiting: Waiting, since: float) -> bool:
        """Wait for the next attempt. Returns whether the delivery was parked instead.

        Args:
            since: seconds since the first attempt.
        """
        held, receiver = self._held, attempt.target.receiver
        if held is not None and is_long(waiting, since, self._park_after, self._capacity):
            if waiting.reason != "limited":  # limits may park many deliveries; `ReceiverLimits` logs some
                log_parked(attempt.delivery, waiting)
            await held.park(attempt.change, attempt.calls, receiver, waiting)
            return True
        await self._capacity.pause(waiting.seconds)
        if held is not None and held.is_paused(receiver.name):
            paused = waiting._replace(reason="paused", seconds=0.0)
            await held.park(attempt.change, attempt.calls, receiver, paused)
            return True
        return False

    async def _attempt_again(self, attempt: Attempt, waited: Waiting) -> BaseException | None:
        try:
            attempt = attempt.renewed(self._codec_options)
        except BaseException as invalid:  # a validator refuses a document that it accepted before
            return invalid
        error = await attempt.target.call(attempt)
        self._count_retry(attempt, waited, error)
        return error

    def _count_retry(self, attempt: Attempt, waited: Waiting, error: BaseException | None) -> None:
        """Count a repeated attempt, unless it follows `RetryAfter`, or the receiver's limits did not allow it."""
        if waited.reason == "retry_after" or isinstance(error, Limited):
            return
        self._stats.retried += 1
        attempt.target.figures.retried += 1

    # -- held deliveries -------------------------------------------------------------------------------------

    async def deliver_held(self, held: HeldDelivery) -> Decision:
        """Make one attempt at a delivery that waited in the database.

        Returns:
            The next wait; True if the delivery succeeded; False if it was given up.
        """
        with inside_dispatcher(held.calls.hops):
            return await self._deliver_held(held)

    async def _deliver_held(self, held: HeldDelivery) -> Decision:
        change, calls, waiting, retried, *_ = held
        (receiver,) = calls.receivers
        if receiver.options.batch is not None:
            assert self._batches is not None  # `gather_in` was called
            return await self._batches.deliver_alone(held)
        try:
            image, keywords = copy_context().run(keywords_of, change, calls)  # validators may set contextvars
        except BaseException as invalid:  # the model has changed since the delivery was parked
            await self._failures.refuse_document(change, calls, invalid, retried)
            return False
        delivery = ChangeDelivery(
            (change, calls, receiver.name, image, waiting.attempts + 1, self._term, retried is not None)
        )
        began = waiting.began or datetime.now(UTC)
        target = self._targets.get(receiver) or self._choose_steps(receiver, calls.signal)
        attempt = Attempt(target, change, calls, delivery, keywords, held, monotonic())
        error = await target.call(attempt)
        if waiting.attempts:
            self._count_retry(attempt, waiting, error)
        if isinstance(error, Limited):
            return Waiting("limited", 0.0, waiting.attempts, waiting.began)
        if error is not None:
            decision = await self._failures.decide(FailedAttempt(attempt, error, began, retried))
            if decision is not True:
                return decision
        self._succeeded(attempt)
        return True

    # -- receivers that ignore cancellation ------------------------------------------------------------------

    async def watch(self, replace: Replace | None = None) -> None:
        """Enforce time limits. Runs for ever, in parallel to the workers.

        Args:
            replace: replaces a worker whose receiver ignores cancellation. Without it, the receiver keeps its
                worker.
        """
        abandon = None
        if replace is not None and self._held is not None:

            def abandon(task: asyncio.Task[Any], attempt: Attempt) -> None:
                replace(task, partial(self._finish_without, task, attempt))

        await self._steps.invoker.watch(abandon)

    async def _finish_without(self, task: asyncio.Task[Any], attempt: Attempt) -> None:
        """Do the rest of a job whose task does not end.

        The attempt that runs in this task counts as failed. The next attempt waits in the database until the task
        has ended, because a document has one delivery at a time.
        """
        change, calls, parent = attempt.change, attempt.calls, attempt.parent
        error = TimeoutError(f"it took longer than {attempt.target.terms.timeout:g} s, and ignores cancellation")
        if not isinstance(parent, Job | HeldDelivery):
            await parent.leave(task, attempt)
            return
        with inside_dispatcher(calls.hops):
            if isinstance(parent, HeldDelivery):
                began = parent.waiting.began or datetime.now(UTC)
                failed = FailedAttempt(attempt, error, began, parent.retried)
                await parent.leave(task, await self._failures.decide(failed))
                return
            decision = await self._failures.decide(FailedAttempt(attempt, error, datetime.now(UTC)))
            if isinstance(decision, Waiting):
                assert self._held is not None
                log_parked(attempt.delivery, decision)
                await self._held.park(change, calls, attempt.target.receiver, decision, after=task)
        parent.passed += 1
        for rest in parent.left:
            await self._enter(parent, untouched(change, self._codec_options), rest)


def is_long(waiting: Waiting, since: float, park_after: float, capacity: Capacity) -> bool:
    """Returns whether a delivery would wait too long in memory, or take too much of the queue.

    Args:
        since: seconds since the first attempt.
        park_after: see `Policy`.
    """
    return (
        waiting.reason not in _SHORT
        or since + waiting.seconds > park_after
        or (waiting.seconds >= _LONG_WAIT and capacity.crowded)
    )
