"""Many items become a few commands."""

import asyncio

import pytest

from dispatcher.core.batching import Batcher
from tests.support import PATIENCE


class Command:
    """A command that takes a turn of the loop, and answers with ten times the item.

    Attributes:
        batches: the items of each call.
    """

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        await asyncio.sleep(0)
        return [item * 10 if item >= 0 else ValueError(item) for item in items]

    __name__ = "command"


async def test_items_of_the_same_turn_form_one_batch_and_each_gets_its_answer():
    command = Command()
    batcher: Batcher[int, int] = Batcher(command, at_once=1)
    answers = await asyncio.gather(*map(batcher.add, (1, -2, 3)), return_exceptions=True)
    assert (answers[0], answers[2]) == (10, 30)
    assert isinstance(answers[1], ValueError)
    assert command.batches == [[1, -2, 3]]


async def test_items_that_arrive_during_a_batch_form_the_next_batch():
    command = Command()
    batcher: Batcher[int, int] = Batcher(command, at_once=1, most=2)
    first = asyncio.create_task(batcher.add(1))
    while not command.batches:
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*map(batcher.add, (2, 3, 4))) == [20, 30, 40]
    assert await first == 10
    assert command.batches == [[1], [2, 3], [4]]


@pytest.mark.parametrize("at_once", [1, 3])
async def test_an_item_that_is_added_right_after_an_answer_gets_an_answer_too(at_once):
    """The task of the last batch has ended, and its callback has not run yet."""
    batcher: Batcher[int, int] = Batcher(Command(), at_once=at_once)

    async def several() -> list[int]:
        return [await batcher.add(number) for number in range(5)]

    async with asyncio.timeout(PATIENCE):
        assert await several() == [0, 10, 20, 30, 40]
