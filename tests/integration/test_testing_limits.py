"""The test kit with limits, batches and contexts: `until_idle` ignores rates, and waits for all deliveries.

A place is the permission for one attempt. The `concurrency` of a receiver is the number of its places.
"""

import asyncio
from typing import Any

import pytest
from bson import ObjectId

import mongoz
from dispatcher.testing import Dispatcher, deliver, insert
from mongoz import Batch
from mongoz.core.signals import post_save
from tests.integration.deliveries import Indexer, Strict
from tests.support import settings_for


def rows(count: int) -> list[dict[str, Any]]:
    return [{"name": f"{number:03}", "amount": 0} for number in range(count)]


NAMES = [row["name"] for row in rows(40)]


@pytest.mark.parametrize("own_settings", [False, True])
async def test_until_idle_does_not_wait_for_a_rate(account, foreign, dispatched, own_settings):
    got: list[str] = []

    @post_save(account, name="webhook", rate="1/day")
    async def webhook(sender, instance, **kwargs):
        got.append(instance.name)

    settings = settings_for(dispatched) if own_settings else None
    async with Dispatcher(dispatched, settings) as dispatcher:
        foreign["accounts"].insert_many(rows(40))
        await dispatcher.until_idle(60)
        assert sorted(got) == NAMES
        assert {each.outcome for each in dispatcher.deliveries} == {"delivered"}
        assert dispatcher.service.stats.parked == 0


@pytest.mark.parametrize("more", [{}, {"rate": "1/day"}])
async def test_until_idle_waits_for_deliveries_that_wait_for_a_place(account, foreign, dispatched, more):
    got: list[str] = []
    running = most = 0

    @post_save(account, name="slow", delivery="dispatcher", concurrency=2, **more)
    async def slow(sender, instance, **kwargs):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        got.append(instance.name)

    async with Dispatcher(dispatched) as dispatcher:
        foreign["accounts"].insert_many(rows(40))
        await dispatcher.until_idle(60)
        assert (sorted(got), most) == (NAMES, 2)


async def test_until_idle_waits_for_batches_that_wait_for_a_place(account, foreign, dispatched):
    indexer = Indexer(account, Batch(size=3, wait=3_600), concurrency=1, rate="1/day")
    async with Dispatcher(dispatched) as dispatcher:
        foreign["accounts"].insert_many(rows(10))
        await dispatcher.until_idle(60)
        assert sorted(indexer.done) == NAMES[:10]
        assert (indexer.most_running, sorted(map(len, indexer.batches))) == (1, [1, 3, 3, 3])


async def test_a_parked_retry_gets_a_place_like_other_deliveries(account, foreign, dispatched):
    strict = Strict(account, concurrency=1, on_failure="block")
    async with Dispatcher(dispatched, settings_for(dispatched), raise_failures=False) as dispatcher:
        foreign["accounts"].insert_many(rows(3))
        await dispatcher.until_idle(60)
        strict.mended = True
        async with asyncio.timeout(60):
            while len(strict.got) < 3:
                await asyncio.sleep(0.01)
        assert sorted(strict.got) == NAMES[:3]


async def test_a_hand_made_change_ignores_limits(account):
    got: list[str] = []

    @post_save(account, name="webhook", rate="1/day", concurrency=1)
    async def webhook(sender, instance, **kwargs):
        got.append(instance.name)

    for number in range(3):
        await deliver(account, insert({"_id": ObjectId(), "name": str(number), "amount": 0}))
    assert got == ["0", "1", "2"]


async def test_events_of_a_batch_have_the_contexts_of_their_writes(account, foreign, dispatched):
    """A hand-made change has the context that it names. A foreign write has no context."""
    Indexer(account, Batch(size=10, wait=3_600))
    async with Dispatcher(dispatched) as dispatcher:
        for user in ("ada", "grace"):
            with mongoz.context(user=user):
                await account.objects.create(name=user)
        foreign["accounts"].insert_one({"name": "foreign", "amount": 0})
        await dispatcher.until_idle()
        told = {each.instance.name: each.delivery.context for each in dispatcher.deliveries}
    assert told == {"ada": {"user": "ada"}, "grace": {"user": "grace"}, "foreign": None}
    (made,) = await deliver(
        account, insert({"_id": ObjectId(), "name": "x", "amount": 0}, context={"user": "eve"})
    )
    assert made.delivery is not None
    assert made.delivery.context == {"user": "eve"}
