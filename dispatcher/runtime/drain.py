"""The end of one stream's work, in order.

Nothing new is read any more when this begins. Then, and why:

1. Stop starting deliveries, and give those in flight the grace period. What is queued was not begun, and is read
   again by whoever comes next.
2. Cancel the receivers that are still at work: this one attempt will be repeated.
3. Park what is left of changes that some receivers have got: these are not to get them again.
4. Save the position, with what was finished ahead of it, so that nothing else is repeated.

Who has lost the lease cancels what is in flight at once, and writes nothing: another process delivers it.
"""

import asyncio
from contextlib import suppress
from typing import Final

from dispatcher.core.events import Job
from dispatcher.core.lease import Lease, now
from dispatcher.core.output.logs import get_logger
from dispatcher.core.tasks import Interrupted
from dispatcher.delivery.capacity import Capacity
from dispatcher.delivery.lanes import Lanes
from dispatcher.exceptions import DispatcherError
from dispatcher.parking.gate import Parking
from dispatcher.parking.worker import Unparking
from dispatcher.position.checkpoint import Progress

__all__ = ["SAVE_PATIENCE", "drain"]

log = get_logger()

SAVE_PATIENCE: Final = 5.0
"""Seconds that the last writes may take: the reason for the end is known already, and a server may be gone."""


async def drain(
    lease: Lease,
    capacity: Capacity,
    lanes: Lanes,
    parking: Parking,
    unparking: Unparking,
    progress: Progress,
    *,
    grace: float,
) -> None:
    """End all deliveries, and see to it that as little as possible is repeated.

    Args:
        lease: of the partition.
        capacity: how many there are.
        lanes: where they are.
        parking: where what is left of them goes.
        unparking: works off what is parked.
        progress: keeps the position.
        grace: seconds that deliveries in flight have.
    """
    lost = lease.lost.is_set()
    log.info("draining", action="dispatcher.draining", partition=lease.partition, in_flight=capacity.in_flight)
    lease.interrupt()
    patience = 0 if lost else grace
    cut = await lanes.stop(patience)
    if cut:
        log.warning(
            "receivers were still at work after the grace period: they are cancelled, and called again later",
            action="dispatcher.cut",
            deliveries=cut,
            grace=patience,
        )
    if lost:
        return
    try:
        async with asyncio.timeout(SAVE_PATIENCE):
            if now() < lease.until:  # or somebody else may be at it
                with suppress(Interrupted):  # what can't be written is repeated
                    await _park_rest(lanes, parking, progress)
                with suppress(Interrupted):
                    await unparking.settle_rest()
            with suppress(DispatcherError):  # the reason for the end is known already
                await progress.save()
    except TimeoutError:
        log.warning(
            "the position could not be saved in time; what was finished since the last save will be repeated",
            action="position.not_saved",
            error=f"no answer within {SAVE_PATIENCE:g} s",
        )


async def _park_rest(lanes: Lanes, parking: Parking, progress: Progress) -> None:
    """Have changes that were begun, and that somebody has got, count as finished: what is left of them is parked.

    Raises:
        Interrupted: that was not possible for some.
    """

    async def park(job: Job) -> None:
        await parking.park_rest(job)
        progress.tracker.finished(job)

    ends = [park(job) for job in lanes.begun if job.passed]
    for outcome in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
