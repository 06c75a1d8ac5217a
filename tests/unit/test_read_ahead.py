"""Batches are read ahead of their processing, in their order, and only a few."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from bson import Timestamp

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import EventBatch, Start
from dispatcher.core.stats import Lag
from dispatcher.exceptions import HistoryLost
from dispatcher.stream.read_ahead import batches_ahead

FULL, SMALL, EMPTY = 100, 99, 0
EVENT = RawEvent(b"\5\0\0\0\0")


class Planned:
    """A source whose batches have the given sizes. An error in the place of a size is raised.

    Attributes:
        read: the number of batches that were read.
        waits: cleared, so that the next read waits; set, so that it ends.
    """

    connected = True

    def __init__(self, *sizes: int | Exception) -> None:
        self._sizes = sizes
        self.read = 0
        self.ended = False
        self.may_read = asyncio.Event()
        self.may_read.set()

    def time_of(self, position: str) -> Timestamp:
        return Timestamp(int(position), 1)

    async def batches(self, start: Start) -> AsyncGenerator[EventBatch]:
        try:
            for size in self._sizes:
                await self.may_read.wait()
                await asyncio.sleep(0)
                if isinstance(size, Exception):
                    raise size
                self.read += 1
                yield EventBatch([EVENT] * size, str(self.read))
            await asyncio.Event().wait()
        finally:
            self.ended = True


async def turns() -> None:
    """Lets all tasks go on until they wait."""
    for _ in range(50):
        await asyncio.sleep(0)


def reading(source: Any, lag: Lag | None = None) -> Any:
    return aclosing(batches_ahead(source, Start(token="0"), lag or Lag()))


async def taken(source: Any, count: int) -> list[str]:
    async with reading(source) as batches:
        return [(await anext(batches)).token for _ in range(count)]


@pytest.mark.parametrize("sizes", [[FULL] * 8, [SMALL] * 8, [FULL, FULL, SMALL, FULL, EMPTY, EMPTY, FULL, SMALL]])
async def test_all_batches_come_in_their_order(sizes: Sequence[int]) -> None:
    assert await taken(Planned(*sizes), 8) == [str(number) for number in range(1, 9)]


async def test_two_batches_wait_while_a_full_one_is_processed() -> None:
    source = Planned(*[FULL] * 10)
    async with reading(source) as batches:
        for number in range(1, 6):
            await anext(batches)
            await turns()
            assert source.read == number + 2


async def test_nothing_is_requested_while_a_small_batch_or_a_batch_before_it_is_processed() -> None:
    source = Planned(FULL, SMALL, EMPTY, FULL, FULL)
    async with reading(source) as batches:
        for read in (2, 2, 3, 5):
            await anext(batches)
            await turns()
            assert source.read == read


async def test_a_reader_that_comes_early_waits_for_the_batch() -> None:
    source = Planned(FULL, FULL, FULL)
    async with reading(source) as batches:
        await anext(batches)
        source.may_read.clear()
        coming = asyncio.create_task(anext(batches))
        await turns()
        assert not coming.done()
        source.may_read.set()
        assert (await coming).token == "2"


@pytest.mark.parametrize("before", [[FULL], [FULL, FULL], [FULL, SMALL], [SMALL], []])
async def test_an_error_comes_after_the_batches_before_it(before: Sequence[int]) -> None:
    source = Planned(*before, HistoryLost("lost"), FULL)
    async with reading(source) as batches:
        for number in range(len(before)):
            assert (await anext(batches)).token == str(number + 1)
            await turns()
        with pytest.raises(HistoryLost, match="lost"):
            await anext(batches)
    assert source.ended


@pytest.mark.parametrize("is_reading", [True, False])
async def test_the_end_ends_the_read_and_closes_the_source(is_reading: bool) -> None:
    source = Planned(*[FULL] * 5)
    async with reading(source) as batches:
        await anext(batches)
        if is_reading:
            source.may_read.clear()
        await turns()
    assert source.ended
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "read-ahead"]


async def test_an_error_that_nobody_takes_causes_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with reading(Planned(FULL, RuntimeError("nobody takes it"))) as batches:
        await anext(batches)
        await turns()
    assert caplog.records == []


async def test_batches_that_wait_count_as_unread_and_the_source_is_not_silent() -> None:
    source, lag = Planned(*[FULL] * 10), Lag()
    async with reading(source, lag) as batches:
        await anext(batches)
        await turns()
        assert source.read == 3
        assert lag.silent(1e9) == 0.0
        assert lag.unread(0.0, 10.0) == 9.0  # the first batch ends at second 1
