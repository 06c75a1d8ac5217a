"""Delivers existing documents to `post_save` receivers, as `post_save(created=False)`."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

from bson.binary import Binary

from dispatcher.core.output.logs import log
from dispatcher.exceptions import NothingToDeliver
from dispatcher.runs.player import Playback, RunOutcome, RunStep, Workplace
from dispatcher.runs.snapshot import change_of, documents, key_of
from dispatcher.runs.store import Run
from dispatcher.stream.collections import collections_of
from dispatcher.stream.scope import scope_of

# Only receivers of these signals get existing documents.
_SIGNALS: Final = ("post_save",)


class Backfill:
    """One backfill, ready to run.

    Attributes:
        total: the server's estimate of the number of documents.
        seen: the number of documents that this process has read.
    """

    def __init__(self, place: Workplace, playback: Playback, receivers: Sequence[str], total: int) -> None:
        self.playback = playback
        self.total = total
        self.seen = 0
        self._place = place
        self._routes = place.routes.narrowed(place.chosen(receivers, _SIGNALS), playback.run.id)

    async def work(self, stop: asyncio.Event) -> RunOutcome:
        """Deliver all documents. End earlier when `stop` is set."""
        async with aclosing(self._steps()) as steps:
            return await self.playback.work(steps, stop)

    async def _steps(self) -> AsyncGenerator[RunStep]:
        place, run = self._place, self.playback.run
        await place.prepare(self._routes)
        done: list[str] = list(run.progress.get("done", ()))
        for namespace in await collections_of(place.client, scope_of(self._routes)):
            name = ".".join(namespace)
            if name in done:
                continue
            last = run.progress.get("last") if run.progress.get("namespace") == name else None
            async for slice_ in documents(place.client, namespace, last and bytes(last), place.runs.address):
                self.seen += len(slice_)
                options = place.registry.codec_options
                changes = [change_of(found, namespace, run, options) for found in slice_]
                for found, (change, calls) in zip(slice_, await self._routes.resolve(changes), strict=True):
                    progress = {"done": done, "namespace": name, "last": Binary(key_of(found.row))}
                    yield RunStep(change, calls, progress)
            done = [*done, name]
            yield RunStep(None, (), {"done": done})


async def start(
    place: Workplace, receivers: Sequence[str], *, rate: float | None, resume: str | None, new: bool
) -> Backfill:
    """Prepare a backfill: a new one, or an unfinished one.

    Args:
        rate: the maximum number of documents per second.
        resume: id of the run to continue; by default an unfinished run for the same receivers.
        new: begin a new run even if an unfinished one exists.

    Raises:
        UnknownReceiver: no `post_save` receiver has this name.
        UnknownRun: no run has this id.
        Busy: another process works on the run.
        NothingToDeliver: none of the collections exists.
    """
    run: Run | None = None
    asked: dict[str, Any] = {"receivers": sorted(receivers), "partition": None}
    place.chosen(receivers, _SIGNALS)
    if resume is not None:
        run = await place.runs.resume(resume, "backfill")
    elif not new:
        run = await place.runs.unfinished("backfill", asked)
    names = receivers if run is None else run.asked["receivers"]
    chosen = place.routes.narrowed(place.chosen(names, _SIGNALS))
    namespaces = await collections_of(place.client, scope_of(chosen))
    if not namespaces:
        raise NothingToDeliver(
            "None of the collections of these receivers exists.",
            remedy="Check that --url names the right deployment.",
        )
    if run is None:
        run = await place.runs.begin("backfill", asked, place.now)
    total = 0
    for database, collection in namespaces:
        if f"{database}.{collection}" not in run.progress.get("done", ()):
            total += await place.client[database][collection].estimated_document_count()
    log.info(
        "a backfill begins" if run.is_new else "a backfill continues",
        action="backfill.started",
        run=run.id,
        receivers=names,
        collections=[".".join(one) for one in namespaces],
    )
    return Backfill(place, await place.playback(run, rate), names, total)
