"""What all pipelines of a process have in common, and making one for a partition that was claimed."""

from functools import partial
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient

from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import Stats, get_logger
from dispatcher.core.state import Group
from dispatcher.delivery.routes import Routes
from dispatcher.delivery.transactions import Transactions
from dispatcher.group.sessions import GroupSessions
from dispatcher.operate.pauses import Pauses
from dispatcher.parking.store import HeldStore
from dispatcher.position.documents import Position
from dispatcher.position.gaps import Gaps
from dispatcher.position.store import PositionStore
from dispatcher.runs.live_backfill import Refilling
from dispatcher.runs.store import Runs
from dispatcher.runtime.history_lost import History
from dispatcher.runtime.pipeline import Pipeline
from dispatcher.settings import Settings
from dispatcher.stream.change_stream import ChangeStreamSource
from dispatcher.stream.collections import collections_of
from dispatcher.stream.lookup import DocumentLookup
from dispatcher.stream.scope import scope_of
from mongoz import Registry

__all__ = ["Works"]

log = get_logger()


class Works(NamedTuple):
    """Makes pipelines.

    Attributes:
        group: of dispatchers.
        watching: opened for the running loop, for change streams.
        registry: of the application.
        routes: who gets what.
        settings: the operator's.
        stats: counters.
        address: of the server, for messages.
        controls: what is paused.
        sessions: of transactional receivers.
    """

    group: Group
    watching: AsyncMongoClient[Any]
    registry: Registry
    routes: Routes
    settings: Settings
    stats: Stats
    address: str
    controls: Pauses
    sessions: GroupSessions

    def pipeline(self, store: PositionStore, lease: Lease, position: Position) -> Pipeline:
        """One that continues where a partition was left."""
        group, codec_options = self.group, self.registry.codec_options
        (number, of) = (lease.partition, lease.partitions)
        scope = scope_of(self.routes).part(number, of)._replace(hashed=bool(position.inherited))
        log.info(
            "claimed a partition",
            action="lease.claimed",
            partition=number,
            of=of,
            term=lease.term,
            begins="position" if position.fingerprint == scope.fingerprint else "time of the position",
        )
        source = ChangeStreamSource(
            self.watching,
            scope,
            batch_size=self.settings.batch_size,
            address=self.address,
            stats=self.stats,
        )
        gaps = Gaps(self.group, self.stats, address=self.address, partition=number)
        runs = Runs(self.group)
        of_stream: dict[str, Any] = {"partition": number, "partitions": of, "address": self.address}
        return Pipeline(
            source=source,
            images=DocumentLookup(group.state.client, codec_options, self.address),
            routes=self.routes,
            store=store,
            lease=lease,
            position=position,
            fingerprint=scope.fingerprint,
            codec_options=codec_options,
            settings=self.settings,
            stats=self.stats,
            address=self.address,
            held=HeldStore(self.group, self.stats, (number, of)),
            controls=self.controls,
            gaps=gaps,
            history=History(self.settings.on_history_lost, source, gaps, runs, group=group.name, **of_stream),
            refilling=partial(
                Refilling,
                group.state.client,
                runs,
                self.routes,
                collections=partial(collections_of, group.state.client),
                codec_options=codec_options,
                **of_stream,
            ),
            transactions=Transactions(self.registry, self.group, self.sessions),
        )
