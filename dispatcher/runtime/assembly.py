"""Builds the pipeline of a partition: the stages bottom-up, each in one step."""

from typing import Any, NamedTuple

from pymongo import AsyncMongoClient

from dispatcher.batches.attempt import run_batch
from dispatcher.batches.batches import Batches
from dispatcher.batches.run import BatchTools
from dispatcher.batches.transactions import BatchTransactions
from dispatcher.claims.takeover import Takeovers
from dispatcher.claims.waiting import ClaimStages, ClaimTools, WaitingClaims, WaitingRoom
from dispatcher.claims.watch import ClaimWatch
from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import log
from dispatcher.core.state import Group
from dispatcher.core.stats import Stats
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
from dispatcher.group.sessions import GroupSessions
from dispatcher.kafka.complete import CompletedTopic
from dispatcher.kafka.large_events import LargeEvents
from dispatcher.kafka.log import TopicLog
from dispatcher.kafka.source import KafkaSource
from dispatcher.operate.pauses import Pauses
from dispatcher.pace.limit import LimitsByName
from dispatcher.parking.bulk import ParkedBatches
from dispatcher.parking.gate import Parking
from dispatcher.parking.letters import LetterStore
from dispatcher.parking.limited_lanes import LimitedLanes
from dispatcher.parking.reading import RecordReader
from dispatcher.parking.redelivery import Redelivery
from dispatcher.parking.store import HeldStore
from dispatcher.parking.worker import ParkingWorker
from dispatcher.position.checkpoint import Checkpoint
from dispatcher.position.documents import Position
from dispatcher.position.gaps import Gaps
from dispatcher.position.store import PositionStore
from dispatcher.runs.live_backfill import DeliveryStages, LiveBackfill
from dispatcher.runs.store import Runs
from dispatcher.runtime.history_lost import LostHistory
from dispatcher.runtime.pipeline import Delivering, OtherSources, Pipeline, Reading
from dispatcher.settings import Settings
from dispatcher.stream.change_stream import ChangeStreamSource
from dispatcher.stream.lookup import DocumentLookup
from dispatcher.stream.reader import Reader
from dispatcher.stream.scope import Scope, scope_of
from dispatcher.stream.source import Source
from mongoz import Registry


class Assembly(NamedTuple):
    """Builds the pipelines of a process. Each stage is built after the stages that it calls.

    Attributes:
        watching: the client for change streams, opened for the running loop.
        limits: the limits of receivers, by name; all partitions of the process share them.
        topic: replaces the change streams; None without --kafka.
    """

    group: Group
    watching: AsyncMongoClient[Any]
    registry: Registry
    routes: Routes
    settings: Settings
    stats: Stats
    controls: Pauses
    sessions: GroupSessions
    claims: ClaimWatch
    limits: LimitsByName
    topic: TopicLog | None = None

    def pipeline(self, store: PositionStore, lease: Lease, position: Position) -> Pipeline:
        """Build the pipeline of a partition whose lease this process has got.

        Args:
            position: the position of the partition when the lease began. It has a token.
        """
        scope = scope_of(self.routes).part(lease.partition, lease.partitions)
        scope = scope._replace(hashed=bool(position.inherited))
        fingerprint = scope.fingerprint if self.topic is None else ""  # a topic has the events of all collections
        if (position.fingerprint or "") != fingerprint:
            log.info(
                "the watched collections or the partitions have changed: the change stream begins at the time of "
                "the position",
                action="position.by_time",
                partition=lease.partition,
            )
        checkpoint = Checkpoint(
            store,
            lease,
            position,
            fingerprint,
            stats=self.stats,
            always=lambda: self.controls.everything,
        )
        runs = Runs(self.group)
        partition = (lease.partition, lease.partitions)
        held = HeldStore(self.group, partition, self.sessions)
        letters = LetterStore(self.group, self.stats)
        reading = self._reading(scope, lease, checkpoint, runs)
        delivering = self._delivering(lease, checkpoint, held, letters)
        return Pipeline(
            reading,
            delivering,
            self._other_sources(lease, checkpoint, held, letters, runs, delivering),
            checkpoint,
            controls=self.controls,
            settings=self.settings,
            stats=self.stats,
        )

    def _reading(self, scope: Scope, lease: Lease, checkpoint: Checkpoint, runs: Runs) -> Reading:
        codec_options = self.registry.codec_options
        source = self._source_of(scope, checkpoint)
        reader = Reader(
            source,
            DocumentLookup(self.group.state.client, codec_options, self.group.state.address),
            group=self.group.name,
            codec_options=codec_options,
            is_finished=checkpoint.is_finished,
            may_be_finished=checkpoint.may_be_finished,
            scope=None if self.topic is None else scope,
        )
        gaps = Gaps(self.group, self.stats, lease.partition)
        history = LostHistory(
            self.settings.on_history_lost,
            source,
            gaps,
            runs,
            group=self.group.name,
            lease=lease,
        )
        return Reading(source, reader, self.routes, history, gaps)

    def _source_of(self, scope: Scope, checkpoint: Checkpoint) -> Source:
        stream = ChangeStreamSource(
            self.watching,
            scope,
            batch_size=self.settings.batch_size,
            address=self.group.state.address,
            stats=self.stats,
        )
        if self.topic is None:
            return stream
        partition = KafkaSource(
            self.topic.partition(scope.partition),
            checkpoint.start,
            batch_size=self.settings.batch_size,
            read_large=LargeEvents(self.group.state, self.topic.topic).read_patiently,
            saved=lambda: checkpoint.saved_place,
            figures=self.stats.topic,
        )
        return CompletedTopic(partition, stream, self.topic.streams)

    def _delivering(
        self, lease: Lease, checkpoint: Checkpoint, held: HeldStore, letters: LetterStore
    ) -> Delivering:
        stats, codec_options, policy = self.stats, self.registry.codec_options, Policy.of(self.settings)
        capacity = Capacity(Bounds.of(self.settings))
        parking = Parking(
            held,
            self.routes.receivers,
            term=lease.term,
            stats=stats,
            pause=capacity.pause,
            paused=lambda: self.controls.receivers,
            position=lambda: checkpoint.tracker.token,
        )
        transactions = Transactions(self.registry, self.group, self.sessions)
        steps = Steps(
            policy,
            lease,
            capacity,
            stats,
            codec_options,
            limits=ReceiverLimits(self.limits, capacity),
            tracing=tracing_of(self.settings, stats),
            transactions=transactions,
        )
        failures = Failures(
            lease.term, stats, dead_letters=letters, transactions=transactions, pause=capacity.pause
        )
        deliverer = Deliverer(
            lease.term, policy, capacity, stats, codec_options, steps=steps, failures=failures, held=parking
        )
        lanes = Lanes(
            capacity,
            deliverer.work,
            on_finished=checkpoint.tracker.finished,
            can_be_cut=steps.invoker.can_be_cut,
        )
        takeovers = Takeovers(self.group.state.client, codec_options, self.group.state.address)
        claims = WaitingClaims(
            ClaimTools(self.claims, takeovers, self.routes, parking, stats),
            WaitingRoom(capacity, lambda: capacity.crowded or checkpoint.is_crowded, policy.park_after),
            ClaimStages(lanes.add, deliverer.work, deliverer.deliver_held, checkpoint.tracker.finished),
        )
        deliverer.wait_for(claims)
        batches = Batches(
            BatchTools(lease.term, policy, capacity, stats, codec_options, failures, parking),
            steps.batched(run_batch, BatchTransactions(transactions)),
            places=self.settings.concurrency // 2,
            add=lanes.add,
            on_finished=checkpoint.tracker.finished,
        )
        deliverer.gather_in(batches)
        return Delivering(capacity, lanes, deliverer, steps.invoker, failures, parking, claims, batches)

    def _other_sources(
        self,
        lease: Lease,
        checkpoint: Checkpoint,
        held: HeldStore,
        letters: LetterStore,
        runs: Runs,
        delivering: Delivering,
    ) -> OtherSources:
        capacity, lanes, deliverer, _, _, parking, claims, batches = delivering
        codec_options = self.registry.codec_options
        records = RecordReader(held.database, self.routes, codec_options)
        worker = ParkingWorker(
            held,
            parking,
            records,
            ParkedBatches(held, parking, records, batches, lanes, self.routes.receivers, self.limits),
            deliver=claims.deliver_held,
            add=lanes.add,
            may_begin=capacity.may_begin,
            places=self.settings.concurrency // 2,
            limited=LimitedLanes(self.limits),
        )
        redelivery = Redelivery(
            lease,
            letters,
            self.controls.retries,
            parking,
            self.routes,
            add=lanes.add,
            may_begin=capacity.may_begin,
            codec_options=codec_options,
        )
        backfill = LiveBackfill(
            self.group.state.client,
            runs,
            self.routes,
            DeliveryStages(parking, deliverer, lanes, batches, capacity),
            lease,
            read=lambda: checkpoint.tracker.read,
            codec_options=codec_options,
        )
        return OtherSources(worker, redelivery, backfill)
