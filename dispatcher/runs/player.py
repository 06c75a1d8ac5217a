"""Delivers the changes of a replay or a backfill at a limited rate, and saves the progress of the run.

A run has lanes and deliveries like a dispatcher, but no position: the document of the run holds its progress. A
run that is killed continues from the saved progress. The deliveries after that progress are repeated, under the
same ids.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any, Final, NamedTuple

from bson.codec_options import CodecOptions
from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from dispatcher.batches.attempt import run_batch
from dispatcher.batches.batches import Batches
from dispatcher.batches.run import BatchTools
from dispatcher.batches.transactions import BatchTransactions
from dispatcher.core.clients import Clients
from dispatcher.core.driver_errors import in_short, raise_if_fatal
from dispatcher.core.events import Calls, Change, Job
from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.state import Group, State
from dispatcher.core.stats import Stats
from dispatcher.core.tasks import end
from dispatcher.delivery.application import group_of, routes_of
from dispatcher.delivery.capacity import Bounds, Capacity
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.failure import Failures
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.receiver_limits import ReceiverLimits
from dispatcher.delivery.routes import Routes
from dispatcher.delivery.steps import Steps
from dispatcher.delivery.terms import Policy
from dispatcher.delivery.tracing import tracing_of
from dispatcher.delivery.transactions import Transactions
from dispatcher.delivery.where import Conditions
from dispatcher.exceptions import UnknownReceiver
from dispatcher.kafka.log import TopicLog, topic_of
from dispatcher.pace.limit import LimitsByName
from dispatcher.parking.letters import LetterStore
from dispatcher.position.store import PositionStore
from dispatcher.runs.store import Run, Runs
from dispatcher.settings import Settings
from dispatcher.stream.cursor import Cursors
from dispatcher.stream.scope import scope_of
from mongoz import Registry
from mongoz.signals.hops import inside_dispatcher
from mongoz.signals.names import POST
from mongoz.signals.receivers import Receiver
from mongoz.synonyms import nearest

# Seconds between two saves of the progress.
_SAVE: Final = 0.5

# Time limit of the last save in seconds.
_SAVE_PATIENCE: Final = 5.0


class RunStep(NamedTuple):
    """A part of a run.

    Attributes:
        change: the change to deliver; None if the step only moves the progress.
        calls: the receivers of the change.
        progress: the progress of the run after this step and all earlier ones; None if it stays the same.
        unreadable: event, token and error of a change that can't be decoded.
    """

    change: Change | None
    calls: tuple[Calls, ...]
    progress: Mapping[str, Any] | None
    unreadable: tuple[bytes, str, Exception] | None = None


class RunOutcome(NamedTuple):
    """The result of a run.

    Attributes:
        finished: whether the whole run is done.
        delivered: number of deliveries whose receiver returned, in all processes of the run.
        failed: number of deliveries that were given up or could not be made, in all processes of the run.
        dead_letters: number of dead letters that were recorded since this process began.
        waiting: number of deliveries that are parked. The dispatchers make them later.
    """

    run: str
    finished: bool
    delivered: int
    failed: int
    dead_letters: int
    waiting: int = 0


class Playback:
    """Executes one run.

    Args:
        term: the newest term of the group's dispatchers.
        rate: maximum number of changes per second; None for no limit.
        limits: the limits of receivers, by name.
    """

    def __init__(  # noqa: PLR0913 - a run needs all of them
        self,
        run: Run,
        runs: Runs,
        *,
        settings: Settings,
        stats: Stats,
        codec_options: CodecOptions[Any],
        dead_letters: LetterStore,
        transactions: Transactions,
        term: int,
        rate: float | None,
        limits: LimitsByName,
    ) -> None:
        self.run = run
        self.stats = stats
        self._runs = runs
        self._grace = settings.grace
        self._rate = rate
        self._open: deque[tuple[Job, Mapping[str, Any] | None]] = deque()
        self._progress: Mapping[str, Any] = run.progress
        self._next = 0.0
        self._capacity = capacity = Capacity(Bounds.of(settings))
        # A run blocks no document, because no process would retry the failed delivery after the end of the run.
        policy = Policy.of(settings)._replace(blocking=False)
        steps = Steps(
            policy,
            Lease.for_ever(),
            capacity,
            stats,
            codec_options,
            limits=ReceiverLimits(limits, capacity),
            tracing=tracing_of(settings, stats),
            transactions=transactions,
        )
        self._failures = Failures(
            term, stats, dead_letters=dead_letters, transactions=transactions, pause=capacity.pause
        )
        self._deliverer = Deliverer(
            term, policy, capacity, stats, codec_options, steps=steps, failures=self._failures
        )
        self._lanes = Lanes(
            capacity,
            self._deliverer.work,
            on_finished=self._finished,
            can_be_cut=steps.invoker.can_be_cut,
        )
        self._batches = Batches(
            BatchTools(term, policy, capacity, stats, codec_options, self._failures, None),
            steps.batched(run_batch, BatchTransactions(transactions)),
            places=settings.concurrency // 2,
            add=self._lanes.add,
            on_finished=self._finished,
        )
        self._deliverer.gather_in(self._batches)

    @property
    def delivered(self) -> int:
        """Number of deliveries so far whose receiver returned, including those of earlier processes."""
        return self.run.delivered + self.stats.delivered

    @property
    def failed(self) -> int:
        """Number of deliveries so far that were given up or could not be made, in all processes of the run."""
        return self.run.failed + self.stats.failed + self.stats.invalid

    async def work(self, steps: AsyncIterator[RunStep], stop: asyncio.Event) -> RunOutcome:
        """Deliver all steps. End earlier when `stop` is set.

        Raises:
            DispatcherError: an error is permanent. The progress is saved.
        """
        feeding = asyncio.create_task(self._feed(steps), name="feed")
        others = [
            asyncio.create_task(self._deliverer.watch(), name="watch-timeouts"),
            asyncio.create_task(self._save_regularly(), name="save-progress"),
            asyncio.create_task(stop.wait(), name="wait-for-stop"),
            asyncio.create_task(self._lanes.crashed.wait(), name="wait-for-crash"),
        ]
        ends = [feeding, *others]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end([feeding, *others])
            await self._lanes.stop(self._grace, self._batches.last())
            finished = feeding.done() and not feeding.cancelled() and feeding.exception() is None
            with suppress(TimeoutError):
                async with asyncio.timeout(_SAVE_PATIENCE):
                    await self._save("finished" if finished else "stopped")
        for one in ends:
            if one.done() and not one.cancelled():
                one.result()
        if self._lanes.crash is not None:
            raise self._lanes.crash
        return RunOutcome(self.run.id, finished, self.delivered, self.failed, self.stats.dead_letters)

    async def _feed(self, steps: AsyncIterator[RunStep]) -> None:
        with inside_dispatcher():
            async for step in steps:
                await self._enter(step)
            while self._capacity.is_busy:
                self._batches.close_rest()  # no further step comes
                await self._capacity.progress()

    async def _enter(self, step: RunStep) -> None:
        if step.unreadable is not None:
            event, token, error = step.unreadable
            self.stats.invalid += 1
            await self._failures.keep_unreadable(event, token, error)
        job = Job("", step.change, step.calls)
        self._open.append((job, step.progress))
        if step.change is None or not step.calls:
            self._finished(job)
            return
        if self._rate is not None:
            await self._keep_pace()
        await self._capacity.room()
        self._lanes.add(step.change.key, job)

    async def _keep_pace(self) -> None:
        assert self._rate is not None
        now = monotonic()
        self._next = max(self._next, now - 1.0 / self._rate)
        await asyncio.sleep(max(0.0, self._next - now))
        self._next += 1.0 / self._rate

    def _finished(self, job: Job) -> None:
        if not job.finish_part():
            return
        while self._open and self._open[0][0].done:
            _, progress = self._open.popleft()
            self._progress = self._progress if progress is None else progress

    async def _save_regularly(self) -> None:
        while True:
            await asyncio.sleep(_SAVE)
            await self._save("running")

    async def _save(self, status: str) -> None:
        try:
            await self._runs.save(self.run, self._progress, self.delivered, self.failed, status)
        except PyMongoError as error:
            raise_if_fatal(error, self._runs.address)
            log.warning("the progress of a run could not be saved", action="run.not_saved", error=in_short(error))


class Workplace(NamedTuple):
    """The connections of a run to its deployment.

    Attributes:
        group: the group of dispatchers. The client of its state also reads documents.
        watching: the client for change streams.
        now: the cluster time at which the connection was made.
        topic: the topic of a relay, to read past changes; None without --kafka.
    """

    registry: Registry
    settings: Settings
    group: Group
    watching: AsyncMongoClient[Any]
    routes: Routes
    runs: Runs
    now: Timestamp
    stats: Stats
    topic: TopicLog | None = None

    @property
    def client(self) -> AsyncMongoClient[Any]:
        """The client for state and documents."""
        return self.group.state.client

    async def playback(self, run: Run, rate: float | None) -> Playback:
        """Create the player of a run. The bounds of the settings apply to each worker of the run."""
        transactions = Transactions(self.registry, self.group)
        bounds = {name: getattr(self.settings, name) * run.workers for name in ("concurrency", "max_queued")}
        return Playback(
            run,
            self.runs,
            settings=self.settings.model_copy(update=bounds),
            stats=self.stats,
            codec_options=self.registry.codec_options,
            dead_letters=LetterStore(self.group, self.stats),
            transactions=transactions,
            term=await PositionStore(self.group).newest_term(),
            rate=rate,
            limits=LimitsByName(self.routes.receivers, may_park=False).share(1, 1),
        )

    async def prepare(self, routes: Routes) -> None:
        """Let the server check every `where` of some routes. Required before these routes resolve changes."""
        await routes.prepare(Conditions(self.group.state, self.registry.codec_options))

    def chosen(self, names: Sequence[str], signals: Sequence[str] = POST) -> Callable[[str, Receiver], bool]:
        """Make a function that returns whether a receiver is selected.

        Args:
            names: the names of the receivers; empty for all receivers.
            signals: the signals whose receivers may be selected.

        Raises:
            UnknownReceiver: for one of the names, there is no receiver of these signals that a dispatcher may run.
        """
        listeners = self.routes.listeners
        known = {one.name for each in listeners for signal in signals for one in each.receivers[signal]}
        for name in names:
            if name not in known:
                kinds = ", ".join(signals)
                raise UnknownReceiver(
                    f"The application has no receiver {name!r} of {kinds} that a dispatcher may run."
                    f"{nearest(name, known)}",
                    remedy="`dispatcher receivers APP` lists the receivers. If APP does not import the module of "
                    "the receiver, add the module with --import.",
                )
        return lambda signal, one: signal in signals and (not names or one.name in names)


@asynccontextmanager
async def workplace(registry: Registry, settings: Settings) -> AsyncIterator[Workplace]:
    """Connect to the deployment of an application."""
    name = group_of(registry, settings)
    clients = Clients(registry, settings)
    routes = routes_of(registry, settings, name)
    async with clients.patient_client() as client:
        await clients.check(client)
    async with clients.lasting_client() as client, clients.watching_client() as watching, registry:
        group, scope = Group(State(client, settings.state_database, clients.address), name), scope_of(routes)
        cursors = Cursors(watching, scope.database, scope.pipeline(), settings.batch_size)

        async def begin() -> Timestamp:
            now = token_time(await cursors.now())
            await group.state.create_indexes()
            await group.state.keep_deliveries_for(settings.delivery_retention)
            return now

        now = await clients.patiently(begin)
        place = Workplace(registry, settings, group, watching, routes, Runs(group), now, Stats())
        topic = topic_of(group, settings)
        try:
            if topic is None:
                yield place
            else:
                async with topic.opened():
                    yield place._replace(topic=topic)
        except PyMongoError as error:
            raise clients.verdict(error) from error
