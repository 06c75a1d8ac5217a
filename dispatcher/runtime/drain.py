"""Ends the deliveries of one partition cleanly.

The stream is no longer read. Then:

1. No further delivery starts, except for deliveries that wait for a batch: their batches begin now. Deliveries in
   flight may run until the grace period ends. The next owner of the partition reads queued changes again.
2. After the grace period, receivers that still run are cancelled. Only these cancelled attempts are made again.
3. If only some receivers of a change have run, its other deliveries are parked, so that no delivery is repeated.
4. The position is saved, together with a list of the changes after it that are already finished.

After the loss of the lease there is no grace period, and nothing is written: another process makes the unfinished
deliveries.
"""

import asyncio
from contextlib import suppress
from typing import Final

from dispatcher.batches.batches import Batches
from dispatcher.claims.waiting import WaitingClaims
from dispatcher.core.events import Job
from dispatcher.core.lease import now
from dispatcher.core.output.logs import log
from dispatcher.core.tasks import Interrupted
from dispatcher.delivery.capacity import Capacity
from dispatcher.delivery.lanes import Lanes
from dispatcher.exceptions import DispatcherError
from dispatcher.parking.gate import Parking
from dispatcher.parking.worker import ParkingWorker
from dispatcher.position.checkpoint import Checkpoint

SAVE_PATIENCE: Final = 5.0
"""Time limit of the last writes in seconds: the server may be unreachable."""


async def drain(
    capacity: Capacity,
    lanes: Lanes,
    parking: Parking,
    worker: ParkingWorker,
    claims: WaitingClaims,
    batches: Batches,
    checkpoint: Checkpoint,
    *,
    grace: float,
) -> None:
    """End all deliveries, so that as little as possible is repeated.

    Args:
        grace: seconds until deliveries in flight are cancelled.
    """
    lease = checkpoint.lease
    lost = lease.lost.is_set()
    if capacity.in_flight:
        log.info("draining", action="dispatcher.draining", partition=lease.partition, in_flight=capacity.in_flight)
    else:  # a process may hold hundreds of idle partitions
        log.debug("draining", action="dispatcher.draining", partition=lease.partition, in_flight=0)
    lease.interrupt()
    patience = 0 if lost else grace
    cut = await lanes.stop(patience, {} if lost else batches.last())
    if cut:
        log.warning(
            "receivers still ran after the grace period; they are cancelled, and called again later",
            action="dispatcher.cut",
            deliveries=cut,
            grace=patience,
        )
    if lost:
        return
    try:
        async with asyncio.timeout(SAVE_PATIENCE):
            if now() < lease.until:  # otherwise another process may hold the lease
                with suppress(Interrupted):  # deliveries that are not parked are repeated
                    await _park_rest(lanes, parking, checkpoint)
                with suppress(Interrupted):
                    await claims.park_begun()
                with suppress(Interrupted):
                    await batches.park_begun()
                with suppress(Interrupted):
                    await worker.settle_rest()
            with suppress(DispatcherError):  # the error that ended the pipeline is raised instead
                await checkpoint.save()
    except TimeoutError:
        log.warning(
            "the position could not be saved in time; changes that finished since the last save are repeated",
            action="position.not_saved",
            error=f"no answer within {SAVE_PATIENCE:g} s",
        )


async def _park_rest(lanes: Lanes, parking: Parking, checkpoint: Checkpoint) -> None:
    """Park the remaining deliveries of partly delivered changes, and mark these changes as finished."""

    async def park(job: Job) -> None:
        await parking.park_rest(job)
        checkpoint.tracker.finished(job)

    ends = [park(job) for job in lanes.begun if job.is_begun]
    for outcome in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
