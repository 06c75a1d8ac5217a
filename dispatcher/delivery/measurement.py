"""Measures the duration of attempts and the latency of changes."""

from collections.abc import Awaitable
from dataclasses import replace
from time import monotonic, time
from typing import Final

from dispatcher.core.events import Job
from dispatcher.core.stats import Stats, seconds_of
from dispatcher.delivery.attempt import Attempt, Call, Target
from dispatcher.delivery.instances import ChangeDelivery

# Minimum number of seconds between two measured attempts of a receiver. Each delivery is counted. Only a sample is
# measured, because the clock and two histograms would add a twentieth to the cost of each delivery. A sample that
# is spread evenly over time gives the same distribution.
_BETWEEN: Final = 0.001


class Measurement:
    """The step that measures the duration of attempts, and the age of changes at their first attempt."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def around(self, target: Target) -> Target:
        """Put the step around the `call` of a receiver."""
        call, figures = target.call, target.figures

        def measured(attempt: Attempt) -> Awaitable[BaseException | None]:
            if attempt.began < figures.due:
                return call(attempt)
            figures.due = attempt.began + _BETWEEN
            return self._measure(call, attempt)

        return replace(target, call=measured)

    async def _measure(self, call: Call, attempt: Attempt) -> BaseException | None:
        figures = attempt.target.figures
        # Held deliveries waited on purpose. Only first attempts have a `ChangeDelivery`. To read its `attempt`
        # would compute all of its attributes.
        if isinstance(attempt.parent, Job) and isinstance(attempt.delivery, ChangeDelivery):
            committed = seconds_of(attempt.change.wall_time)
            if committed is not None:  # the server's clock may be ahead of ours
                figures.latency.observe(max(0.0, time() + self._stats.clock_offset - committed))
        error = await call(attempt)
        figures.duration.observe(monotonic() - attempt.began)
        return error
