"""Lanes: order per key, bounds, and stopping."""

import asyncio
import time
from collections import defaultdict
from functools import partial

import pytest
import uvloop
from bson import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.events import Calls, Change, Errand, Job
from dispatcher.delivery.capacity import Bounds, Capacity
from dispatcher.delivery.lanes import Lanes
from tests.support import PATIENCE

TIME = Timestamp(1, 1)


def job(number: int, size: int = 1) -> Job:
    change = Change(
        f"{number:06}", "insert", ("d", "c"), number, TIME, None, {}, None, "post", frozenset(), None, size
    )
    return Job(change.token, change, (Calls(None, "post_save", True, ()),))


class Made(Lanes):
    """Lanes with a capacity."""

    def __init__(self, work, *, finished=None, concurrency=4, max_queued=1000, max_bytes=10**6, **more) -> None:
        self.capacity = Capacity(Bounds(concurrency, max_queued, max_bytes))
        super().__init__(self.capacity, work, on_finished=finished or (lambda _job: None), **more)

    async def stop(self, grace: float) -> int:
        cut = await super().stop(grace)
        assert self.crash is None
        return cut


lanes = Made


@given(
    keys=st.lists(st.integers(0, 5), max_size=300),
    turns=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    concurrency=st.integers(1, 8),
)
def test_jobs_of_one_key_run_in_order_and_one_at_a_time(keys, turns, concurrency):
    """Jobs wait for 0 to 3 turns of the loop, mixed at random."""
    seen: dict[int, list[int]] = defaultdict(list)
    busy: set[int] = set()
    most = 0

    async def work(one: Job) -> None:
        nonlocal most
        number = int(one.token)
        key = keys[number]
        assert key not in busy
        busy.add(key)
        most = max(most, len(busy))
        for _ in range(turns[number % len(turns)]):
            await asyncio.sleep(0)
        seen[key].append(number)
        busy.discard(key)

    async def main() -> None:
        made = lanes(work, concurrency=concurrency)
        for number, key in enumerate(keys):
            made.add(key, job(number))
        await made.capacity.idle()
        assert made.capacity.in_flight == made.capacity.queued == made.capacity.queued_bytes == 0
        await made.stop(1)

    asyncio.run(main())
    assert sum(map(len, seen.values())) == len(keys)
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert most <= concurrency


async def test_as_many_jobs_run_at_a_time_as_the_limit_allows():
    gate, running = asyncio.Event(), 0

    async def work(_job: Job) -> None:
        nonlocal running
        running += 1
        await gate.wait()

    made = lanes(work, concurrency=10)
    for number in range(30):
        made.add(number, job(number))
    for _ in range(20):
        await asyncio.sleep(0)
    assert running == made.capacity.in_flight == 10
    gate.set()
    await made.capacity.idle()
    assert running == 30
    await made.stop(1)


async def test_a_busy_key_does_not_delay_other_keys():
    gate, done = asyncio.Event(), []

    async def work(one: Job) -> None:
        if one.token == "000000":
            await gate.wait()
        done.append(one.token)

    made = lanes(work, concurrency=2)
    for number in range(5):
        made.add("hot", job(number))
    made.add("cold", job(9))
    while not done:
        await asyncio.sleep(0)
    assert done == ["000009"]
    gate.set()
    await made.capacity.idle()
    assert done == ["000009", "000000", "000001", "000002", "000003", "000004"]
    await made.stop(1)


@pytest.mark.parametrize(("max_queued", "max_bytes", "fits"), [(3, 10**6, 3), (1000, 25, 3), (1000, 1, 1)])
async def test_queues_are_bounded_by_number_and_by_bytes(max_queued, max_bytes, fits):
    gate = asyncio.Event()

    async def work(_job: Job) -> None:
        await gate.wait()

    made = lanes(work, max_queued=max_queued, max_bytes=max_bytes)
    accepted = 0
    while not made.capacity.full:
        made.add(accepted, job(accepted, size=10))
        accepted += 1
    assert accepted == fits
    waiting = asyncio.create_task(made.capacity.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    await waiting
    assert not made.capacity.full
    await made.capacity.idle()
    await made.stop(1)


async def test_a_stop_finishes_jobs_in_flight_and_begins_no_further_job():
    gate, begun, finished = asyncio.Event(), [], []

    async def work(one: Job) -> None:
        begun.append(one.token)
        await gate.wait()

    made = lanes(work, concurrency=2, finished=lambda one: finished.append(one.token))
    for number in range(6):
        made.add(number % 3, job(number))
    while len(begun) < 2:
        await asyncio.sleep(0)
    stopping = asyncio.create_task(made.stop(5))
    await asyncio.sleep(0)
    gate.set()
    assert await stopping == 0
    assert finished == begun == ["000000", "000001"]


async def test_a_job_that_outlasts_the_grace_period_is_cancelled_and_not_finished():
    finished = []

    async def work(_job: Job) -> None:
        await asyncio.Event().wait()

    made = lanes(work, finished=finished.append)
    made.add("a", job(1))
    while not made.capacity.in_flight:
        await asyncio.sleep(0)
    assert await made.stop(0.01) == 1
    assert finished == []


async def test_an_error_of_a_job_is_reported():
    async def work(_job: Job) -> None:
        raise RuntimeError("a bug")

    made = lanes(work)
    made.add("a", job(1))
    async with asyncio.timeout(PATIENCE):
        await made.crashed.wait()
    assert str(made.crash) == "a bug"
    await Lanes.stop(made, 0)


async def test_the_event_loop_runs_other_tasks_under_load():
    """Receivers that never wait do not starve timers, sockets and signals."""
    turns = 0

    async def work(_job: Job) -> None:
        return

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count_turns())
    made = lanes(work, max_queued=10**6)
    for number in range(5_000):
        made.add(number, job(number))
    await made.capacity.idle()
    assert turns >= 40
    counter.cancel()
    await made.stop(1)


@given(
    pauses=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    keys=st.integers(1, 20),
    concurrency=st.integers(1, 4),
)
def test_jobs_that_pause_keep_their_order_and_the_limit_of_concurrent_jobs(pauses, keys, concurrency):
    """During a pause of a job, jobs of other keys run within the limit."""
    seen: dict[int, list[int]] = defaultdict(list)
    busy: set[int] = set()
    running = most = 0

    async def work(one: Job) -> None:
        nonlocal running, most
        number = int(one.token)
        assert number % keys not in busy
        busy.add(number % keys)
        running += 1
        most = max(most, running)
        for _ in range(pauses[number]):
            await asyncio.sleep(0)
            running -= 1
            await made.capacity.pause(0)
            running += 1
            most = max(most, running)
        running -= 1
        seen[number % keys].append(number)
        busy.discard(number % keys)

    async def main() -> None:
        nonlocal made
        made = lanes(work, concurrency=concurrency)
        for number in range(len(pauses)):
            made.add(number % keys, job(number))
        async with asyncio.timeout(PATIENCE):
            await made.capacity.idle()
        assert made.capacity.in_flight == made.capacity.queued == 0
        await made.stop(1)

    made: Lanes = None  # type: ignore[assignment]
    asyncio.run(main())
    assert sum(map(len, seen.values())) == len(pauses)
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert most <= concurrency


def test_a_pause_is_not_shorter_than_requested():
    """The timers of uvloop have whole milliseconds."""

    async def pauses() -> list[float]:
        capacity, seconds = Capacity(Bounds(1, 1, 1)), []
        for _ in range(20):
            began = time.monotonic()
            await capacity.pause(0.0014)
            seconds.append(time.monotonic() - began)
        return seconds

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert min(runner.run(pauses())) >= 0.0014


async def test_another_job_runs_while_a_job_pauses():
    """Only one job runs at a time. A job whose pause is over continues before new jobs begin."""
    order: list[str] = []

    async def work(one: Job) -> None:
        order.append(f"{int(one.token)} begins")
        if one.token.endswith("0"):
            await made.capacity.pause(0.01)
        else:
            await asyncio.sleep(0.03)
        order.append(f"{int(one.token)} ends")

    made = lanes(work, concurrency=1)
    for number in range(3):
        made.add(number, job(number))
    await made.capacity.idle()
    assert order == ["0 begins", "1 begins", "1 ends", "0 ends", "2 begins", "2 ends"]
    await made.stop(1)


async def test_after_the_grace_period_receivers_are_cancelled_and_writes_finish():
    """So the result of a finished delivery is recorded."""
    calling: set[asyncio.Task] = set()
    written, finished = asyncio.Event(), []

    async def work(one: Job) -> None:
        if one.token == "000000":
            calling.add(asyncio.current_task())
            try:
                await asyncio.Event().wait()
            finally:
                written.set()  # the answer of the server arrives only now
        await written.wait()

    def finish(one: Job) -> None:
        one.change = None
        finished.append(one.token)

    made = lanes(work, finished=finish, can_be_cut=lambda task: task in calling)
    for number in range(2):
        made.add(number, job(number))
    while made.capacity.in_flight < 2:
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        assert await made.stop(0) == 2
    assert finished == ["000001"]
    assert [one.token for one in made.begun] == ["000000"]


async def test_an_errand_reports_its_end_even_if_its_worker_is_replaced():
    told: list[int] = []
    stuck = asyncio.Event()

    async def hang() -> None:
        stuck.set()
        await asyncio.Event().wait()

    made = lanes(lambda errand: errand.run())
    made.add(0, Errand(hang, partial(told.append, 0)))
    made.add(1, Errand(partial(asyncio.sleep, 0), partial(told.append, 1)))
    await stuck.wait()
    while not told:
        await asyncio.sleep(0)
    assert told == [1]
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "lane-worker-0"]
    made.replace(task, partial(asyncio.sleep, 0))
    while len(told) < 2:
        await asyncio.sleep(0)
    assert told == [1, 0]
    task.cancel()
    await made.stop(1)


async def test_a_stop_interrupts_pauses_immediately():
    """A paused job is not finished, and does not count as cancelled."""
    finished: list[Job] = []
    paused: list[Job] = []

    async def work(one: Job) -> None:
        paused.append(one)
        await made.capacity.pause(60)

    made = lanes(work, finished=finished.append, concurrency=2)
    for number in range(5):
        made.add(number, job(number))
    while len(paused) < 5:
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        assert await made.stop(30) == 0
    assert finished == []
    assert made.capacity.in_flight == 0


def test_deliveries_that_wait_for_claims_take_bytes_but_no_places_of_the_queue():
    capacity = Capacity(Bounds(concurrency=1, max_queued=10, max_bytes=1_000))
    capacity.waiting, capacity.queued_bytes = 500, 900
    assert not capacity.full
    assert capacity.crowded
    capacity.queued_bytes = 1_000
    assert capacity.full
