"""The waiting deliveries of one partition.

A claimed delivery waits for the process that wrote. A claim does not occupy the lane of its document: other
receivers get later changes of the document meanwhile. Only later deliveries of the same document to the same
receiver wait. They and the claimed delivery form a chain. When the process has finished the claim, the chain goes
on. When the process is dead, the dispatcher makes the claimed delivery, and then the chain goes on.

Nearly all claims are done within a second, and nothing waits for them. So a claim becomes chains, one for each
receiver, only if a delivery waits for the claim, or if the claim is taken over or parked.

A chain that waits for long is parked as a whole: its deliveries then wait in the database.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from dispatcher.claims.chains import UndecidedClaim, UndecidedDocument, WaitingChain, WaitingPart
from dispatcher.claims.orphans import calls_of_orphan, is_orphan
from dispatcher.claims.ports import ParkingGate
from dispatcher.claims.takeover import Takeovers, claimed
from dispatcher.claims.verdict import DONE, TAKE, WAIT, ClaimVerdict
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

# Maximum seconds for which a claim waits in memory.
_LONGEST: Final = 60.0

# If there is little room for further changes, a claim that has waited this long, in seconds, is parked.
_LONG_WAIT: Final = 3.0

_ORPHANED: Final = Waiting("orphaned", 300.0)

# Seconds until a claim that has just been parked is judged for the first time.
_AGAIN: Final = 2.0

# Seconds until a parked claim is judged again at the latest. Each judgement reads and writes the database. Usually
# the claim is judged earlier: as soon as its book decides it, see `_hasten_parked`.
_SELDOM: Final = 120.0

# Seconds for which the book of a parked claim is still read regularly after the claim was judged.
_FOLLOWED: Final = 2 * _SELDOM

# Maximum number of processes that the gauges name.
_MOST_NAMED: Final = 20


class _ParkedClaim(NamedTuple):
    """An undecided claim whose delivery is parked.

    Attributes:
        id: the `_id` of the parked delivery.
        until: the time until which the book of the claim is read regularly.
    """

    claim: Claim
    id: str
    until: float


class ClaimTools(NamedTuple):
    """The services that waiting claims need.

    Attributes:
        watch: decides about claims.
        takeovers: prepares the changes that are taken over.
        routes: finds the receivers of a claim.
        parking: parks chains that wait for long.
        stats: counts takeovers and orphaned deliveries.
    """

    watch: ClaimWatch
    takeovers: Takeovers
    routes: Routes
    parking: ParkingGate
    stats: Stats


class WaitingRoom(NamedTuple):
    """The room in memory for waiting deliveries.

    Attributes:
        capacity: counts the waiting deliveries and their bytes.
        is_crowded: returns whether waiting deliveries should leave the memory, so that the stream can go on.
        park_after: maximum seconds for which a delivery that is not claimed waits in memory.
    """

    capacity: Capacity
    is_crowded: Callable[[], bool]
    park_after: float


class ClaimStages(NamedTuple):
    """The stages that waiting claims call.

    Attributes:
        add: puts an errand into the lane of a document.
        deliver: makes the deliveries of a job.
        deliver_held: makes an attempt at a delivery that waited in the database.
        on_finished: called with the job when one of its parts is finished.
    """

    add: Callable[[Hashable, Errand], None]
    deliver: Callable[[Job], Coroutine[Any, Any, None]]
    deliver_held: Callable[[HeldDelivery], Awaitable[Decision]]
    on_finished: Callable[[Job], None]


class WaitingClaims:
    """The waiting deliveries of one partition.

    Attributes:
        judge: decides about a claim, with the books that were read last.
    """

    def __init__(self, tools: ClaimTools, room: WaitingRoom, stages: ClaimStages) -> None:
        self._watch, self._takeovers, self._routes, self._parking, self._stats = tools
        self._capacity, self._is_crowded, self._park_after = room
        self._stages = stages
        self.judge = self._watch.verdict
        # The undecided claims: in the order of the stream, and by document.
        self._open: dict[Job, UndecidedClaim] = {}
        self._open_of: dict[Hashable, UndecidedDocument] = {}
        # By document, then by the name of the receiver.
        self._chains: dict[Hashable, dict[str, WaitingChain]] = {}
        self._followers = 0  # the number of unclaimed deliveries in chains
        self._running: set[Job] = set()
        # By the lane of the delivery.
        self._parked: dict[str, _ParkedClaim] = {}

    def begin(self) -> None:
        """Read the books of waiting claims regularly from now on, and decide about the claims."""
        self._watch.add(self)

    async def end(self) -> None:
        """Stop deciding about claims."""
        await self._watch.discard(self)

    async def announce(self) -> None:
        """Tell writing processes that this group takes over claims."""
        await self._watch.announce()

    async def load(self, changes: Iterable[Change]) -> None:
        """Read the books of the claims in some changes, if they are not known yet. Call this before `enter`."""
        await self._watch.load(changes)

    @property
    def incarnations(self) -> set[bytes]:
        """The ids of the books that claims wait for."""
        at = now()
        self._parked = {lane: one for lane, one in self._parked.items() if one.until > at}
        found = {one.claim.incarnation for one in self._open.values()}
        claims = [part.claim for _, _, chain in self._each_chain() for part in chain.parts]
        found |= {one.claim.incarnation for one in self._parked.values()}
        return found | {claim.incarnation for claim in claims if claim is not None}

    @property
    def is_urgent(self) -> bool:
        """Whether an unclaimed delivery waits here, or the waiting deliveries should leave the memory."""
        return self._followers > 0 or self._is_crowded()

    def _calls_of(self, change: Change, claim: Claim) -> tuple[Calls, ...]:
        """The claimed deliveries of a change, each with one receiver. This process may have to make them."""
        found = self._routes.claimed(change, self._watch.named(claim))
        each = [calls.with_receivers(one) for calls in found for one in calls.receivers]
        return (*each, *self._orphans(change, claim))

    def _orphans(self, change: Change, claim: Claim) -> Iterator[Calls]:
        """The claimed deliveries to receivers that the application of this dispatcher does not have."""
        assert change.origin is not None
        known = self._routes.stamped_ids(change.namespace)
        _, created = CALLED[change.operation, change.origin.call]
        for named in self._watch.receivers_of(claim):
            if known.isdisjoint(named.ids):
                yield calls_of_orphan(named, created=created)

    def enter(self, job: Job, change: Change, verdict: ClaimVerdict) -> None:
        """Let the claimed deliveries of a change wait, or begin to take them over.

        Args:
            job: the job of the change. The claimed deliveries together are one part of the job.
            change: the change.
            verdict: the verdict about the claim: `WAIT` or `TAKE`.
        """
        assert change.origin is not None
        assert change.origin.claim is not None
        key, claim = change.key, change.origin.claim
        one = self._open[job] = UndecidedClaim(job, change, claim, key, now())
        document = self._open_of.get(key)
        if document is None:
            self._open_of[key] = UndecidedDocument([one], claim.receivers)
        else:
            document.claims.append(one)
            document.receivers |= claim.receivers
        job.wait_for_process()
        self._capacity.waiting += 1
        self._capacity.queued_bytes += change.size
        if verdict is TAKE:
            self._expand(key)
        self._watch.wake()

    def defers(self, job: Job, change: Change, calls: Calls, receiver: Receiver) -> bool:
        """Let a delivery wait if earlier deliveries of the same document to the same receiver wait.

        Claims of later changes may wait already, because these changes were read before this delivery began. The
        delivery does not wait for these claims.

        Deliveries of replays and backfills don't wait. The progress of a replay or backfill is saved apart from
        the position, so a crash would lose its waiting deliveries.

        Returns:
            Whether the delivery waits.
        """
        if calls.run or job in self._running:
            return False
        key = change.key
        document = self._open_of.get(key)
        if (
            document is not None
            and document.claims[0].change.token < change.token
            and self._routes.is_listed(change.namespace, receiver, document.receivers)
        ):
            self._expand(key)
        chains = self._chains.get(key)
        chain = None if chains is None else chains.get(receiver.name)
        if chain is None or change.token < chain.parts[0].change.token:
            return False
        job.split()
        self._append(key, WaitingPart(job, change, calls.with_receivers(receiver), None, now()))
        return True

    def decide(self) -> None:
        """Finish the claims that are done, and go on with each chain whose first delivery need not wait any more.

        Then park the chains that have waited too long, and make parked deliveries due soon if their claims are
        decided.
        """
        for one in list(self._open.values()):
            verdict = self.judge(one.claim)
            if verdict is DONE and one.job in self._open:
                self._drop(one)
            elif verdict is TAKE:
                self._expand(one.key)
        for key, name, _ in list(self._each_chain()):
            if name in self._chains.get(key, ()):
                self._advance(key, name)
        self._park_long_waits(now(), is_crowded=self._is_crowded())
        self._hasten_parked()

    def has(self, key: Hashable) -> bool:
        """Returns whether deliveries of a document wait."""
        return key in self._open_of or key in self._chains

    def gauges(self, server_now: float) -> ClaimGauges:
        """The waiting deliveries now.

        Args:
            server_now: the time by the server's clock, in seconds since 1970.
        """
        processes: Counter[bytes] = Counter()
        oldest: Change | None = None
        for one in self._open.values():
            processes[one.claim.incarnation] += len(one.claim.receivers)
            oldest = oldest or one.change
        for _, _, chain in self._each_chain():
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

    def _each_chain(self) -> Iterator[tuple[Hashable, str, WaitingChain]]:
        for key, chains in self._chains.items():
            for name, chain in chains.items():
                yield key, name, chain

    def _drop(self, one: UndecidedClaim) -> None:
        """Finish a claim that is done."""
        claims = self._open_of[one.key].claims
        claims.remove(one)
        if not claims:
            del self._open_of[one.key]
        self._close(one)

    def _expand(self, key: Hashable) -> None:
        """Make chains from all undecided claims of a document."""
        document = self._open_of.pop(key, None)
        for one in () if document is None else document.claims:
            job, several = one.job, self._calls_of(one.change, one.claim)
            job.split(len(several), awaited=True)
            for calls in several:
                self._append(key, WaitingPart(job, claimed(one.change), calls, one.claim, one.since))
            self._close(one)

    def _close(self, one: UndecidedClaim) -> None:
        del self._open[one.job]
        one.job.end_wait()
        self._finish(one.job, one.change)

    def _park_long_waits(self, at: float, *, is_crowded: bool) -> None:
        """Park the chains that wait too long in memory. If there is little room, park them sooner."""
        longest = _LONG_WAIT if is_crowded else _LONGEST
        for one in list(self._open.values()):
            if at - one.since < longest:
                break
            self._expand(one.key)
        for key, name, chain in list(self._each_chain()):
            follower = next((part for part in chain.parts if part.claim is None), None)
            followed = follower is not None and at - follower.since >= self._park_after
            if not chain.runs and (followed or at - chain.parts[0].since >= longest):
                chain.runs = True
                self._stages.add(key, Errand(partial(self._park, chain), partial(self._end_parked, key, name)))

    async def _park(self, chain: WaitingChain) -> None:
        """Park all deliveries of a chain, in their order."""
        while chain.parts:
            part = chain.parts[0]
            await self._park_part(part)
            part.job.note_made()
            self._finish_first(chain, is_awaited=True)

    async def _park_part(self, part: WaitingPart) -> None:
        (receiver,) = part.calls.receivers
        if not await self._parking.holds(part.change, part.calls, receiver):
            reason: HoldReason = "interrupted" if part.claim is None else "claimed"
            seconds = 0.0 if part.claim is None else _AGAIN
            await self._parking.park(part.change, part.calls, receiver, Waiting(reason, seconds))

    def _hasten_parked(self) -> None:
        """Make parked deliveries due soon if their claims are decided. Send no command for other claims."""
        decided = {lane: one.id for lane, one in self._parked.items() if self.judge(one.claim) is not WAIT}
        for lane in decided:
            del self._parked[lane]
        if decided:
            self._parking.hasten(decided)

    async def park_begun(self) -> None:
        """Park the waiting deliveries of changes whose other receivers have run.

        Call this method before this process gives up the partition. Later deliveries of the same chains are
        parked, too. The next owner of the partition reads all other changes with waiting deliveries again.

        Raises:
            Interrupted: the process ends, and a write has not succeeded.
        """
        for one in list(self._open.values()):
            if one.job.is_begun:
                self._expand(one.key)
        for _, _, chain in list(self._each_chain()):
            begun = next((place for place, part in enumerate(chain.parts) if part.job.is_begun), None)
            for part in list(chain.parts)[begun:] if begun is not None else ():
                await self._park_part(part)
                self._stages.on_finished(part.job)

    async def deliver_held(self, held: HeldDelivery) -> Decision:
        """Make an attempt at a delivery that waited in the database, once its claim is decided."""
        change = held.change
        claim = change.origin.claim if change.origin is not None and not change.takeover else None
        if claim is None:
            return await self._stages.deliver_held(held)
        await self._watch.load([change])
        verdict = self.judge(claim)
        if verdict is WAIT:
            self._parked[held.lane] = _ParkedClaim(claim, held.id, now() + _FOLLOWED)
            self._watch.wake()
            return held.waiting._replace(reason="claimed", seconds=_SELDOM)
        self._parked.pop(held.lane, None)
        if verdict is DONE:
            return True
        return await self._stages.deliver_held(held._replace(change=await self._taken_over(change)))

    def _append(self, key: Hashable, part: WaitingPart) -> None:
        (receiver,) = part.calls.receivers
        self._capacity.waiting += 1
        self._capacity.queued_bytes += part.change.size
        self._followers += part.claim is None
        chains = self._chains.setdefault(key, {})
        if receiver.name in chains:
            chains[receiver.name].insert(part)
            return
        chains[receiver.name] = WaitingChain(deque([part]))
        self._advance(key, receiver.name)

    def _advance(self, key: Hashable, name: str) -> None:
        """Finish the first deliveries of a chain, until one of them runs or must wait for its process."""
        chain = self._chains[key][name]
        while chain.parts and not chain.runs:
            part = chain.parts[0]
            verdict = TAKE if part.claim is None else self.judge(part.claim)
            if verdict is WAIT:
                return
            if verdict is TAKE:
                chain.runs = True
                if part.claim is not None:
                    part.job.end_wait()
                self._stages.add(key, Errand(partial(self._run, part), partial(self._end, key, name)))
                return
            self._finish_first(chain, is_awaited=True)
        if not chain.parts:
            del self._chains[key][name]
            if not self._chains[key]:
                del self._chains[key]

    async def _run(self, part: WaitingPart) -> None:
        if is_orphan(part.calls):
            self._stats.orphaned += 1
            await self._parking.park(part.change, part.calls, part.calls.receivers[0], _ORPHANED)
            return
        change = part.change if part.claim is None else await self._taken_over(part.change)
        job = Job(change.token, change, (part.calls,))
        self._running.add(job)
        try:
            await self._stages.deliver(job)
            if job.parts > 1:  # the receiver has become a batch receiver since the write
                done = asyncio.get_running_loop().create_future()
                job.when_ended(partial(done.set_result, None))
                await self._capacity.until(done)
        finally:
            self._running.discard(job)

    async def _taken_over(self, change: Change) -> Change:
        """Make the change that receivers get in a takeover, and count the takeover."""
        self._stats.taken_over += 1
        return await self._takeovers.prepare(change)

    def _end_parked(self, key: Hashable, name: str) -> None:
        """Go on with the deliveries that have joined a chain while its earlier deliveries were parked."""
        self._chains[key][name].runs = False
        self._advance(key, name)

    def _end(self, key: Hashable, name: str) -> None:
        """Go on with a chain after its first delivery is finished."""
        chain = self._chains[key][name]
        chain.runs = False
        chain.parts[0].job.note_made()
        self._finish_first(chain, is_awaited=False)
        self._advance(key, name)

    def _finish_first(self, chain: WaitingChain, *, is_awaited: bool) -> None:
        """Finish the first delivery of a chain.

        Args:
            is_awaited: whether `Job.awaited` still counts the delivery: False if this process has made it. For an
                unclaimed delivery, this argument has no effect.
        """
        part = chain.parts.popleft()
        if part.claim is None:
            self._followers -= 1
        elif is_awaited:
            part.job.end_wait()
        self._finish(part.job, part.change)

    def _finish(self, job: Job, change: Change) -> None:
        capacity = self._capacity
        capacity.waiting -= 1
        capacity.queued_bytes -= change.size
        self._stages.on_finished(job)
        if capacity.watched is not None:
            capacity.report_progress()
