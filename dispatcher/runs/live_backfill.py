"""Delivers the current documents while the stream continues.

The dispatchers do this for `dispatcher backfill`, and after lost history if the operator wants it.

Each document is delivered in its lane. It is delivered in the state that it had at one moment: the time that the
stream has reached. All changes before this moment are already in the lane, and all later changes come after the
document. So no receiver gets an older state after a newer one, even if the stream is far behind.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Final, NamedTuple

from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from dispatcher.batches.batches import Batches
from dispatcher.core.driver_errors import in_short, raise_if_fatal
from dispatcher.core.events import Errand, Job, Namespace, key_from
from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import token_time
from dispatcher.delivery.capacity import Capacity
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.routes import Routes
from dispatcher.parking.gate import Parking
from dispatcher.runs.selection import selected, shares_of
from dispatcher.runs.snapshot import SnapshotTooOld, change_of, document, documents, key_of
from dispatcher.runs.store import Run, Runs
from dispatcher.stream.collections import collections_of
from dispatcher.stream.scope import scope_of

# Seconds until the next attempt after an error.
_AGAIN: Final = 5.0

# Maximum number of documents that wait in the lanes at once, for each worker. To fill a larger batch, more
# documents wait: up to `_MOST_IN_BATCH`.
_MOST: Final = 100
_MOST_IN_BATCH: Final = 500

# While deliveries in batches are unfinished: seconds between two calls of `Batches.close`. Each call begins the
# batches that wait.
_CLOSE_AGAIN: Final = 1.0


class DeliveryStages(NamedTuple):
    """The stages that deliver the documents of a backfill.

    Attributes:
        capacity: its `may_begin` returns whether deliveries that do not come from the stream may begin.
    """

    parking: Parking
    deliverer: Deliverer
    lanes: Lanes
    batches: Batches
    capacity: Capacity


class LiveBackfill:
    """Runs the backfills of one partition.

    Args:
        client: a client that is open for the running loop.
        stages: the stages of the partition.
        read: returns the token up to which all changes are in their lanes.
    """

    def __init__(
        self,
        client: AsyncMongoClient[Any],
        runs: Runs,
        routes: Routes,
        stages: DeliveryStages,
        lease: Lease,
        *,
        read: Callable[[], str],
        codec_options: CodecOptions[Any],
    ) -> None:
        self._client = client
        self._runs = runs
        self._all_routes = routes
        self._parking, self._deliverer, self._lanes, self._batches, self._capacity = stages
        self._partition, self._partitions = lease.partition, lease.partitions
        self._read = read
        self._codec_options = codec_options
        self._wanted = asyncio.Event()
        self._wanted.set()

    def wake(self) -> None:
        """Look for backfills now."""
        self._wanted.set()

    async def run(self) -> None:
        """Run existing and later backfills. Runs for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                for run in await self._runs.of_stream(self._partition, self._partitions):
                    await self._backfill(run)
            except PyMongoError as error:
                raise_if_fatal(error, self._runs.address)
                log.warning(
                    "a backfill is interrupted, and continues soon",
                    action="backfill.interrupted",
                    error=in_short(error),
                )
                self._wanted.set()
                await asyncio.sleep(_AGAIN)

    async def _backfill(self, run: Run) -> None:
        if shares_of(run.asked)[-1:] != [[self._partition, self._partitions]]:
            await self._runs.divide(run, self._partitions)
            self._wanted.set()
            return
        names = frozenset(run.asked["receivers"])
        routes = self._all_routes.narrowed(
            lambda signal, one: signal == "post_save" and (not names or one.name in names), run.root
        )
        if not names <= {one.name for one in routes.receivers}:
            return  # a member of another version of the application has the receivers
        namespaces = await collections_of(self._client, scope_of(routes)) if routes.listeners else []
        log.info(
            "delivering the current documents",
            action="backfill.started",
            run=run.id,
            collections=[".".join(one) for one in namespaces],
        )
        done: list[str] = list(run.progress.get("done", ()))
        batched = ((one.name, one.options.batch) for one in routes.receivers)
        work = _Progress(
            run,
            routes,
            selected(run.asked),
            int(run.progress.get("seen", 0)),
            run.delivered,
            {name: batch.size for name, batch in batched if batch is not None},
        )
        for namespace in namespaces:
            name = ".".join(namespace)
            if name not in done:
                if not await self._collection(work, namespace, done):
                    return
                done = [*done, name]
                await self._runs.advance(run, {"done": done, "seen": work.seen}, work.delivered)
        last = {"done": done, "seen": work.seen}
        if await self._runs.advance(run, last, work.delivered, "finished"):
            log.info(
                "the current documents are delivered",
                action="backfill.finished",
                run=run.id,
                documents=work.seen,
            )

    async def _collection(self, work: "_Progress", namespace: Namespace, done: list[str]) -> bool:
        """Deliver the documents of a collection. Returns False if the run was stopped."""
        run, name = work.run, ".".join(namespace)
        last = run.progress.get("last") if run.progress.get("namespace") == name else None
        most = max(_MOST * run.workers, min(_MOST_IN_BATCH, max(work.batches.values(), default=0)))
        if run.rate is not None:
            most = min(most, max(1, int(run.rate)))
        async for slice_ in documents(
            self._client, namespace, last and bytes(last), self._runs.address, work.only, {"_id": True}
        ):
            keys = [key_of(found.row) for found in slice_]
            for i in range(0, len(keys), most):
                part, began = keys[i : i + most], monotonic()
                await self._in_lanes(work, namespace, part)
                work.seen += len(part)
                progress = {"done": done, "namespace": name, "last": Binary(part[-1]), "seen": work.seen}
                if not await self._runs.advance(run, progress, work.delivered):
                    return False
                if run.rate is not None:
                    await asyncio.sleep(max(0.0, began + len(part) / run.rate - monotonic()))
        return True

    async def _in_lanes(self, work: "_Progress", namespace: Namespace, keys: list[bytes]) -> None:
        """Deliver some documents, each in its lane. When this returns, the deliveries are finished or parked."""
        while keys:
            while not self._capacity.may_begin():  # noqa: ASYNC110 - a pause lasts for minutes or hours
                await asyncio.sleep(1.0)
            work.too_old = []
            # After lost history, the documents must contain the changes of the gap, which ends at the run's token.
            time = token_time(max(self._read(), work.run.token or ""))
            gathered: list[asyncio.Future[None]] = []
            finished: list[asyncio.Future[None]] = []
            loop = asyncio.get_running_loop()
            for key in keys:
                jobs: list[Job] = []
                gathered.append(loop.create_future())
                finished.append(loop.create_future())
                deliver = partial(self._deliver, work, namespace, key, time, jobs)
                errand = Errand(deliver, partial(_end, jobs, gathered[-1], finished[-1]))
                self._lanes.add(key_from(namespace, key, self._codec_options), errand)
            await asyncio.wait(gathered)
            await self._until_finished(work, finished)
            keys = work.too_old
            if keys:
                log.warning(
                    "a backfill waits: the stream is far behind, and the server can't read documents in the state "
                    "that they had at the stream's time",
                    action="backfill.waits",
                    run=work.run.id,
                    read_until=time.as_datetime().isoformat(),
                )
                await asyncio.sleep(_AGAIN)

    async def _until_finished(self, work: "_Progress", finished: Sequence["asyncio.Future[None]"]) -> None:
        """Wait for deliveries that are in batches. The batches begin immediately, even if they are not full."""
        while not all(one.done() for one in finished):
            self._batches.close(work.batches)
            timeout = _CLOSE_AGAIN if work.batches else None  # a batch may wait behind another one
            await asyncio.wait(finished, timeout=timeout)

    async def _deliver(
        self, work: "_Progress", namespace: Namespace, key: bytes, time: Timestamp, jobs: list[Job]
    ) -> None:
        """Deliver a document in the state that it had at a time.

        If the server can't read that state any more, `work.too_old` gets the key of the document.

        Args:
            jobs: an empty list, to which this call adds the job of the document. Its deliveries to batch receivers
                may finish after this call. Without deliveries there is no job.
        """
        try:
            found = await self._parking.retry_command(
                lambda: document(self._client, namespace, key, time, work.only)
            )
        except SnapshotTooOld:
            work.too_old.append(key)
            return
        # The document was listed because it matches the filter now. If it did not exist at that time, or
        # did not match, a later change made it match, and the stream delivers that change.
        if found is None:
            return
        change = change_of(found, namespace, work.run, self._codec_options)
        ((_, calls),) = await work.routes.resolve([change])
        if self._parking.watched:
            await self._parking.look_up([change], work.routes.names_listening_to, None)
        if calls:
            job = Job("", change, calls)
            jobs.append(job)
            work.delivered += sum(len(one.receivers) for one in calls)
            await self._deliverer.work(job)


def _end(jobs: list[Job], gathered: "asyncio.Future[None]", finished: "asyncio.Future[None]") -> None:
    """Record that an errand is over. Its deliveries in batches may finish later."""
    gathered.set_result(None)
    if jobs:
        jobs[0].when_ended(partial(finished.set_result, None))
    else:
        finished.set_result(None)


@dataclass
class _Progress:
    """A run, and its counts.

    Attributes:
        only: the filter of its documents.
        seen: number of documents that were read.
        delivered: number of deliveries that were made, or parked.
        batches: the names of its batch receivers, each with the size of its batches.
        too_old: keys of documents that the server can't read in their state at the wanted time.
    """

    run: Run
    routes: Routes
    only: Mapping[str, Any]
    seen: int
    delivered: int
    batches: Mapping[str, int]
    too_old: list[bytes] = field(default_factory=list)
