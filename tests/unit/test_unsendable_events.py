"""An event that the server can't send in any shape is reported, wherever the stream begins."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from dispatcher.core.events import EventBatch, Start
from dispatcher.core.resume_tokens import token_at
from dispatcher.core.stats import Stats
from dispatcher.stream.change_stream import ChangeStreamSource
from dispatcher.stream.cursor import Cursors, EventShape
from dispatcher.stream.large_events import WITHOUT
from dispatcher.stream.scope import Scope

TIME = Timestamp(1_700_000_000, 3)
LATER = token_at(Timestamp(1_700_000_000, 9))
TOO_LARGE = 10_334


@pytest.mark.parametrize("start", [Start(token=token_at(TIME)), Start(cluster_time=TIME)])
async def test_a_first_event_that_can_not_be_sent_is_reported_as_lost(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(_self: Cursors, _start: Start, shape: EventShape, *_: Any) -> AsyncGenerator[EventBatch]:
        if shape is not WITHOUT:
            raise OperationFailure("BSONObj size is invalid", TOO_LARGE)
        yield EventBatch([], LATER)

    monkeypatch.setattr(Cursors, "read", read)
    client: AsyncMongoClient[Any] = AsyncMongoClient(connect=False)
    scope = Scope.of([("shop", "orders")])
    source = ChangeStreamSource(client, scope, batch_size=10, address="the server", stats=Stats())
    batch = await anext(source.batches(start))
    assert batch == EventBatch([], LATER, lost_after=token_at(TIME))
