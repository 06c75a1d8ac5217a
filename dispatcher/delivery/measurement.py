"""Measure attempts."""

from collections.abc import Awaitable
from dataclasses import replace
from time import monotonic, time
from typing import Final

from dispatcher.core.events import Job
from dispatcher.core.stats import Stats, seconds_of
from dispatcher.delivery.attempt import Attempt, Call, Target

# Seconds between two attempts of a receiver that are measured, at least. Each delivery is counted, but a look at
# the clock and an entry in two histograms for each would cost a twentieth of a delivery. A sample that is spread
# evenly over time shows the same.
_BETWEEN: Final = 0.001


class Measurement:
    """The step that measures how long attempts take, and how old changes are at their first attempt."""

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
        if attempt.delivery.attempt == 1 and isinstance(attempt.whose, Job):  # held deliveries waited on purpose
            committed = seconds_of(attempt.change.wall_time)
            if committed is not None:  # the server's clock may be ahead of ours
                figures.latency.observe(max(0.0, time() + self._stats.clock_offset - committed))
        error = await call(attempt)
        figures.duration.observe(monotonic() - attempt.began)
        return error
