"""Delivers the current documents after lost history, while the stream continues.

A dispatcher starts these backfills by itself. Each document is delivered in its lane, in the state that it had at
the time up to which the stream is read. So all earlier changes of the document are before it in the lane, and all
later ones after it, however far the stream is behind: no receiver gets an older state after a newer one.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from dispatcher.core.driver_errors import in_short, raise_if_fatal
from dispatcher.core.events import Errand, Job, Namespace, key_from
from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import log
from dispatcher.core.partitions import belongs, hash_of
from dispatcher.core.resume_tokens import token_time
from dispatcher.delivery.capacity import Capacity
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.routes import Routes
from dispatcher.parking.gate import Parking
from dispatcher.runs.snapshot import SnapshotTooOld, change_of, document, documents, key_of
from dispatcher.runs.store import Run, Runs
from dispatcher.stream.collections import collections_of
from dispatcher.stream.scope import scope_of

# Seconds until the next attempt after an error.
_AGAIN: Final = 5.0

# Maximum number of documents that wait in the lanes at once.
_MOST: Final = 100


class LiveBackfill:
    """Runs the backfills of one partition.

    Args:
        client: a client that is open for the running loop.
        capacity: its `may_begin` returns whether deliveries of other sources than the stream may begin.
        read: returns the token up to which all changes are in their lanes.
    """

    def __init__(  # noqa: PLR0913 - a source of deliveries needs these stages
        self,
        client: AsyncMongoClient[Any],
        runs: Runs,
        routes: Routes,
        parking: Parking,
        deliverer: Deliverer,
        lanes: Lanes,
        capacity: Capacity,
        lease: Lease,
        *,
        read: Callable[[], str],
        codec_options: CodecOptions[Any],
    ) -> None:
        self._client = client
        self._runs = runs
        self._all_routes = routes
        self._parking = parking
        self._deliverer = deliverer
        self._lanes = lanes
        self._capacity = capacity
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
        routes = self._all_routes.narrowed(lambda signal, _: signal == "post_save", run.id)
        namespaces = await collections_of(self._client, scope_of(routes)) if routes.listeners else []
        log.info(
            "delivering the current documents, because history was lost",
            action="backfill.started",
            run=run.id,
            collections=[".".join(one) for one in namespaces],
        )
        done: list[str] = list(run.progress.get("done", ()))
        count = run.delivered
        for namespace in namespaces:
            name = ".".join(namespace)
            if name in done:
                continue
            last = run.progress.get("last") if run.progress.get("namespace") == name else None
            async for slice_ in documents(
                self._client, namespace, last and bytes(last), self._runs.address, self._filter(run), {"_id": True}
            ):
                keys = [key_of(found.row) for found in slice_]
                for i in range(0, len(keys), _MOST):
                    part = keys[i : i + _MOST]
                    await self._in_lanes(run, routes, namespace, part)
                    count += len(part)
                    progress: Mapping[str, Any] = {"done": done, "namespace": name, "last": Binary(part[-1])}
                    await self._runs.save(run, progress, count, 0, "running")
            done = [*done, name]
            await self._runs.save(run, {"done": done}, count, 0, "running")
        await self._runs.save(run, {"done": done}, count, 0, "finished")
        log.info("the current documents are delivered", action="backfill.finished", run=run.id, documents=count)

    def _filter(self, run: Run) -> dict[str, Any]:
        """A filter for the documents of the partition that lost its history."""
        partition, partitions = run.asked["partition"], run.asked["partitions"]
        return {} if partitions == 1 else {"$expr": belongs(hash_of("$_id"), partition, partitions)}

    async def _in_lanes(self, run: Run, routes: Routes, namespace: Namespace, keys: list[bytes]) -> None:
        """Deliver some documents, each in its lane. When this returns, the deliveries are finished or parked."""
        while keys:
            while not self._capacity.may_begin():  # noqa: ASYNC110 - a pause lasts for minutes or hours
                await asyncio.sleep(1.0)
            too_old: list[bytes] = []
            # The gap ends at the token of the run. The documents must contain the changes of the gap.
            time = token_time(max(self._read(), run.token or ""))
            finished = []
            for key in keys:
                done = asyncio.get_running_loop().create_future()
                deliver = partial(self._deliver, run, routes, namespace, key, time, too_old)
                errand = Errand(deliver, partial(done.set_result, None))
                self._lanes.add(key_from(namespace, key, self._codec_options), errand)
                finished.append(done)
            await asyncio.wait(finished)
            keys = too_old
            if keys:
                log.warning(
                    "a backfill waits: the stream is too far behind, the server can't read documents of that time",
                    action="backfill.waits",
                    run=run.id,
                    read_until=time.as_datetime().isoformat(),
                )
                await asyncio.sleep(_AGAIN)

    async def _deliver(
        self,
        run: Run,
        routes: Routes,
        namespace: Namespace,
        key: bytes,
        time: Timestamp,
        too_old: list[bytes],
    ) -> None:
        """Deliver a document in its state at a time. Adds its key to `too_old` if that time is too long ago."""
        try:
            found = await self._parking.retry_command(lambda: document(self._client, namespace, key, time))
        except SnapshotTooOld:
            too_old.append(key)
            return
        if found is None:  # the document did not exist at that time, so the stream delivers its insert
            return
        change = change_of(found, namespace, run, self._codec_options)
        ((_, calls),) = await routes.resolve([change])
        if self._parking.watched:
            await self._parking.look_up([change], routes.names_listening_to, None)
        if calls:
            job = Job("", change, calls)
            await self._deliverer.work(job)
