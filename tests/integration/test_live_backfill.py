"""A backfill runs beside the dispatchers. In the end each receiver has the newest state of each document."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from bson import json_util

import mongoz
from dispatcher.operate.status import read_status
from dispatcher.runs import backfill
from dispatcher.runs.player import RunOutcome, workplace
from dispatcher.runs.store import Run, Runs
from dispatcher.runtime.service import Service
from mongoz.core.signals import post_delete, post_save, post_update
from tests.integration.deliveries import QUICK, State
from tests.support import Running, dispatching, eventually, group_of, settings_for


def make_account(registry: mongoz.Registry, database: str) -> Any:
    class Account(mongoz.Document):
        id: int = mongoz.Integer(alias="_id", null=True)
        name: str = mongoz.String(max_length=40)
        amount: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    return Account


class Index:
    """Stores the amount of each document by its id. The last write wins.

    Attributes:
        gate: while it is closed, deliveries of backfills wait before they write.
        waiting: the ids of the deliveries that wait.
        calls: the deliveries, in order.
    """

    def __init__(self) -> None:
        self.rows: dict[Any, int] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting: list[Any] = []
        self.calls: list[SimpleNamespace] = []

    def connect(self, document: Any, where: str) -> None:
        async def index(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            if delivery.replayed and not self.gate.is_set():
                self.waiting.append(instance.id)
                await self.gate.wait()
            self.calls.append(SimpleNamespace(id=instance.id, delivery=delivery, where=where))
            if delivery.signal == "post_delete":
                self.rows.pop(instance.id, None)
            else:
                self.rows[instance.id] = instance.amount

        for signal in (post_save, post_update, post_delete):
            signal(document, name="index", delivery="dispatcher", retry=QUICK)(index)

    @property
    def backfilled(self) -> list[SimpleNamespace]:
        return [call for call in self.calls if call.delivery.replayed]


@pytest.fixture
def index(dispatched, database) -> Index:
    made = Index()
    made.connect(make_account(dispatched, database), "dispatcher")
    return made


Start = Callable[..., Awaitable["asyncio.Task[RunOutcome]"]]


@pytest.fixture
async def command(dispatched, database, index) -> AsyncIterator[Start]:
    """Starts `dispatcher backfill`, with the registry of another process."""
    tasks: list[asyncio.Task[RunOutcome]] = []

    async def start(
        stop: asyncio.Event | None = None, concurrency: int = 20, **options: Any
    ) -> "asyncio.Task[RunOutcome]":
        registry = mongoz.Registry(dispatched.url, dispatched=dispatched.dispatched)
        index.connect(make_account(registry, database), "command")
        given = {"rate": None, "resume": None, "new": False, **options}

        async def run() -> RunOutcome:
            async with workplace(registry, settings_for(registry, concurrency=concurrency)) as place:
                one = await backfill.start(place, ["index"], **given)
                return await one.work(stop or asyncio.Event())

        tasks.append(asyncio.create_task(run()))
        return tasks[-1]

    yield start
    index.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)


def stored(foreign: Any) -> dict[Any, int]:
    return {row["_id"]: row["amount"] for row in foreign["accounts"].find()}


def insert(foreign: Any, count: int) -> None:
    foreign["accounts"].insert_many([{"_id": n, "name": f"{n}", "amount": 0} for n in range(count)])


@asynccontextmanager
async def before_the_group(foreign: Any, dispatched: Any, count: int, **settings: Any) -> AsyncIterator[Any]:
    """Inserts documents, and then runs a dispatcher. Its position begins after the inserts."""
    insert(foreign, count)
    async with dispatching(dispatched, **settings) as running:
        yield running


async def test_a_change_waits_for_the_backfill_of_its_document(foreign, dispatched, index, command):
    async with before_the_group(foreign, dispatched, 3) as running:
        index.gate.clear()
        task = await command()
        await eventually(lambda: len(index.waiting) == 3)
        foreign["accounts"].update_one({"_id": 0}, {"$set": {"amount": 1}})
        foreign["accounts"].delete_one({"_id": 1})
        foreign["accounts"].insert_one({"_id": 9, "name": "9", "amount": 9})
        await eventually(lambda: 9 in index.rows)  # the dispatcher has read the update and the delete
        assert index.rows == {9: 9}
        index.gate.set()
        outcome = await task
        await eventually(lambda: index.rows == stored(foreign))
    assert running.stats.dead_letters == 0
    assert (outcome.finished, outcome.delivered, outcome.failed) == (True, 3, 0)
    assert {call.where for call in index.calls} == {"dispatcher"}
    assert {call.delivery.image for call in index.backfilled} == {"current"}


async def test_documents_that_change_all_the_time_are_never_stale(foreign, dispatched, index, command):
    async with before_the_group(foreign, dispatched, 200, partitions=2):
        task = await command(workers=2)
        round_ = 0
        while not task.done():
            round_ += 1
            foreign["accounts"].update_many({"_id": {"$mod": [3, round_ % 3]}}, {"$inc": {"amount": 1}})
            foreign["accounts"].delete_one({"_id": round_})
            await asyncio.sleep(0.01)
        assert (await task).finished
        await eventually(lambda: index.rows == stored(foreign))
        ids = [call.id for call in index.backfilled]
        assert len(ids) == len(set(ids))


async def test_a_dispatcher_that_starts_during_a_backfill_waits_and_then_continues_it(
    foreign, dispatched, index, command, monkeypatch
):
    monkeypatch.setattr("dispatcher.runs.snapshot._FIRST", 5)
    monkeypatch.setattr("dispatcher.runs.snapshot._MOST", 5)
    async with before_the_group(foreign, dispatched, 120):
        pass
    # The rate is low, so most deliveries are not made yet when the dispatcher starts.
    task = await command(rate=40, concurrency=2)
    await eventually(lambda: len(index.calls) > 5)
    index.gate.clear()
    await eventually(lambda: index.waiting)
    first = index.waiting[0]
    foreign["accounts"].update_one({"_id": first}, {"$set": {"amount": 5}})
    state = State(foreign).database
    running = Running(Service(dispatched, settings_for(dispatched)))
    try:
        await eventually(lambda: (state["members"].find_one() or {}).get("beat", 0) > 1)
        # The dispatcher has read the state of the group several times, and still holds no partition.
        assert running.service.held == {}
        assert state["controls"].find_one({"kind": "run"})["alone"] is True
        assert first not in index.rows
        index.gate.set()
        outcome = await task
        assert (outcome.finished, outcome.failed) == (True, 0)
        await eventually(lambda: index.rows == stored(foreign))
    finally:
        await running.stop()
    assert index.rows[first] == 5
    assert {call.where for call in index.backfilled} == {"command", "dispatcher"}
    assert len({call.delivery.id for call in index.backfilled}) == 120


async def test_the_command_continues_when_the_last_dispatcher_is_gone(
    foreign, dispatched, index, command, monkeypatch
):
    monkeypatch.setattr("dispatcher.runs.backfill._ABSENT", 1)
    monkeypatch.setattr("dispatcher.runs.live_backfill._MOST", 5)
    async with before_the_group(foreign, dispatched, 60, partitions=2):
        task = await command(rate=100)
        await eventually(lambda: len(index.backfilled) > 10)
    outcome = await task
    assert (outcome.finished, outcome.failed) == (True, 0)
    assert index.rows == stored(foreign)
    assert {call.where for call in index.backfilled} == {"command", "dispatcher"}
    assert len({call.delivery.id for call in index.backfilled}) == 60


async def test_a_stopped_backfill_continues_even_with_another_number_of_partitions(
    foreign, dispatched, index, command, monkeypatch
):
    monkeypatch.setattr("dispatcher.runs.live_backfill._MOST", 5)
    stop, advance, ended = asyncio.Event(), Runs.advance, set()

    async def advance_or_end(self: Runs, run: Run, *progress: Any) -> bool:
        goes_on = await advance(self, run, *progress)
        if not goes_on:
            ended.add(run.id)
        return goes_on

    monkeypatch.setattr(Runs, "advance", advance_or_end)
    async with before_the_group(foreign, dispatched, 100, partitions=2):
        controls = State(foreign).database["controls"]
        task = await command(stop, rate=40)
        await eventually(
            lambda: controls.count_documents({"progress.seen": {"$gt": 0}}) == 2, what="both parts begin"
        )
        stop.set()
        first = await task
        assert not first.finished
        assert {one["status"] for one in controls.find({"kind": "run"})} == {"stopped"}
        # Each part makes and counts the deliveries that it has begun, and then ends. So no delivery is repeated.
        await eventually(lambda: ended == {f"{first.run}.0", f"{first.run}.1"}, what="each part notices the stop")
        assert sum(one["delivered"] for one in controls.find({"kind": "run"})) == len(index.backfilled)
    async with dispatching(dispatched, partitions=3):
        second = await (await command())
        assert (second.run, second.finished, second.delivered) == (first.run, True, len(index.backfilled))
        await eventually(lambda: index.rows == stored(foreign))
    assert len({call.delivery.id for call in index.backfilled}) == 100


async def test_dispatchers_apply_the_filter_of_a_backfill(foreign, dispatched, index, command, client, database):
    async with before_the_group(foreign, dispatched, 10):
        text = json_util.dumps({"_id": {"$gte": 7}, "name": {"$ne": "8"}})
        outcome = await (await command(where=text))
    assert (outcome.finished, outcome.delivered) == (True, 2)
    assert sorted(call.id for call in index.backfilled) == [7, 9]
    (run,) = State(foreign).database["controls"].find({"kind": "run", "of": None})
    assert (run["asked"]["where"], run["asked"]["workers"]) == (text, 1)
    # The status shows the run, but neither its part nor its filter.
    (shown,) = (await read_status(group_of(client, database))).runs
    assert (shown["run"], shown["status"], shown["delivered"]) == (outcome.run, "finished", 2)
    assert "where" not in shown["asked"]


async def test_the_outcome_of_a_backfill_counts_dead_letters_of_the_dispatchers(
    foreign, dispatched, index, command
):
    async with before_the_group(foreign, dispatched, 10):
        foreign["accounts"].update_one({"_id": 3}, {"$set": {"amount": "text"}})
        await eventually(lambda: len(State(foreign).letters) == 1)
        outcome = await (await command())
        assert (outcome.finished, outcome.delivered, outcome.failed, outcome.dead_letters) == (True, 9, 1, 1)
        letters = [one for one in State(foreign).letters if one["run"]]
        assert [one["run"] for one in letters] == [outcome.run]
