"""Tracks the finished changes of one partition, and saves the position.

Earlier processes have recorded their finished changes in three forms: the position, up to which all changes are
finished; hashes of the tokens of finished changes after it; and facts, which say what the partitions of earlier
layouts had finished (see `inherited.py`).
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from pymongo.errors import PyMongoError

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.driver_errors import in_short, raise_if_fatal
from dispatcher.core.events import EventBatch, Job, LogPlace
from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import log
from dispatcher.core.partitions import HASH
from dispatcher.core.resume_tokens import digest_of, split, time_after, token_of
from dispatcher.core.stats import Stats
from dispatcher.core.ticks import next_tick, wait_for_tick
from dispatcher.position.documents import Position
from dispatcher.position.inherited import Inherited
from dispatcher.position.places import Places
from dispatcher.position.store import PositionStore
from dispatcher.position.tracker import Tracker
from dispatcher.settings import Settings

# Maximum number of changes after the position, and maximum characters of the tokens of these changes. A slow
# document stops the position, but not the other documents. The finished changes of the other documents are
# recorded in memory and in the document of the position, so there must be a limit. A token contains the _id of its
# document, and an _id has no size limit: most tokens have a hundred characters, some a million.
_LONGEST_SPAN: Final = 20_000
_HEAVIEST_SPAN: Final = 6_000_000


class Checkpoint:
    """The finished changes of one stream, by this process and by earlier ones.

    Args:
        position: the position when the partition was claimed; it has a token.
        always: returns whether to save the position even if it has not moved, so that the partition does not look
            dead.

    Attributes:
        lease: the lease of the partition.
        tracker: the changes after the position, in the order of the stream.
        start: the place where the stream continues.
        began: the token of the position when the partition was claimed.
        saved_seconds: the time of the last save, or of the last check that found nothing new to save, by the
            monotonic clock.
    """

    def __init__(
        self,
        store: PositionStore,
        lease: Lease,
        position: Position,
        fingerprint: str,
        *,
        stats: Stats,
        always: Callable[[], bool],
    ) -> None:
        assert position.token is not None
        self._store = store
        self.lease = lease
        self._fingerprint = fingerprint
        self._fingerprint_before = position.fingerprint or ""
        self._stats = stats
        self._always = always
        self._ahead = set(split(position.ahead))
        self._until = position.until
        self._digests: dict[str, bytes] = {}  # of the finished changes after the position, at the last save
        self._inherited = Inherited(position.inherited)
        self._has_passed = False  # whether facts were removed since the last save
        self._places = Places(position.place)
        self._saved: tuple[str, bytes, LogPlace | None] = (position.token, position.ahead, position.place)
        self.tracker = Tracker(position.token)
        self.start = position.start(fingerprint)
        self.began = position.token
        self.saved_seconds = monotonic()

    # -- finished changes -------------------------------------------------------------------------------------

    @property
    def inherits(self) -> bool:
        """Returns whether there are facts of earlier layouts. If so, `look_back` must see each event."""
        return bool(self._inherited)

    def look_back(self, event: RawEvent) -> None:
        """Record whether a change was finished under an earlier layout."""
        token = token_of(event["_id"])
        if self._inherited.has_finished(token, event[HASH] if "documentKey" in event else 0):
            self._ahead.add(digest_of(token))
            self._until = max(self._until, time_after(token))

    def is_finished(self, token: str) -> bool:
        """Returns whether a change was finished by an earlier process."""
        return token <= self.began or (bool(self._ahead) and digest_of(token) in self._ahead)

    def may_be_finished(self) -> bool:
        """Returns whether `is_finished` can still be true for changes that come later in the stream."""
        return bool(self._ahead) or self.tracker.read <= self.began

    def count_finished(self, token: str) -> None:
        """Add to the tracker a change that an earlier process has finished."""
        if token > self.began:
            self._ahead.discard(digest_of(token))  # the tracker knows it from now on
            self.tracker.add(Job(token))

    def mark(self, batch: EventBatch) -> None:
        """Record that a batch has been read, and all its changes are in the tracker."""
        if batch.place is not None:
            self._places.note(batch.token, batch.place)
        self.tracker.mark(batch.token)

    @property
    def saved_place(self) -> LogPlace | None:
        """The saved place in a topic."""
        return self._saved[2]

    @property
    def is_far_ahead(self) -> bool:
        """Returns whether the position must move before the stream is read further."""
        return self.tracker.span >= _LONGEST_SPAN or self.tracker.weight >= _HEAVIEST_SPAN

    def has_room_for(self, count: int, size: int) -> bool:
        """Returns whether some changes can be read before the position moves.

        Args:
            count: the number of the changes.
            size: the bytes of their events. The token of an event is shorter than the event.
        """
        return self.tracker.span + count <= _LONGEST_SPAN and self.tracker.weight + size <= _HEAVIEST_SPAN

    @property
    def is_crowded(self) -> bool:
        """Returns whether the changes after the position have reached three quarters of one of the limits."""
        return self.tracker.span >= _LONGEST_SPAN * 3 // 4 or self.tracker.weight >= _HEAVIEST_SPAN * 3 // 4

    # -- saving ----------------------------------------------------------------------------------------------

    async def save_regularly(self, ending: asyncio.Event, settings: Settings) -> None:
        """Save the position regularly, until `ending` is set.

        After deliveries, the position is saved at the next tick of `save_interval`; otherwise about every
        `idle_save_interval`.
        """
        clock = asyncio.get_running_loop().time
        delivered, idle_until = self._stats.delivered, next_tick(settings.idle_save_interval, clock())
        # `ending` ends this loop. A cancellation would interrupt a save.
        while await wait_for_tick(settings.save_interval, unless=ending):
            if self._stats.delivered == delivered and clock() < idle_until:
                continue
            delivered, idle_until = self._stats.delivered, next_tick(settings.idle_save_interval, clock())
            await self.save()

    async def save(self) -> None:
        """Save the position. If another process has taken over, mark the lease as lost.

        Raises:
            DispatcherError: the error is permanent. Other errors are logged, and the next save tries again.
        """
        token = self.tracker.token
        ahead, until = self._finished_ahead(token)
        place = self._places.at(token)
        if (token, ahead, place) == self._saved and not self._always():
            self.saved_seconds = monotonic()  # the saved position is up to date
            return
        # As long as the position has not moved since the partition was claimed, its token belongs to a stream with
        # the earlier fingerprint.
        fingerprint = self._fingerprint if token > self.began else self._fingerprint_before
        self._has_passed = self._inherited.pass_(token) or self._has_passed
        inherited = self._inherited.facts if self._has_passed else None
        try:
            ours = await self._store.save(self.lease, token, fingerprint, ahead, until, inherited, place)
        except PyMongoError as error:
            raise_if_fatal(error, self._store.address)
            log.warning(
                "the position could not be saved, trying again later",
                action="position.not_saved",
                error=in_short(error),
            )
            return
        if not ours:
            self.lease.lose()
            return
        self._saved = (token, ahead, place)
        self._has_passed = False
        self.saved_seconds = monotonic()
        self._stats.saves += 1

    def _finished_ahead(self, token: str) -> tuple[bytes, str]:
        """Hashes of the finished changes after a token, and a text that sorts after the tokens of all of them.

        Every save includes them. So even if a slow delivery stops the position, a kill repeats only the changes
        that finished after the last save.
        """
        if token >= self._until:
            self._ahead.clear()  # the stream has passed all changes that an earlier process finished
        jobs, known = self.tracker.ahead, self._digests
        self._digests = {job.token: known.get(job.token) or digest_of(job.token) for job in jobs}
        until = max(self._until if self._ahead else "", time_after(jobs[-1].token) if jobs else "")
        return b"".join(sorted({*self._ahead, *self._digests.values()})), until
