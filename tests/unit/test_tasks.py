"""Tasks end although they swallow cancellations."""

import asyncio
from contextlib import suppress

import pytest

from dispatcher.core.tasks import end, unless_set


async def swallow(times: int) -> None:
    for _ in range(times):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue
    await asyncio.Event().wait()


async def test_swallowed_cancellations_are_repeated():
    tasks = [asyncio.create_task(swallow(n)) for n in range(3)]
    await asyncio.sleep(0)
    assert await end(tasks) == 0
    assert all(task.cancelled() for task in tasks)


async def test_the_wait_for_a_task_that_ignores_every_cancellation_ends_at_the_deadline():
    refusing = asyncio.create_task(swallow(1000))
    await asyncio.sleep(0)
    assert await end([refusing], within=0.05) == 1
    assert await end([], within=0) == 0
    while not refusing.done():
        refusing.cancel()
        await asyncio.sleep(0)


async def test_a_caller_that_is_cancelled_again_still_waits_for_the_tasks():
    """Otherwise the caller would close an async generator that a task still runs."""
    slow = asyncio.create_task(ends_slowly())
    await asyncio.sleep(0)
    caller = asyncio.create_task(end([slow]))
    for _ in range(3):
        await asyncio.sleep(0)
        caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert slow.done()


async def ends_slowly() -> None:
    """The end of this task takes several turns of the loop, as does the end of a command of the driver."""
    try:
        await asyncio.Event().wait()
    finally:
        for _ in range(20):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)


async def test_work_returns_its_result_unless_the_event_is_set_first():
    async def work() -> int:
        return 7

    stop = asyncio.Event()
    assert await unless_set(stop, work()) == 7
    stop.set()
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    assert await unless_set(stop, wait()) is None
    assert ended.is_set()


async def test_an_error_of_work_is_raised():
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await unless_set(asyncio.Event(), fail())


async def test_a_cancelled_caller_ends_its_work():
    slow = ends_slowly()
    caller = asyncio.create_task(unless_set(asyncio.Event(), slow))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert asyncio.all_tasks() == {asyncio.current_task()}
