"""Shows an operator what a replay would deliver. Nothing is written, and no receiver is called.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from contextlib import aclosing, suppress
from typing import Any, Final, NamedTuple

from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from dispatcher.core.clients import Clients
from dispatcher.core.driver_errors import Kind, kind_of
from dispatcher.core.events import Start
from dispatcher.core.oplog import time_of_newest_write
from dispatcher.core.resume_tokens import time_after, token_at
from dispatcher.delivery.application import group_of, routes_of
from dispatcher.settings import Settings
from dispatcher.stream.bounded import until as bounded
from dispatcher.stream.cursor import Cursors, EventShape
from dispatcher.stream.scope import Scope, scope_of
from mongoz import Registry

# Seconds to count changes. An operator waits for the number.
_COUNTING: Final = 2.0

# Milliseconds that the server waits for further changes, and maximum number of changes per round trip.
_AWAIT_MS: Final = 100
_MOST: Final = 10_000

# The server sends only the tokens of the changes.
_TOKENS: Final = EventShape({}, ({"$project": {"_id": 1}},), await_ms=_AWAIT_MS)


class ReplayPreview(NamedTuple):
    """What a replay for all receivers would deliver.

    Attributes:
        receivers: the collection, the signal and the name of each receiver.
        changes: the number of changes in the range, for all these receivers together; None if the oplog does not
            reach back to the beginning of the range.
        counted_all: whether all changes were counted; False if the count took too long and was stopped, or if
            `changes` is None.
    """

    receivers: list[tuple[str, str, str]]
    changes: int | None
    counted_all: bool


async def preview_replay(
    registry: Registry, settings: Settings, since: Timestamp, until: Timestamp | None
) -> ReplayPreview:
    """List the receivers of a replay, and count its changes in the oplog.

    Args:
        registry: the registry of the application, with all receivers connected.
        since: the start of the range.
        until: the end of the range; None for now.
    """
    clients, routes = Clients(registry, settings), routes_of(registry, settings, group_of(registry, settings))
    async with clients.patient_client() as client:
        await clients.check(client)
    async with clients.watching_client() as watching:
        try:
            changes, counted_all = await _count(watching, scope_of(routes), since, until)
        except PyMongoError as error:
            if kind_of(error) is not Kind.HISTORY_LOST:
                raise clients.verdict(error) from error
            changes, counted_all = None, False
    receivers = [
        (listener.document.meta.collection.namespace, signal, receiver.name)
        for listener in routes.listeners
        for signal, receivers in listener.receivers.items()
        for receiver in receivers
    ]
    return ReplayPreview(receivers, changes, counted_all)


async def _count(
    watching: AsyncMongoClient[Any], scope: Scope, since: Timestamp, until: Timestamp | None
) -> tuple[int, bool]:
    newest = await time_of_newest_write(watching)
    end = time_after(token_at(newest if until is None else min(until, newest)))
    cursors = Cursors(watching, scope.database, scope.pipeline(), _MOST)
    changes = 0
    with suppress(TimeoutError):
        async with (
            asyncio.timeout(_COUNTING),
            aclosing(cursors.read(Start(cluster_time=since), _TOKENS)) as endless,
            aclosing(bounded(endless, end)) as batches,
        ):
            async for batch in batches:
                changes += len(batch.events)
            return changes, True
    return changes, False
