"""The timer of a batch, on both event loops."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
import uvloop

from dispatcher.batches.timer import EarliestTimer

RUNS: dict[str, Callable[[Any], Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}

pytestmark = pytest.mark.parametrize("loop", RUNS)

LATER = 3_600.0


def test_a_past_time_fires_immediately_and_no_other_time_delays_it(loop: str) -> None:
    """On uvloop, a handle of a call without a delay has no time."""

    async def fires() -> None:
        fired = asyncio.Event()
        timer = EarliestTimer(fired.set)
        timer.set(monotonic() - 1)
        timer.set(monotonic() - 2)
        timer.set(monotonic() + LATER)
        await asyncio.wait_for(fired.wait(), 60)

    RUNS[loop](fires())


def test_an_earlier_time_replaces_a_later_one(loop: str) -> None:
    async def fires() -> None:
        fired = asyncio.Event()
        timer = EarliestTimer(fired.set)
        timer.set(monotonic() + LATER)
        timer.set(monotonic())
        await asyncio.wait_for(fired.wait(), 60)

    RUNS[loop](fires())


def test_a_timer_fires_once_and_can_be_set_again(loop: str) -> None:
    async def fires() -> None:
        calls: asyncio.Queue[None] = asyncio.Queue()
        timer = EarliestTimer(lambda: calls.put_nowait(None))
        for _ in range(2):
            timer.set(monotonic())
            timer.set(monotonic())
            await asyncio.wait_for(calls.get(), 60)
        assert calls.empty()

    RUNS[loop](fires())


def test_a_cancelled_timer_does_not_fire(loop: str) -> None:
    async def fires() -> None:
        calls: list[str] = []
        cancelled, other = EarliestTimer(lambda: calls.append("cancelled")), asyncio.Event()
        cancelled.set(monotonic())
        cancelled.cancel()
        EarliestTimer(other.set).set(monotonic() + 0.01)
        await asyncio.wait_for(other.wait(), 60)
        assert calls == []

    RUNS[loop](fires())
