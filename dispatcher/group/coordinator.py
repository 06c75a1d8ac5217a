"""Coordinates the processes of a group: they share its partitions, and take over from each other.

There is no leader. About once a second every process reads the members and the positions, computes the fair
shares, and claims or hands over partitions. One atomic write decides which process gets a partition.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from pymongo.errors import PyMongoError

from dispatcher.core.driver_errors import Kind, in_short, kind_of, raise_if_fatal
from dispatcher.core.lease import TAKEN, Lease, now
from dispatcher.core.output.logs import log
from dispatcher.core.tasks import end
from dispatcher.group.assignment import moves
from dispatcher.group.heartbeats import Heartbeats
from dispatcher.group.members import FORMAT, Member, Members
from dispatcher.group.view import GroupView, read_group
from dispatcher.position.documents import Layout, Ownership, Position, SavedPositions
from dispatcher.position.store import PositionStore

# Maximum seconds between two reads of the group. A short lease makes the reads more frequent.
_READ_INTERVAL: Final = 1.0
_READS_PER_LEASE: Final = 10

# Leases are renewed when a third of the lease time is over.
_RENEWALS: Final = 3

# Time limit in seconds for each write at the end of the process. The other members do not depend on these writes.
_PATIENCE: Final = 5.0

# Time limit in seconds for a read of the group that still runs when the process stops.
_LITTLE_PATIENCE: Final = 1.0


class Work(Protocol):
    """The work on a partition while this process holds the partition."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set or the lease is lost. When this method returns, everything is saved."""


W = TypeVar("W", bound=Work)


class HeldPartition(NamedTuple, Generic[W]):
    """A partition that this process holds.

    Attributes:
        stop: set it to hand over the partition.
        task: runs until the partition is handed over or lost.
    """

    lease: Lease
    work: W
    stop: asyncio.Event
    task: "asyncio.Task[None]"


class Coordinator(Generic[W]):
    """Makes this process a member of its group, and holds its share of the partitions.

    Args:
        members: the processes of the group; this process has joined.
        lease: seconds for which a lease is valid without a renewal.
        begin: records missing positions; returns whether it has recorded one.
        work: creates the work on a claimed partition.
        resized: called whenever the number of held partitions has changed.

    Attributes:
        held: the partitions that this process holds.
        live: the ids of all living members, the longest-serving first; empty before the first read of the group.
        layout: how the group is divided into partitions; None before the first read of the group.
        outdated: whether a newer version of the application runs in the group. If so, this process claims no more
            partitions.
    """

    def __init__(
        self,
        store: PositionStore,
        members: Members,
        *,
        lease: float,
        version: str,
        begin: Callable[[SavedPositions], Coroutine[Any, Any, bool]],
        work: Callable[[Lease, Position], W],
        resized: Callable[[], None],
    ) -> None:
        self._store = store
        self._members = members
        self._lease = lease
        self._version = version
        self._begin = begin
        self._work = work
        self._resized = resized
        self._read_every = min(_READ_INTERVAL, lease / _READS_PER_LEASE)
        self._heartbeats = Heartbeats()
        self._read_at = float("-inf")
        self._beaten_at = now()
        self._failed = 0
        self._failures: list[BaseException] = []
        self._is_answered = True  # whether the server answered the last message
        self._awake = asyncio.Event()
        self.held: dict[int, HeldPartition[W]] = {}
        self.live: tuple[str, ...] = ()
        self.layout: Layout | None = None
        self.outdated = False
        self._older: set[str] = set()

    @property
    def member_id(self) -> str:
        """The id of this process in the group."""
        return self._members.id

    @property
    def in_touch(self) -> bool:
        """Returns whether this process has read the members, and written a heartbeat, within the lease time."""
        return now() - min(self._read_at, self._beaten_at) < self._lease

    def troubles(self) -> list[str]:
        """The reasons why this process can't do its share of the work, as texts. Empty if there is none."""
        troubles = []
        if not self.in_touch:
            troubles.append("this process can't see the other members, and can't renew its leases")
        if self.outdated:
            troubles.append("a newer version of the application is running, so this process claims no partitions")
        return troubles

    async def run(self, stop: asyncio.Event) -> None:
        """Hold a fair share of the partitions until `stop` is set. Then hand them over, and leave the group."""
        stopping = asyncio.create_task(self._wake_at(stop), name="wait-for-stop")
        renewing = asyncio.create_task(self._renew_regularly(), name="renew-leases")
        renewing.add_done_callback(self._note_end)
        try:
            while not stop.is_set():
                self._awake.clear()
                await self._coordinate_until(stopping)
                self._raise_failures()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._read_every):
                        await self._awake.wait()
        finally:
            await end([stopping])
            await self._leave()
            await end([renewing])
        self._raise_failures()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._awake.set()

    # -- reading the group ---------------------------------------------------------------------------------------

    async def _coordinate_until(self, stopping: "asyncio.Task[None]") -> None:
        """Read the group, and claim or hand over partitions. When `stopping` ends, wait only a second more."""
        coordinating = asyncio.create_task(self._try_to_coordinate(), name="coordinate")
        try:
            await asyncio.wait([coordinating, stopping], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([coordinating], timeout=_LITTLE_PATIENCE)
        finally:
            await end([coordinating])
        if not coordinating.cancelled():
            coordinating.result()

    async def _try_to_coordinate(self) -> None:
        """Read the group once, and claim or hand over partitions. If no server answers, the next call retries."""
        try:
            async with asyncio.timeout(self._lease):
                await self._beat_if_due()
                await self._coordinate()
        except (PyMongoError, TimeoutError) as error:
            raise_if_fatal(error, self._store.address)
            self._failed += 1
            log.warning(
                "the members of the group can't be read now, trying again",
                action="members.not_seen",
                error=in_short(error),
                failures=self._failed,
            )
        else:
            self._failed = 0

    async def _beat_if_due(self) -> None:
        sent = now()
        if sent - self._beaten_at < self._lease / _RENEWALS - self._read_every:
            return
        await self._members.beat()
        self._beaten_at = sent

    async def _coordinate(self) -> None:
        asked = now()
        seen = await read_group(self._members.group)
        answered = now()
        positions = {number: (one.owner, one.term, one.beat) for number, one in seen.partitions.items()}
        beats = {member.id: member.beat for member in seen.members}
        ages = self._heartbeats.note(positions | beats, asked=asked, answered=answered)
        if not seen.begun:
            if await self._begin(await self._store.load()):
                self._awake.set()  # read the group again without a pause
            return
        self.layout = seen.layout
        live = await self._living(seen.members, ages)
        self.live = tuple(member.id for member in live)
        await self._members.sessions.end(one for one in seen.sessions if one.owner not in self.live)
        assert seen.layout is not None  # the group has begun
        owners = {number: self._owner(one, ages) for number, one in seen.partitions.items()}
        if seen.layout.wanted not in (None, seen.layout.partitions):
            await self._divide(seen, owners)
            self._read_at = asked
            return
        self._note_older([member for member in live if member.format < FORMAT])
        sharing = [member for member in live if not member.leaving and member.format >= FORMAT]
        capped = [member.id for member in sharing if _is_outdated(member, seen)]
        self._note_outdated(self.member_id in capped)
        todo = moves(self.member_id, owners, [member.id for member in sharing], capped)
        self._hand_over(todo.release)
        await self._claim_each([seen.partitions[number] for number in todo.claim], seen.layout.partitions)
        self._read_at = asked

    async def _living(self, members: list[Member], ages: dict[Any, float]) -> list[Member]:
        """Find the members that this process considers alive, and remove the dead members."""
        living = []
        for member in members:
            dead = ages[member.id] >= member.lease or member.identity.is_dead
            if member.id != self.member_id and dead:
                await self._members.remove_dead(member)
            else:
                living.append(member)
        return living

    def _owner(self, position: Ownership, ages: dict[Any, float]) -> str | None:
        """The owner of a partition; None if no member owns it, the owner is dead, or the lease is over."""
        number = position.partition
        if number in self.held:
            return self.member_id
        if position.owner is None or position.owner == self.member_id:
            return None  # no owner; or this process claimed the partition, and did not get the answer
        if position.identity.is_dead or ages[number] >= TAKEN * (position.lease or self._lease):
            return None
        return position.owner

    def _note_outdated(self, outdated: bool) -> None:
        if outdated and not self.outdated:
            log.warning(
                "a newer version of the application is running in this group: this process claims no more "
                "partitions, because it does not know all receivers and collections",
                action="lease.outdated",
                member=self.member_id,
                remedy="start this process again with the new version. If you want the old version back, start "
                "this process again unchanged",
            )
        self.outdated = outdated

    def _note_older(self, older: list[Member]) -> None:
        """Log the members that can't read the format of the state. They keep their partitions, and get no more."""
        ids = {member.id for member in older}
        if ids - self._older:
            log.warning(
                "processes of an earlier version are running in this group: they get no more partitions, and "
                "their partitions are taken over when they end",
                action="members.older",
                members=[f"{member.id} ({member.identity.host}, pid {member.identity.pid})" for member in older],
                remedy="End these processes.",
            )
        self._older = ids

    # -- taking and handing over -----------------------------------------------------------------------------

    async def _divide(self, seen: GroupView, owners: dict[int, str | None]) -> None:
        """Hand all partitions over. When no member holds one any more, divide the work anew.

        The new layout has the wanted number of partitions. All members try this; the first one succeeds.
        """
        self._hand_over(self.held)
        if any(owner is not None for owner in owners.values()):
            return
        saved = await self._store.load()
        terms = {number: (one.term, one.owner, one.beat) for number, one in saved.positions.items()}
        free = {number: (one.term, one.owner, one.beat) for number, one in seen.partitions.items()}
        # A partition that was claimed or renewed meanwhile is not free.
        if saved.layout == seen.layout and terms == free and await self._store.divide(saved):
            assert saved.layout is not None  # it equals `seen.layout`, which is not None
            log.info(
                "the work of this group is divided into another number of partitions",
                action="layout.changed",
                before=saved.layout.partitions,
                partitions=saved.layout.wanted,
            )
        self._awake.set()  # read the group again without a pause

    async def _claim_each(self, several: Sequence[Ownership], of: int) -> None:
        """Claim partitions, and log them in one line."""
        began, leases = now(), []
        try:
            for one in several:
                if now() - began > self._lease / _RENEWALS:
                    # A heartbeat is due, and the members may have changed. The remaining partitions are claimed
                    # after the next read.
                    self._awake.set()
                    break
                lease = await self._claim(one, of)
                if lease is not None:
                    leases.append(lease)
        finally:
            if leases:
                log.info(
                    "claimed partitions",
                    action="lease.claimed",
                    partitions=[lease.partition for lease in leases],
                    of=of,
                    terms=sorted({lease.term for lease in leases}),
                )

    async def _claim(self, seen: Ownership, of: int) -> Lease | None:
        """Claim a partition, and begin to work on it. Returns None if another member was faster."""
        started = self._members.started
        assert started is not None  # this process has joined
        if seen.version == self._version and seen.version_since is not None:
            started = seen.version_since
        claimed = await self._store.claim(seen, of, seconds=self._lease, version=self._version, started=started)
        if claimed is None:
            return None
        lease, position = claimed
        assert position.token is not None  # the group has begun
        work, stop = self._work(lease, position), asyncio.Event()
        task = asyncio.create_task(self._hold(lease, work, stop), name=f"partition-{lease.partition}")
        self.held[lease.partition] = HeldPartition(lease, work, stop, task)
        task.add_done_callback(partial(self._ended, lease.partition))
        self._resized()
        return lease

    def _hand_over(self, numbers: Iterable[int]) -> None:
        held = [number for number in numbers if not self.held[number].stop.is_set()]
        if held:
            log.info("partitions are handed over", action="lease.handed_over", partitions=held)
        for number in held:
            self.held[number].stop.set()

    async def _hold(self, lease: Lease, work: W, stop: asyncio.Event) -> None:
        """Work on a partition until everything is saved. Meanwhile another task renews its lease."""
        working = asyncio.create_task(work.run(stop), name=f"work-{lease.partition}")
        try:
            await asyncio.wait([working])
        finally:
            stop.set()
            await asyncio.wait([working])
            await self._release(lease)
        if not working.cancelled():
            working.result()

    def _ended(self, number: int, task: "asyncio.Task[None]") -> None:
        del self.held[number]
        self._note_end(task)
        self._resized()

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        """Record the error of a task that has ended. The error will end the dispatcher."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)
        self._awake.set()

    # -- renewing --------------------------------------------------------------------------------------------

    async def _renew_regularly(self) -> None:
        """Renew the leases of all held partitions, even while their work ends. Runs for ever."""
        every, failed = self._lease / _RENEWALS, False
        while True:
            await asyncio.sleep(min(every, self._read_every) if failed else every)
            leases = [held.lease for held in self.held.values() if not held.lease.given_up]
            failed = bool(leases) and not await self._renew(leases, within=every)

    async def _renew(self, leases: Sequence[Lease], *, within: float) -> bool:
        """Renew leases with one command. Returns whether the server has answered for each of them."""
        answers: Sequence[bool | Exception]
        sent = now()
        try:
            async with asyncio.timeout(within):
                answers = await self._store.renew(leases)
        except (PyMongoError, TimeoutError) as error:
            answers = [error] * len(leases)
        failed: list[tuple[Lease, Exception]] = []
        for lease, answer in zip(leases, answers, strict=True):
            # If the lease was given up during the command, the refused renewal does not mean a lost lease.
            if lease.given_up:
                continue
            if isinstance(answer, Exception):
                failed.append((lease, answer))
            elif answer:
                lease.renewed(sent)
            else:
                lease.lose()
        if failed:
            _, first = failed[0]
            raise_if_fatal(first, self._store.address)
            log.warning(
                "leases could not be renewed, trying again",
                action="lease.not_renewed",
                partitions=[lease.partition for lease, _ in failed],
                error=in_short(first),
                runs_out_in=round(min(lease.until for lease, _ in failed) - now(), 1),
            )
        return not failed

    async def _release(self, lease: Lease) -> None:
        if lease.lost.is_set():
            return
        lease.give_up()
        if self._is_answered:
            await self._try_write(self._store.release(lease))

    # -- the end ---------------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """Hand all partitions over, and leave the group.

        The first heartbeat announces that this process leaves, so that other members claim its partitions.
        """
        self._hand_over(self.held)
        await self._try_write(self._members.beat(leaving=True))
        while self.held:
            await asyncio.wait([held.task for held in self.held.values()], timeout=self._lease / _RENEWALS)
            if self.held:
                await self._try_write(self._members.beat(leaving=True))
        if self._is_answered:
            await self._try_write(self._members.leave())

    async def _try_write(self, message: Awaitable[None]) -> None:
        """Run one write at the end of the process. If it fails, the other members notice the end later."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await message
        except TimeoutError:
            self._is_answered = False
        except PyMongoError as error:
            self._is_answered = kind_of(error) is not Kind.PASSING  # a refusal is an answer too
        else:
            self._is_answered = True

    def _raise_failures(self) -> None:
        """Raise the first noted error. It ends the dispatcher."""
        if self._failures:
            raise self._failures[0]


def _is_outdated(member: Member, seen: GroupView) -> bool:
    """Returns whether some partition was last claimed by another version, which started after this member."""
    return any(
        one.version not in ("", member.version)
        and one.version_since is not None
        and one.version_since > member.started
        for one in seen.partitions.values()
    )
