"""A repartition under load loses nothing, repeats nothing, and keeps the order."""

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient

import mongoz
from dispatcher.core.partitions import belongs, hash_of
from dispatcher.group.coordinator import Coordinator
from dispatcher.group.layout import divide_into
from dispatcher.group.members import Members
from dispatcher.group.view import read_group
from dispatcher.position.inherited import Fact
from dispatcher.position.store import FirstPosition, PositionStore
from mongoz.core.signals import post_save
from tests.integration.test_dispatcher import make_user
from tests.support import Running, SentCommands, dispatching, eventually, group_of

FIRST, SECOND, THIRD = (f"826B03E05E{number:08X}2B0229296E04" for number in (1, 2, 3))


class Heard:
    """The received names of each document, in order. Calls for the ids in `hangs` hang until they are cancelled.

    Attributes:
        names: the received names, by id.
        terms: the terms of the deliveries, by id.
        hangs: the ids on which the receiver hangs.
    """

    def __init__(self) -> None:
        self.names: dict[Any, list[str]] = defaultdict(list)
        self.terms: dict[Any, list[int]] = defaultdict(list)
        self.hangs: set[Any] = set()

    @property
    def count(self) -> int:
        return sum(map(len, self.names.values()))


@pytest.fixture
def heard(dispatched: mongoz.Registry, database: str) -> Heard:
    user, told = make_user(dispatched, database), Heard()

    @post_save(user, name="listener", timeout=60)
    async def listener(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        if instance.id in told.hangs:
            await asyncio.Event().wait()
        told.names[instance.id].append(instance.name)
        told.terms[instance.id].append(delivery.term)

    return told


@contextlib.asynccontextmanager
async def writing(collection: Any, documents: int = 40) -> AsyncIterator[dict[Any, list[str]]]:
    """Replaces documents repeatedly; yields the written names per document."""
    written: dict[Any, list[str]] = {ObjectId(): [] for _ in range(documents)}
    stop = asyncio.Event()

    async def write() -> None:
        for number, (id_, names) in enumerate(itertools.cycle(written.items())):
            if stop.is_set():
                return
            await collection.replace_one({"_id": id_}, {"name": str(number)}, upsert=True)
            names.append(str(number))
            await asyncio.sleep(0.002)

    task = asyncio.create_task(write())
    try:
        yield written
    finally:
        stop.set()
        await task


def layout_of(running: Running) -> tuple[int | None, int]:
    layout = running.service.layout
    return (None, 0) if layout is None else (layout.partitions, len(running.service.held))


@pytest.mark.slow
async def test_repartitions_from_one_to_four_to_two_under_load(heard, dispatched, client, database, foreign):
    state = foreign.client[f"{database}_state"]["positions"]
    async with dispatching(dispatched, lease=1) as first, writing(client[database]["users"]) as written:
        await eventually(lambda: heard.count > 20)
        async with dispatching(dispatched, lease=1, partitions=4) as second:
            await eventually(lambda: layout_of(first) == layout_of(second) == (4, 2))
            before = heard.count
            await eventually(lambda: heard.count > before + 100)
            async with dispatching(dispatched, lease=1, partitions=2) as third:
                everybody = (first, second, third)
                await eventually(lambda: sorted(layout_of(one) for one in everybody) == [(2, 0), (2, 1), (2, 1)])
                before = heard.count
                await eventually(lambda: heard.count > before + 50)
        await eventually(lambda: layout_of(first) == (2, 2))
        before = heard.count
        await eventually(lambda: heard.count > before + 50)
    async with dispatching(dispatched, lease=1):
        await eventually(lambda: heard.count >= sum(map(len, written.values())))
    assert heard.names == {id_: names for id_, names in written.items() if names}
    assert all(terms == sorted(terms) for terms in heard.terms.values()), "the term of a document only grows"
    positions = list(state.find({"partition": {"$exists": True}}))
    assert sorted(one["_id"] for one in positions) == [f"{database}:0", f"{database}:1"]
    assert state.find_one({"_id": database})["partitions"] == 2
    assert [one.get("inherited") for one in positions] == [[], []], "positions have passed all inherited changes"


async def test_changes_finished_ahead_are_not_repeated_under_other_layouts(heard, dispatched, client, database):
    """Under each layout the delivery of one document hangs, and all later changes are delivered once."""
    users = client[database]["users"]
    stuck, written = [ObjectId() for _ in range(3)], []

    async def write_past(hanging: Any) -> None:
        await users.insert_one({"_id": hanging, "name": "stuck"})
        written.extend({"_id": ObjectId(), "name": "flows"} for _ in range(60))
        await users.insert_many(written[-60:])
        await eventually(lambda: heard.count == len(written))

    heard.hangs.update(stuck)
    for partitions, hanging in zip((1, 3, 4), stuck, strict=True):
        async with dispatching(dispatched, lease=1, partitions=partitions, grace=0.05) as running:
            await eventually(lambda n=partitions, one=running: layout_of(one) == (n, n))
            await write_past(hanging)
    heard.hangs.clear()
    async with dispatching(dispatched, lease=1, partitions=2) as running:
        await eventually(lambda: layout_of(running) == (2, 2))
        await eventually(lambda: heard.count == len(written) + len(stuck))
        last = await users.insert_one({"name": "last"})
        await eventually(lambda: last.inserted_id in heard.names)
    assert heard.names == {
        **{id_: ["stuck"] for id_ in stuck},
        **{one["_id"]: ["flows"] for one in written},
        last.inserted_id: ["last"],
    }


async def ids_in(client: Any, partition: int, count: int) -> list[ObjectId]:
    """New ids that all belong to one of two partitions."""
    made = [{"_id": ObjectId()} for _ in range(20 * count)]
    hashed = [{"$documents": made}, {"$match": {"$expr": belongs(hash_of("$_id"), partition, 2)}}]
    return [one["_id"] async for one in await client.admin.aggregate(hashed)][:count]


async def test_a_partition_without_progress_keeps_its_position(heard, dispatched, client, database):
    """The position is the token of a change in another partition. The partition's own stream lacks this token."""
    (elsewhere,) = await ids_in(client, 1, 1)
    stuck, flows = await ids_in(client, 0, 2)
    heard.hangs.add(stuck)
    async with dispatching(dispatched, lease=1, grace=0.05):
        await client[database]["users"].insert_many(
            [{"_id": id_, "name": "x"} for id_ in (elsewhere, stuck, flows)]
        )
        await eventually(lambda: heard.count == 2)
    for _ in range(2):
        async with dispatching(dispatched, lease=1, grace=0.05, partitions=2) as running:
            await eventually(lambda one=running: layout_of(one) == (2, 2))
            await eventually(lambda one=running: one.service.held[0]._capacity.in_flight == 1)
            await eventually(lambda one=running: one.service.held[0]._tracker.ahead)
    heard.hangs.clear()
    async with dispatching(dispatched, lease=1):
        await eventually(lambda: heard.count == 3)
    assert heard.names == {id_: ["x"] for id_ in (elsewhere, stuck, flows)}


async def test_a_repartition_waits_for_deliveries_in_flight(heard, dispatched, client, database):
    """No delivery is cancelled, and no partition is claimed meanwhile."""
    hanging = ObjectId()
    heard.hangs.add(hanging)
    async with dispatching(dispatched, lease=1, grace=60) as first:
        await client[database]["users"].insert_one({"_id": hanging, "name": "slow"})
        await eventually(lambda: first.service.held[0]._capacity.in_flight == 1)
        async with dispatching(dispatched, lease=1, partitions=2) as second:
            await eventually(lambda: first.service.held[0]._capacity.stopping)
            await asyncio.sleep(1.5)  # longer than the lease, which is renewed meanwhile
            assert (layout_of(first), layout_of(second)) == ((1, 1), (1, 0))
            (worker,) = [w for w in first.service.held[0]._lanes._workers if not w.done()]
            heard.hangs.clear()
            worker.cancel()
            await eventually(lambda: layout_of(second)[0] == 2)
            await eventually(lambda: heard.names[hanging] == ["slow"])


async def test_the_last_request_for_a_repartition_counts(heard, dispatched, client, database):
    store = PositionStore(group_of(client, database), "somebody")
    async with dispatching(dispatched, lease=1) as running:
        await divide_into(store, 3)
        await eventually(lambda: layout_of(running) == (3, 3))
        await divide_into(store, 3)
        assert (await store.load()).layout.wanted is None
    await divide_into(store, 5)
    await divide_into(store, 3)
    assert ((await store.load()).layout.partitions, (await store.load()).layout.wanted) == (3, None)


# -- the switch itself -------------------------------------------------------------------------------------------


@pytest.fixture
async def store(client: Any, database: str) -> PositionStore:
    one = PositionStore(group_of(client, database), "me")
    assert await one.begin(2, {0: FirstPosition(FIRST, "f"), 1: FirstPosition(FIRST, "f")}, new=True)
    return one


async def claim(store: PositionStore, partition: int) -> Any:
    seen = (await store.load()).positions[partition]
    claimed = await store.claim(seen, 2, seconds=1.0, version="v", started=datetime.now(UTC))
    assert claimed is not None
    return claimed[0]


async def test_new_positions_begin_at_the_earliest_position_and_inherit_finished_changes(store):
    for partition, token in enumerate((SECOND, THIRD)):
        lease = await claim(store, partition)
        await store.save(lease, token, "f", b"", token)
        await store.release(lease)
    await store.request(await store.load(), 3)
    assert await store.divide(await store.load())
    saved = await store.load()
    assert (saved.layout.partitions, saved.layout.wanted) == (3, None)
    for position in saved.positions.values():
        assert (position.token, position.term, position.owner, position.version) == (SECOND, 2, None, "v")
        # Only the second partition has finished changes after the new position.
        assert position.inherited == (Fact(2, 1, THIRD, THIRD, b""),)


async def test_the_number_of_commands_does_not_grow_with_the_number_of_partitions(mongo, database):
    """With a far server, one command for each partition would take longer than a lease, so no attempt succeeds."""

    async def nothing(_session: Any) -> None:
        """Writes nothing more."""

    sent = SentCommands()
    async with AsyncMongoClient(mongo.url, event_listeners=[sent]) as client:
        store = PositionStore(group_of(client, database), "me")
        assert await store.begin(200, dict.fromkeys(range(200), FirstPosition(FIRST, "f")), new=True)
        assert sent.names == ["insert", "update", "commitTransaction"]
        await store.request(await store.load(), 100)
        saved = await store.load()
        sent.clear()
        assert await store.divide(saved)
        assert sent.names == ["update", "delete", "insert", "commitTransaction"]
        saved = await store.load()
        sent.clear()
        assert await store.move(saved, SECOND, force=False, also=nothing)
        assert sent.names == ["update", "update", "commitTransaction"]
        moved = await store.load()
    assert {one.token for one in moved.positions.values()} == {SECOND}
    assert sorted(moved.positions) == list(range(100))


async def test_positions_that_exist_are_not_replaced(store, database, foreign):
    before = await store.load()
    assert not await store.begin(2, {0: FirstPosition(SECOND, "g"), 1: FirstPosition(SECOND, "g")}, new=False)
    assert not await store.begin(2, {0: FirstPosition(SECOND, "g"), 1: FirstPosition(SECOND, "g")}, new=True)
    assert await store.load() == before
    foreign.client[f"{database}_state"]["positions"].delete_one({"_id": database})
    assert await store.begin(2, {}, new=True)  # as if a version without layouts had written the positions
    assert await store.load() == before


async def test_one_of_two_concurrent_repartitions_succeeds(store):
    await store.request(await store.load(), 4)
    saved = await store.load()
    assert sorted(await asyncio.gather(*(store.divide(saved) for _ in range(4)))) == [False, False, False, True]
    assert sorted((await store.load()).positions) == [0, 1, 2, 3]


@pytest.mark.parametrize("happened", ["claimed", "renewed", "wanted otherwise"])
async def test_a_repartition_fails_after_a_concurrent_change_of_the_state(store, happened):
    await store.request(await store.load(), 4)
    lease = await claim(store, 1)
    saved = await store.load()
    if happened == "claimed":
        await claim(store, 0)
    elif happened == "renewed":
        await store.renew([lease])
    else:
        await store.request(saved, 3)
    before = await store.load()
    assert not await store.divide(saved)
    assert await store.load() == before


async def test_a_group_is_not_divided_if_a_partition_was_claimed_after_the_group_was_read(store, client, database):
    group = group_of(client, database)
    members = Members(group, {"version": "v", "lease_seconds": 1.0, "format": 2})
    coordinator = Coordinator(store, members, lease=1.0, version="v", begin=None, work=None, resized=lambda: None)
    await store.request(await store.load(), 4)
    seen = await read_group(group)
    await claim(PositionStore(group, "other"), 1)
    free = dict.fromkeys(range(2))
    await coordinator._divide(seen, free)
    saved = await store.load()
    assert (saved.layout.partitions, saved.positions[1].owner) == (2, "other")
    await coordinator._divide(await read_group(group), free)  # as if the other lease had ended
    assert sorted((await store.load()).positions) == [0, 1, 2, 3]


async def test_an_interrupted_repartition_changes_nothing(store, foreign):
    await store.request(await store.load(), 4)
    before = await store.load()
    fails = {"failCommands": ["commitTransaction"], "errorCode": 13}
    foreign.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=fails)
    with pytest.raises(Exception, match="failpoint"):
        await store.divide(before)
    assert await store.load() == before
    assert await store.divide(before)


async def test_a_claim_with_a_position_that_was_read_before_a_repartition_fails(store):
    old = await store.load()
    await store.request(old, 4)
    assert await store.divide(await store.load())
    assert await store.claim(old.positions[0], 2, seconds=1.0, version="v", started=datetime.now(UTC)) is None


async def test_begin_adds_no_position_of_an_earlier_layout(store, foreign, database):
    positions = foreign.client[f"{database}_state"]["positions"]
    await store.request(await store.load(), 1)
    assert await store.divide(await store.load())
    assert not await store.begin(2, {1: FirstPosition(FIRST, "f")}, new=False)
    assert positions.count_documents({}) == 2
