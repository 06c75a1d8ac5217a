"""Receivers that write to their own document outside of the ODM are slowed down and logged. Nothing is lost."""

import asyncio
from time import monotonic
from typing import Any

import pytest
from pymongo import UpdateOne

import mongoz
from mongoz.core.signals import post_save, post_update
from tests.support import dispatching, eventually


@pytest.fixture
def Counter(dispatched: mongoz.Registry, database: str) -> Any:
    class Counter(mongoz.Document):
        name: str = mongoz.String(default="")
        n: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), {"registry": dispatched, "database": database, "collection": "counters"})

    return Counter


@pytest.mark.slow
async def test_a_receiver_that_triggers_itself_is_slowed_down_and_named(Counter, foreign, dispatched, capsys):
    calls: list[str] = []
    times: list[float] = []
    goal = asyncio.Event()

    @post_save(Counter, name="loops", delivery="dispatcher")
    @post_update(Counter, name="loops", delivery="dispatcher")
    async def loops(sender, instance, **kwargs):
        calls.append(instance.name)
        if instance.name == "loop":
            times.append(monotonic())
        if instance.name == "loop" and not goal.is_set():
            await Counter.bulk_write([UpdateOne({"_id": instance.id}, {"$inc": {"n": 1}})])

    async with dispatching(dispatched) as running:
        foreign.counters.insert_one({"name": "loop"})
        # The delays grow: 0.1 s, 0.2 s, 0.4 s, 0.8 s, 1.6 s.
        await eventually(lambda: len(times) > 20 and times[-1] - times[-2] > 1.0, within=60)
        # The deliveries of other documents are not slowed down.
        foreign.counters.insert_many([{"name": f"n{n}"} for n in range(200)])
        await eventually(lambda: len(set(calls)) == 201, within=60)
        goal.set()
        count = foreign.counters.find_one({"name": "loop"})["n"]
        await eventually(
            lambda: foreign.counters.find_one({"name": "loop"})["n"] + 1 == calls.count("loop"), within=60
        )
        assert foreign.counters.find_one({"name": "loop"})["n"] <= count + 1
        assert not running.task.done()
    said = [line for line in capsys.readouterr().out.splitlines() if "delivery.echo" in line]
    assert len(said) == 1
    assert "loops" in said[0]


def written(foreign: Any) -> int:
    return foreign.counters.find_one({"name": "loop"})["n"]


@pytest.mark.slow
async def test_frequent_foreign_writes_are_not_slowed_down(Counter, foreign, dispatched, capsys):
    """Each write happens during the delivery of the previous one."""
    seen: list[int] = []

    @post_update(Counter, name="steady", delivery="dispatcher")
    async def steady(sender, instance, **kwargs):
        seen.append(instance.n)
        await asyncio.sleep(0.02)

    async with dispatching(dispatched):
        id_ = foreign.counters.insert_one({"n": 0}).inserted_id
        for _ in range(150):
            await asyncio.to_thread(foreign.counters.update_one, {"_id": id_}, {"$inc": {"n": 1}})
            await asyncio.sleep(0.015)
        await eventually(lambda: len(seen) >= 150, within=60, what=str(len(seen)))
    assert "delivery.echo" not in capsys.readouterr().out
