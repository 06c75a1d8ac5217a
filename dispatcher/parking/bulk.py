"""Gathers the parked deliveries of batch receivers into batches again.

The deliveries of many lanes are read together, and their results are written together. Unlike the errands of
`ParkingWorker`, a batch does not hold back the jobs of its documents: other receivers get later changes of these
documents meanwhile.
The deliveries stay in the database until the batch has ended, so later deliveries of these documents to the batch
receiver join the lanes. While the results are written, no job of the documents runs, because no delivery may join
a lane while the lane ends.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Final, NamedTuple

from bson.raw_bson import RawBSONDocument
from pymongo.errors import PyMongoError

from dispatcher.batches.batches import Batches
from dispatcher.batches.gathering import GatheredDelivery
from dispatcher.core.events import Errand
from dispatcher.core.tasks import Interrupted
from dispatcher.delivery.lanes import Lanes
from dispatcher.delivery.outcome import Waiting
from dispatcher.exceptions import DispatcherError
from dispatcher.pace.limit import Limit
from dispatcher.parking.gate import Parking
from dispatcher.parking.lane import Lane
from dispatcher.parking.reading import RecordReader, recorded_attempts
from dispatcher.parking.store import DueRows, HeldStore, Settlement
from mongoz.signals.receivers import Receiver

# Seconds until the next query.
_RARELY: Final = 30.0  # if nothing causes an earlier query
_AGAIN: Final = 1.0  # if some due deliveries can't be taken yet

# Parked deliveries gather for this many seconds at most. They have waited already, so they do not wait for
# `Batch.wait` again. The deliveries of a failed batch are due together, so this time is enough to gather them.
_TOGETHER: Final = 0.2

# Maximum number of batches whose deliveries are taken at the same time. So while a batch runs, the next ones are
# read, and the results of the earlier ones are written.
_BATCHES: Final = 6

# Maximum number of bytes of all taken deliveries.
_BYTES: Final = 8_000_000

# Maximum number of lanes that are delivered one by one after a query with malformed or unmarked lanes, see
# `DueRows`.
_FEW: Final = 10


@dataclass(slots=True, eq=False)
class _TakenLane:
    """A lane whose first deliveries are in batches.

    Attributes:
        key: the key of the document.
        left: the number of taken deliveries whose results are not recorded yet.
    """

    lane: Lane
    name: str
    key: Hashable
    rows: Sequence[RawBSONDocument]
    left: int = 0
    size: int = 0


class _Row(NamedTuple):
    """A taken delivery: its lane, and its place in the rows of the lane."""

    of: _TakenLane
    place: int


@dataclass(slots=True, eq=False)
class _Result:
    """The result of a batch for one lane."""

    of: _TakenLane
    finished: list[RawBSONDocument] = field(default_factory=list)
    next: str | None = None
    waiting: Waiting | None = None
    settled: int = 0

    def finish(self, row: _Row) -> None:
        """Add a finished delivery. The deliveries of a lane are added in their order."""
        rows, after = self.of.rows, row.place + 1
        self.finished.append(rows[row.place])
        self.next = rows[after]["_id"] if after < len(rows) else None


class ParkedBatches:
    """The parked deliveries of batch receivers of one partition.

    Args:
        receivers: all receivers of the application.
        lanes: the lanes of the jobs. They hold back the jobs of a document while its results are written.
        limits: the limits, by the present and former names of the receivers.

    Attributes:
        names: the present and former names of batch receivers, each with the maximum size of a batch.
    """

    def __init__(
        self,
        held: HeldStore,
        parking: Parking,
        reader: RecordReader,
        batches: Batches,
        lanes: Lanes,
        receivers: Iterable[Receiver],
        limits: Mapping[str, Limit],
    ) -> None:
        self._held = held
        self._parking = parking
        self._reader = reader
        self._batches = batches
        batches.settle_in(self)
        self._lanes = lanes
        self._limits = limits
        self._on_settled: Callable[[float], None] = lambda _seconds: None
        self.names: dict[str, int] = {}
        for one in receivers:
            if one.options.batch is not None:
                for name in (one.name, *one.options.formerly):
                    self.names[name] = max(one.options.batch.size, self.names.get(name, 0))
        self._taken: dict[str, _TakenLane] = {}
        self._unsettled: dict[_Result, None] = {}

    def on_settled(self, listener: Callable[[float], None]) -> None:
        """Call a function when results are recorded, with the seconds until one of their lanes is due again."""
        self._on_settled = listener

    # -- taking ----------------------------------------------------------------------------------------------

    async def take(self, name: str, apart_from: Sequence[str], *, may_forget: bool) -> tuple[float, list[Lane]]:
        """Read due deliveries, and gather them.

        Args:
            name: the name of a batch receiver.
            apart_from: the ids of more lanes to leave out.
            may_forget: whether to forget the name if no delivery is parked under it.

        Returns:
            The seconds until other deliveries may be taken, and the lanes that must be delivered one by one.
        """
        own = [taken for taken in self._taken.values() if taken.name == name]
        limit = self._limits.get(name)
        if limit is not None and (own or limit.is_crowded):  # one batch at a time asks for a place
            return _AGAIN, []
        room = self.names[name] * _BATCHES - sum(len(taken.rows) for taken in own)
        most_bytes = _BYTES - sum(taken.size for taken in self._taken.values())
        if room * 2 <= self.names[name] or most_bytes <= 0:
            return _RARELY, []  # the end of a batch starts another query
        times = self._parking.times_parked(name)
        due = await self._held.due_rows(name, room, most_bytes, [*self._taken, *apart_from])
        if may_forget and due == DueRows([], None, is_odd=False) and not own and not apart_from:
            self._parking.forget(name, times)
        seconds = _RARELY if due.seconds is None else due.seconds
        if due.is_odd:
            return seconds, (await self._held.due(name, _FEW, [*self._taken, *apart_from]))[0]
        others: list[Lane] = []
        for lane, rows in due.lanes:
            if lane.id in self._parking.retried:  # a dead letter has joined the lane, maybe after the query
                self._parking.retried.discard(lane.id)
                seconds = 0.0
            elif not self._parking.is_ours(rows[0]):
                seconds = min(seconds, _AGAIN)
            # Later deliveries wait until a blocked one succeeds. In the same batch they could succeed before it.
            elif not await self._gather(name, lane, rows[:1] if lane.state == "blocked" else rows):
                others.append(lane)
        return seconds, others

    async def _gather(self, name: str, lane: Lane, rows: Sequence[RawBSONDocument]) -> bool:
        """Gather the deliveries of a lane. Returns False if they must be delivered one by one."""
        try:
            taken = _TakenLane(lane, name, None, rows)
            found = [await self._read(_Row(taken, place)) for place in range(len(rows))]
        except (PyMongoError, DispatcherError, Interrupted):
            raise
        except Exception:  # a record was edited by hand
            return False
        usable: list[GatheredDelivery] = []
        for one in found:
            if one is None:
                break
            usable.append(one)
        if not usable:
            return False
        taken.key, taken.rows = usable[0].key, rows[: len(usable)]
        taken.left = len(usable)
        taken.size = sum(len(row.raw) for row in taken.rows)
        self._taken[lane.id] = taken
        self._batches.add_held(usable)
        return True

    async def _read(self, row: _Row) -> GatheredDelivery | None:
        """Read a delivery; None if it can't be in a batch now, e.g. because a writing process still claims it."""
        record = row.of.rows[row.place]
        if not self._parking.is_ours(record):
            return None
        if "files" in record:
            parts = await self._parking.retry_command(lambda: self._held.parts(record))
        else:
            parts = {part: bytes(data) for part, data in record["parts"].items()}
        change, calls, retried = self._reader.read(record, parts)
        is_claimed = change.origin is not None and change.origin.claim is not None and not change.takeover
        batch = None if calls is None else calls.receivers[0].options.batch
        if calls is None or batch is None or is_claimed:
            return None
        waiting = recorded_attempts(record)
        return GatheredDelivery(
            change,
            calls,
            change.key,
            monotonic() - max(0.0, batch.wait - _TOGETHER),
            row=row,
            attempts=waiting.attempts,
            began=waiting.began,
            retried=retried,
            is_untouched=True,
        )

    # -- results ---------------------------------------------------------------------------------------------

    async def settle(
        self,
        decided: Sequence[tuple[GatheredDelivery, bool]],
        waits: Sequence[tuple[GatheredDelivery, Waiting]],
        stuck: "asyncio.Task[Any] | None",
    ) -> None:
        """Record the result of a batch, see `HeldSource`."""
        results: dict[_TakenLane, _Result] = {}
        for one, _ in decided:
            result = results.setdefault(one.row.of, _Result(one.row.of))
            result.finish(one.row)
            result.settled += 1
        for one, waiting in waits:
            result = results.setdefault(one.row.of, _Result(one.row.of))
            result.settled += 1
            if result.waiting is None:
                result.next, result.waiting = result.of.rows[one.row.place]["_id"], waiting
                if stuck is not None:
                    self._parking.wait_for(stuck, result.of.lane.id)
        self._unsettled.update(dict.fromkeys(results.values()))
        free: list[_Result] = []
        for result in results.values():
            if self._lanes.reserve(result.of.key):
                free.append(result)
            else:
                self._lanes.add(result.of.key, Errand(partial(self._write, [result])))
        try:
            if free:
                await self._write(free)
        finally:
            for result in free:
                self._lanes.release(result.of.key)

    async def _write(self, results: Sequence[_Result]) -> None:
        """Write the results of some lanes. No job of their documents runs meanwhile."""
        settlements = [Settlement(one.of.lane, one.finished, one.next, one.waiting) for one in results]
        await self._parking.retry_command(lambda: self._held.settle_all(settlements))
        seconds = _RARELY
        for one in results:
            del self._unsettled[one]
            self._settled(one.of, one.settled)
            seconds = min(seconds, 0.0 if one.waiting is None else one.waiting.seconds)
        self._on_settled(seconds)

    def forget(self, one: GatheredDelivery) -> None:
        """Record that a delivery was taken out of a gathering, because an earlier one of its lane must wait."""
        self._settled(one.row.of, 1)

    def _settled(self, taken: _TakenLane, count: int) -> None:
        taken.left -= count
        if not taken.left:
            del self._taken[taken.lane.id]

    async def settle_rest(self) -> None:
        """Record the results that interrupted batches have not recorded.

        Raises:
            Interrupted: the process ends, and the write has not succeeded. The deliveries will be repeated.
        """
        if self._unsettled:
            await self._write(list(self._unsettled))
