"""Delivers one batch: repeats it, divides it after the last attempt, and decides about events that fail alone.

The whole batch gets as many attempts as the receiver's options allow. Then each half gets one attempt. A half
that fails is halved again, down to single events. `on_failure` decides about an event that fails alone.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic, time
from typing import Any, Final, NamedTuple

from bson.codec_options import CodecOptions

from dispatcher.batches.attempt import BatchAttempt, delivery_of, make_events
from dispatcher.batches.gathering import GatheredDelivery
from dispatcher.batches.halving import divided
from dispatcher.core.stats import Stats, seconds_of
from dispatcher.delivery.attempt import Attempt, HeldDelivery, Leaving, Target
from dispatcher.delivery.capacity import Capacity
from dispatcher.delivery.deliverer import is_long
from dispatcher.delivery.failure import FailedAttempt, Failures
from dispatcher.delivery.log import log_delivered, log_parked
from dispatcher.delivery.outcome import Decision, Limited, Waiting
from dispatcher.delivery.ports import HeldDeliveries
from dispatcher.delivery.terms import Policy
from mongoz.exceptions import BatchError, RetryAfter
from mongoz.signals import Delivery
from mongoz.signals.hops import inside_dispatcher

# If the limits of the receiver allow no attempt now, the batch waits in the database for a second.
_LIMITED: Final = Waiting("limited", 1.0)


class BatchTools(NamedTuple):
    """The services that batches need.

    Attributes:
        held: the deliveries that wait in the database; None if deliveries wait in memory only.
    """

    term: int
    policy: Policy
    capacity: Capacity
    stats: Stats
    codec_options: CodecOptions[Any]
    failures: Failures
    held: HeldDeliveries | None


class _Failed(NamedTuple):
    """A delivery after a failed attempt.

    Attributes:
        alone: whether the event itself failed. Otherwise another event of its batch may have caused the error.
        is_behind: whether the event is delivered again because an earlier event of its document failed. The
            repetition keeps the order: the receiver gets the newest state of the document last. After a failed
            event, the next event of the same document without an error is repeated. All later events of this
            document are repeated too, with or without an error.
    """

    one: GatheredDelivery
    error: BaseException
    alone: bool
    is_behind: bool = False


class BatchRun:
    """Delivers one batch.

    Args:
        target: the receiver with the steps around its attempts.
        finish: called with each finished delivery that has a job. Deliveries from the database have none.
        end: called at the end, when each delivery is finished, or has an entry in `decided` or `waits`.

    Attributes:
        decided: the deliveries from the database that succeeded (True) or were given up (False).
        waits: the deliveries that must wait in the database, by document, each with the reason for its wait. The
            first delivery of a document waits for its next attempt; the later ones wait for the first one.
        stuck: the task of an attempt that ignores cancellation; None if there is none. The deliveries in `waits`
            get no attempt before this task has ended.
    """

    def __init__(
        self,
        tools: BatchTools,
        target: Target,
        gathered: Sequence[GatheredDelivery],
        *,
        finish: Callable[[GatheredDelivery], None],
        end: Callable[["BatchRun"], Awaitable[None]],
    ) -> None:
        self._tools = tools
        self._target = target
        self._gathered = gathered
        self._finish = finish
        self._end = end
        self._parts: list[list[GatheredDelivery]] = []
        self.decided: list[tuple[GatheredDelivery, bool]] = []
        self.waits: dict[Hashable, list[tuple[GatheredDelivery, Waiting]]] = {}
        self.stuck: asyncio.Task[Any] | None = None

    @property
    def keys(self) -> set[Hashable]:
        """The documents of the batch."""
        return {one.key for one in self._gathered}

    async def run(self) -> None:
        """Deliver the batch.

        Raises:
            CancelledError: the process ends.
            Interrupted: the lanes stop, or the lease is lost.
        """
        await self._deliver_whole(self._gathered)
        await self._end(self)

    async def leave(self, task: "asyncio.Task[Any]", attempt: Attempt) -> None:
        """Finish the batch without its task, which is stuck in the receiver, see `Leaving`."""
        assert isinstance(attempt, BatchAttempt)
        self.stuck = task
        error = TimeoutError(f"it took longer than {self._target.terms.timeout:g} s, and ignores cancellation")
        for one in attempt.gathered:
            await self._decide(_Failed(one, error, alone=True))
        await self._deliver_parts()
        await self._end(self)

    async def deliver_alone(self, held: HeldDelivery) -> Decision:
        """Make one attempt at a batch of one delivery, which waited in the database."""
        (one,) = self._gathered
        for failed in await self._attempt([one], held):
            if isinstance(failed.error, Limited):
                return _LIMITED._replace(attempts=one.attempts - 1, began=held.waiting.began)
            decision = await self._tools.failures.decide(self._failed_attempt(failed))
            if decision is not True:
                return decision
            self._succeeded([one], monotonic())
        ((_, is_delivered),) = self.decided
        return is_delivered

    # -- the whole batch -------------------------------------------------------------------------------------

    async def _deliver_whole(self, gathered: Sequence[GatheredDelivery]) -> None:
        began = monotonic()
        if self._is_paused:
            self._let_all_wait(gathered, Waiting("paused"))
            return
        while gathered:
            for one in gathered:
                one.attempts += 1
            failed = await self._attempt(gathered, self)
            if not failed:
                return
            waiting = self._another(failed)
            gathered = [one.one for one in failed]
            if isinstance(failed[0].error, Limited):
                self._let_all_wait(gathered, _LIMITED)
                return
            if waiting is None:
                await self._deliver_failed(failed)
                return
            if not await self._wait(gathered, waiting, monotonic() - began):
                return

    def _another(self, failed: Sequence[_Failed]) -> Waiting | None:
        """The wait before the next attempt with the whole batch; None if the whole batch gets no more attempt."""
        if isinstance(failed[0].error, Limited):  # the attempt was not made
            for one in failed:
                one.one.attempts -= 1
            return None
        asked = [one for one in failed if isinstance(one.error, RetryAfter)]
        others = [one for one in failed if not isinstance(one.error, RetryAfter)]
        waits: list[Waiting] = []
        for several in (others, asked):
            waiting = self._another_of(several) if several else None
            if waiting is not None:
                waits.append(waiting)
            elif several:
                return None
        return max(waits, key=lambda waiting: waiting.seconds)  # no event is repeated too early

    def _another_of(self, failed: Sequence[_Failed]) -> Waiting | None:
        """The wait before the next attempt with events that failed in the same way."""
        most = max(failed, key=lambda one: (one.one.attempts, getattr(one.error, "seconds", 0.0)))
        waiting = self._tools.failures.another(self._failed_attempt(most))
        if waiting is not None and waiting.attempts < most.one.attempts:  # the attempt does not count
            for one in failed:
                one.one.attempts -= 1
        return waiting

    async def _wait(self, gathered: Sequence[GatheredDelivery], waiting: Waiting, since: float) -> bool:
        """Wait for the next attempt. Returns False if the deliveries must wait in the database."""
        tools = self._tools
        if tools.held is not None and is_long(waiting, since, tools.policy.park_after, tools.capacity):
            self._let_all_wait(gathered, waiting)
            return False
        await tools.capacity.pause(waiting.seconds)
        if self._is_paused:
            self._let_all_wait(gathered, waiting._replace(reason="paused", seconds=0.0))
            return False
        return True

    @property
    def _is_paused(self) -> bool:
        held = self._tools.held
        return held is not None and held.is_paused(self._target.receiver.name)

    def _let_all_wait(self, gathered: Sequence[GatheredDelivery], waiting: Waiting) -> None:
        for one in gathered:
            self._let_wait(one, waiting)

    def _let_wait(self, one: GatheredDelivery, waiting: Waiting) -> None:
        waiting = waiting._replace(attempts=one.attempts, began=one.began)
        if waiting.reason not in {"retrying", "limited"}:  # such deliveries may be too many for the log
            log_parked(self._delivery(one), waiting)
        self.waits.setdefault(one.key, []).append((one, waiting))

    # -- parts of the batch ----------------------------------------------------------------------------------

    async def _deliver_failed(self, failed: Sequence[_Failed]) -> None:
        """Decide about the events that failed alone, and deliver the others in parts."""
        self._divide([one.one for one in await self._decide_each(failed)])
        await self._deliver_parts()

    async def _decide_each(self, failed: Sequence[_Failed]) -> list[_Failed]:
        """Decide about events that failed alone. The events behind them become one part. Returns the rest."""
        for one in failed:
            if one.alone:
                await self._decide(one)
        behind = [one.one for one in failed if one.is_behind]
        if behind:
            self._parts.append(behind)
        return [one for one in failed if not (one.alone or one.is_behind)]

    def _divide(self, gathered: Sequence[GatheredDelivery]) -> None:
        for part in reversed(divided([one.key for one in gathered])):
            self._parts.append([gathered[index] for index in part])

    async def _deliver_parts(self) -> None:
        while self._parts:
            part = []
            for one in self._parts.pop():
                if self._is_paused:
                    self._let_wait(one, Waiting("paused"))
                elif one.key in self.waits:
                    self._let_wait(one, Waiting("retrying"))
                else:
                    part.append(one)
            failed = await self._attempt(part, self) if part else []
            if failed and isinstance(failed[0].error, Limited):
                await self._postpone([each.one for each in failed], _LIMITED)
                return
            rest = await self._decide_each(failed)
            waiting = self._tools.failures.postponed(self._failed_attempt(rest[0])) if rest else None
            if waiting is None:
                self._divide([each.one for each in rest])
            else:
                await self._postpone([each.one for each in rest], waiting)

    async def _postpone(self, gathered: Sequence[GatheredDelivery], waiting: Waiting) -> None:
        """Let a part and all later parts wait. After a short wait, deliver them as one batch."""
        several = [*gathered, *(one for part in reversed(self._parts) for one in part)]
        self._parts.clear()
        for one in several:
            one.attempts -= 1
        if await self._wait(several, waiting, 0.0):
            await self._deliver_whole(several)

    async def _decide(self, failed: _Failed) -> None:
        """Decide about an event that failed alone."""
        while True:
            one = failed.one
            if one.key in self.waits:
                self._let_wait(one, Waiting("retrying"))
                return
            decision = await self._tools.failures.decide(self._failed_attempt(failed))
            if decision is True:  # the transaction of the failed attempt was committed
                self._succeeded([one], monotonic())
                return
            if decision is False:
                self._decided(one, decision=False)
                return
            one.attempts = decision.attempts
            if self._tools.held is not None:
                self._let_wait(one, decision)
                return
            await self._tools.capacity.pause(decision.seconds)
            one.attempts += 1
            again = await self._attempt([one], self)
            if not again:
                return
            (failed,) = again

    # -- one attempt -----------------------------------------------------------------------------------------

    async def _attempt(
        self, gathered: Sequence[GatheredDelivery], parent: Leaving | HeldDelivery
    ) -> list[_Failed]:
        """Make one attempt. Returns the deliveries that are not finished."""
        failed: list[_Failed] = []
        position = {one: number for number, one in enumerate(gathered)}
        while gathered:
            attempt = await self._prepare(gathered, parent)
            if attempt is None:
                break
            with inside_dispatcher(max(one.calls.hops for one in attempt.gathered)):
                error = await self._target.call(attempt)
            gathered = attempt.gathered
            if error is None:
                self._succeeded(gathered, attempt.began)
                break
            if not isinstance(error, BatchError):
                failed += [_Failed(one, error, len(gathered) == 1) for one in gathered]
                break
            named, gathered = _divided_by_errors(gathered, error.errors)
            failed += named
            if not self._target.terms.transactional:
                self._succeeded(gathered, attempt.began)
                break
            # The transaction was aborted. The next attempt has only the events that did not fail.
        return sorted(failed, key=lambda one: position[one.one])

    async def _prepare(
        self, gathered: Sequence[GatheredDelivery], parent: Leaving | HeldDelivery
    ) -> BatchAttempt | None:
        """Make the events, and refuse documents that do not fit their class. Returns None if no event remains."""
        tools, target = self._tools, self._target
        made = make_events(gathered, tools.term, tools.codec_options)
        for one, error in made.misfits:
            await tools.failures.refuse_document(one.change, one.calls, error, one.retried)
            self._decided(one, decision=False)
        if not made.events:
            return None
        first = made.gathered[0]
        self._count(made.gathered)
        attempt = BatchAttempt(
            target,
            first.change,
            first.calls,
            made.events[0].delivery,
            {},
            parent,
            monotonic(),
            made.gathered,
            made.events,
        )
        began = datetime.now(UTC)
        for one in made.gathered:
            one.began = one.began or began
        return attempt

    def _count(self, gathered: Sequence[GatheredDelivery]) -> None:
        """Count the batch and its repeated deliveries, and record the age of its first change."""
        stats, name = self._tools.stats, self._target.receiver.name
        self._target.figures.batches.observe(len(gathered))
        repeated = Counter(one.calls.signal for one in gathered if one.attempts > 1)
        for signal, count in repeated.items():
            stats.retried += count
            stats.figures_of(name, signal).retried += count
        first = gathered[0]
        if first.attempts == 1 and first.job is not None:  # a delivery from the database waited on purpose
            committed = seconds_of(first.change.wall_time)
            if committed is not None:
                age = time() + stats.clock_offset - committed  # can be negative: the offset is an estimate
                stats.figures_of(name, first.calls.signal).latency.observe(max(0.0, age))

    def _succeeded(self, gathered: Sequence[GatheredDelivery], began: float) -> None:
        stats, name = self._tools.stats, self._target.receiver.name
        for signal, count in Counter(one.calls.signal for one in gathered).items():
            stats.delivered += count
            stats.figures_of(name, signal).delivered += count
        for one in gathered:
            if self._tools.policy.log_each:
                log_delivered(one.change, self._delivery(one), monotonic() - began)
            self._decided(one, decision=True)

    def _decided(self, one: GatheredDelivery, decision: bool) -> None:
        if one.job is None:
            self.decided.append((one, decision))
        else:
            self._finish(one)

    # -- values for logs and decisions -----------------------------------------------------------------------

    def _failed_attempt(self, failed: _Failed) -> FailedAttempt:
        """The failed attempt of one event, as if the batch had no other event."""
        one, error = failed.one, failed.error
        figures = self._tools.stats.figures_of(one.receiver.name, one.calls.signal)
        target = replace(self._target, receiver=one.receiver, figures=figures)
        attempt = Attempt(target, one.change, one.calls, self._delivery(one), {}, self, monotonic())
        assert one.began is not None  # set before the attempt
        return FailedAttempt(attempt, error, one.began, one.retried)

    def _delivery(self, one: GatheredDelivery) -> Delivery:
        """The delivery of an event, for logs and records."""
        return delivery_of(one, one.change.image, self._tools.term)


def _divided_by_errors(
    gathered: Sequence[GatheredDelivery], errors: Mapping[int, Exception]
) -> tuple[list[_Failed], list[GatheredDelivery]]:
    """The events that failed or are behind a failed event, and the other events.

    Args:
        errors: the errors by the index of the event in `gathered`.
    """
    failed: list[_Failed] = []
    others: list[GatheredDelivery] = []
    first: dict[Hashable, Exception] = {}
    behind: set[Hashable] = set()
    for index, one in enumerate(gathered):
        if one.key in behind or (one.key in first and index not in errors):
            behind.add(one.key)
            failed.append(_Failed(one, first[one.key], alone=False, is_behind=True))
        elif index in errors:
            first.setdefault(one.key, errors[index])
            failed.append(_Failed(one, errors[index], alone=True))
        else:
            others.append(one)
    return failed, others
