"""Existing documents through `post_save` receivers, as `post_save(created=False)`."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

from bson.binary import Binary

from dispatcher.core.output.logs import log
from dispatcher.exceptions import NothingToDeliver
from dispatcher.runs.player import Playback, RunOutcome, Step, Workplace
from dispatcher.runs.snapshot import change_of, documents, key_of
from dispatcher.runs.store import Run
from dispatcher.stream.collections import collections_of
from dispatcher.stream.scope import scope_of

# Whoever is told of a document that is there already.
_SIGNALS: Final = ("post_save",)


class Backfill:
    """One backfill that is ready to be worked on.

    Attributes:
        total: how many documents there are, as the server estimates it.
        seen: how many were read, those of earlier processes not included.
    """

    def __init__(self, place: Workplace, playback: Playback, receivers: Sequence[str], total: int) -> None:
        self.playback = playback
        self.total = total
        self.seen = 0
        self._place = place
        self._routes = place.routes.narrowed(place.chosen(receivers, _SIGNALS), playback.run.id)

    async def work(self, stop: asyncio.Event) -> RunOutcome:
        """Deliver everything, unless `stop` is set before."""
        async with aclosing(self._steps()) as steps:
            return await self.playback.work(steps, stop)

    async def _steps(self) -> AsyncGenerator[Step]:
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
                    yield Step(change, calls, progress)
            done = [*done, name]
            yield Step(None, (), {"done": done})


async def start(
    place: Workplace, receivers: Sequence[str], *, rate: float | None, resume: str | None, new: bool
) -> Backfill:
    """Be ready for a backfill: a new one, or one that is not finished.

    Args:
        rate: documents per second, at most.
        resume: the run to go on with; by default one for the same receivers that is not finished.
        new: begin a new one in any case.

    Raises:
        UnknownReceiver: there is none of such a name that gets `post_save`.
        UnknownRun: there is no such run.
        Busy: another process works on it.
        NothingToDeliver: there is no collection.
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
            "None of the collections of these receivers exists.", remedy="Is --url that of the right deployment?"
        )
    if run is None:
        run = await place.runs.begin("backfill", asked, place.now)
    total = 0
    for database, collection in namespaces:
        if f"{database}.{collection}" not in run.progress.get("done", ()):
            total += await place.client[database][collection].estimated_document_count()
    log.info(
        "a backfill begins" if run.is_new else "a backfill goes on",
        action="backfill.started",
        run=run.id,
        receivers=names,
        collections=[".".join(one) for one in namespaces],
    )
    return Backfill(place, await place.playback(run, rate), names, total)
