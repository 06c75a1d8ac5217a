"""Past changes again, from the oplog, through chosen receivers, without touching the position of the group."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from bson.timestamp import Timestamp
from pymongo.errors import PyMongoError

from dispatcher.core.driver_errors import Kind, in_short, kind_of
from dispatcher.core.events import Change, Start, token_time
from dispatcher.core.oplog import look_at_oplog
from dispatcher.core.output.logs import get_logger
from dispatcher.core.undecodable import Undecodable
from dispatcher.delivery.where import Conditions, wanted
from dispatcher.exceptions import HistoryLost
from dispatcher.group.layout import scope_of
from dispatcher.runs.player import Outcome, Playback, Step, Workplace
from dispatcher.runs.store import Run
from dispatcher.stream.change_stream import ChangeStreamSource
from dispatcher.stream.cursor import Cursors, Shape
from dispatcher.stream.decode import decode
from dispatcher.stream.lookup import Images
from dispatcher.stream.origins import HORIZON, Origins
from mongoz.stamps import Stamp

__all__ = ["Replay", "start"]

log = get_logger()

_OF_DOCUMENTS: Final = frozenset({"insert", "update", "replace", "delete", "untouched"})

# Events taken apart in one go.
_CHUNK: Final = 100


# The server waits that long for changes that may still belong to what was asked for.
_AWAIT_MS: Final = 100

# Empty batches in a row that show that nothing more comes, where their token is the very time that was asked for:
# it sorts before the tokens of that time's changes.
_SURELY_EMPTY: Final = 2


class _Open(NamedTuple):
    """What looks like a marker, and the changes of its document that wait behind it."""

    marker: Change
    waiting: list[Change]


class _Markers:
    """Deletes get the origin of their markers; a marker without a delete is no change."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins
        self._open: dict[Any, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def settled(self, change: Change) -> Iterator[Change]:
        """What is to be delivered now that this change has come, in order."""
        judged = change if change.stamp is None else self._origins.judge(change)
        key = (change.transaction, change.key)
        # The changes of a transaction have one cluster time and come next to each other.
        for other, one in list(self._open.items()):
            again = other == key and judged.operation == "marker"
            if again or one.marker.cluster_time != change.cluster_time:
                yield from self._open.pop(other).waiting
        if judged.operation == "marker":
            self._open[key] = _Open(judged, [])
        elif judged.operation == "untouched":
            return
        elif key not in self._open:
            yield judged
        elif change.operation == "delete":
            one = self._open.pop(key)
            yield from one.waiting
            yield change._replace(origin=one.marker.origin)
        else:
            self._open[key].waiting.append(judged)

    def rest(self) -> Iterator[Change]:
        """What can't be a marker, since nothing comes behind it."""
        for key in list(self._open):
            yield from self._open.pop(key).waiting


class _Settled(NamedTuple):
    """A change to be delivered, and whether the run may go on behind it another time."""

    change: Change
    is_safe: bool


class Replay:
    """One replay that is ready to be worked on.

    Attributes:
        playback: works on it.
        at: cluster time of the change that was read last.
        begins: cluster time at which this process begins.
        until: cluster time at which it ends.
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
        self._codec_options = place.registry.codec_options
        self._images = Images(place.client, self._codec_options, place.address)
        self._conditions: Conditions | None = None
        self._origins = Origins(self._routes.group)
        self._markers = _Markers(self._origins)
        self._source = ChangeStreamSource(
            place.watching,
            scope_of(self._routes),
            batch_size=place.settings.batch_size,
            address=place.address,
            stats=place.stats,
            await_ms=_AWAIT_MS,
        )

    async def work(self, stop: asyncio.Event) -> Outcome:
        """Deliver everything, unless `stop` is set before.

        Raises:
            HistoryLost: the oplog does not reach back so far (any more).
            DispatcherError: what no repetition can mend. What is done is written down.
        """
        async with aclosing(self._steps()) as steps:
            try:
                return await self.playback.work(steps, stop)
            except HistoryLost as error:
                raise await _too_far_back(self._place, self.begins) from error

    async def _steps(self) -> AsyncGenerator[Step]:
        await self._remember_stamps()
        self._conditions = await self._place.conditions(self._routes)
        empty = 0
        async with aclosing(self._source.batches(self._start)) as batches:
            async for batch in batches:
                settled: list[_Settled] = []
                for event in batch.events:
                    if event["clusterTime"] > self.until:
                        break
                    self.at = event["clusterTime"]
                    try:
                        change = decode(event, self._codec_options)
                    except Undecodable as error:
                        yield Step(None, (), None, (bytes(event.raw), error.token, error))
                    else:
                        settled += self._settled(change)
                empty = 0 if batch.events else empty + 1
                time = token_time(batch.token)
                ended = time > self.until or (time == self.until and empty >= _SURELY_EMPTY)
                if ended or empty:
                    settled += [_Settled(change, not self._markers) for change in self._markers.rest()]
                for i in range(0, len(settled), _CHUNK):
                    async for step in self._routed(settled[i : i + _CHUNK]):
                        yield step
                if ended:
                    return
                if not self._markers:
                    yield Step(None, (), {"token": batch.token})

    def _settled(self, change: Change) -> Iterator[_Settled]:
        if change.operation in _OF_DOCUMENTS:
            for each in self._markers.settled(change):
                yield _Settled(each, not self._markers)

    async def _routed(self, settled: list[_Settled]) -> AsyncIterator[Step]:
        """With what can be had of their documents, and to whom they go."""
        safe = {each.change.token for each in settled if each.is_safe}
        async for part in self._images.complete([each.change for each in settled]):
            refused = {} if self._conditions is None else await self._conditions.refused(part)
            for change in part:
                calls = self._routes.route(change)
                if change.token in refused:
                    calls = wanted(calls, refused[change.token])
                yield Step(change, calls, {"token": change.token} if change.token in safe else None)

    async def _remember_stamps(self) -> None:
        """See the stamps that were written shortly before: what is read next may hold copies of them.

        Where the oplog does not reach so far back, we do without.
        """
        self._origins.since = float(self.begins.time)
        since = Timestamp(max(1, self.begins.time - HORIZON), 1)
        until = self._start.token or f"82{self.begins.time:08X}{self.begins.inc:08X}"
        try:
            async for event in self._source.stamped(since, until):
                self._origins.saw(Stamp.unpack(event["stamp"]), event.get("wallTime"))
        except PyMongoError as error:
            log.warning(
                "the stamps of earlier writes could not be read; copies of them may pass for the originals",
                action="stamps.not_read",
                error=in_short(error),
            )
        else:
            self._origins.since = float(since.time)


async def _too_far_back(place: Workplace, since: Timestamp) -> HistoryLost:
    oplog = await look_at_oplog(place.client)
    reach = (
        "" if oplog is None else f": it reaches back to {datetime.fromtimestamp(oplog.begins, UTC).isoformat()}"
    )
    return HistoryLost(
        f"The oplog at {place.address} does not hold the changes since {since.as_datetime().isoformat()}{reach}.",
        remedy="Choose a later --since. What is older can't be replayed; a backfill delivers current documents.",
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
    """Be ready for a replay: a new one, or one that is not finished.

    Args:
        place: where.
        receivers: names; none: all that a dispatcher may run.
        since: changes behind this cluster time; needed for a new one.
        until: up to this one; by default up to now.
        asked: the same as it was written.
        rate: changes per second, at most.
        resume: the run to go on with; by default one that asked for the same and is not finished.
        new: begin a new one in any case.

    Raises:
        UnknownReceiver: there is none of such a name.
        UnknownRun: there is no such run.
        Busy: another process works on it.
        HistoryLost: the oplog does not reach back so far.
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
        "a replay begins" if run.is_new else "a replay goes on",
        action="replay.started",
        run=run.id,
        receivers=names,
    )
    return Replay(place, await place.playback(run, rate), names)


async def _look_back(place: Workplace, since: Timestamp) -> None:
    """Find out whether the oplog reaches back so far; before anything is written down.

    Raises:
        HistoryLost: it does not.
        PyMongoError: as the driver has it.
    """
    scope = scope_of(place.routes)
    cursors = Cursors(place.watching, scope.database, scope.pipeline(), 1)
    try:
        async with aclosing(cursors.read(Start(cluster_time=since), _GLANCE)) as batches:
            await anext(batches, None)
    except PyMongoError as error:
        if kind_of(error) is Kind.HISTORY_LOST:
            raise await _too_far_back(place, since) from error
        raise


# A single small event, or none.
_GLANCE: Final = Shape({}, ({"$project": {"_id": 1}},), size=1, await_ms=1)
