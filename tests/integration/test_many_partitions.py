"""A group with 256 partitions: the commands of its members, and takeovers. No member reads a change stream."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from dispatcher.core.lease import TAKEN, Lease, now
from dispatcher.core.stats import Stats
from dispatcher.core.tasks import end
from dispatcher.group.coordinator import Coordinator
from dispatcher.group.members import Members
from dispatcher.operate.observer import Observer
from dispatcher.operate.pauses import Pauses
from dispatcher.parking.retry_requests import RetryRequests
from dispatcher.position.checkpoint import Checkpoint
from dispatcher.position.documents import Position
from dispatcher.position.store import FirstPosition, PositionStore
from dispatcher.settings import MOST_PARTITIONS, Settings
from tests.support import SentCommands, eventually, group_of

PARTITIONS = MOST_PARTITIONS


def token(number: int) -> str:
    return f"826B03E05E{number:08X}2B0229296E04"


class Work:
    """Saves a position that always moves, and looks for requested retries, as a pipeline does."""

    def __init__(self, checkpoint: Checkpoint, requests: RetryRequests, settings: Settings) -> None:
        self.checkpoint = checkpoint
        self._requests = requests
        self._settings = settings

    async def run(self, stop: asyncio.Event) -> None:
        ending = asyncio.Event()
        saving = asyncio.create_task(self.checkpoint.save_regularly(ending, self._settings))
        others = [
            asyncio.create_task(stop.wait()),
            asyncio.create_task(self.checkpoint.lease.lost.wait()),
            asyncio.create_task(self._look_for_retries()),
        ]
        await asyncio.wait([saving, *others], return_when=asyncio.FIRST_COMPLETED)
        await end(others)
        ending.set()
        await saving
        if not self.checkpoint.lease.lost.is_set():
            await self.checkpoint.save()

    async def _look_for_retries(self) -> None:
        lease = self.checkpoint.lease
        while True:
            await self._requests.of(lease.partition, lease.partitions)
            await self._requests.wait()


class Member:
    """A process of the group, inside of the test.

    Args:
        claimed: called with each lease that the member gets.
    """

    def __init__(self, client: Any, database: str, settings: Settings, claimed: Callable[[Lease], None]) -> None:
        self.group = group_of(client, database)
        self.settings = settings
        self.stats = Stats()
        self.pauses = Pauses(self.group)
        self.observer = Observer(self.stats, group=database, settings=settings, gauges=dict)
        facts = {"version": "v", "lease_seconds": settings.lease, "format": 2, "receivers": []}
        self.members = Members(self.group, facts, lambda: {"stats": self.observer.stats_document()})
        self.store = PositionStore(self.group, self.members.id)
        self.coordinator = Coordinator(
            self.store,
            self.members,
            lease=settings.lease,
            version="v",
            begin=self._begin,
            work=self._work,
            resized=lambda: None,
        )
        self._claimed = claimed
        self._stop = asyncio.Event()

    async def _begin(self, _saved: object) -> bool:
        return await self.store.begin(
            PARTITIONS, dict.fromkeys(range(PARTITIONS), FirstPosition(token(0), "f")), new=True
        )

    def _work(self, lease: Lease, position: Position) -> Work:
        self._claimed(lease)
        checkpoint = Checkpoint(self.store, lease, position, "f", stats=self.stats, always=lambda: False)
        return Work(checkpoint, self.pauses.retries, self.settings)

    @property
    def leases(self) -> dict[int, Lease]:
        return {number: held.lease for number, held in self.coordinator.held.items()}

    async def run(self) -> None:
        await self.members.join()
        further = [
            asyncio.create_task(self.pauses.watch()),
            asyncio.create_task(self._move()),
            *self.observer.watch(self.group),
        ]
        try:
            await self.coordinator.run(self._stop)
        finally:
            await end(further)

    async def _move(self) -> None:
        """Moves all positions, as deliveries do."""
        while True:
            await asyncio.sleep(0.2)
            self.stats.delivered += 1
            for held in self.coordinator.held.values():
                held.work.checkpoint.tracker.mark(token(self.stats.delivered))

    def stop(self) -> None:
        self._stop.set()

    def silence(self) -> None:
        """Ends the member as SIGKILL does: the member saves nothing more, and releases no lease."""

        async def nothing(*_: Any, **__: Any) -> bool:
            return True

        self.store.release = self.store.save = nothing  # type: ignore[method-assign,assignment]
        self.members.beat = self.members.leave = nothing  # type: ignore[method-assign,assignment]
        self.stop()


Begin = Callable[[], Any]


@pytest.fixture
async def together(mongo: Any, database: str) -> AsyncIterator[Any]:
    """Runs members of one group; yields each with the commands that it sends."""

    @asynccontextmanager
    async def members(
        count: int, settings: Settings, claimed: Callable[[Lease], None]
    ) -> AsyncIterator[list[tuple[Member, SentCommands]]]:
        async with AsyncExitStack() as stack:
            made = []
            for _ in range(count):
                sent = SentCommands()
                client = await stack.enter_async_context(AsyncMongoClient(mongo.url, event_listeners=[sent]))
                made.append((Member(client, database, settings, claimed), sent))
            tasks = [asyncio.create_task(member.run()) for member, _ in made]
            try:
                yield made
            finally:
                for member, _ in made:
                    member.stop()
                await asyncio.wait(tasks)
            for task in tasks:
                task.result()

    return members


def is_shared(members: list[Member]) -> bool:
    """Whether each member holds the same number of partitions, and all are held."""
    return all(len(member.leases) == PARTITIONS // len(members) for member in members)


@pytest.mark.slow
async def test_a_member_sends_at_most_five_commands_a_second(together, foreign, database):
    """Each position is saved once a second, as under load. The members read no changes and make no deliveries.

    The limit is one for groups of many processes. In such a group each member reads the status less often.
    """
    positions = foreign.client[f"{database}_state"]["positions"]
    async with together(8, Settings(), lambda _lease: None) as made:
        members = [member for member, _ in made]
        await eventually(lambda: is_shared(members), what="the partitions are shared")
        await asyncio.sleep(1.0)  # the observers' first look at the group is over
        leases = [lease for member in members for lease in member.leases.values()]
        untils = [lease.until for lease in leases]
        before = {one["_id"]: one["cluster_time"] for one in positions.find({"partition": {"$exists": True}})}
        assert len(leases) == len(before) == PARTITIONS
        for _, sent in made:
            sent.clear()
        began = now()
        await asyncio.sleep(20.0)  # one additional command hardly changes the rate
        seconds = now() - began
        counts = [Counter(sent.names) for _, sent in made]
        assert all(lease.until > until for lease, until in zip(leases, untils, strict=True)), "leases are renewed"
        assert is_shared(members)
        after = {one["_id"]: one["cluster_time"] for one in positions.find({"partition": {"$exists": True}})}
        assert all(after[id_] > before[id_] for id_ in before), "all positions are saved"
        assert all(count.total() / seconds <= 5 for count in counts), counts
    assert positions.count_documents({"owner": {"$ne": None}}) == 0


@pytest.mark.slow
async def test_all_partitions_of_a_silent_member_are_taken_over_soon_after_their_lease_ends(together):
    seconds = 4.0
    until: dict[int, float] = {}
    early: list[int] = []

    def claimed(lease: Lease) -> None:
        if now() < until.get(lease.partition, 0.0):
            early.append(lease.partition)

    async with together(2, Settings(lease=seconds), claimed) as made:
        (first, _), (second, _) = made
        await eventually(lambda: is_shared([first, second]), what="the partitions are shared")
        until.update({number: lease.until for number, lease in first.leases.items()})
        kept = second.leases
        first.silence()
        silent = now()
        await eventually(lambda: len(second.leases) == PARTITIONS)
        took = now() - silent
        assert early == []
        assert all(second.leases[number] is lease for number, lease in kept.items())
        # The limit covers the lease, the reads of the group before and after the end of the lease, and the claims
        # of partitions on a busy machine.
        assert took < TAKEN * seconds + 2 * seconds / 10 + 10


@pytest.mark.slow
async def test_a_member_whose_claims_take_long_stays_in_touch_with_its_group(together, foreign, database):
    """All claims of partitions together take longer than the lease: a far server answers each claim late."""
    seconds = 2.0
    members = foreign.client[f"{database}_state"]["members"]
    async with together(1, Settings(lease=seconds), lambda _lease: None) as made:
        ((member, _),) = made
        claim = member.store.claim

        async def slowly(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(2 * seconds / PARTITIONS)
            return await claim(*args, **kwargs)

        member.store.claim = slowly
        await eventually(lambda: member.leases)
        await eventually(lambda: member.coordinator.in_touch)
        assert len(member.leases) < PARTITIONS
        await eventually(lambda: members.find_one()["beat"])
        assert len(member.leases) < PARTITIONS
        await eventually(lambda: is_shared([member]))
        assert member.coordinator._failed == 0
