"""Several dispatchers of one group on a real server: leases, takeovers, and fencing of writes."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure
from structlog.testing import capture_logs

import mongoz
from dispatcher.core.lease import HELD, TAKEN, Lease, now
from dispatcher.group.heartbeats import Heartbeats
from dispatcher.group.members import Members
from dispatcher.group.view import read_group
from dispatcher.position.store import FirstPosition, PositionStore
from dispatcher.settings import MOST_PARTITIONS
from tests.integration.test_dispatcher import Seen, listen, make_user
from tests.support import Running, SentCommands, dispatching, eventually, group_of

TOKEN = "826B03E05E000000122B0229296E04"
LATER = "826B03E05E000000132B0229296E04"


@pytest.fixture
def user(dispatched: mongoz.Registry, database: str) -> Any:
    return make_user(dispatched, database)


@pytest.fixture
def seen(user: Any) -> Seen:
    calls = Seen()
    listen(user, calls)
    return calls


def names(seen: Seen) -> list[str]:
    return [call.instance.name for call in seen]


def silence(running: Running) -> None:
    """From now on the dispatcher saves nothing, releases nothing and sends no heartbeat, as after SIGKILL."""

    async def nothing(*_: Any, **__: Any) -> bool:
        return True

    coordinator = running.service._coordinator
    coordinator._store.release = coordinator._store.save = nothing
    coordinator._members.beat = coordinator._members.leave = nothing


# -- leases ------------------------------------------------------------------------------------------------------


class Fenced:
    """Two processes, and the position of one partition."""

    def __init__(self, client: Any, database: str) -> None:
        self.first = PositionStore(group_of(client, database), "first")
        self.second = PositionStore(group_of(client, database), "second")

    async def position(self) -> Any:
        return (await self.first.load()).positions[0]

    async def claim(self, store: PositionStore, seen: Any = None) -> Any:
        seen = seen or await self.position()
        return await store.claim(seen, 1, seconds=1.0, version="v", started=datetime.now(UTC))


@pytest.fixture
async def fenced(client: Any, database: str) -> Fenced:
    both = Fenced(client, database)
    assert await both.first.begin(1, {0: FirstPosition(TOKEN, "f")}, new=True)
    return both


async def test_only_one_member_claims_a_partition(fenced):
    seen = await fenced.position()
    claims = [await fenced.claim(fenced.first, seen), await fenced.claim(fenced.second, seen)]
    assert claims[1] is None
    lease, position = claims[0]
    assert (lease.term, position.owner, position.token) == (1, "first", TOKEN)


async def test_a_process_without_the_lease_can_not_write(fenced):
    first, _ = await fenced.claim(fenced.first)
    assert await fenced.first.renew([first]) == [True]
    assert await fenced.first.save(first, TOKEN, "f", b"", TOKEN)
    second, _ = await fenced.claim(fenced.second)
    assert second.term == 2
    assert await fenced.second.save(second, LATER, "f", b"", LATER)
    assert await fenced.first.renew([first]) == [False]
    assert not await fenced.first.save(first, TOKEN, "f", b"", TOKEN)
    await fenced.first.release(first)
    position = await fenced.position()
    assert (position.owner, position.term, position.token) == ("second", 2, LATER)


async def test_a_renewal_defeats_a_claim_based_on_an_older_read(fenced):
    """A standby can't claim with a position read before the last renewal."""
    lease, _ = await fenced.claim(fenced.first)
    seen = await fenced.position()
    assert await fenced.first.renew([lease]) == [True]
    assert await fenced.claim(fenced.second, seen) is None


async def test_the_same_process_with_another_term_is_another_owner(fenced):
    first, _ = await fenced.claim(fenced.first)
    again, _ = await fenced.claim(fenced.first)
    assert not await fenced.first.save(first, LATER, "f", b"", LATER)
    assert await fenced.first.save(again, LATER, "f", b"", LATER)


class Shared:
    """A group with three partitions. The first process holds all. Then the second process takes partition 1.

    Attributes:
        leases: the leases of the first process.
        sent: the commands of the first process.
    """

    def __init__(self, client: Any, watched: Any, sent: SentCommands, database: str) -> None:
        self.first = PositionStore(group_of(watched, database), "first")
        self.second = PositionStore(group_of(client, database), "second")
        self.sent = sent
        self.leases: list[Lease] = []

    async def begin(self) -> None:
        await self.first.begin(3, dict.fromkeys(range(3), FirstPosition(TOKEN, "f")), new=True)
        self.leases = [await self.claim(self.first, number) for number in range(3)]
        await self.claim(self.second, 1)
        self.sent.clear()

    async def claim(self, store: PositionStore, number: int) -> Lease:
        seen = (await store.load()).positions[number]
        claimed = await store.claim(seen, 3, seconds=1.0, version="v", started=datetime.now(UTC))
        assert claimed is not None
        return claimed[0]

    async def save(self) -> list[Any]:
        """Save all positions at the same time."""
        saves = [self.first.save(lease, LATER, "f", b"", LATER) for lease in self.leases]
        return await asyncio.gather(*saves, return_exceptions=True)


@pytest.fixture
async def shared(client: Any, mongo: Any, database: str) -> AsyncIterator[Shared]:
    sent = SentCommands()
    async with AsyncMongoClient(mongo.url, event_listeners=[sent]) as watched:
        made = Shared(client, watched, sent, database)
        await made.begin()
        yield made


async def test_one_command_renews_exactly_the_leases_that_a_process_still_holds(shared):
    before = (await shared.second.load()).positions
    assert await shared.first.renew(shared.leases) == [True, False, True]
    assert shared.sent.names == ["update", "find"]
    after = (await shared.second.load()).positions
    assert [after[number].beat - before[number].beat for number in range(3)] == [1, 0, 1]
    shared.sent.clear()
    assert await shared.first.renew([shared.leases[0], shared.leases[2]]) == [True, True]
    assert shared.sent.names == ["update"]


async def test_one_command_saves_exactly_the_positions_that_a_process_still_holds(shared):
    assert await shared.save() == [True, False, True]
    assert shared.sent.names == ["update", "find"]
    saved = (await shared.second.load()).positions
    assert [saved[number].token for number in range(3)] == [LATER, TOKEN, LATER]


async def test_a_lease_of_an_earlier_term_is_lost_although_the_same_process_owns_the_partition(shared):
    again = await shared.claim(shared.first, 2)
    assert await shared.first.renew(shared.leases) == [True, False, False]
    assert await shared.save() == [True, False, False]
    assert (await shared.second.load()).positions[2].token == TOKEN
    assert await shared.first.renew([shared.leases[2]]) == [False]
    assert await shared.first.renew([shared.leases[0], again]) == [True, True]


async def test_a_position_that_the_server_refuses_does_not_affect_other_positions(shared, foreign, database):
    state = foreign.client[f"{database}_state"]
    state.command("collMod", "positions", validator={"_id": {"$ne": f"{database}:0"}})
    saved = await shared.save()
    assert isinstance(saved[0], OperationFailure)
    assert saved[0].code == 121  # DocumentValidationFailure
    assert saved[1:] == [False, True]
    renewed = await shared.first.renew(shared.leases)
    assert isinstance(renewed[0], OperationFailure)
    assert renewed[1:] == [False, True]


async def test_one_command_saves_the_positions_of_256_partitions(shared):
    leases = [Lease(number, MOST_PARTITIONS, 1, seconds=1.0, sent=now()) for number in range(MOST_PARTITIONS)]
    saves = [shared.first.save(lease, LATER, "f", b"", LATER) for lease in leases]
    assert (await asyncio.gather(*saves)).count(True) == 2
    assert shared.sent.names == ["update", "find"]


async def test_a_position_without_a_term_is_lost_and_does_not_affect_other_positions(shared, foreign, database):
    """Somebody has edited the position by hand."""
    positions = foreign.client[f"{database}_state"]["positions"]
    assert positions.update_one({"_id": f"{database}:0"}, {"$unset": {"term": ""}}).matched_count
    assert await shared.first.renew(shared.leases) == [False, False, True]
    assert await shared.save() == [False, False, True]


async def test_released_partitions_are_free_after_one_command(shared):
    await asyncio.gather(*map(shared.first.release, shared.leases))
    assert shared.sent.names == ["update", "find"]
    owners = [one.owner for _, one in sorted((await shared.second.load()).positions.items())]
    assert owners == [None, "second", None]


def test_other_members_claim_a_partition_only_after_its_holder_has_stopped():
    assert HELD < TAKEN < 1


# -- processes ---------------------------------------------------------------------------------------------------


async def test_a_second_dispatcher_is_a_standby_until_the_first_dispatcher_ends(user, seen, foreign, dispatched):
    async with dispatching(dispatched, lease=1) as first, dispatching(dispatched, lease=1) as second:
        foreign["users"].insert_one({"name": "1"})
        await seen.wait(1)
        await eventually(lambda: len(first.service.live) == len(second.service.live) == 2)
        assert (list(first.service.held), list(second.service.held)) == ([0], [])
        assert second.service.ready
        began = now()
        await first.stop()
        await eventually(lambda: second.service.held)
        assert now() - began < TAKEN  # the lease was released, it did not expire
        foreign["users"].insert_one({"name": "2"})
        await seen.wait(2)
        await eventually(lambda: second.service.live == (second.service.member_id,))
    assert names(seen) == ["1", "2"]
    assert [call.delivery.term for call in seen] == [1, 2]
    assert (first.stats.delivered, second.stats.delivered) == (1, 1)


async def test_a_standby_takes_over_from_a_silent_member(user, seen, foreign, dispatched, database):
    async with dispatching(dispatched, lease=1) as first, dispatching(dispatched, lease=1) as second:
        silence(first)
        first.service.held[0]._checkpoint.lease.give_up()
        await first.stop()
        members = foreign.client[f"{database}_state"]["members"]
        assert members.count_documents({}) == 2
        foreign["users"].insert_one({"name": "1"})
        began = now()
        await seen.wait(1)
        assert TAKEN - 0.5 < now() - began < 3
        assert seen[0].delivery.term == 2
        assert second.service.held
        await eventually(lambda: members.count_documents({}) == 1, what="the dead member is removed")


async def test_a_dispatcher_pauses_without_its_lease_and_continues_with_it(user, seen, foreign, dispatched):
    """Renewals fail for longer than the lease. The holder stops, and continues if no other member took over."""
    async with dispatching(dispatched, lease=1) as running:
        store, renew = running.service._coordinator._store, running.service._coordinator._store.renew
        lease = running.service.held[0]._checkpoint.lease

        async def lost(_leases: Any) -> list[bool]:
            raise TimeoutError

        store.renew = lost
        await eventually(lambda: now() >= lease.until, what="the lease has run out")
        foreign["users"].insert_many([{"name": str(number)} for number in range(5)])
        await eventually(lambda: running.stats.read == 5)
        await asyncio.sleep(0)
        assert seen == []
        store.renew = renew
        await seen.wait(5)
        assert running.service.held[0]._checkpoint.lease is lease
    assert {call.delivery.term for call in seen} == {1}


async def test_a_member_that_loses_its_partition_logs_the_loss_and_becomes_a_standby(
    user, seen, foreign, dispatched, database, capsys
):
    positions = foreign.client[f"{database}_state"]["positions"]
    async with dispatching(dispatched, lease=1, save_interval=60, idle_save_interval=60) as running:
        foreign["users"].insert_one({"name": "1"})
        await seen.wait(1)
        before = positions.find_one({"partition": 0})["token"]
        taken = {"$set": {"owner": "elsewhere", "boot": None}, "$inc": {"term": 1, "beat": 1}}
        positions.update_one({"partition": 0}, taken)
        await eventually(lambda: not running.service.held)
        # The member has written nothing since the loss.
        assert positions.find_one({"partition": 0})["token"] == before
        assert not running.task.done()
        # `elsewhere` renews no lease, so the member claims the partition again and repeats unsaved deliveries.
        await eventually(lambda: running.service.held)
        await seen.wait(2)
    assert names(seen) == ["1", "1"]
    assert [call.delivery.term for call in seen] == [1, 3]
    said = capsys.readouterr()
    assert "lease.lost" in said.out + said.err


async def test_a_member_that_loses_one_partition_keeps_the_other_partitions(
    user, seen, foreign, dispatched, database, capsys
):
    positions = foreign.client[f"{database}_state"]["positions"]
    async with dispatching(dispatched, lease=1, partitions=3) as running:
        leases = {number: pipeline._checkpoint.lease for number, pipeline in running.service.held.items()}
        taken = {"$set": {"owner": "elsewhere", "boot": None}, "$inc": {"term": 1, "beat": 1}}
        positions.update_one({"partition": 1}, taken)
        await eventually(leases[1].lost.is_set)
        assert now() < min(leases[0].until, leases[2].until)
        await eventually(lambda: 1 in running.service.held and running.service.held[1]._checkpoint.lease.term == 3)
        foreign["users"].insert_many([{"name": str(number)} for number in range(60)])
        await seen.wait(60)
        assert [pipeline._checkpoint.lease.term for pipeline in running.service.held.values()] == [1, 3, 1]
        assert [running.service.held[number]._checkpoint.lease for number in (0, 2)] == [leases[0], leases[2]]
    assert sorted(names(seen), key=int) == [str(number) for number in range(60)]
    said = capsys.readouterr()
    assert (said.out + said.err).count("lease.lost") == 1


async def test_partitions_handed_over_do_not_count_as_lost(user, seen, dispatched, capsys):
    """The dispatcher sends a release and a renewal at the same time, and the renewal arrives later."""
    begun, released, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()
    answers: list[Any] = []
    freed: list[Any] = []
    async with dispatching(dispatched, lease=6, partitions=8) as running:
        store = running.service._coordinator._store

        async def late(leases: Any) -> Any:
            begun.set()
            await released.wait()
            answers.extend(await PositionStore.renew(store, leases))
            answered.set()
            return answers

        async def release(lease: Any) -> None:
            await PositionStore.release(store, lease)
            freed.append(lease)
            if len(freed) == 8:
                released.set()
            await answered.wait()

        store.renew, store.release = late, release
        await begun.wait()
    assert answers == [False] * 8
    said = capsys.readouterr()
    assert "lease.lost" not in said.out + said.err


async def test_four_partitions_are_shared_evenly(user, seen, foreign, dispatched):
    settings = {"lease": 1, "partitions": 4}
    async with dispatching(dispatched, **settings) as first:
        assert list(first.service.held) == [0, 1, 2, 3]
        async with dispatching(dispatched, **settings) as second:
            await eventually(lambda: len(first.service.held) == len(second.service.held) == 2)
            async with dispatching(dispatched, **settings) as third:
                three = (first, second, third)
                await eventually(lambda: sorted(len(one.service.held) for one in three) == [1, 1, 2])
                await eventually(lambda: all(one.service.ready for one in three))
                foreign["users"].insert_many([{"name": str(number)} for number in range(200)])
                await seen.wait(200)
            await eventually(lambda: len(first.service.held) == len(second.service.held) == 2)
        await eventually(lambda: len(first.service.held) == 4)
        foreign["users"].insert_many([{"name": str(number)} for number in range(200, 300)])
        await seen.wait(300)
    assert sorted(names(seen), key=int) == [str(number) for number in range(300)]
    assert all(one.stats.delivered > 20 for one in three)


async def test_the_log_has_one_line_for_all_partitions(user, seen, dispatched):
    # With a short lease, a heartbeat could interrupt the claims. Then they have two lines.
    settings = {"lease": 30, "partitions": 8}
    with capture_logs() as lines:
        async with dispatching(dispatched, **settings) as first:
            async with dispatching(dispatched, **settings) as second:
                await eventually(lambda: len(first.service.held) == len(second.service.held) == 4)
            await eventually(lambda: len(first.service.held) == 8)
    told = {
        action: [one["partitions"] for one in lines if one["action"] == action]
        for action in ("lease.claimed", "lease.handed_over")
    }
    (all_, *_), (given, *_) = told["lease.claimed"], told["lease.handed_over"]
    assert (all_, len(given)) == (list(range(8)), 4)
    # The first dispatcher claims 8, the second one claims 4, and the first one claims these 4 again.
    assert sum(map(len, told["lease.claimed"])) == 16
    assert not [one for one in lines if one["action"] == "dispatcher.draining" and one["log_level"] != "debug"]


async def test_a_dispatcher_of_an_older_version_claims_no_partition_of_a_newer_version(
    user, seen, dispatched, database, capsys
):
    """A process of the older version does not know the newer state.

    The exception is a downgrade: the processes of the older version start last, and may claim partitions.
    """
    async with mongoz.Registry(dispatched.url, dispatched=database) as newer:
        twin = make_user(newer, database)
        for name in ("watcher", "added in the new version"):
            listen(twin, Seen(), name=name)
        async with dispatching(dispatched, lease=1, partitions=2) as old:
            async with dispatching(newer, lease=1, state_database=f"{database}_state") as new:
                await eventually(lambda: list(new.service.held) == [1])
            coordinator, left = old.service._coordinator, now()
            await eventually(
                lambda: coordinator._read_at > left + 1,
                what="the member reads the state after all leases have expired",
            )
            assert (list(old.service.held), old.service.ready) == ([0], False)
            async with dispatching(dispatched, lease=1) as back:
                await eventually(lambda: list(back.service.held) == [1])
                assert back.service.ready
    said = capsys.readouterr()
    assert "lease.outdated" in said.out + said.err


async def test_a_removed_member_counts_as_alive_again_with_its_next_heartbeat(client, database):
    """Otherwise a member that stalls after its first heartbeat would never get partitions."""
    member, seen = Members(group_of(client, database), {"version": "v", "lease_seconds": 1.0}), Heartbeats()

    async def age(at: float) -> float:
        (found,) = (await read_group(member.group)).members
        return seen.note({found.id: found.beat}, asked=at, answered=at)[found.id]

    await member.join()
    await member.beat()
    assert await age(0.0) == 0.0
    for at in (10.0, 20.0):
        assert await age(at) == 10.0
        await member.remove_dead((await read_group(member.group)).members[0])
        await member.beat()
        assert await age(at) == 0.0


async def test_a_dispatcher_of_an_earlier_format_gets_no_partitions(
    user, seen, dispatched, database, foreign, capsys
):
    """A dispatcher of an earlier format can't read held deliveries. The log names this dispatcher."""
    state = foreign.client[f"{database}_state"]
    alive = {
        "_id": "0" * 24,
        "group": database,
        "version": "v",
        "lease_seconds": 1.0,
        "host": "old.host",
        "pid": 7,
    }
    state.members.insert_one({**alive, "beat": 0, "leaving": False, "started_at": datetime(2020, 1, 1)})

    def still_alive() -> bool:
        state.members.update_one({"_id": "0" * 24}, {"$inc": {"beat": 1}})
        return False

    async with dispatching(dispatched, lease=1, partitions=2) as running:
        coordinator, began = running.service._coordinator, now()
        await eventually(
            lambda: still_alive() or coordinator._read_at > began + 1.5,
            what="the dispatcher reads the state several times",
        )
        assert "0" * 24 in running.service.live
        assert list(running.service.held) == [0, 1]
        member = state.members.find_one({"_id": running.service.member_id})
        assert member["format"] == 2
        for position in state.positions.find({"partition": {"$exists": True}}):
            # A process of an earlier version claims only if it has started after this time, so it never claims.
            assert position["version_started"] == datetime(9999, 12, 31)
            assert position["version_since"] == member["started_at"]
    said = capsys.readouterr()
    text = said.out + said.err
    assert text.count("members.older") == 1
    assert "old.host, pid 7" in text
