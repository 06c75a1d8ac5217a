"""Gathers the deliveries of batch receivers, and runs their batches in the lanes.

A delivery to a batch receiver is a separate part of the job of its change (see `Job`). So the lane of the
document goes on to the next receiver and to the next change. The job is finished when all its parts are
finished.
In the lanes, a batch is an errand with a key of its own. So a running batch needs a worker, like a job.

A document is in one batch of a receiver at a time. If a delivery must wait for a long time, an errand in the
lane of its document parks this delivery, and also the later deliveries of the document to this receiver. So
no later delivery overtakes it.
"""

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any

from dispatcher.batches.gathering import GatheredDelivery, Gathering
from dispatcher.batches.ports import HeldSource
from dispatcher.batches.run import BatchRun, BatchTools
from dispatcher.batches.timer import EarliestTimer
from dispatcher.core.events import Errand, Job
from dispatcher.delivery.attempt import Attempt, HeldDelivery, Target
from dispatcher.delivery.outcome import Decision, Waiting
from dispatcher.delivery.ports import GATHERED
from dispatcher.delivery.steps import Steps


@dataclass(slots=True, eq=False)
class _ReceiverBatches:
    """The gathering of one receiver and one document class.

    Attributes:
        timer: fires when the next batch is due.
    """

    gathering: Gathering
    target: Target
    timer: EarliestTimer


class Batches:
    """The batches of one partition, or of one replay or backfill.

    Args:
        steps: the steps around the attempts of batch receivers.
        places: the maximum number of batches that run at the same time.
        add: puts an errand into a lane.
        on_finished: called with the job when one of its deliveries is finished.

    Attributes:
        waiting: the number of deliveries that wait for a batch to begin; those from the database do not count.
    """

    def __init__(
        self,
        tools: BatchTools,
        steps: Steps,
        *,
        places: int,
        add: Callable[[Hashable, Errand], None],
        on_finished: Callable[[Job], None],
    ) -> None:
        self._tools = tools
        self._steps = steps
        self._places = max(1, places)
        self._add = add
        self._on_finished = on_finished
        self._held_source: HeldSource | None = None
        self._groups: dict[tuple[str, Any], _ReceiverBatches] = {}
        self._unfinished: dict[GatheredDelivery, None] = {}
        self.waiting = 0
        self._waiting_bytes = 0

    def settle_in(self, source: HeldSource) -> None:
        """Set the source of the deliveries from the database. Required before `add_held`."""
        self._held_source = source

    def resize(self, places: int) -> None:
        """Set the maximum number of batches that run at the same time."""
        self._places = max(1, places)
        self._advance_all()

    # -- gathering -------------------------------------------------------------------------------------------

    async def gather(self, attempt: Attempt) -> BaseException:
        """Let a delivery wait for its batch, see `BatchGate`."""
        job, change, calls, receiver = attempt.parent, attempt.change, attempt.calls, attempt.target.receiver
        assert isinstance(job, Job)
        # Receivers before this one may have modified the instance. Then the event gets a new instance.
        made = (attempt.delivery.image, attempt.keywords) if calls.receivers[0] is receiver else None
        own = calls if len(calls.receivers) == 1 else calls.with_receivers(receiver)
        one = GatheredDelivery(change, own, change.key, attempt.began, job, made=made)
        job.gather()
        capacity = self._tools.capacity
        capacity.queued += 1
        capacity.queued_bytes += change.size
        self.waiting += 1
        self._waiting_bytes += change.size
        self._unfinished[one] = None
        group = self._group_of(one)
        group.gathering.add(one)
        if capacity.is_crowded_by(self.waiting, self._waiting_bytes):
            self.close()
        else:
            self._advance(group)
        return GATHERED

    def add_held(self, several: Iterable[GatheredDelivery]) -> None:
        """Gather deliveries that waited in the database. The deliveries of one document are in order."""
        for one in several:
            group = self._group_of(one)
            group.gathering.add(one)
            self._advance(group)

    def _group_of(self, one: GatheredDelivery) -> _ReceiverBatches:
        key = (one.receiver.name, one.calls.document)
        group = self._groups.get(key)
        if group is None:
            batch = one.receiver.options.batch
            assert batch is not None  # the callers have checked it
            target = self._steps.target(one.receiver, one.calls.signal)
            timer = EarliestTimer(partial(self._on_timer, key))
            group = self._groups[key] = _ReceiverBatches(Gathering(batch), target, timer)
        return group

    def close(self, names: Collection[str] | None = None) -> None:
        """Begin the next batch of each receiver without waiting for further deliveries.

        Args:
            names: the names of the receivers; None for all.
        """
        for (name, _), group in self._groups.items():
            if names is None or name in names:
                group.gathering.close()
        self._advance_all()

    def close_rest(self) -> None:
        """Begin the next batches if everything in the queue waits for a batch.

        In this case no job in the queue can add a delivery to these batches.
        """
        if self.waiting == self._tools.capacity.queued:
            self.close()

    def close_if_paused(self) -> None:
        """Begin the next batches of paused receivers. These batches only park their deliveries."""
        held = self._tools.held
        for (name, _), group in self._groups.items():
            if held is not None and held.is_paused(name):
                group.gathering.close()
                self._advance(group)

    async def deliver_alone(self, held: HeldDelivery) -> Decision:
        """Make one attempt at a delivery that waited in the database, as a batch of one event."""
        change, calls, waiting, retried, *_ = held
        one = GatheredDelivery(
            change,
            calls,
            change.key,
            monotonic(),
            attempts=waiting.attempts + 1,
            began=waiting.began,
            retried=retried,
            is_untouched=True,
        )
        return await self._run_of(self._group_of(one), [one]).deliver_alone(held)

    # -- batches ---------------------------------------------------------------------------------------------

    @property
    def _share(self) -> int:
        """How many batches of one receiver may run at the same time. The other places are for other receivers."""
        return max(1, self._places // len(self._groups))

    def _advance_all(self) -> None:
        for group in self._groups.values():
            self._advance(group)

    def _advance(self, group: _ReceiverBatches) -> None:
        """Begin the batches that are due, and set the timer for the next one."""
        gathering, most_bytes = group.gathering, self._tools.capacity.batch_bytes
        while gathering.running < self._share:
            if not gathering.is_due(monotonic(), most_bytes):
                if gathering.due_at is not None:
                    group.timer.set(gathering.due_at)
                return
            self._add(object(), self._begin(group))

    def _on_timer(self, key: tuple[str, Any]) -> None:
        if not self._tools.capacity.stopping:
            self._advance(self._groups[key])

    def _begin(self, group: _ReceiverBatches) -> Errand:
        """Take the next batch. Returns the errand that delivers the batch."""
        gathered = group.gathering.take(self._tools.capacity.batch_bytes)
        group.gathering.running += 1
        for one in gathered:
            if one.job is not None:
                self.waiting -= 1
                self._waiting_bytes -= one.change.size
        run = self._run_of(group, gathered)
        return Errand(run.run, partial(self._ended, group, run))

    def _run_of(self, group: _ReceiverBatches, gathered: Sequence[GatheredDelivery]) -> BatchRun:
        end = partial(self._settle, group.gathering)
        return BatchRun(self._tools, group.target, gathered, finish=self._finish, end=end)

    def _ended(self, group: _ReceiverBatches, run: BatchRun) -> None:
        """End a batch, and release its documents, except those with deliveries to park: see `_release`."""
        group.gathering.running -= 1
        group.gathering.release(run.keys - run.waits.keys())
        self._advance_all()

    def _finish(self, one: GatheredDelivery) -> None:
        assert one.job is not None  # called only for deliveries with a job
        del self._unfinished[one]
        capacity = self._tools.capacity
        capacity.queued -= 1
        capacity.queued_bytes -= one.change.size
        one.job.end_gathering()
        if one.job.on_end is None:
            self._on_finished(one.job)
        else:
            one.job.finish_part()
        if capacity.watched is not None:
            capacity.report_progress()

    # -- deliveries that must wait in the database -----------------------------------------------------------

    async def _settle(self, gathering: Gathering, run: BatchRun) -> None:
        """Record the results of deliveries from the database. If deliveries of the stream must wait, park them."""
        from_held = [each for waits in run.waits.values() for each in waits if each[0].job is None]
        if run.decided or from_held:
            assert self._held_source is not None  # `settle_in` has set it
            await self._held_source.settle(run.decided, from_held, run.stuck)
        for key, waits in run.waits.items():
            errand = partial(self._park, gathering, key, waits, run.stuck)
            self._add(key, Errand(errand, partial(self._release, gathering, key)))

    async def _park(
        self,
        gathering: Gathering,
        key: Hashable,
        waits: Sequence[tuple[GatheredDelivery, Waiting]],
        stuck: "asyncio.Task[Any] | None",
    ) -> None:
        """Park the deliveries of a document, and those that have gathered behind them, in order.

        Deliveries from the database stay there.
        """
        held = self._tools.held
        assert held is not None  # otherwise no delivery waits in the database
        behind = gathering.withdraw(key)
        for one in behind:
            self._withdrawn(one)
        for one, waiting in chain(waits, ((one, Waiting("interrupted")) for one in behind)):
            if one.job is None:
                continue
            if not await held.holds(one.change, one.calls, one.receiver):
                await held.park(one.change, one.calls, one.receiver, waiting, after=stuck)
            self._finish(one)

    def _withdrawn(self, one: GatheredDelivery) -> None:
        if one.job is not None:
            self.waiting -= 1
            self._waiting_bytes -= one.change.size
        else:
            assert self._held_source is not None  # `settle_in` has set it
            self._held_source.forget(one)

    def _release(self, gathering: Gathering, key: Hashable) -> None:
        gathering.release([key])
        self._advance_all()

    # -- the end of the partition or of the run --------------------------------------------------------------

    def last(self) -> dict[Hashable, Errand]:
        """Return the errands of all batches that can still begin. After this call, no timer begins a batch."""
        for group in self._groups.values():
            group.timer.cancel()
        errands: dict[Hashable, Errand] = {}
        if self._tools.capacity.held:
            return errands
        for group in self._groups.values():
            group.gathering.close()
            while group.gathering.is_due(monotonic(), self._tools.capacity.batch_bytes):
                errands[object()] = self._begin(group)
                group.gathering.close()
        return errands

    async def park_begun(self) -> None:
        """When the partition is left: if other receivers have got a change already, park its deliveries.

        The next owner of the partition reads all other changes again.

        Raises:
            Interrupted: the process ends, and a write has not succeeded.
        """
        held = self._tools.held
        assert held is not None  # only replays and backfills have none, and they do not call this method
        for one in list(self._unfinished):
            assert one.job is not None  # `gather` adds only deliveries with a job
            if one.job.is_begun:
                if not await held.holds(one.change, one.calls, one.receiver):
                    await held.park(one.change, one.calls, one.receiver, Waiting("interrupted"))
                self._finish(one)
