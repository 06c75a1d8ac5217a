"""The batch size of the cursor."""

from contextlib import aclosing

import pytest
from pymongo import AsyncMongoClient

from dispatcher.core.events import Start
from dispatcher.stream.cursor import Cursors
from dispatcher.stream.large_events import SINGLY, WHOLE


async def sizes(cursors, start, shape, total):
    """The number of events in each answer that has events, until `total` events have arrived."""
    found = []
    async with aclosing(cursors.read(start, shape)) as batches:
        async for batch in batches:
            if batch.events:
                found.append(len(batch.events))
            if sum(found) == total:
                return found


@pytest.mark.slow
async def test_the_batch_size_grows_while_the_stream_is_behind(mongo, foreign):
    """The first batch is small, because a server answers a large request late while other clients write."""
    async with AsyncMongoClient(mongo.url) as client:
        cursors = Cursors(client, foreign.name, [], 1_000)
        start = Start(await cursors.now())
        foreign["users"].insert_many([{"number": number} for number in range(3_000)])
        assert await sizes(cursors, start, WHOLE, 3_000) == [100, 400, 1_000, 1_000, 500]
        cursors.batch_size = 150
        assert (await sizes(cursors, start, WHOLE, 3_000))[:3] == [100, 150, 150]
        assert (await sizes(cursors, start, SINGLY, 3_000))[:3] == [1, 1, 1]


async def test_the_batch_size_shrinks_after_catching_up(mongo, foreign):
    async with AsyncMongoClient(mongo.url) as client:
        cursors = Cursors(client, foreign.name, [], 1_000)
        start = Start(await cursors.now())
        foreign["users"].insert_many([{"number": number} for number in range(450)])
        found = []
        async with aclosing(cursors.read(start, WHOLE)) as batches:
            async for batch in batches:
                found.append(len(batch.events))
                if found == [100, 350]:
                    foreign["users"].insert_many([{"number": number} for number in range(450)])
                if sum(found) == 900:
                    break
        assert [size for size in found if size] == [100, 350, 100, 350]
