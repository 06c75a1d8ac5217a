"""Reads ahead by one batch: the next batch is requested while the present one is processed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import monotonic
from typing import Final

from dispatcher.core.events import EventBatch, Start
from dispatcher.core.stats import Lag
from dispatcher.core.tasks import end
from dispatcher.stream.source import Source

# Minimum number of events in a full batch. While a full batch is processed, the next batch is requested. A smaller
# batch has the last events of the stream: nothing can be read ahead, and a request costs a millisecond of CPU. So
# the changes of a smaller batch are processed first.
_FULL: Final = 100


async def batches_ahead(source: Source, start: Start, lag: Lag) -> AsyncGenerator[EventBatch]:
    """Yield the batches of a source. The batch after a full one is requested before the full one is processed.

    Args:
        lag: informed of each request and each batch.

    Raises:
        HistoryLost: the source raises it.
        DispatcherError: the source raises it.
    """
    async with aclosing(source.batches(start)) as batches:
        coming: asyncio.Task[EventBatch] | None = None
        try:
            while True:
                batch = await (_next(source, batches, lag) if coming is None else coming)
                full = len(batch.events) >= _FULL
                coming = asyncio.create_task(_next(source, batches, lag), name="read-ahead") if full else None
                yield batch
        finally:
            if coming is not None:
                try:
                    await end([coming])
                finally:
                    # Read the error of the task, so that asyncio does not warn about it.
                    _ = coming.cancelled() or coming.exception()


async def _next(source: Source, batches: AsyncGenerator[EventBatch], lag: Lag) -> EventBatch:
    lag.note_request(monotonic())
    batch = await anext(batches)
    count = len(batch.events)
    if count or source.connected:  # a topic that can't be reached yields empty batches
        lag.note_batch(monotonic(), source.time_of(batch.token).time, count, more=count >= _FULL)
    return batch
