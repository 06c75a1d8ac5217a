"""Batch receivers with `where`, `fields` and `transactional`, in replays, in backfills and in the test kit."""

import asyncio
from typing import Any

import pytest
from bson import ObjectId

from dispatcher.batches.transactions import BatchTransactions
from dispatcher.runs import backfill, replay
from dispatcher.runs.player import workplace
from dispatcher.testing import Dispatcher, deliver, insert
from mongoz import Batch, BatchError
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry
from tests.integration.deliveries import QUICK, Indexer, State
from tests.support import dispatching, eventually, settings_for


@pytest.fixture
def state(foreign: Any) -> State:
    return State(foreign)


def rows(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "amount": int(name)} for name in names]


async def test_where_selects_the_events(account, foreign, dispatched):
    indexer = Indexer(account, Batch(size=2, wait=60), where={"amount": {"$gte": 2}})
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows("0", "1", "2", "3"))
        await eventually(lambda: indexer.batches)
    assert indexer.batches == [["2", "3"]]


async def test_a_replay_delivers_batches(account, foreign, dispatched, state):
    indexer = Indexer(account, Batch(size=2, wait=0.05))
    begin = foreign.client.admin.command("hello")["operationTime"]
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows("0", "1", "2"))
        await eventually(lambda: len(indexer.done) == 3)
    live = {delivery.id for delivery in indexer.deliveries}
    indexer.batches.clear()
    options = {"since": begin, "until": None, "asked": {"since": None, "until": None}, "rate": None}
    async with workplace(dispatched, settings_for(dispatched)) as place:
        one = await replay.start(place, ["indexer"], resume=None, new=False, **options)
        outcome = await one.work(asyncio.Event())
    assert (outcome.finished, outcome.delivered) == (True, 3)
    assert sorted(len(batch) for batch in indexer.batches) == [1, 2]
    assert not live & {delivery.id for delivery in indexer.deliveries[3:]}
    assert {delivery.replayed for delivery in indexer.deliveries[3:]} == {True}


async def test_a_backfill_delivers_batches_and_dead_letters(account, foreign, dispatched, state):
    def fails(batch: Any) -> Exception | None:
        return ValueError("bad") if any(event.instance.name == "1" for event in batch) else None

    indexer = Indexer(account, Batch(size=4, wait=0.05), fails=fails, on_failure="block")
    foreign["accounts"].insert_many(rows("0", "1", "2", "3"))
    async with workplace(dispatched, settings_for(dispatched)) as place:
        one = await backfill.start(place, [], rate=None, resume=None, new=False)
        outcome = await one.work(asyncio.Event())
    assert (outcome.finished, outcome.delivered, outcome.failed, outcome.dead_letters) == (True, 3, 1, 1)
    assert sorted(indexer.done) == ["0", "2", "3"]
    assert indexer.batches[:2] == [["0", "1", "2", "3"]] * 2


# -- transactional ---------------------------------------------------------------------------------------------


def adding(account: Any, foreign: Any, fails: Any = None, **options: Any) -> list[list[str]]:
    """A transactional batch receiver that counts each event in MongoDB. Returns its batches."""
    batches: list[list[str]] = []

    @post_save(account, name="adding", transactional=True, **{"retry": QUICK, **options})
    async def add(sender, batch, **kwargs):
        names = [event.instance.name for event in batch]
        batches.append(names)
        session = batch[0].delivery.session
        assert session is not None
        counts = account.meta.registry.client[foreign.name]["counts"]
        for name in names:
            await counts.update_one({"_id": name}, {"$inc": {"n": 1}}, upsert=True, session=session)
        error = fails(batch) if fails is not None else None
        if error is not None:
            raise error

    return batches


def counted(foreign: Any) -> dict[str, int]:
    return {one["_id"]: one["n"] for one in foreign["counts"].find()}


async def test_the_effects_of_a_batch_happen_once(account, foreign, dispatched, state, monkeypatch):
    """The second dispatcher reads the events again. It calls the receiver without the recorded events."""
    foreign.create_collection("counts")
    batches = adding(account, foreign, batch=Batch(size=3, wait=0.2))
    begun: list[int] = []
    run = BatchTransactions._run_in_transaction

    async def counting(self: Any, *args: Any) -> None:
        begun.append(len(args[-1]))
        await run(self, *args)

    monkeypatch.setattr(BatchTransactions, "_run_in_transaction", counting)
    async with dispatching(dispatched):
        before = state.token
        foreign["accounts"].insert_many(rows("0", "1", "2"))
        await eventually(lambda: len(counted(foreign)) == 3)
        assert state.database["deliveries"].count_documents({}) == 3
    state.rewind(before)
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "3", "amount": 0})
        await eventually(lambda: len(counted(foreign)) == 4)
    assert counted(foreign) == {"0": 1, "1": 1, "2": 1, "3": 1}
    assert batches == [["0", "1", "2"], ["3"]]
    assert begun == [3, 1], "no transaction for recorded events"


async def test_a_batch_leaves_out_an_event_that_another_process_has_recorded_meanwhile(
    account, foreign, dispatched, state, monkeypatch
):
    """Only the insert of the records finds the recorded event. Then the receiver runs without this event."""
    foreign.create_collection("counts")
    batches = adding(account, foreign, batch=Batch(size=3, wait=0.2))
    async with dispatching(dispatched):
        before = state.token
        foreign["accounts"].insert_many(rows("0", "1", "2"))
        await eventually(lambda: len(counted(foreign)) == 3)
    one = state.database["deliveries"].find_one()
    state.database["deliveries"].delete_many({"_id": {"$ne": one["_id"]}})
    monkeypatch.setattr("dispatcher.batches.transactions.BatchTransactions._recorded", _nothing)
    state.rewind(before)
    async with dispatching(dispatched):
        await eventually(lambda: sum(counted(foreign).values()) == 5)
        await eventually(lambda: state.database["deliveries"].count_documents({}) == 3)
    assert [len(batch) for batch in batches] == [3, 2]
    assert sorted(counted(foreign).values()) == [1, 2, 2]
    assert state.letters == []


async def _nothing(*_: Any) -> list[int]:
    return []


async def test_a_failed_event_aborts_the_transaction_and_the_next_transaction_commits_the_other_events(
    account, foreign, dispatched, state
):
    def fails(batch: Any) -> Exception | None:
        bad = {n: ValueError("bad") for n, event in enumerate(batch) if event.instance.name == "1"}
        return BatchError(bad) if bad else None

    foreign.create_collection("counts")
    batches = adding(account, foreign, fails, batch=Batch(size=3, wait=0.2), retry=Retry(1))
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows("0", "1", "2"))
        await state.letter()
    assert batches == [["0", "1", "2"], ["0", "2"]]
    assert counted(foreign) == {"0": 1, "2": 1}


# -- the test kit ----------------------------------------------------------------------------------------------


async def test_until_idle_does_not_wait_for_further_events(account, foreign, dispatched):
    """`until_idle` closes the batch with all events so far. The kit records each event as one delivery."""
    indexer = Indexer(account, Batch(size=100, wait=3_600))
    async with Dispatcher(dispatched, settings_for(dispatched)) as dispatcher:
        for round_ in range(2):
            foreign["accounts"].insert_many(rows(*(str(round_ * 3 + n) for n in range(3))))
            await dispatcher.until_idle()
            assert len(indexer.batches) == round_ + 1
        assert [each.outcome for each in dispatcher.deliveries] == ["delivered"] * 6
        assert [each.instance.name for each in dispatcher.deliveries] == [str(n) for n in range(6)]
        assert len({each.delivery.id for each in dispatcher.deliveries}) == 6
    assert indexer.batches == [["0", "1", "2"], ["3", "4", "5"]]


async def test_the_kit_records_which_events_of_a_batch_failed(account, foreign, dispatched):
    def fails(batch: Any) -> Exception | None:
        bad = {n: ValueError("bad") for n, event in enumerate(batch) if event.instance.name == "1"}
        return BatchError(bad) if bad else None

    Indexer(account, Batch(size=100, wait=3_600), fails=fails, retry=1)
    async with Dispatcher(dispatched, raise_failures=False) as dispatcher:
        foreign["accounts"].insert_many(rows("0", "1", "2"))
        await dispatcher.until_idle()
        assert [each.outcome for each in dispatcher.deliveries] == ["delivered", "failed", "delivered"]
        (failed,) = dispatcher.failures
        assert (failed.instance.name, str(failed.error)) == ("1", "bad")


async def test_a_hand_made_change_is_a_batch_of_one_event(account):
    indexer = Indexer(account, Batch(size=100, wait=3_600))
    (delivery,) = await deliver(account, insert({"_id": ObjectId(), "name": "a", "amount": 0}))
    assert indexer.batches == [["a"]]
    assert (delivery.outcome, delivery.instance.name) == ("delivered", "a")
    indexer.fails = lambda batch: ValueError("bad")
    with pytest.raises(ValueError, match="bad"):
        await deliver(account, insert({"_id": ObjectId(), "name": "b", "amount": 0}))


# -- limits ----------------------------------------------------------------------------------------------------


async def test_concurrency_limits_how_many_batches_run_at_the_same_time(account, foreign, dispatched):
    """The events of batches beyond the limit are parked, and form batches again. Other receivers do not wait."""
    indexer = Indexer(account, Batch(size=2, wait=0.05), concurrency=1)
    indexer.gate.clear()
    told: list[str] = []

    @post_save(account, name="plain")
    async def plain(sender, instance, **kwargs):
        told.append(instance.name)

    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many(rows(*map(str, range(8))))
        await eventually(lambda: len(told) == 8)
        await eventually(lambda: running.stats.parked == 6)
        indexer.gate.set()
        await eventually(lambda: len(indexer.done) == 8)
    assert indexer.most_running == 1
    assert len({delivery.id for delivery in indexer.deliveries}) == 8
    assert {delivery.attempt for delivery in indexer.deliveries} == {1}
