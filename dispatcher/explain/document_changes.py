"""Reads the past changes of one document from the oplog, as a dispatcher reads them.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from bson.codec_options import CodecOptions
from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient

from dispatcher.core.events import DELIVERABLE, Change, Namespace, Start
from dispatcher.core.oplog import look_at_oplog, time_of_newest_write
from dispatcher.core.partitions import HASH
from dispatcher.core.resume_tokens import time_after, token_at, token_of
from dispatcher.core.state import State
from dispatcher.core.stats import Stats
from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import HistoryLost, NotFound
from dispatcher.stream.bounded import until
from dispatcher.stream.change_stream import ChangeStreamSource
from dispatcher.stream.cursor import Cursors
from dispatcher.stream.lookup import DocumentLookup
from dispatcher.stream.reader import LostEvent, Reader, UnreadableEvent
from dispatcher.stream.scope import scope_of
from mongoz.synonyms import nearest

# Milliseconds that the server waits for further changes.
_AWAIT_MS: Final = 100

# Operations of changes that are listed. `"deferred"` is missing, because it is a placeholder: the change itself
# follows later, with its own operation.
_LISTED: Final = DELIVERABLE | {"untouched"}


class WantedDocument(NamedTuple):
    """The document in question.

    Attributes:
        keys: all `_id`s that the text in the command can mean.
        since: the cluster time since which changes are listed.
    """

    namespace: Namespace
    keys: Sequence[Any]
    since: Timestamp


class PastChange(NamedTuple):
    """A change of the document.

    Attributes:
        change: the change with its origin and its document; None if the event can't be decoded.
        token: the token of the change's event.
        hashed: the hash of the `_id`.
        time: the cluster time.
    """

    change: Change | None
    token: str
    hashed: int
    time: Timestamp


async def changes_of(
    watching: AsyncMongoClient[Any],
    state: State,
    routes: Routes,
    wanted: WantedDocument,
    codec_options: CodecOptions[Any],
) -> list[PastChange]:
    """The changes of a document until now, in the order of the commits.

    Args:
        watching: the client for change streams.
        routes: the receivers of the application.

    Raises:
        NotFound: the application has no receivers of the collection.
        HistoryLost: the oplog does not reach back to `wanted.since`.
    """
    scope = scope_of(routes)
    if not scope.covers(wanted.namespace):
        raise _not_watched(routes, wanted.namespace)
    scope = scope._replace(hashed=True)
    cursors = Cursors(watching, scope.database, scope.pipeline(), 1)
    # Reading ends at the newest write, not at a token of this moment. On a quiet server, a stream reaches such a
    # token only with the server's next no-op, up to ten seconds later.
    end = token_at(await time_of_newest_write(watching))
    if not await cursors.reaches_back_to(wanted.since):
        raise await _too_far_back(state, wanted.since)
    source = ChangeStreamSource(
        watching,
        scope,
        batch_size=100,
        address=state.address,
        stats=Stats(),
        await_ms=_AWAIT_MS,
        only=_filter(wanted),
    )
    reader = Reader(
        source,
        DocumentLookup(state.client, codec_options, state.address),
        group=routes.group,
        codec_options=codec_options,
    )
    begin = token_at(wanted.since)
    await reader.recall(begin)
    found: list[PastChange] = []
    known: dict[str, tuple[int, Timestamp]] = {}
    async with (
        aclosing(source.batches(Start(cluster_time=wanted.since))) as endless,
        aclosing(until(endless, time_after(end))) as batches,
    ):
        async for batch in batches:
            known |= {token_of(one["_id"]): (one.get(HASH, 0), one["clusterTime"]) for one in batch.events}
            async for part in reader.read(batch):
                found += _listed(part, known)
    return [*found, *_listed(reader.rest(), known)]


def _listed(
    part: list[Change] | UnreadableEvent | LostEvent, known: Mapping[str, tuple[int, Timestamp]]
) -> list[PastChange]:
    if isinstance(part, UnreadableEvent):
        return [PastChange(None, part.error.token, *known[part.error.token])]
    if isinstance(part, LostEvent):
        return []
    return [PastChange(one, one.token, *known[one.token]) for one in part if one.operation in _LISTED]


def _filter(wanted: WantedDocument) -> dict[str, Any]:
    """Matches the changes of the document. Also matches `invalidate`: after this event, the stream opens again."""
    database, collection = wanted.namespace
    of_document = {"ns.db": database, "ns.coll": collection, "documentKey._id": {"$in": [*wanted.keys]}}
    return {"$or": [of_document, {"operationType": "invalidate"}]}


def _not_watched(routes: Routes, namespace: Namespace) -> NotFound:
    name, names = ".".join(namespace), [".".join(one) for one in routes.namespaces]
    patterns = "".join(f", {one}" for one in routes.patterns)
    return NotFound(
        f"The application has no receivers of the collection {name}, or none that a dispatcher may run."
        f"{nearest(name, names)}",
        remedy=f"It has receivers of {', '.join(names)}{patterns}. If APP does not import the module of the "
        "receivers, add the module with --import.",
    )


async def _too_far_back(state: State, since: Timestamp) -> HistoryLost:
    oplog = await look_at_oplog(state.client)
    begin = None if oplog is None else datetime.fromtimestamp(oplog.begins, UTC)
    reach = "" if begin is None else f": it reaches back to {begin:%Y-%m-%dT%H:%M:%SZ}"
    return HistoryLost(
        f"The oplog at {state.address} does not hold the changes since {since.as_datetime():%Y-%m-%dT%H:%M:%SZ}"
        f"{reach}.",
        remedy="Choose a later --since.",
    )
