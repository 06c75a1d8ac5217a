"""The steps around each attempt, in their order. `docs/why.md` explains each step, and how to add one."""

from copy import copy
from typing import Any

from bson.codec_options import CodecOptions

from dispatcher.core.lease import Lease
from dispatcher.core.stats import Stats
from dispatcher.delivery.attempt import Run, Step, Target
from dispatcher.delivery.capacity import Capacity
from dispatcher.delivery.conflicts import Conflicts
from dispatcher.delivery.invoker import Invoker, run_receiver
from dispatcher.delivery.measurement import Measurement
from dispatcher.delivery.receiver_limits import ReceiverLimits
from dispatcher.delivery.terms import Policy
from dispatcher.delivery.tracing import Tracing
from dispatcher.delivery.transactions import Transactions
from mongoz.signals.receivers import Receiver


class Steps:
    """The steps around each attempt.

    Args:
        limits: enforces the limits of receivers; None to ignore them.
        tracing: makes spans; None if traces are off.
        transactions: runs transactional receivers; None to run them like other receivers.

    Attributes:
        invoker: the step with the time limit.
    """

    def __init__(
        self,
        policy: Policy,
        lease: Lease,
        capacity: Capacity,
        stats: Stats,
        codec_options: CodecOptions[Any],
        *,
        limits: ReceiverLimits | None = None,
        tracing: Tracing | None = None,
        transactions: Transactions | None = None,
    ) -> None:
        self._policy = policy
        self._stats = stats
        self.invoker = Invoker(policy, capacity, lease)
        self._run: Run = run_receiver
        self._transactions: Step | None = transactions
        self._outer: tuple[Step | None, ...] = (
            # In the worker's task, around the whole attempt; the outermost step first.
            limits,
            Measurement(stats),
            Conflicts(codec_options, capacity.pause) if transactions is not None else None,
            self.invoker,
            # In the receiver's context, inside the time limit. The transaction is the innermost step.
            tracing,
        )

    def batched(self, run: Run, transactions: Step | None) -> "Steps":
        """The steps of batch receivers.

        Args:
            run: calls a receiver with a batch.
            transactions: runs transactional receivers with a batch; None to run them like other receivers.
        """
        steps = copy(self)
        steps._run, steps._transactions = run, transactions
        return steps

    def target(self, receiver: Receiver, signal: str) -> Target:
        """Choose the steps of a receiver of a signal."""
        terms, figures = self._policy.terms_of(receiver.options), self._stats.figures_of(receiver.name, signal)
        target = Target(receiver, terms, figures, self._run, self.invoker.call)
        for step in reversed((*self._outer, self._transactions)):
            if step is not None:
                target = step.around(target)
        return target
