"""The number of concurrent transactions of one receiver adapts to conflicts."""

import asyncio

import pytest

from dispatcher.pace.contention import Contention


class Transactions:
    """Runs transactions and ends them on request."""

    def __init__(self, contention: Contention) -> None:
        self.contention = contention
        self.running: dict[int, asyncio.Future[bool]] = {}
        self.started: list[int] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def start(self, *numbers: int) -> None:
        for number in numbers:
            self.tasks[number] = asyncio.create_task(self._run(number))
        await self.settle()

    async def _run(self, number: int) -> None:
        async with self.contention.place() as place:
            self.started.append(number)
            end = self.running[number] = asyncio.get_running_loop().create_future()
            try:
                conflict = await end
            finally:
                del self.running[number]
            if conflict:
                self.contention.conflicted(place)
            else:
                self.contention.committed()

    async def end(self, *numbers: int, conflict: bool = False) -> None:
        for number in numbers:
            self.running[number].set_result(conflict)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


@pytest.fixture
async def some():
    made = Transactions(Contention())
    yield made
    await made.close()


async def test_commits_double_the_limit_until_the_first_conflict(some):
    await some.start(*range(200))
    assert len(some.running) == 8
    for expected in (16, 32, 64):
        await some.end(*some.running)
        assert some.contention.limit == expected
    assert some.started == sorted(some.started)  # in the order of the requests


async def test_conflicts_of_concurrent_transactions_count_as_one(some):
    await some.start(*range(30))
    await some.end(*list(some.running), conflict=True)
    assert some.contention.limit == pytest.approx(8 * 0.7)
    assert len(some.running) == 5  # the new limit is 5.6
    await some.end(next(iter(some.running)), conflict=True)
    assert some.contention.limit == pytest.approx(8 * 0.7**2)


async def test_after_a_conflict_commits_raise_the_limit_slowly(some):
    await some.start(*range(30))
    await some.end(0, conflict=True)
    before = some.contention.limit
    await some.end(*list(some.running))
    assert before + 1 < some.contention.limit < before + 3


async def test_at_least_one_transaction_runs(some):
    await some.start(*range(100))
    while some.running:
        await some.end(next(iter(some.running)), conflict=True)
    assert some.contention.limit == 1
    assert len(some.started) == 100


async def test_few_transactions_do_not_raise_a_limit_that_they_do_not_reach(some):
    for number in range(100):
        await some.start(number)
        await some.end(number)
    assert some.contention.limit == 8


async def test_a_cancelled_transaction_gives_its_place_to_the_next(some):
    await some.start(*range(10))
    for number in (3, 8):  # 3 is running, and 8 is waiting
        some.tasks[number].cancel()
    await some.settle()
    assert some.started == [0, 1, 2, 3, 4, 5, 6, 7, 9]


async def test_a_place_given_to_a_cancelled_transaction_is_not_lost(some):
    await some.start(*range(10))
    some.running[0].set_result(False)
    await asyncio.sleep(0)  # transaction 8 gets the place, and is cancelled before it starts
    some.tasks[8].cancel()
    await some.settle()
    assert 9 in some.running
