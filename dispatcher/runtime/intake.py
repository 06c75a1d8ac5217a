"""Registers changes in the order of the stream, and puts them into their lanes."""

from time import monotonic
from typing import Final

from dispatcher.claims.verdict import DONE
from dispatcher.claims.waiting import WaitingClaims
from dispatcher.core.events import DELIVERABLE, Calls, Change, Job
from dispatcher.core.output.logs import log
from dispatcher.core.stats import Stats
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.routes import Routes
from dispatcher.position.checkpoint import Checkpoint

_UNSETTLED: Final = frozenset({"marker", "deferred"})

# Minimum number of seconds between two log lines about late stamps: a stall causes many late stamps.
_LATE_EVERY: Final = 10.0


class Intake:
    """Puts changes into their lanes, one after another, in the order of the stream.

    Args:
        routes: tells which receivers do not get a change because of its stamp.
    """

    def __init__(
        self, checkpoint: Checkpoint, routes: Routes, lanes: Lanes, claims: WaitingClaims, stats: Stats
    ) -> None:
        self._checkpoint = checkpoint
        self._tracker = checkpoint.tracker
        self._routes = routes
        self._lanes = lanes
        self._claims = claims
        self._stats = stats
        # Jobs of markers and deferred changes (see `DeleteMarkers`), by token. These changes arrive twice: the
        # first arrival registers the job, and the second one settles it. If a delete follows a marker, the marker
        # does not arrive again: the job of the delete takes over the marker's job, and both finish together.
        self._unsettled: dict[str, Job] = {}
        self._late_logged = float("-inf")

    def enter(self, change: Change, calls: tuple[Calls, ...]) -> None:
        """Register a change in the order of the stream, if it is new, and put it into its lane."""
        operation = change.operation
        if operation == "finished":
            self._checkpoint.count_finished(change.token)
            return
        job = self._unsettled.pop(change.token, None) if self._unsettled else None
        verdict, origin = DONE, change.origin
        if origin is not None and operation in DELIVERABLE:
            self._count_stamp(change)
            if origin.claim is not None:
                verdict = self._claims.judge(origin.claim)
        elif operation == "untouched":
            self._stats.untouched += 1
        is_claimed = verdict is not DONE
        if job is not None:
            job.settle(change, calls)
        else:
            unfinished = calls or is_claimed or change.marker or operation in _UNSETTLED
            job = Job(change.token, change if unfinished else None, calls)
            self._tracker.add(job)
            if operation in _UNSETTLED:
                if operation == "marker":
                    job.announce_delete()
                self._unsettled[change.token] = job
                return
        if change.marker:
            job.finish_with(self._unsettled.pop(change.marker))
        if calls:
            self._lanes.add(change.key, job)
        if is_claimed:
            self._claims.enter(job, change, verdict)
        elif not calls and not job.done:
            self._tracker.finished(job)

    def _count_stamp(self, change: Change) -> None:
        for reason, receiver, signal in self._routes.withheld(change):
            self._stats.figures_of(receiver, signal).withheld[reason] += 1
        if not change.delivery_id:
            return
        self._stats.late_stamps += 1
        if monotonic() < self._late_logged + _LATE_EVERY:
            return
        self._late_logged = monotonic()
        log.warning(
            "a write took too long after it was stamped; receivers that ran in the writing process get it again, "
            "under the same delivery.id",
            action="stamps.late",
            delivery_id=change.delivery_id,
            namespace=".".join(change.namespace),
            id=repr(change.id),
            late_stamps=self._stats.late_stamps,
            remedy="Keep transactions short, and compare the clocks of the writing processes with the server's.",
        )
