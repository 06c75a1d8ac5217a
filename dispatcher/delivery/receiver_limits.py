"""Lets attempts wait if the receiver has the option `concurrency` or `rate`.

An attempt needs a *place*, which `pace/limit.py` gives when both options allow another attempt.
"""

from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Final

from dispatcher.core.output.logs import log
from dispatcher.core.output.throttle import Throttle
from dispatcher.delivery.attempt import Attempt, Call, HeldDelivery, Target
from dispatcher.delivery.capacity import Capacity
from dispatcher.delivery.log import described
from dispatcher.delivery.outcome import Limited
from dispatcher.pace.limit import Limit, LimitsByName

# Maximum seconds that a delivery of the stream waits in memory for a place. During this time, later changes of its
# document wait, too.
_SHORT: Final = 0.5


class ReceiverLimits:
    """The step that applies the limits of a receiver. If an attempt gets no place, it is not made.

    Args:
        limits: the limits, by the name of the receiver. A receiver that is missing here has no limit.
    """

    def __init__(self, limits: LimitsByName, capacity: Capacity) -> None:
        self._limits = limits
        self._capacity = capacity
        self._may_park = limits.may_park
        self._throttle = Throttle()

    def around(self, target: Target) -> Target:
        """Put the step around the `call` of a receiver with limits."""
        limit = self._limits.get(target.receiver.name)
        return target if limit is None else replace(target, call=partial(self._call, target.call, limit))

    async def _call(self, call: Call, limit: Limit, attempt: Attempt) -> BaseException | None:
        parked = attempt.parent if isinstance(attempt.parent, HeldDelivery) else None
        has_place = parked is not None and parked.place is not None and parked.place.use()
        if not has_place and not limit.take():
            may_wait = not self._may_park or (parked is None and not self._is_crowded(limit))
            if not may_wait or not await self._wait(limit):
                self._count(attempt)
                return Limited()
            attempt = replace(attempt, began=monotonic())
        try:
            return await call(attempt)
        finally:
            limit.give_back()

    def _is_crowded(self, limit: Limit) -> bool:
        return limit.is_crowded or self._capacity.crowded

    async def _wait(self, limit: Limit) -> bool:
        """Wait for a place. Returns whether this attempt has got one."""
        future = limit.ask()
        limit.waiting += 1
        try:
            await self._capacity.pause(_SHORT if self._may_park else None, until=future)
        except BaseException:
            if limit.withdraw(future):
                limit.give_back()
            raise
        finally:
            limit.waiting -= 1
        return limit.withdraw(future)

    def _count(self, attempt: Attempt) -> None:
        """Count a delivery without a place. The log lines are throttled."""
        attempt.target.figures.limited += 1
        further = self._throttle.due(attempt.delivery.receiver)
        if further is not None:
            log.info(
                "a receiver has as many deliveries as its limits allow; further ones are parked",
                action="delivery.limited",
                **described(attempt.delivery),
                further=further,
            )
