"""Changes get their place in the order, and their receivers; markers wait there for their deletes."""

from collections.abc import Callable, Hashable, Iterable
from typing import Final

from dispatcher.core.events import Calls, Change, Job
from dispatcher.core.output.logs import Stats
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.routes import Routes
from dispatcher.delivery.where import Conditions, Refused, wanted
from dispatcher.parking.gate import Parking
from dispatcher.position.checkpoint import Progress
from dispatcher.stream.delete_markers import Followed, Markers

__all__ = ["DELIVERABLE", "Entrance"]

DELIVERABLE: Final = frozenset({"insert", "update", "replace", "delete"})
"""What happens to single documents."""

# What receivers without a `where` do not want.
_NONE: Final[Refused] = {}


class Entrance:
    """Where changes are entered, one after another, in the order of the stream.

    Args:
        progress: what is finished, and the order of the rest.
        routes: who gets what.
        lanes: where jobs are worked off.
        parking: who has to wait behind parked deliveries.
        conditions: who wants which change; None if everybody wants all.
        stats: counters.
    """

    def __init__(
        self,
        progress: Progress,
        routes: Routes,
        lanes: Lanes,
        parking: Parking,
        *,
        conditions: Conditions | None,
        stats: Stats,
    ) -> None:
        self._progress = progress
        self._tracker = progress.tracker
        self._routes = routes
        self._lanes = lanes
        self._parking = parking
        self._conditions = conditions
        self._stats = stats
        self.markers = Markers()

    async def prepare(self, changes: list[Change]) -> Refused:
        """Find out what must be known before changes can be entered, and who does not want them.

        Args:
            changes: the next ones of the stream, with their documents.
        """
        refused = await self._conditions.refused(changes) if self._conditions is not None else _NONE
        if self._parking.watched:
            # Of what waits behind markers nothing is known to the lanes.
            await self._look_up(changes, None if self.markers else self._lanes.has)
        return refused

    async def _look_up(self, changes: list[Change], is_queued: Callable[[Hashable], bool] | None) -> None:
        await self._parking.look_up(changes, self._routes.names_listening_to, is_queued)

    def enter(self, change: Change, refused: Refused) -> None:
        """Give a change its place in the order, and its receivers.

        Args:
            change: the next one of the stream.
            refused: who does not want it.
        """
        if self._progress.passes(change.token):
            return
        if change.operation == "marker":
            job = Job(change.token, change)
            self._tracker.add(job)
            self.markers.announce(change, job)
            return
        if change.operation not in DELIVERABLE:
            self._stats.untouched += change.operation == "untouched"
            self._tracker.add(Job(change.token))
            return
        if self.markers:
            self._enter_beside_markers(change, refused)
            return
        calls = self._calls(change, refused)
        if not calls:
            self._tracker.add(Job(change.token))
            return
        job = Job(change.token, change, calls)
        self._tracker.add(job)
        self._lanes.add(change.key, job, change.size)

    def _calls(self, change: Change, refused: Refused) -> tuple[Calls, ...]:
        calls = self._routes.route(change)
        if change.origin is not None:
            self._count_withheld(change)
        if refused and change.token in refused:
            calls = wanted(calls, refused[change.token])
        return calls

    def _count_withheld(self, change: Change) -> None:
        for reason, receiver, signal in self._routes.withheld(change):
            self._stats.figures_of(receiver, signal).withheld[reason] += 1

    # -- markers ---------------------------------------------------------------------------------------------

    def _enter_beside_markers(self, change: Change, refused: Refused) -> None:
        """A change whose document may have a marker: a delete claims it, all others wait behind it."""
        followed = self.markers.claim(change) if change.operation == "delete" else None
        job = Job(change.token, change)
        self._tracker.add(job)
        if followed is not None:
            assert followed.marker.change is not None  # it is not finished
            marker = followed.marker.change
            change = job.change = change._replace(origin=marker.origin, delivery_id=marker.delivery_id)
            job.marker = followed.marker
            self._let_go(followed)
        job.calls = self._calls(change, refused)
        if followed is not None or not self.markers.wait(change, job):
            self._deliver(change, job)

    def _deliver(self, change: Change, job: Job) -> None:
        """Begin with a job that has its place already."""
        if job.calls:
            self._lanes.add(change.key, job, change.size)
        else:
            self._tracker.finished(job)

    def _let_go(self, followed: Followed) -> None:
        """Begin with what had to wait behind a marker."""
        for job in followed.waiting:
            assert job.change is not None  # it was not begun
            self._deliver(job.change, job)

    def give_up(self, markers: Iterable[Followed]) -> None:
        """Finish what looked like markers, but announced nothing, and begin with what waits behind them."""
        for followed in markers:
            self._tracker.finished(followed.marker)
            self._let_go(followed)
