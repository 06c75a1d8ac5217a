"""Ticks: tasks with the same interval wake together."""

import asyncio

import pytest
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


class ClockByHand(asyncio.SelectorEventLoop):
    """A loop whose clock stands until the test moves it."""

    now = 1_000.0

    def time(self) -> float:
        return self.now


def test_waiting_tasks_wake_in_the_same_turn_of_the_loop():
    async def main(loop: ClockByHand) -> list[int]:
        never, turn = asyncio.Event(), -1
        woke: list[int] = []

        async def wait() -> None:
            assert await wait_for_tick(0.2, unless=never)
            woke.append(turn)

        loop.now = next_tick(0.2, loop.now)
        due, tasks = next_tick(0.2, loop.now), []
        for _ in range(5):
            tasks.append(asyncio.create_task(wait()))
            await asyncio.sleep(0)
            loop.now += 0.003
        loop.now = due
        for turn in range(20):  # noqa: B007 -- each task notes the turn in which it wakes
            await asyncio.sleep(0)
        assert len(woke) == len(tasks)
        return woke

    loop = ClockByHand()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert len(set(runner.run(main(loop)))) == 1


async def test_an_event_ends_the_wait():
    ending = asyncio.Event()
    waiting = asyncio.create_task(wait_for_tick(3_600.0, unless=ending))
    await asyncio.sleep(0)
    ending.set()
    assert not await waiting
    assert not await wait_for_tick(3_600.0, unless=ending)
