"""Batches close early if necessary. Their events survive a pause, the end of a dispatcher, and a crash."""

import asyncio
from typing import Any

import pytest
from bson import ObjectId

import mongoz
from dispatcher.operate import dead_letters, pauses
from mongoz import Batch, BatchError
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry
from tests.integration.deliveries import Indexer, Parked, actions, make_account
from tests.support import dispatching, eventually, group_of

NEVER = Batch(size=1_000, wait=3_600)


@pytest.fixture
def account(dispatched: mongoz.Registry, database: str) -> Any:
    return make_account(dispatched, database, longest=4_000_000)


@pytest.fixture
def state(foreign: Any) -> Parked:
    return Parked(foreign)


def rows(count: int, text: str = "") -> list[dict[str, Any]]:
    return [{"name": f"{number:04}{text}", "amount": 0} for number in range(count)]


async def test_a_batch_closes_when_its_events_take_an_eighth_of_the_memory_of_the_queue(
    account, foreign, dispatched
):
    indexer = Indexer(account, NEVER)
    async with dispatching(dispatched, max_queued_mb=8):
        foreign["accounts"].insert_many(rows(5, "x" * 400_000))
        await eventually(lambda: len(indexer.done) >= 4)
    assert {len(batch) for batch in indexer.batches[:2]} == {2}


async def test_a_batch_closes_when_waiting_events_take_half_of_the_queue(account, foreign, dispatched):
    """Waiting events count as queued. If no batch closed, the queue would be full, and the reading would stop."""
    indexer = Indexer(account, NEVER)
    other = Indexer(account, NEVER, name="other")
    async with dispatching(dispatched, max_queued=20):
        foreign["accounts"].insert_many(rows(60))
        await eventually(lambda: len(indexer.done) >= 50 and len(other.done) >= 50)
        assert max(len(batch) for batch in indexer.batches + other.batches) <= 11


async def test_waiting_events_count_as_queued(account, foreign, dispatched):
    Indexer(account, NEVER)
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many(rows(7))
        (pipeline,) = running.service.held.values()
        await eventually(lambda: pipeline.gauges().queued == 7)
        assert pipeline.gauges().queued_bytes > 7 * 50


@pytest.mark.usefixtures("quick")
async def test_a_pause_of_the_receiver_closes_a_batch_and_parks_its_events(
    account, foreign, dispatched, client, database, state
):
    indexer = Indexer(account, NEVER)
    group = group_of(client, database)
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many(rows(3))
        await eventually(lambda: running.stats.read >= 3)
        await pauses.pause(group, "indexer", by="ops", known=())
        await eventually(lambda: len(state.heads) == 3)
        assert {head["state"] for head in state.heads} == {"paused"}
        assert indexer.batches == []
        await pauses.resume(group, "indexer")
        foreign["accounts"].insert_many(rows(1))
        await eventually(
            lambda: (
                running.service.close_batches()
                or sorted(indexer.done)
                == [
                    "0000",
                    "0000",
                    "0001",
                    "0002",
                ]
            )
        )
        await eventually(lambda: state.empty)


async def test_a_drain_closes_a_batch(account, foreign, dispatched, state):
    """The gathered events are delivered within the grace period, and the position passes them."""
    indexer = Indexer(account, NEVER)
    async with dispatching(dispatched) as running:
        before = state.token
        foreign["accounts"].insert_many(rows(3))
        (pipeline,) = running.service.held.values()
        await eventually(lambda: pipeline.gauges().queued == 3)
    assert indexer.batches == [["0000", "0001", "0002"]]
    assert state.token > before
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "last"})
        await eventually(lambda: running.stats.read >= 1)
    assert indexer.batches[1:] == [["last"]]


async def test_after_a_restart_interrupted_receivers_run_again_and_finished_receivers_do_not(
    account, foreign, dispatched, state
):
    """The batch is cancelled. Its events are parked only for its receiver, because the other receiver has run."""
    told: list[str] = []

    @post_save(account, name="plain")
    async def plain(sender, instance, **kwargs):
        told.append(instance.name)

    indexer = Indexer(account, Batch(size=3, wait=0))
    indexer.gate.clear()
    async with dispatching(dispatched, grace=0.1):
        foreign["accounts"].insert_many(rows(3))
        await eventually(lambda: indexer.running and len(told) == 3)
    assert {row["state"] for row in state.heads} == {"interrupted"}
    indexer.gate.set()
    async with dispatching(dispatched):
        await eventually(lambda: sorted(indexer.done) == ["0000", "0001", "0002"])
        await eventually(lambda: state.empty)
    assert sorted(told) == ["0000", "0001", "0002"]


async def test_after_a_crash_all_events_of_a_document_are_repeated_in_order(account, foreign, dispatched, state):
    indexer = Indexer(account, Batch(size=4, wait=0.05))
    ids = [ObjectId(), ObjectId()]
    async with dispatching(dispatched):
        before = state.token
        for n, id_ in enumerate(ids):
            foreign["accounts"].insert_one({"_id": id_, "name": f"{n}.0", "amount": 0})
        for version in (1, 2, 3):
            for n, id_ in enumerate(ids):
                foreign["accounts"].replace_one({"_id": id_}, {"name": f"{n}.{version}", "amount": 0})
        await eventually(lambda: len(indexer.done) == 8)
    first = {delivery.id for delivery in indexer.deliveries}
    state.rewind(before)
    indexer.done.clear()
    async with dispatching(dispatched):
        await eventually(lambda: len(indexer.done) == 8)
    for n in (0, 1):
        assert [name for name in indexer.done if name[0] == str(n)] == [f"{n}.{version}" for version in range(4)]
    assert {delivery.id for delivery in indexer.deliveries} == first


async def test_a_lost_lease_ends_a_batch_and_the_next_owner_repeats_it(account, foreign, dispatched, state):
    indexer = Indexer(account, Batch(size=2, wait=0))
    indexer.gate.clear()
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many(rows(2))
        await eventually(lambda: indexer.running)
        (held,) = running.service.held.values()
        held._checkpoint.lease.lose()
        await eventually(lambda: not indexer.running)
        indexer.gate.set()
        await eventually(lambda: sorted(indexer.done) == ["0000", "0001"])
    assert state.letters == []


async def test_a_blocked_event_holds_back_only_the_later_events_of_its_document(
    account, foreign, dispatched, state, capsys
):
    said = actions(capsys)
    mended = False

    def fails(batch: Any) -> Exception | None:
        bad = {n: ValueError("bad") for n, event in enumerate(batch) if event.instance.amount == 13}
        return BatchError(bad) if bad and not mended else None

    indexer = Indexer(account, Batch(size=10, wait=0.1), fails=fails, on_failure="block")
    id_, other = ObjectId(), ObjectId()
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(
            [{"_id": id_, "name": "a0", "amount": 13}, {"_id": other, "name": "b0", "amount": 0}]
        )
        await eventually(lambda: state.heads and state.heads[0]["state"] == "blocked")
        for version in (1, 2):
            foreign["accounts"].replace_one({"_id": id_}, {"name": f"a{version}", "amount": 0})
            foreign["accounts"].replace_one({"_id": other}, {"name": f"b{version}", "amount": 0})
        await eventually(lambda: indexer.done == ["b0", "b1", "b2"] and len(state.rows) == 3)
        mended = True
        await eventually(lambda: state.empty)
    assert indexer.done == ["b0", "b1", "b2", "a0", "a1", "a2"]
    assert said().count("delivery.blocked") == 1


async def test_an_event_that_fails_alone_is_dropped_with_on_failure_drop(account, foreign, dispatched, state):
    def fails(batch: Any) -> Exception | None:
        return ValueError("bad") if any(event.instance.name == "0001" for event in batch) else None

    indexer = Indexer(account, Batch(size=3, wait=60), fails=fails, on_failure="drop")
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many(rows(3))
        await eventually(lambda: sorted(indexer.done) == ["0000", "0002"])
        await eventually(lambda: running.stats.failed == 1)
    assert state.letters == []
    assert state.empty


async def test_a_failed_batch_of_one_document_is_repeated_event_by_event(account, foreign, dispatched, state):
    def fails(batch: Any) -> Exception | None:
        return ValueError("bad") if any(event.instance.name == "1" for event in batch) else None

    indexer = Indexer(account, Batch(size=3, wait=60), fails=fails, retry=1)
    id_ = ObjectId()
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 0})
        for name in ("1", "2"):
            foreign["accounts"].replace_one({"_id": id_}, {"name": name, "amount": 0})
        await eventually(lambda: indexer.done == ["0", "2"])
        await state.letter()
    assert indexer.batches == [["0", "1", "2"], ["0"], ["1"], ["2"]]


@pytest.mark.usefixtures("quick")
async def test_a_retried_dead_letter_is_an_event_of_a_batch(account, foreign, dispatched, client, database, state):
    broken = True

    def fails(batch: Any) -> Exception | None:
        return ValueError("bad") if broken else None

    indexer = Indexer(account, Batch(size=2, wait=0.05), fails=fails, retry=1)
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows(2))
        letters = await state.wait(2)
        broken = False
        await dead_letters.request_retry(group_of(client, database), None)
        await eventually(lambda: sorted(indexer.done) == ["0000", "0001"])
        await eventually(lambda: state.empty and not state.letters)
    assert {delivery.replayed for delivery in indexer.deliveries[-2:]} == {True}
    assert {delivery.id for delivery in indexer.deliveries[-2:]} == {letter["delivery_id"] for letter in letters}


async def test_a_batch_that_raises_retry_after_uses_up_no_attempt(account, foreign, dispatched, state):
    asked = 0

    def fails(batch: Any) -> Exception | None:
        nonlocal asked
        asked += 1
        return mongoz.RetryAfter(0.01) if asked < 5 else None

    indexer = Indexer(account, Batch(size=2, wait=60), fails=fails, retry=1)
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows(2))
        await eventually(lambda: len(indexer.done) == 2)
    assert indexer.batches == [["0000", "0001"]] * 5
    assert {delivery.attempt for delivery in indexer.deliveries} == {1}
    assert state.letters == []


async def test_a_batch_whose_receiver_ignores_cancellation_becomes_dead_letters(
    account, foreign, dispatched, state, monkeypatch
):
    monkeypatch.setattr("dispatcher.delivery.invoker._CANCEL_AGAIN", 0.02)
    done: list[str] = []
    gate = asyncio.Event()

    @post_save(account, name="stuck", batch=Batch(size=2, wait=60), timeout=0.05, retry=1)
    async def stuck(sender, batch, **kwargs):
        while batch[0].instance.name == "0000" and not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        done.extend(event.instance.name for event in batch)

    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many(rows(4))
        await eventually(lambda: done == ["0002", "0003"])
        letters = await state.wait(2)
        assert {letter["error"]["type"] for letter in letters} == {"builtins.TimeoutError"}
        position = running.service.position
        gate.set()
        await eventually(lambda: running.service.position >= position)


async def test_parked_events_do_not_wait_again_for_further_events(account, foreign, dispatched, state):
    """Parked events form a batch soon after they are due. A new event that waits may join this batch."""
    broken = True

    def fails(batch: Any) -> Exception | None:
        return ConnectionError("down") if broken else None

    indexer = Indexer(account, NEVER, fails=fails, retry=Retry(99, base=0.05, cap=0.3))
    async with dispatching(dispatched, park_after=0.0) as running:
        foreign["accounts"].insert_many(rows(5))
        (pipeline,) = running.service.held.values()
        await eventually(lambda: pipeline.gauges().queued == 5)
        running.service.close_batches()
        await eventually(lambda: len(state.heads) == 5)
        foreign["accounts"].insert_one({"name": "later", "amount": 0})
        broken = False
        await eventually(lambda: len(indexer.done) == 6)
        await eventually(lambda: state.empty)
    assert sorted(indexer.done) == ["0000", "0001", "0002", "0003", "0004", "later"]
    assert len(indexer.batches[-1]) >= 5


async def test_many_parked_events_of_one_document_keep_their_order(account, foreign, dispatched, state):
    broken = True

    def fails(batch: Any) -> Exception | None:
        return ConnectionError("down") if broken else None

    indexer = Indexer(account, Batch(size=7, wait=0.05), fails=fails, retry=Retry(99, base=0.05, cap=0.2))
    id_ = ObjectId()
    async with dispatching(dispatched, park_after=0.0):
        foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 0})
        await eventually(lambda: state.heads)
        for number in range(1, 40):
            foreign["accounts"].replace_one({"_id": id_}, {"name": str(number), "amount": 0})
        await eventually(lambda: len(state.rows) == 40)
        broken = False
        await eventually(lambda: state.empty)
    assert indexer.done == [str(number) for number in range(40)]
    assert max(map(len, indexer.batches)) == 7
