"""The claimed deliveries of one partition that wait for their process, and the deliveries that wait for them.

A claim does not occupy the lane of its document: other receivers get later changes of the document meanwhile. Only
later deliveries of the same document to the same receiver wait. They and the claim form a chain. When the process
has finished the claim, the chain goes on; when the process is dead, the dispatcher makes the delivery first.

A chain that waits for long is parked as a whole: its deliveries then wait in the database.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from dispatcher.claims.orphans import calls_of_orphan, is_orphan
from dispatcher.claims.ports import ParkingGate
from dispatcher.claims.takeover import Takeovers, claimed
from dispatcher.claims.verdict import ClaimVerdict
from dispatcher.claims.watch import ClaimWatch
from dispatcher.core.events import CALLED, Calls, Change, Errand, Job
from dispatcher.core.lease import now
from dispatcher.core.stats import ClaimGauges, Stats, seconds_of
from dispatcher.delivery.attempt import HeldDelivery
from dispatcher.delivery.capacity import Capacity
from dispatcher.delivery.outcome import Decision, HoldReason, Waiting
from dispatcher.delivery.routes import Routes
from mongoz.signals.receivers import Receiver
from mongoz.stamps import Claim

K = TypeVar("K", bound=Hashable)

# Maximum seconds for which a claim waits in memory.
_LONGEST: Final = 60.0

# If there is no room for other changes, a claim that has waited this long, in seconds, is parked.
_LONG_WAIT: Final = 3.0

_ORPHANED: Final = Waiting("orphaned", 300.0)

# Seconds until a parked claim is judged again.
_AGAIN: Final = 5.0

# Maximum number of processes that the gauges name.
_MOST_NAMED: Final = 20


class _WaitingPart(NamedTuple):
    """A delivery of a job that waits.

    Attributes:
        job: of the change. It is finished when all its parts are.
        calls: of one receiver.
        claim: the claim of the process to this delivery; None if the delivery only waits for earlier ones.
        since: the time since which it waits.
    """

    job: Job
    change: Change
    calls: Calls
    claim: Claim | None
    since: float


@dataclass(slots=True)
class _WaitingChain:
    """The waiting deliveries of one document to one receiver, in the order of the stream.

    Attributes:
        parts: the first one waits for its process, or runs.
        runs: the first one is in the lane of its document.
    """

    parts: deque[_WaitingPart]
    runs: bool = False


_Key = tuple[Hashable, str]
"""The key of a document, and the name of a receiver."""


class WaitingClaims:
    """The waiting deliveries of one partition.

    Args:
        watch: decides about claims.
        takeovers: prepares the changes that are taken over.
        routes: finds the receivers of a claim.
        parking: parks chains that wait for long.
        capacity: counts waiting deliveries as queued.
        stats: counts takeovers.
        is_crowded: returns whether waiting deliveries should leave the memory, so that the stream flows on.
        park_after: maximum seconds for which a delivery waits for a claim in memory.
        add: puts an errand into the lane of a document.
        deliver: makes the deliveries of a job.
        deliver_held: makes an attempt at a delivery that waited in the database.
        on_finished: called with the job when one of its parts is finished.
    """

    def __init__(  # noqa: PLR0913 - it stands between the watch, the lanes, the deliverer and the parking
        self,
        watch: ClaimWatch,
        takeovers: Takeovers,
        routes: Routes,
        parking: ParkingGate,
        capacity: Capacity,
        stats: Stats,
        *,
        is_crowded: Callable[[], bool],
        park_after: float,
        add: Callable[[Hashable, Errand], None],
        deliver: Callable[[Job], Coroutine[Any, Any, None]],
        deliver_held: Callable[[HeldDelivery], Awaitable[Decision]],
        on_finished: Callable[[Job], None],
    ) -> None:
        self._watch = watch
        self._takeovers = takeovers
        self._routes = routes
        self._parking = parking
        self._capacity = capacity
        self._is_crowded = is_crowded
        self._stats = stats
        self._park_after = park_after
        self._add = add
        self._deliver = deliver
        self._deliver_parked = deliver_held
        self._on_finished = on_finished
        self._chains: dict[_Key, _WaitingChain] = {}
        self._documents: Counter[Hashable] = Counter()
        self.receivers: Counter[str] = Counter()
        """The names of the receivers with waiting deliveries, and the number of their chains."""
        self._running: set[Job] = set()
        # Books that parked claims wait for, each with the time until which it is followed.
        self._asked: dict[bytes, float] = {}

    def begin(self) -> None:
        """Follow the claims from now on."""
        self._watch.add(self)

    async def end(self) -> None:
        """Decide about no further claim."""
        await self._watch.discard(self)

    async def announce(self) -> None:
        """Tell writing processes that this group takes claims over."""
        await self._watch.announce()

    async def load(self, changes: Iterable[Change]) -> None:
        """Read the unknown books of the claims in some changes, before the changes enter."""
        await self._watch.load(changes)

    @property
    def incarnations(self) -> set[bytes]:
        """The books that claims wait for."""
        at = now()
        self._asked = {one: until for one, until in self._asked.items() if until > at}
        claims = [part.claim for chain in self._chains.values() for part in chain.parts]
        return self._asked.keys() | {claim.incarnation for claim in claims if claim is not None}

    def calls_of(self, change: Change) -> tuple[Calls, ...]:
        """The claimed deliveries of a change that this process may have to make, each with one receiver."""
        claim = None if change.origin is None else change.origin.claim
        if claim is None or self._watch.verdict(claim) is ClaimVerdict.DONE:
            return ()
        found = self._routes.claimed(change, self._watch.named(claim))
        each = [calls._replace(receivers=(one,)) for calls in found for one in calls.receivers]
        return (*each, *self._orphans(change, claim))

    def _orphans(self, change: Change, claim: Claim) -> Iterator[Calls]:
        """The claimed deliveries to receivers that the application does not have."""
        assert change.origin is not None
        known = self._routes.stamped_ids(change.namespace)
        _, created = CALLED[change.operation, change.origin.call]
        for named in self._watch.receivers_of(claim):
            if known.isdisjoint(named.ids):
                yield calls_of_orphan(named, created=created)

    def enter(self, job: Job, change: Change, several: tuple[Calls, ...]) -> None:
        """Let claimed deliveries wait, or take them over at once.

        Args:
            job: of the change. Its parts include these deliveries.
            change: the change.
            several: from `calls_of`.
        """
        assert change.origin is not None
        claim, change = change.origin.claim, claimed(change)
        for calls in several:
            self._append(_WaitingPart(job, change, calls, claim, now()))
        self._watch.wake()

    def defers(self, job: Job, change: Change, calls: Calls, receiver: Receiver) -> bool:
        """Let a delivery wait if earlier ones of its document to its receiver wait. Returns whether it waits.

        Deliveries of replays and backfills don't wait: their progress does not depend on the position.
        """
        if calls.run or job in self._running or (change.key, receiver.name) not in self._chains:
            return False
        job.parts += 1
        self._append(_WaitingPart(job, change, calls._replace(receivers=(receiver,)), None, now()))
        return True

    def decide(self) -> None:
        """Go on with each chain whose first claim is decided."""
        for key in list(self._chains):
            if key in self._chains:
                self._advance(key)
        at = now()
        for key, chain in list(self._chains.items()):
            if not chain.runs and self._is_long(chain, at):
                chain.runs = True
                self._add(key[0], Errand(partial(self._park, chain), partial(self._end_parked, key)))

    def has(self, key: Hashable) -> bool:
        """Returns whether deliveries of a document wait."""
        return key in self._documents

    def gauges(self, server_now: float) -> ClaimGauges:
        """The waiting deliveries now.

        Args:
            server_now: by the server's clock, in seconds since 1970.
        """
        processes: Counter[bytes] = Counter()
        oldest: Change | None = None
        for chain in self._chains.values():
            claim = None
            for _, change, _, own, _ in chain.parts:
                if own is not None:
                    claim = own
                    if oldest is None or change.token < oldest.token:
                        oldest = change
                if claim is not None:
                    processes[claim.incarnation] += 1
        most = {incarnation.hex(): count for incarnation, count in processes.most_common(_MOST_NAMED)}
        began = None if oldest is None else seconds_of(oldest.wall_time)
        return ClaimGauges(processes.total(), max(0.0, server_now - (began or server_now)), most)

    def _is_long(self, chain: _WaitingChain, at: float) -> bool:
        """Returns whether a chain waits too long in memory, or other changes have no room."""
        first = at - chain.parts[0].since
        followed = len(chain.parts) > 1 and at - chain.parts[1].since >= self._park_after
        return followed or first >= _LONGEST or (first >= _LONG_WAIT and self._is_crowded())

    async def _park(self, chain: _WaitingChain) -> None:
        """Park all deliveries of a chain, in their order."""
        while chain.parts:
            part = chain.parts[0]
            await self._park_part(part)
            part.job.has_ended_part = True
            self._finish(chain.parts.popleft())

    async def _park_part(self, part: _WaitingPart) -> None:
        (receiver,) = part.calls.receivers
        if not await self._parking.holds(part.change, part.calls, receiver):
            reason: HoldReason = "interrupted" if part.claim is None else "claimed"
            seconds = 0.0 if part.claim is None else _AGAIN
            await self._parking.park(part.change, part.calls, receiver, Waiting(reason, seconds))

    async def park_begun(self) -> None:
        """At the end: park the waiting deliveries of changes whose other receivers have run.

        The next owner reads the other changes again.

        Raises:
            Interrupted: the process ends, and a write has not succeeded.
        """
        for chain in self._chains.values():
            begun = next((place for place, part in enumerate(chain.parts) if part.job.is_begun), None)
            for part in list(chain.parts)[begun:] if begun is not None else ():
                await self._park_part(part)
                self._on_finished(part.job)

    async def deliver_held(self, held: HeldDelivery) -> Decision:
        """Make an attempt at a delivery that waited in the database, once its claim is decided."""
        change = held.change
        claim = change.origin.claim if change.origin is not None and not change.takeover else None
        if claim is None:
            return await self._deliver_parked(held)
        await self._watch.load([change])
        verdict = self._watch.verdict(claim)
        if verdict is ClaimVerdict.DONE:
            return True
        if verdict is ClaimVerdict.TAKE:
            return await self._deliver_parked(held._replace(change=await self._taken_over(change)))
        self._asked[claim.incarnation] = now() + _LONGEST
        self._watch.wake()
        return held.waiting._replace(reason="claimed", seconds=_AGAIN)

    def _append(self, part: _WaitingPart) -> None:
        (receiver,) = part.calls.receivers
        key = (part.change.key, receiver.name)
        self._capacity.queued += 1
        self._capacity.queued_bytes += part.change.size
        if key in self._chains:
            self._chains[key].parts.append(part)
            return
        self._chains[key] = _WaitingChain(deque([part]))
        self._documents[key[0]] += 1
        self.receivers[key[1]] += 1
        self._advance(key)

    def _advance(self, key: _Key) -> None:
        """Finish the first deliveries of a chain, until one of them runs or must wait for its process."""
        chain = self._chains[key]
        while chain.parts and not chain.runs:
            part = chain.parts[0]
            verdict = ClaimVerdict.TAKE if part.claim is None else self._watch.verdict(part.claim)
            if verdict is ClaimVerdict.WAIT:
                return
            if verdict is ClaimVerdict.TAKE:
                chain.runs = True
                self._add(key[0], Errand(partial(self._run, part), partial(self._end, key)))
                return
            self._finish(chain.parts.popleft())
        if not chain.parts:
            del self._chains[key]
            document, receiver = key
            _drop_one(self._documents, document)
            _drop_one(self.receivers, receiver)

    async def _run(self, part: _WaitingPart) -> None:
        if is_orphan(part.calls):
            self._stats.orphaned += 1
            await self._parking.park(part.change, part.calls, part.calls.receivers[0], _ORPHANED)
            return
        change = part.change if part.claim is None else await self._taken_over(part.change)
        job = Job(change.token, change, (part.calls,))
        self._running.add(job)
        try:
            await self._deliver(job)
        finally:
            self._running.discard(job)

    async def _taken_over(self, change: Change) -> Change:
        """The change for the receivers that are taken over."""
        self._stats.taken_over += 1
        return await self._takeovers.prepare(change)

    def _end_parked(self, key: _Key) -> None:
        """Go on with what has joined a chain since it was parked."""
        self._chains[key].runs = False
        self._advance(key)

    def _end(self, key: _Key) -> None:
        """Go on with a chain after its first delivery is finished."""
        chain = self._chains[key]
        chain.runs = False
        part = chain.parts.popleft()
        part.job.has_ended_part = True
        self._finish(part)
        self._advance(key)

    def _finish(self, part: _WaitingPart) -> None:
        self._capacity.queued -= 1
        self._capacity.queued_bytes -= part.change.size
        self._on_finished(part.job)
        if self._capacity.watched is not None:
            self._capacity.report_progress()


def _drop_one(counter: Counter[K], key: K) -> None:
    if counter[key] > 1:
        counter[key] -= 1
    else:
        del counter[key]
