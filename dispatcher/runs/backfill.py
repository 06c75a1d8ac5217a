"""Delivers existing documents to `post_save` receivers, as `post_save(created=False)`.

If a dispatcher of the group has the receivers, the dispatchers deliver the documents (see `live_backfill.py`),
because only dispatchers can deliver a document in the right order with its changes. Otherwise the process of
the command delivers the documents.

The command and the dispatchers never deliver at the same time. The command notes in the state that it works
alone, and then looks for dispatchers. A dispatcher registers as a member, and then looks for a command that works
alone. So the command finds the dispatcher, or the dispatcher finds the command. If a command finds a
dispatcher, it hands over the rest of the documents. If a dispatcher finds a command, it claims no partition until
the command has handed over, or has ended.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Final, TypeVar

from bson.binary import Binary
from pymongo.errors import PyMongoError

from dispatcher.core.events import Namespace
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.core.stats import Stats
from dispatcher.core.tasks import end
from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import NothingToDeliver
from dispatcher.group.members import take_backfills
from dispatcher.runs.player import Playback, RunOutcome, RunStep, Workplace
from dispatcher.runs.selection import filter_of, require_filter, selected
from dispatcher.runs.snapshot import change_of, documents, key_of
from dispatcher.runs.store import Run
from dispatcher.stream.collections import collections_of
from dispatcher.stream.scope import scope_of

# Only receivers of these signals get existing documents.
_SIGNALS: Final = ("post_save",)

# Seconds between two looks at the dispatchers and their progress.
_LOOK: Final = 0.5

# The command continues alone only after this number of looks without a dispatcher, because a dispatcher may be
# restarting.
_ABSENT: Final = 20

# After this number of looks without progress, the command logs that the dispatchers make no progress.
_STILL: Final = 40

# Maximum seconds to count the documents that match a filter, and to record that the run has ended.
_COUNTING: Final = 2.0
_SAVING: Final = 5.0

T = TypeVar("T")


class Backfill:
    """One backfill, ready to run.

    Attributes:
        run: the whole run.
        total: the number of documents; without a filter the server's estimate.
    """

    def __init__(self, place: Workplace, run: Run, rate: float | None, total: int) -> None:
        self.run = run
        self.total = total
        self._place = place
        self._rate = rate
        self._chosen = place.chosen(run.asked["receivers"], _SIGNALS)
        self._seen = 0
        self._parts = [run]
        self._playback: Playback | None = None
        self._is_shared = False

    @property
    def seen(self) -> int:
        """Number of documents that were read: by the dispatchers, and by this process."""
        return self._seen + sum(int(one.progress.get("seen", 0)) for one in self._parts)

    @property
    def delivered(self) -> int:
        """Number of deliveries so far, including those of earlier processes."""
        playback = self._playback
        return sum(
            one.delivered if playback is None or one.id != playback.run.id else playback.delivered
            for one in self._parts
        )

    @property
    def failed(self) -> int:
        """Number of deliveries that failed for good in processes of the command, not in dispatchers."""
        playback = self._playback
        return sum(
            one.failed if playback is None or one.id != playback.run.id else playback.failed for one in self._parts
        )

    async def work(self, stop: asyncio.Event) -> RunOutcome:
        """Deliver all documents. End earlier when `stop` is set.

        Raises:
            DispatcherError: an error is permanent. The progress is saved.
        """
        place, run = self._place, self.run
        before = await self._dead_letters()
        finished = False
        try:
            while not (finished or stop.is_set()):
                await self._ask(partial(place.runs.begin_alone, run))  # see the docstring of the module
                if await self._has_dispatchers():
                    await self._ask(partial(place.runs.hand_over, run, self._rate))
                    finished = await self._follow(stop)
                else:
                    finished = await self._work_alone(stop)
        finally:
            with suppress(TimeoutError, PyMongoError):
                async with asyncio.timeout(_SAVING):
                    await place.runs.end(run, "finished" if finished else "stopped")
        return await self._outcome(finished, before)

    async def _outcome(self, finished: bool, before: int) -> RunOutcome:
        run = self.run
        if not self._is_shared:
            return RunOutcome(run.id, finished, self.delivered, self.failed, self._place.stats.dead_letters)
        held = self._place.group.state.held
        dead = await self._dead_letters()
        waiting = await held.count_documents({**self._of_run(), "lane": {"$exists": True}})
        failed = max(self.failed, dead)
        delivered = self.delivered - (failed - self.failed) - waiting
        return RunOutcome(run.id, finished, max(0, delivered), failed, max(0, dead - before), waiting)

    def _of_run(self) -> dict[str, Any]:
        return {"group": self._place.group.name, "run": self.run.id}

    async def _dead_letters(self) -> int:
        held = self._place.group.state.held
        return await held.count_documents({**self._of_run(), "reason": {"$exists": True}})

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T:
        report = partial(log.warning, "the state can't be read now, trying again", action="state.not_read")
        return await retry(command, report, address=self._place.runs.address)

    async def _has_dispatchers(self) -> bool:
        return await self._ask(partial(take_backfills, self._place.group, self.run.asked["receivers"]))

    # -- the dispatchers work --------------------------------------------------------------------------------

    async def _follow(self, stop: asyncio.Event) -> bool:
        """Wait until the dispatchers have delivered the documents.

        Returns:
            True if all is delivered; False after `stop`, or if no dispatcher lives.
        """
        self._is_shared = True
        absent = still = 0
        while not stop.is_set():
            before, self._parts = self._parts, await self._ask(partial(self._place.runs.parts, self.run))
            if not _unfinished(self._parts):
                return True
            await self._ask(partial(self._place.runs.beat, self.run))
            absent = 0 if await self._has_dispatchers() else absent + 1
            still = still + 1 if before == self._parts else 0
            if absent > _ABSENT:
                return False
            if still == _STILL:
                log.warning(
                    "the dispatchers do not work on the backfill",
                    action="backfill.still",
                    run=self.run.id,
                    remedy="Is everything paused? Do dispatchers of an earlier version hold the partitions? "
                    "`dispatcher status` shows both.",
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await stop.wait()
        return False

    # -- this process works ----------------------------------------------------------------------------------

    async def _work_alone(self, stop: asyncio.Event) -> bool:
        """Deliver in this process. Returns False if it ends early: after `stop`, or when a dispatcher lives."""
        self._parts = await self._ask(partial(self._place.runs.parts, self.run))
        while left := _unfinished(self._parts):
            ending = asyncio.Event()
            watching = asyncio.create_task(self._watch(stop, ending), name="watch-dispatchers")
            stats = Stats()
            self._playback = await self._place._replace(stats=stats).playback(left[0], self._rate)
            try:
                async with aclosing(self._steps(left[0])) as steps:
                    outcome = await self._playback.work(steps, ending)
            finally:
                await end([watching])
                self._place.stats.dead_letters += stats.dead_letters
            if not watching.cancelled():
                watching.result()
            self._parts = await self._ask(partial(self._place.runs.parts, self.run))
            self._playback = None
            if not outcome.finished:
                return False
        return True

    async def _watch(self, stop: asyncio.Event, ending: asyncio.Event) -> None:
        """Set `ending` after `stop`, or when a dispatcher with the receivers lives."""
        try:
            while not stop.is_set() and not await self._has_dispatchers():
                await self._ask(partial(self._place.runs.beat, self.run))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await stop.wait()
        finally:
            ending.set()

    async def _steps(self, run: Run) -> AsyncGenerator[RunStep]:
        """The documents of a run, or of a part of a run."""
        place = self._place
        routes = place.routes.narrowed(self._chosen, run.root)
        await place.prepare(routes)
        done: list[str] = list(run.progress.get("done", ()))
        options, only = place.registry.codec_options, selected(run.asked)
        for namespace in await collections_of(place.client, scope_of(routes)):
            name = ".".join(namespace)
            if name in done:
                continue
            last = run.progress.get("last") if run.progress.get("namespace") == name else None
            async for slice_ in documents(place.client, namespace, last and bytes(last), place.runs.address, only):
                self._seen += len(slice_)
                changes = [change_of(found, namespace, run, options) for found in slice_]
                for found, (change, calls) in zip(slice_, await routes.resolve(changes), strict=True):
                    progress = {"done": done, "namespace": name, "last": Binary(key_of(found.row))}
                    yield RunStep(change, calls, progress)
            done = [*done, name]
            yield RunStep(None, (), {"done": done})


def _unfinished(parts: Sequence[Run]) -> list[Run]:
    return [one for one in parts if not one.divided and one.status != "finished"]


async def start(
    place: Workplace,
    receivers: Sequence[str],
    *,
    rate: float | None,
    resume: str | None,
    new: bool,
    where: str | None = None,
    workers: int | None = None,
) -> Backfill:
    """Prepare a backfill: a new one, or an unfinished one.

    Args:
        rate: the maximum number of documents per second; None for no limit.
        resume: id of the run to continue; by default an unfinished run for the same receivers and filter.
        new: begin a new run even if an unfinished one exists.
        where: only documents that match this filter, as extended JSON; by default all documents.
        workers: multiplies the number of documents that are worked on at the same time. With None, an
            unfinished run keeps its value, and a new run gets 1.

    Raises:
        UnknownReceiver: no `post_save` receiver has this name.
        UnknownRun: no run has this id.
        OtherRun: the run that is to continue has another filter.
        FilterRefused: the server rejects the filter.
        Busy: another process works on the run.
        NothingToDeliver: none of the collections exists.
    """
    chosen = place.chosen(receivers, _SIGNALS)
    asked: dict[str, Any] = {"receivers": sorted(receivers), "partition": None, "where": where}
    run: Run | None = None
    if resume is not None:
        run = await place.runs.resume(resume, "backfill", {"where": where})
    elif not new:
        run = await place.runs.unfinished("backfill", asked)
    if run is not None:
        chosen = place.chosen(run.asked["receivers"], _SIGNALS)
    namespaces = await _existing_collections(place, place.routes.narrowed(chosen))
    if run is None:
        for namespace in namespaces if where is not None else ():
            await require_filter(place.client, namespace, str(where), place.runs.address)
        run = await place.runs.begin("backfill", {**asked, "workers": workers or 1}, place.now)
    elif workers is not None:
        run = await place.runs.employ(run, workers)
    total = await _count_left(place, run, namespaces)
    log.info(
        "a backfill begins" if run.is_new else "a backfill continues",
        action="backfill.started",
        run=run.id,
        receivers=run.asked["receivers"],
        collections=[".".join(one) for one in namespaces],
    )
    return Backfill(place, run, rate, total)


async def _existing_collections(place: Workplace, routes: Routes) -> list[Namespace]:
    namespaces = await collections_of(place.client, scope_of(routes))
    if not namespaces:
        raise NothingToDeliver(
            "None of the collections of these receivers exists.",
            remedy="Check that --url names the right deployment.",
        )
    return namespaces


async def _count_left(place: Workplace, run: Run, namespaces: Iterable[Namespace]) -> int:
    """The number of documents in the collections that the run has not finished."""
    done = run.progress.get("done", ())
    left = [namespace for namespace in namespaces if ".".join(namespace) not in done]
    return sum([await _count(place, namespace, run.asked.get("where")) for namespace in left])


async def _count(place: Workplace, namespace: Namespace, where: str | None) -> int:
    """The number of documents in a collection that match a filter; an estimate if counting takes long."""
    database, collection = namespace
    documents = place.client[database][collection]
    if where is not None:
        with suppress(PyMongoError):
            return await documents.count_documents(filter_of(where), maxTimeMS=int(_COUNTING * 1000))
    return await documents.estimated_document_count()
