"""Parks deliveries, and decides which deliveries must wait for parked ones.

A delivery is parked when it has failed and blocks its document, when its receiver is paused, or when its next
attempt is far away. Once the delivery is written, the change is finished for this receiver. The parked deliveries
of one receiver and document are a lane. Later deliveries join the lane as followers, in order, until all
deliveries of the lane are made.

Parked deliveries are in the database only. The process keeps in memory the names of the receivers with parked
deliveries, and the lanes that queued jobs must query. A document has one running job at a time, and only jobs of
this document change the document's lanes. Therefore a lane can't end while a follower is added to it.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
import secrets
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from dispatcher.core.events import Calls, Change, Job, Namespace
from dispatcher.core.output.logs import log
from dispatcher.core.retry import Pause, retry
from dispatcher.core.stats import Stats
from dispatcher.delivery.instances import key_of, name_of
from dispatcher.delivery.outcome import Waiting
from dispatcher.parking.lane import lane_id
from dispatcher.parking.record import Record, record_of
from dispatcher.parking.store import HeldStore
from mongoz.signals.receivers import Receiver

ListenersOf = Callable[[Namespace], Sequence[tuple[str, frozenset[str]]]]
"""Returns the listeners of a collection: names of document classes, each with the names of its receivers."""


T = TypeVar("T")


class Parking:
    """The parked deliveries of one stream.

    Args:
        receivers: all receivers of the application.
        paused: returns the names of the receivers that are paused now.
        position: returns the token up to which everything is finished.
    """

    def __init__(
        self,
        held: HeldStore,
        receivers: Iterable[Receiver],
        *,
        term: int,
        stats: Stats,
        pause: Pause,
        paused: Callable[[], frozenset[str]] = frozenset,
        position: Callable[[], str] = str,
    ) -> None:
        self._held = held
        self.term = term
        self._stats = stats
        self._pause = pause
        self._paused = paused
        self._position = position
        self._on_parked: Callable[[float], None] = lambda _seconds: None
        self.own_id = secrets.token_hex(8)
        # A lane is stored under the name that its receiver had when the lane began.
        receivers = tuple(receivers)
        self._names = {one.name: (*one.options.formerly, one.name) for one in receivers}
        # A receiver with limits often has parked deliveries. A look-up for it would delay the other receivers of a
        # change. So its lanes are queried only after the calls of the other receivers.
        self._queried_late = frozenset(one.name for one in receivers if one.options.is_limited)
        self._owners: dict[str, set[str]] = defaultdict(set)
        for name, names in self._names.items():
            for one in names:
                self._owners[one].add(name)
        self._orphaned: set[str] = set()
        # Names with parked deliveries, each with a number that grows with each delivery that is parked.
        self._busy: dict[str, int] = {}
        # Names with a write in progress: a query may not find the delivery yet.
        self._writing: Counter[str] = Counter()
        # Lanes that queued jobs must query. Each has the number of the look-up that found it, and the key of its
        # document.
        self._remembered: dict[str, tuple[int, Hashable]] = {}
        self._round = 0
        self.stuck: set[str] = set()
        """Lanes whose last attempt still runs in an abandoned task."""
        self.retried: set[str] = set()
        """Lanes that a dead letter has joined. If deliveries of a lane were read before, the lane is read again,
        because the dead letter may come before them."""
        self.hastened: dict[str, str] = {}
        """Lanes whose claims are decided, each with the `_id` of its claimed delivery, which is made due soon."""
        self._paused_names: set[str] = set()
        self.watched: set[str] = set()
        """Names of the receivers whose deliveries may have to wait. Usually this set is empty."""

    def on_parked(self, listener: Callable[[float], None]) -> None:
        """Call a function whenever a delivery is parked. It gets the seconds until the delivery is due."""
        self._on_parked = listener

    @property
    def busy(self) -> tuple[str, ...]:
        """The names of receivers with parked deliveries, without the paused ones."""
        return tuple(name for name in self._busy if not self.is_paused(name))

    def is_paused(self, name: str) -> bool:
        """Returns whether a receiver with this present or former name is paused, under any of its names."""
        return not self._owners[name].isdisjoint(self._paused_names)

    def is_ours(self, row: Mapping[str, Any]) -> bool:
        """Returns whether this process may make a parked delivery now.

        Another process may have parked it, and its change may come after the saved position. Then this process
        will read the change from the stream again, and park the delivery again. An attempt before that could break
        the order.
        """
        token = row.get("token")
        return row.get("by") == self.own_id or not isinstance(token, str) or token <= self._position()

    async def load(self) -> None:
        """Find the deliveries that other processes parked.

        Call this method again from time to time: a dispatcher of an earlier version may still park deliveries.
        """
        await self._held.recover()
        # Other processes may have parked claimed deliveries. This process begins to follow the claim of a parked
        # delivery only when the delivery is due. So all claimed deliveries are made due now.
        await self._held.make_claimed_due()
        known = {name for names in self._names.values() for name in names}
        found = await self._held.receivers()
        for name in found & known:
            self._busy.setdefault(name, 0)
        self.watch()
        orphaned = found - known - self._orphaned
        if orphaned:
            self._orphaned |= orphaned
            log.warning(
                "deliveries are parked for receivers that the application does not have; they stay parked",
                action="parked.orphaned",
                receivers=sorted(orphaned),
                remedy="connect receivers that have these names, or have them in `formerly`",
            )

    def watch(self) -> None:
        """Update `watched`: the receivers that have parked deliveries or are paused now."""
        busy = {name for name, names in self._names.items() if any(one in self._busy for one in names)}
        self._paused_names = {name for name, names in self._names.items() if not self._paused().isdisjoint(names)}
        self.watched.clear()
        self.watched.update(busy | self._paused_names)

    # -- deliveries that must wait ---------------------------------------------------------------------------

    async def look_up(
        self,
        changes: Iterable[Change],
        listeners_of: ListenersOf,
        is_queued: Callable[[Hashable], bool] | None,
    ) -> None:
        """Find the lanes of these changes, before the changes are queued.

        Args:
            is_queued: returns whether a document has queued jobs. The lanes of documents without queued jobs are
                forgotten. With None no lane is forgotten, because changes of earlier calls may not be queued yet.
        """
        if is_queued is not None:
            self._round += 1
            for lane, (since, key) in list(self._remembered.items()):
                if since < self._round and not is_queued(key):
                    del self._remembered[lane]
        lanes: dict[str, Hashable] = {}
        for change in changes:
            for document, names in listeners_of(change.namespace):
                for name in (names & self.watched) - self._queried_late:
                    lanes.update(dict.fromkeys(self._lanes(name, document, change), change.key))
        if lanes:
            for lane in await self.retry_command(lambda: self._held.existing(list(lanes))):
                self._remembered[lane] = (self._round, lanes[lane])

    def _lanes(self, name: str, document: str, change: Change) -> dict[str, str]:
        """The lanes that may hold deliveries of a receiver, each with the receiver's name in this lane."""
        names = [one for one in self._names.get(name, ()) if one in self._busy]
        return {self._lane(one, document, change): one for one in names}

    def _lane(self, name: str, document: str, change: Change) -> str:
        return lane_id(self._held.group, name, document, change.namespace, key_of(change))

    async def holds(self, change: Change, calls: Calls, receiver: Receiver) -> bool:
        """Park a delivery if it must wait for earlier ones, or for the end of a pause.

        Returns:
            Whether the delivery is parked.
        """
        for lane, name in self._lanes(receiver.name, name_of(calls.document), change).items():
            if lane in self._remembered or receiver.name in self._queried_late:
                headed = await self.retry_command(lambda lane=lane: self._held.is_headed(lane))  # type: ignore[misc]
                if headed is not None:
                    waiting = None if headed else Waiting("retrying")
                    await self._put(self._record(name, change, calls, receiver), lane, waiting)
                    if waiting is not None:
                        self._on_parked(waiting.seconds)
                    return True
                self._remembered.pop(lane, None)
        if receiver.name not in self._paused_names:
            return False
        await self.park(change, calls, receiver, Waiting("paused"))
        return True

    # -- parking ---------------------------------------------------------------------------------------------

    async def park(
        self,
        change: Change,
        calls: Calls,
        receiver: Receiver,
        waiting: Waiting,
        *,
        after: "asyncio.Task[Any] | None" = None,
    ) -> None:
        """Park a delivery as the head of a new lane. When this returns, the delivery survives a failover.

        Args:
            after: the task of the last attempt, if it still runs. The next attempt waits for the end of this task.
        """
        lane = self._lane(receiver.name, name_of(calls.document), change)
        if after is not None:
            self.wait_for(after, lane)
        record = self._record(receiver.name, change, calls, receiver)
        await self._begin_lane(lane, receiver.name, change, lambda: self._put(record, lane, waiting))
        self._on_parked(waiting.seconds)

    async def park_rest(self, job: Job) -> None:
        """Park the remaining deliveries of a change that other receivers have got: it must not be read again.

        Raises:
            Interrupted: the process ends, and the write has not succeeded.
        """
        assert job.change is not None
        for calls in job.left:
            (receiver,) = calls.receivers
            if not await self.holds(job.change, calls, receiver):
                await self.park(job.change, calls, receiver, Waiting("interrupted"))

    def wait_for(self, task: "asyncio.Task[Any]", lane: str) -> None:
        """Make no attempt at a delivery of a lane before a task has ended."""

        def ended(_task: object) -> None:
            self.stuck.discard(lane)
            self._on_parked(0.0)

        if not task.done():
            self.stuck.add(lane)
            task.add_done_callback(ended)

    def hasten(self, lanes: Mapping[str, str]) -> None:
        """Make the next attempt at claimed deliveries soon, because their claims are decided.

        Args:
            lanes: the lanes, each with the `_id` of its claimed delivery.
        """
        self.hastened.update(lanes)
        self._on_parked(0.0)

    async def retry(self, change: Change, calls: Calls, letter: str) -> bool:
        """Park a dead letter again. The order of the commits decides its place in the lane.

        Args:
            calls: the calls of exactly one receiver.
            letter: the `_id` of the dead letter.

        Returns:
            False if the retry of the dead letter is no longer requested.

        Raises:
            Interrupted: the process ends, and the write has not succeeded.
        """
        (receiver,) = calls.receivers
        document = name_of(calls.document)
        lanes = self._lanes(receiver.name, document, change)
        there = await self.retry_command(lambda: self._held.existing(list(lanes))) if lanes else set()
        own = (self._lane(receiver.name, document, change), receiver.name)
        lane, name = next((one for one in lanes.items() if one[0] in there), own)
        fields = {"receiver": name, "receiver_id": receiver.id.hex(), "hops": calls.hops}
        fields |= {"by": self.own_id, "term": self.term}
        written = await self._begin_lane(
            lane, name, change, lambda: self.retry_command(lambda: self._held.retry(letter, lane, fields))
        )
        self.retried.add(lane)
        self._stats.parked += written
        self._on_parked(0.0)
        return written

    async def _begin_lane(self, lane: str, name: str, change: Change, write: Callable[[], Awaitable[T]]) -> T:
        """Run `write`, which puts a delivery into a lane.

        The lane is remembered before the write, so that the next delivery of its document queries the lane.
        """
        self._remembered[lane] = (self._round, change.key)
        self._busy[name] = self._busy.get(name, 0) + 1
        self.watched.update(self._owners[name])
        self._writing[name] += 1
        try:
            return await write()
        finally:
            self._writing[name] -= 1

    def _record(self, name: str, change: Change, calls: Calls, receiver: Receiver) -> Record:
        """The record of a delivery. `name` is the name of the receiver in the lane, maybe a former one."""
        record = record_of(change, calls, receiver, term=self.term, group=self._held.group, name=name)
        record.fields["by"] = self.own_id
        return record

    async def _put(self, record: Record, lane: str, waiting: Waiting | None) -> None:
        await self.retry_command(lambda: self._held.put(record, lane, waiting))
        self._stats.parked += 1

    async def retry_command(self, command: Callable[[], Awaitable[T]]) -> T:
        """Run a database command, and repeat it until it succeeds.

        Raises:
            Interrupted: the process ends, and the command has not succeeded.
        """
        report = partial(
            log.error, "parked deliveries can't be read or written now, trying again", action="parked.unavailable"
        )
        return await retry(command, report, pause=self._pause)

    # -- forgetting ------------------------------------------------------------------------------------------

    def times_parked(self, name: str) -> int:
        """A number that grows with each delivery that is parked under a name."""
        return self._busy.get(name, 0)

    def forget(self, name: str, times: int) -> None:
        """Forget a name without parked deliveries, unless a delivery was parked meanwhile.

        Args:
            times: `times_parked` before the query that found no delivery.
        """
        if self._busy.get(name) == times and not self._writing[name]:
            del self._busy[name]
            self.watch()
