"""Batch receivers in a group: takeovers, backfills by the dispatchers, and limits."""

import asyncio
import time
from typing import Any

import pytest

import mongoz
from dispatcher.runs import backfill, replay
from dispatcher.runs.player import RunOutcome, workplace
from mongoz import Batch
from mongoz.core.signals import post_delete, post_save, post_update
from tests.integration.deliveries import QUICK, Indexer, Parked, make_account
from tests.support import dispatching, eventually, settings_for

NEVER = Batch(size=300, wait=3_600)


@pytest.fixture
def state(foreign: Any) -> Parked:
    return Parked(foreign)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"name": f"{number:04}", "amount": 0} for number in range(count)]


async def backfilled(dispatched: mongoz.Registry, connect: Any, **options: Any) -> RunOutcome:
    """Runs `dispatcher backfill`, with the registry of another process.

    Args:
        connect: connects the receivers to the registry's documents.
    """
    registry = mongoz.Registry(dispatched.url, dispatched=dispatched.dispatched)
    connect(registry)
    given = {"rate": None, "resume": None, "new": False, **options}
    async with workplace(registry, settings_for(registry)) as place:
        return await (await backfill.start(place, [], **given)).work(asyncio.Event())


async def test_another_member_takes_over_the_events_of_a_batch(account, foreign, dispatched, state):
    """The repeated events have the same ids, and a higher term."""
    indexer = Indexer(account, Batch(size=2, wait=60))
    indexer.gate.clear()
    async with dispatching(dispatched, grace=0.05) as first:
        await eventually(lambda: first.service.held)
        async with dispatching(dispatched) as second:
            foreign["accounts"].insert_many(rows(4))
            await eventually(lambda: indexer.running == 2)
            await first.stop()
            assert indexer.done == []
            indexer.gate.set()
            await eventually(lambda: sorted(indexer.done) == ["0000", "0001", "0002", "0003"])
            await eventually(lambda: state.empty)
            assert (first.stats.delivered, second.stats.delivered) == (0, 4)
    before, after = indexer.deliveries[:4], indexer.deliveries[4:]
    assert {one.id for one in before} == {one.id for one in after}
    assert ({one.term for one in before}, {one.term for one in after}) == ({1}, {2})
    assert state.letters == []


# -- replays and backfills -------------------------------------------------------------------------------------


async def test_a_backfill_by_the_dispatchers_fills_batches_and_closes_the_last_one(
    account, foreign, dispatched, database, state
):
    """The last batch is not full, and `wait` is an hour. The backfill closes the batch at its end."""
    indexer = Indexer(account, NEVER)
    foreign["accounts"].insert_many(rows(450))
    async with dispatching(dispatched):
        outcome = await backfilled(dispatched, lambda other: Indexer(make_account(other, database), NEVER))
        assert (outcome.finished, outcome.delivered, outcome.failed) == (True, 450, 0)
    assert sorted(indexer.done) == sorted(row["name"] for row in rows(450))
    assert max(len(batch) for batch in indexer.batches) == 300
    assert {delivery.replayed for delivery in indexer.deliveries} == {True}
    assert len({delivery.id for delivery in indexer.deliveries}) == 450


async def test_a_backfill_of_one_receiver_does_not_close_the_batches_of_other_receivers(
    account, foreign, dispatched, database, state
):
    indexer = Indexer(account, NEVER)
    other = Indexer(account, NEVER, name="other", signals=(post_update,))
    foreign["accounts"].insert_many(rows(3))
    async with dispatching(dispatched) as running:
        foreign["accounts"].update_one({"name": "0000"}, {"$set": {"amount": 1}})
        (pipeline,) = running.service.held.values()
        await eventually(lambda: pipeline.gauges().queued == 1)
        await backfilled(dispatched, lambda own: Indexer(make_account(own, database), NEVER))
        assert (len(indexer.done), other.batches) == (3, [])


class Index:
    """A batch receiver that keeps the newest amount of each document.

    Attributes:
        replayed: the ids of the documents that the backfill has delivered.
    """

    def __init__(self) -> None:
        self.amounts: dict[Any, int] = {}
        self.replayed: list[Any] = []

    def connect(self, document: Any) -> None:
        for signal in (post_save, post_update, post_delete):
            signal(document, name="index", batch=Batch(size=7, wait=0.01), retry=QUICK)(self)

    async def __call__(self, sender: Any, batch: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0.005)
        for event in batch:
            if event.delivery.replayed:
                self.replayed.append(event.instance.id)
            if event.delivery.signal == "post_delete":
                self.amounts.pop(event.instance.id, None)
            elif event.delivery.image != "key":  # a deleted document has no amount
                self.amounts[event.instance.id] = event.instance.amount


async def test_a_backfill_in_batches_beside_live_writes_leaves_no_stale_document(
    account, foreign, dispatched, database
):
    index = Index()
    index.connect(account)
    accounts = foreign["accounts"]
    accounts.insert_many(rows(200))
    ids = [row["_id"] for row in accounts.find()]
    async with dispatching(dispatched, partitions=2):
        task = asyncio.create_task(
            backfilled(dispatched, lambda other: index.connect(make_account(other, database)))
        )
        round_ = 0
        while not task.done():
            round_ += 1
            accounts.update_many({"_id": {"$in": ids[round_ % 3 :: 3]}}, {"$inc": {"amount": 1}})
            accounts.delete_one({"_id": ids[-min(round_, 50)]})
            await asyncio.sleep(0.01)
        assert task.result().finished
        stored = {row["_id"]: row["amount"] for row in accounts.find()}
        await eventually(lambda: index.amounts == stored)
    assert len(index.replayed) == len(set(index.replayed))
    assert set(index.replayed) >= set(ids[:150])


async def test_a_replay_does_not_wait_for_events_after_its_end(account, foreign, dispatched, state):
    indexer = Indexer(account, Batch(size=100, wait=3_600))
    begin = foreign.client.admin.command("hello")["operationTime"]
    foreign["accounts"].insert_many(rows(230))
    options = {"since": begin, "until": None, "asked": {"since": None, "until": None}, "rate": None}
    async with workplace(dispatched, settings_for(dispatched)) as place:
        one = await replay.start(place, ["indexer"], resume=None, new=False, **options)
        outcome = await one.work(asyncio.Event())
    assert (outcome.finished, outcome.delivered) == (True, 230)
    assert sorted(len(batch) for batch in indexer.batches) == [30, 100, 100]


async def test_a_backfill_without_dispatchers_does_not_wait_for_further_documents(
    account, foreign, dispatched, state
):
    indexer = Indexer(account, Batch(size=100, wait=3_600))
    foreign["accounts"].insert_many(rows(230))
    async with workplace(dispatched, settings_for(dispatched)) as place:
        one = await backfill.start(place, [], rate=None, resume=None, new=False)
        outcome = await one.work(asyncio.Event())
    assert (outcome.finished, outcome.delivered) == (True, 230)
    assert sorted(len(batch) for batch in indexer.batches) == [30, 100, 100]


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_limits_apply_in_a_backfill_by_the_dispatchers(
    account, foreign, dispatched, database, state, concurrency
):
    """Deliveries beyond the limit are parked, and are made later."""
    names, running, most = [], 0, 0
    gate = asyncio.Event()

    async def limited(sender: Any, instance: Any, **kwargs: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        names.append(instance.name)

    def connect(document: Any) -> None:
        post_save(document, name="limited", delivery="dispatcher", concurrency=concurrency)(limited)

    connect(account)
    foreign["accounts"].insert_many(rows(20))
    async with dispatching(dispatched, partitions=2):
        task = asyncio.create_task(backfilled(dispatched, lambda other: connect(make_account(other, database))))
        await eventually(lambda: running == concurrency and len(state.heads) == 20 - concurrency)
        gate.set()
        outcome = await task
        assert (outcome.finished, outcome.failed) == (True, 0)
        await eventually(lambda: state.empty)
    assert (sorted(names), most) == ([row["name"] for row in rows(20)], concurrency)


async def test_limits_apply_in_a_backfill_without_dispatchers(account, foreign, dispatched, state):
    """The process of the command parks no deliveries. It waits until they may begin."""
    running = most = 0
    at: list[float] = []

    @post_save(account, name="limited", concurrency=2, rate="20/s")
    async def limited(sender: Any, **kwargs: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        at.append(time.monotonic())
        await asyncio.sleep(0.01)
        running -= 1

    foreign["accounts"].insert_many(rows(40))
    async with workplace(dispatched, settings_for(dispatched)) as place:
        one = await backfill.start(place, [], rate=None, resume=None, new=False)
        outcome = await one.work(asyncio.Event())
    assert (outcome.finished, outcome.delivered, outcome.waiting, most) == (True, 40, 0, 2)
    assert at[-1] - at[0] >= 0.9  # 20 begin together, and 20 within the next second
    assert state.rows == []
