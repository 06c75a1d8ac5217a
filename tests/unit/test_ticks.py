"""Ticks: tasks with the same interval wake together."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.ticks import next_tick, wait_for_tick

SECONDS = st.floats(0.01, 100.0)
NOW = st.floats(0.0, 1e7)
SHIFT = st.floats(0.0, 0.999)


@given(SECONDS, NOW, SHIFT)
def test_the_next_tick_is_about_one_interval_away_at_most(seconds, now, shift):
    wait = (next_tick(seconds, now, shift) - now) / seconds
    assert 0.09 < wait < 1.11


@given(SECONDS, NOW, SHIFT, st.floats(0.0, 0.85))
def test_tasks_that_begin_at_different_times_have_the_same_tick(seconds, now, shift, later):
    tick = next_tick(seconds, now, shift)
    assert next_tick(seconds, tick + later * seconds, shift) == pytest.approx(tick + seconds)


@given(SECONDS, NOW, SHIFT, st.floats(0.0, 0.09))
def test_a_timer_that_fires_early_does_not_repeat_its_tick(seconds, now, shift, early):
    tick = next_tick(seconds, now, shift)
    assert next_tick(seconds, tick - early * seconds, shift) == pytest.approx(tick + seconds)


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, uvloop.Loop])
def test_waiting_tasks_wake_in_the_same_turn_of_the_loop(loop: Callable[[], asyncio.AbstractEventLoop]):
    async def all_woke_together() -> bool | None:
        clock, never, turn = asyncio.get_running_loop().time, asyncio.Event(), 0
        woke: list[int] = []

        async def wait() -> None:
            assert await wait_for_tick(0.2, unless=never)
            woke.append(turn)

        due, tasks = next_tick(0.2, clock()), []
        for _ in range(5):
            tasks.append(asyncio.create_task(wait()))
            await asyncio.sleep(0.003)
        if clock() > due - 0.05:
            await asyncio.gather(*tasks)
            return None  # the machine was too slow, and some tasks have a later tick
        while not all(task.done() for task in tasks):
            turn += 1
            await asyncio.sleep(0)
        return len(set(woke)) == 1

    async def main() -> bool:
        while (together := await all_woke_together()) is None:
            pass
        return together

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(main())


async def test_an_event_ends_the_wait():
    ending = asyncio.Event()
    waiting = asyncio.create_task(wait_for_tick(3_600.0, unless=ending))
    await asyncio.sleep(0)
    ending.set()
    assert not await waiting
    assert not await wait_for_tick(3_600.0, unless=ending)
