"""The effects of transactional batch receivers happen once, even if a batch fails, is parked or is repeated."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dispatcher.runs import backfill
from dispatcher.runs.player import RunOutcome, workplace
from mongoz import Batch
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry
from tests.integration.deliveries import Parked
from tests.support import dispatching, eventually, settings_for


@pytest.fixture
def state(foreign: Any) -> Parked:
    foreign.create_collection("counts")
    return Parked(foreign)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"name": f"{number}", "amount": 0} for number in range(count)]


async def succeed(names: list[str]) -> None:
    """Raises no error, so the batch succeeds."""


class Counter:
    """Counts each event in MongoDB, or all events in one document.

    Attributes:
        fails: called with the names of a batch, after the writes of the batch. It may raise an error or wait.
    """

    def __init__(self, account: Any, database: str, **options: Any) -> None:
        self.batches: list[str] = []
        self.attempts: set[int] = set()
        self.key: str | None = None
        self.fails: Callable[[list[str]], Awaitable[None]] = succeed
        self._counts = account.meta.registry.client[database]["counts"]
        given = {"name": "counter", "transactional": True, "batch": Batch(size=4, wait=0.1), **options}
        post_save(account, **given)(self)

    async def __call__(self, sender: Any, batch: Any, **kwargs: Any) -> None:
        names = [event.instance.name for event in batch]
        self.batches.append("".join(names))
        self.attempts |= {event.delivery.attempt for event in batch}
        for event in batch:
            key = {"_id": self.key or event.instance.name}
            await self._counts.update_one(key, {"$inc": {"n": 1}}, upsert=True, session=event.delivery.session)
        await self.fails(names)


def counted(foreign: Any) -> dict[str, int]:
    return {one["_id"]: one["n"] for one in foreign["counts"].find()}


async def test_a_batch_that_times_out_is_aborted(account, foreign, dispatched, state, database):
    counter = Counter(account, database, timeout=0.4, retry=1)

    async def hangs(names: list[str]) -> None:
        if "2" in names:
            await asyncio.Event().wait()

    counter.fails = hangs
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows(4))
        letter = await state.letter()
        await eventually(lambda: counted(foreign) == {"0": 1, "1": 1, "3": 1})
    assert counter.batches == ["0123", "01", "23", "2", "3"]
    assert letter["error"]["type"] == "builtins.TimeoutError"
    assert state.database["deliveries"].count_documents({}) == 3


async def test_parked_events_take_effect_once(account, foreign, dispatched, state, database):
    counter = Counter(account, database, retry=Retry(99, base=0.05, cap=0.2))
    broken = True

    async def fails(names: list[str]) -> None:
        if broken:
            raise ConnectionError("down")

    counter.fails = fails
    async with dispatching(dispatched, park_after=0.0):
        foreign["accounts"].insert_many(rows(8))
        await eventually(lambda: len(state.rows) == 8)
        broken = False
        await eventually(lambda: state.empty)
    assert counted(foreign) == {str(number): 1 for number in range(8)}
    assert state.letters == []


async def test_write_conflicts_of_batches_use_up_no_attempt(account, foreign, dispatched, state, database):
    """All batches count in one document."""
    counter = Counter(account, database, batch=Batch(size=2, wait=0.02), retry=1)
    counter.key = "all"

    async def takes_time(names: list[str]) -> None:
        await asyncio.sleep(0.01)

    counter.fails = takes_time
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many(rows(60))
        await eventually(lambda: running.stats.delivered == 60)
        assert running.stats.figures_of("counter", "post_save").conflicts > 0
    assert counted(foreign) == {"all": 60}
    assert counter.attempts == {1}
    assert state.letters == []


async def test_a_backfill_that_was_killed_repeats_no_effect(account, foreign, dispatched, state, database):
    """The saved progress of the run is older than the commits."""
    counter = Counter(account, database)
    foreign["accounts"].insert_many(rows(10))
    first = await filled(dispatched)
    runs = state.database["controls"]
    runs.update_one({"run": first.run}, {"$set": {"status": "stopped", "progress": {}}})  # as after SIGKILL
    again = await filled(dispatched, resume=first.run)
    assert again.finished
    assert counted(foreign) == {str(number): 1 for number in range(10)}
    assert sorted("".join(counter.batches)) == sorted(str(number) for number in range(10))


async def filled(registry: Any, resume: str | None = None) -> RunOutcome:
    async with workplace(registry, settings_for(registry)) as place:
        one = await backfill.start(place, [], rate=None, resume=resume, new=False)
        return await one.work(asyncio.Event())
