"""Reads ahead: further batches are requested while a batch is processed."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import monotonic
from typing import Final

from dispatcher.core.events import EventBatch, Start
from dispatcher.core.stats import Lag
from dispatcher.core.tasks import end
from dispatcher.stream.source import Source

# Minimum number of events in a full batch. After a full batch, the next one is requested at once. A smaller batch
# has the last events of the stream: nothing can be read ahead, and a request costs a millisecond of CPU. So the
# changes of a smaller batch are processed first.
_FULL: Final = 100

# Maximum number of batches that wait while a batch is processed. A server needs several times as long for some
# batches as for others. While it prepares such a batch, the waiting ones are processed.
_WAITING: Final = 2


async def batches_ahead(source: Source, start: Start, lag: Lag) -> AsyncGenerator[EventBatch]:
    """Yield the batches of a source. The batches after a full one are requested before the full one is processed.

    Args:
        lag: informed of each request, each answer and each batch.

    Raises:
        HistoryLost: the source raises it.
        DispatcherError: the source raises it.
    """
    async with aclosing(source.batches(start)) as batches:
        ahead = _Ahead(source, batches, lag)
        try:
            while True:
                batch = await ahead.next()
                count = len(batch.events)
                if count or source.connected:  # a topic that can't be reached yields empty batches
                    lag.note_batch(monotonic(), source.time_of(batch.token).time, count, more=count >= _FULL)
                yield batch
        finally:
            await ahead.end()


class _Ahead:
    """The batches that have been read, and wait."""

    def __init__(self, source: Source, batches: AsyncGenerator[EventBatch], lag: Lag) -> None:
        self._source = source
        self._batches = batches
        self._lag = lag
        self._waiting: deque[EventBatch] = deque()
        self._more = False  # no read is in progress, and the batch of the last read was full
        self._reading: asyncio.Task[None] | None = None
        self._progress = asyncio.Event()

    async def next(self) -> EventBatch:
        """The next batch.

        Raises:
            HistoryLost: the source raised it after the batch before.
            DispatcherError: likewise.
        """
        reading = self._reading
        while not self._waiting and reading is not None and not reading.done():
            self._progress.clear()
            await self._progress.wait()
        if self._waiting:
            batch = self._waiting.popleft()
        else:
            if reading is not None:
                reading.result()  # raises the error of the source
            batch = await self._read()
        if self._more:
            self._reading = asyncio.create_task(self._read_on(), name="read-ahead")
        return batch

    async def _read_on(self) -> None:
        try:
            while self._more and len(self._waiting) < _WAITING:
                self._waiting.append(await self._read())
                self._progress.set()
        finally:
            self._progress.set()

    async def _read(self) -> EventBatch:
        self._more = False
        self._lag.note_request(monotonic())
        batch = await anext(self._batches)
        if batch.events or self._source.connected:
            self._lag.note_answer()
        self._more = len(batch.events) >= _FULL
        return batch

    async def end(self) -> None:
        """End the read in progress."""
        if self._reading is not None:
            try:
                await end([self._reading])
            finally:
                # Read the error of the task, so that asyncio does not warn about it.
                _ = self._reading.cancelled() or self._reading.exception()
