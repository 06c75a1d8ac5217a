"""Delivers past changes again, to chosen receivers. The position of the group does not move.

The changes come from the oplog. With `--kafka` they come from the topic of a relay, and only the changes that the
topic does not hold come from the oplog.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final

from bson.timestamp import Timestamp

from dispatcher.core.events import Change, Start
from dispatcher.core.oplog import look_at_oplog
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import time_after, token_at, token_time
from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import HistoryLost, TopicError
from dispatcher.group.origin import TopicOrigin
from dispatcher.kafka.complete import CompletedTopic
from dispatcher.kafka.large_events import LargeEvents
from dispatcher.kafka.log import TopicLog
from dispatcher.kafka.merged import MergedTopic, places_at
from dispatcher.kafka.source import KafkaSource
from dispatcher.runs.player import Playback, RunOutcome, RunStep, Workplace
from dispatcher.runs.store import Run
from dispatcher.stream.bounded import until as bounded
from dispatcher.stream.change_stream import ChangeStreamSource
from dispatcher.stream.cursor import Cursors
from dispatcher.stream.lookup import DocumentLookup
from dispatcher.stream.reader import LostEvent, Reader, UnreadableEvent
from dispatcher.stream.scope import Scope, scope_of
from dispatcher.stream.source import Source

# Milliseconds that the server waits for further changes of the range.
_AWAIT_MS: Final = 100

# Seconds to wait for a relay that has not published the whole range.
_RELAY_PATIENCE: Final = 15.0

# Seconds between two looks at the position of the relay.
_BETWEEN_LOOKS: Final = 0.2

# Minimum number of events in a batch of one partition of a topic.
_FEW: Final = 10


class Replay:
    """One replay, ready to run.

    Attributes:
        run: the run.
        at: cluster time of the last change that was read.
        begins: cluster time after which this process reads changes.
        until: cluster time of the end of the range.
    """

    def __init__(self, place: Workplace, playback: Playback) -> None:
        self.run = run = playback.run
        assert run.from_time is not None
        assert run.until_time is not None
        self.playback = playback
        self.until = run.until_time
        self._done = str(run.progress["token"]) if run.progress else ""
        self.begins = self.at = token_time(self._done) if self._done else run.from_time
        self._place = place
        self._routes = place.routes.narrowed(
            place.chosen(run.asked["receivers"]), run.id, missed=bool(run.asked.get("missed"))
        )
        self._source = _source_of(place, self._routes, token_at(self.begins))
        codec_options = place.registry.codec_options
        self._reader = Reader(
            self._source,
            DocumentLookup(place.client, codec_options, place.runs.address),
            group=self._routes.group,
            codec_options=codec_options,
            is_finished=lambda token: token <= self._done,
            scope=None if place.topic is None else scope_of(self._routes),
        )
        self._unsettled: set[str] = set()  # tokens of delete markers whose deletes are not read yet

    @property
    def delivered(self) -> int:
        """Number of deliveries so far, including those of earlier processes."""
        return self.playback.delivered

    @property
    def failed(self) -> int:
        """Number of deliveries so far that were given up, including those of earlier processes."""
        return self.playback.failed

    async def work(self, stop: asyncio.Event) -> RunOutcome:
        """Deliver all changes of the range. End earlier when `stop` is set.

        Raises:
            HistoryLost: changes of the range are lost. The progress is saved.
            DispatcherError: an error is permanent. The progress is saved.
        """
        async with aclosing(self._steps()) as steps:
            try:
                return await self.playback.work(steps, stop)
            except HistoryLost as error:
                read = f"The run {self.playback.run.id} has read the changes until {_text(self.at)}."
                in_topic = "" if self._place.topic is None else error.message
                raise await _too_far_back(self._place, self.at, f"{read} {in_topic}".strip()) from error

    async def _steps(self) -> AsyncGenerator[RunStep]:
        await self._place.prepare(self._routes)
        begin = token_at(self.begins)
        await self._reader.recall(begin)
        # The token of the progress may belong to another source or scope, so reading begins at its time.
        async with (
            aclosing(self._source.batches(Start(cluster_time=self.begins))) as endless,
            aclosing(bounded(endless, time_after(token_at(self.until)))) as batches,
        ):
            async for batch in batches:
                if batch.events:
                    self.at = batch.events[-1]["clusterTime"]
                async for part in self._reader.read(batch):
                    async for step in self._resolved(part):
                        yield step
                if not self._unsettled and batch.token > self._done and token_time(batch.token) <= self.until:
                    yield RunStep(None, (), {"token": batch.token})
        async for step in self._resolved(self._reader.rest()):
            yield step

    async def _resolved(self, part: list[Change] | UnreadableEvent | LostEvent) -> AsyncIterator[RunStep]:
        """Make a step of each change.

        A step moves the progress only if the deletes of all earlier markers have been read.
        """
        if isinstance(part, UnreadableEvent):
            yield RunStep(None, (), None, (part.event, part.error.token, part.error))
        elif isinstance(part, LostEvent):
            self._place.stats.invalid += 1
            log.error(
                "a change can't be replayed",
                action="replay.change_lost",
                run=self.playback.run.id,
                why=part.why,
                since=_text(token_time(part.after)),
                until=_text(token_time(part.before)),
            )
        else:
            for change, calls in await self._routes.resolve(part):
                if change.operation == "finished":
                    continue
                if change.operation == "marker":
                    self._unsettled.add(change.token)
                    continue
                if self._unsettled:
                    self._unsettled -= {change.token, change.marker}
                yield RunStep(change, calls, None if self._unsettled else {"token": change.token})


def _source_of(place: Workplace, routes: Routes, begin: str) -> Source:
    """The source of a replay that begins after a token."""
    settings, scope, topic = place.settings, scope_of(routes), place.topic
    stream = ChangeStreamSource(
        place.watching,
        scope,
        batch_size=settings.batch_size,
        address=place.runs.address,
        stats=place.stats,
        await_ms=_AWAIT_MS,
    )
    if topic is None or not _covers(topic, scope, begin):
        return stream
    count = topic.watch.layout.partitions
    partitions = [
        KafkaSource(
            topic.partition(number),
            Start(cluster_time=token_time(begin)),
            batch_size=max(_FEW, settings.batch_size // count),
            read_large=LargeEvents(place.group.state, topic.topic).read_patiently,
        )
        for number in range(count)
    ]
    return CompletedTopic(MergedTopic(partitions, f"the topic {topic.topic!r}"), stream, topic.streams)


def _covers(topic: TopicLog, scope: Scope, begin: str) -> bool:
    """Returns whether the relay has published all changes of the watched collections after a token."""
    try:
        TopicOrigin(topic.watch).require_since(scope, begin)
    except TopicError as error:
        log.info(
            "the topic does not have all changes of the replay",
            action="replay.not_in_topic",
            reason=error.message,
        )
        return False
    return True


async def _too_far_back(place: Workplace, since: Timestamp, in_topic: str = "") -> HistoryLost:
    """The error about changes that neither the oplog nor the topic holds.

    Args:
        in_topic: why the topic does not hold the changes; empty without a topic.
    """
    oplog = await look_at_oplog(place.client)
    reach = (
        "" if oplog is None else f": it reaches back to {datetime.fromtimestamp(oplog.begins, UTC).isoformat()}"
    )
    text = f"The oplog at {place.runs.address} does not hold the changes since {_text(since)}{reach}."
    remedy = "Choose a later --since. Older changes can't be replayed; a backfill delivers current documents."
    if place.topic is None:
        remedy += " If a relay publishes the changes, --kafka reads them from its topic."
    return HistoryLost(f"{in_topic} {text}".strip(), remedy=remedy)


def _text(time: Timestamp) -> str:
    return time.as_datetime().isoformat()


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
        until: the last cluster time of the range; None for the present time.
        asked: the request of the operator. It has the range, and `missed`. If `missed` is True, the replay leaves
            out the receivers that the writing process has run.
        rate: the maximum number of changes per second; None for no limit.
        resume: id of the run to continue. None continues an unfinished run with the same request, if there is
            one.
        new: begin a new run even if an unfinished one exists.

    Raises:
        UnknownReceiver: no receiver has this name.
        UnknownRun: no run has this id.
        Busy: another process works on the run.
        HistoryLost: neither the oplog nor the topic reaches back to `since`.
    """
    run: Run | None = None
    place.chosen(receivers)
    # A search for `missed: null` finds runs without this field too.
    asked = {"receivers": sorted(receivers), "missed": None, **asked}
    if resume is not None:
        run = await place.runs.resume(resume, "replay", {"missed": asked["missed"]})
    elif not new:
        run = await place.runs.unfinished("replay", asked)
    if run is None:
        assert since is not None
        await _look_back(place, since)
        until = await _published(place, until or place.now)
        run = await place.runs.begin("replay", asked, place.now, from_time=since, until_time=until)
    names = run.asked["receivers"]
    log.info(
        "a replay begins" if run.is_new else "a replay continues",
        action="replay.started",
        run=run.id,
        receivers=names,
    )
    return Replay(place, await place.playback(run, rate))


async def _look_back(place: Workplace, since: Timestamp) -> None:
    """Check that the changes since a time can be read. `start` calls this before it records the run.

    Raises:
        HistoryLost: neither the topic, if there is one, nor the oplog reaches back to the time.
    """
    scope, missing = scope_of(place.routes), ""
    if place.topic is not None:
        try:
            TopicOrigin(place.topic.watch).require_since(scope, token_at(since))
            await places_at(place.topic, token_at(since))
        except (TopicError, HistoryLost) as error:
            missing = error.message
        else:
            return
    if not await Cursors(place.watching, scope.database, scope.pipeline(), 1).reaches_back_to(since):
        raise await _too_far_back(place, since, missing)


async def _published(place: Workplace, until: Timestamp) -> Timestamp:
    """The end of a range, or the relay's position if the relay does not reach the end soon."""
    if place.topic is None:
        return until
    deadline = monotonic() + _RELAY_PATIENCE
    while (reached := token_time(place.topic.watch.relay.position.token)) < until:
        if monotonic() > deadline:
            log.warning(
                "the relay has not published the whole range; the replay ends at the relay's position",
                action="replay.shortened",
                until=_text(reached),
                remedy="Look at the relay. The dispatchers deliver the later changes after the relay has "
                "published them.",
            )
            return reached
        place.topic.watch.require_usable()
        await asyncio.sleep(_BETWEEN_LOOKS)
    return until
