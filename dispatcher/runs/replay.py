"""Delivers past changes of the oplog again, to chosen receivers. The position of the group does not move.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, Final

from bson.timestamp import Timestamp

from dispatcher.core.events import Change, Start
from dispatcher.core.oplog import look_at_oplog
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import token_at, token_time
from dispatcher.exceptions import HistoryLost
from dispatcher.runs.player import Playback, RunOutcome, RunStep, Workplace
from dispatcher.runs.store import Run
from dispatcher.stream.change_stream import ChangeStreamSource
from dispatcher.stream.cursor import Cursors
from dispatcher.stream.lookup import DocumentLookup
from dispatcher.stream.reader import LostEvent, Reader, UnreadableEvent
from dispatcher.stream.scope import scope_of

# Milliseconds that the server waits for further changes of the range.
_AWAIT_MS: Final = 100

# A range is complete after this number of consecutive empty batches whose token has exactly the end time of the
# range. One such batch proves nothing: its token sorts before the tokens of the changes at this time. Before the
# second empty batch, the server has looked once more for changes after this token.
_SURELY_EMPTY: Final = 2


class Replay:
    """One replay, ready to run.

    Attributes:
        at: cluster time of the last change that was read.
        begins: cluster time after which this process reads changes.
        until: cluster time of the end of the range.
    """

    def __init__(self, place: Workplace, playback: Playback, receivers: Sequence[str]) -> None:
        run = playback.run
        assert run.from_time is not None
        assert run.until_time is not None
        self.playback = playback
        self.until = run.until_time
        self._start = Start(token=run.progress["token"]) if run.progress else Start(cluster_time=run.from_time)
        self.begins = self.at = token_time(run.progress["token"]) if run.progress else run.from_time
        self._place = place
        self._routes = place.routes.narrowed(place.chosen(receivers), run.id)
        self._source = ChangeStreamSource(
            place.watching,
            scope_of(self._routes),
            batch_size=place.settings.batch_size,
            address=place.runs.address,
            stats=place.stats,
            await_ms=_AWAIT_MS,
        )
        codec_options = place.registry.codec_options
        images = DocumentLookup(place.client, codec_options, place.runs.address)
        self._reader = Reader(self._source, images, group=self._routes.group, codec_options=codec_options)
        self._unsettled: set[str] = set()  # tokens of markers whose deletes are not read yet

    async def work(self, stop: asyncio.Event) -> RunOutcome:
        """Deliver all changes of the range. End earlier when `stop` is set.

        Raises:
            HistoryLost: the oplog does not reach back to the start of the range.
            DispatcherError: an error is permanent. The progress is saved.
        """
        async with aclosing(self._steps()) as steps:
            try:
                return await self.playback.work(steps, stop)
            except HistoryLost as error:
                raise await _too_far_back(self._place, self.begins) from error

    async def _steps(self) -> AsyncGenerator[RunStep]:
        await self._place.prepare(self._routes)
        await self._reader.recall(self._start.token or token_at(self.begins))
        empty = 0
        async with aclosing(self._source.batches(self._start)) as batches:
            async for batch in batches:
                events = list(takewhile(lambda event: event["clusterTime"] <= self.until, batch.events))
                if events:
                    self.at = events[-1]["clusterTime"]
                time = token_time(batch.token)
                empty = empty + 1 if time == self.until and not batch.events else 0
                ended = time > self.until or empty >= _SURELY_EMPTY
                async for part in self._reader.read(batch._replace(events=events)):
                    async for step in self._resolved(part):
                        yield step
                if ended:
                    async for step in self._resolved(self._reader.rest()):
                        yield step
                    return
                if not self._unsettled:
                    yield RunStep(None, (), {"token": batch.token})

    async def _resolved(self, part: list[Change] | UnreadableEvent | LostEvent) -> AsyncIterator[RunStep]:
        """Make a step of each change. A step moves the progress only if all earlier markers have their deletes."""
        if isinstance(part, UnreadableEvent):
            yield RunStep(None, (), None, (part.event, part.error.token, part.error))
        elif isinstance(part, list):
            for change, calls in await self._routes.resolve(part):
                if change.operation == "marker":
                    self._unsettled.add(change.token)
                    continue
                if self._unsettled:
                    self._unsettled -= {change.token, change.marker}
                yield RunStep(change, calls, None if self._unsettled else {"token": change.token})


async def _too_far_back(place: Workplace, since: Timestamp) -> HistoryLost:
    oplog = await look_at_oplog(place.client)
    reach = (
        "" if oplog is None else f": it reaches back to {datetime.fromtimestamp(oplog.begins, UTC).isoformat()}"
    )
    return HistoryLost(
        f"The oplog at {place.runs.address} does not hold the changes since "
        f"{since.as_datetime().isoformat()}{reach}.",
        remedy="Choose a later --since. Older changes can't be replayed; a backfill delivers current documents.",
    )


async def start(
    place: Workplace,
    receivers: Sequence[str],
    *,
    since: Timestamp | None,
    until: Timestamp | None,
    asked: Mapping[str, Any],
    rate: float | None,
    resume: str | None,
    new: bool,
) -> Replay:
    """Prepare a replay: a new one, or an unfinished one.

    Args:
        receivers: the names of the receivers; empty for all receivers that a dispatcher may run.
        since: the range begins after this cluster time; required for a new replay.
        until: the last cluster time of the range; by default now.
        asked: the range as the operator wrote it.
        rate: the maximum number of changes per second.
        resume: id of the run to continue; by default an unfinished run for the same range.
        new: begin a new run even if an unfinished one exists.

    Raises:
        UnknownReceiver: no receiver has this name.
        UnknownRun: no run has this id.
        Busy: another process works on the run.
        HistoryLost: the oplog does not reach back to `since`.
    """
    run: Run | None = None
    place.chosen(receivers)
    asked = {"receivers": sorted(receivers), **asked}
    if resume is not None:
        run = await place.runs.resume(resume, "replay")
    elif not new:
        run = await place.runs.unfinished("replay", asked)
    if run is None:
        assert since is not None
        await _look_back(place, since)
        until = until or place.now
        run = await place.runs.begin("replay", asked, place.now, from_time=since, until_time=until)
    names = run.asked["receivers"]
    log.info(
        "a replay begins" if run.is_new else "a replay continues",
        action="replay.started",
        run=run.id,
        receivers=names,
    )
    return Replay(place, await place.playback(run, rate), names)


async def _look_back(place: Workplace, since: Timestamp) -> None:
    """Check that the oplog reaches back to a time. Called before the first write.

    Raises:
        HistoryLost: the oplog does not reach back to the time.
    """
    scope = scope_of(place.routes)
    if not await Cursors(place.watching, scope.database, scope.pipeline(), 1).reaches_back_to(since):
        raise await _too_far_back(place, since)
