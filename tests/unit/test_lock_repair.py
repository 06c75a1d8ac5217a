"""A task that is cancelled while it waits for a server does not release PyMongo's lock of another task."""

import asyncio

import pytest
from pymongo import lock as pymongo_lock

import mongoz  # noqa: F401 - it repairs the wait
from tests.support import eventually


async def test_a_cancelled_wait_for_a_server_does_not_release_the_lock_of_another_task() -> None:
    lock = pymongo_lock._async_create_lock()
    condition = pymongo_lock._async_create_condition(lock)

    async def select() -> None:
        async with lock:
            await pymongo_lock._async_cond_wait(condition, 0.01)

    selecting = asyncio.create_task(select())
    await asyncio.sleep(0)  # the task waits now; this test continues before the wait times out
    assert condition._waiters
    await lock.acquire()
    await eventually(lambda: not condition._waiters, what="the wait times out, and needs the lock again")
    selecting.cancel()
    await asyncio.sleep(0)
    assert lock.locked()
    lock.release()
    with pytest.raises(asyncio.CancelledError):
        await selecting
    assert not lock.locked()
