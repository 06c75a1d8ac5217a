"""Existing documents through `post_save` receivers, as `post_save(created=False)`.

Each collection is read in the order of its `_id`s, slice by slice, so that nothing has to stay open on the server
however slow receivers are, and a run goes on where it was.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import bson
from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.max_key import MaxKey
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from dispatcher.codec import RAW, lenient
from dispatcher.conditions import Refused, wanted
from dispatcher.decode import Undecodable, decode
from dispatcher.events import Change, Namespace
from dispatcher.exceptions import NothingToDeliver
from dispatcher.failures import Kind, fatal, in_short, kind_of
from dispatcher.observe import get_logger
from dispatcher.playback import Outcome, Playback, Step, Workplace
from dispatcher.routing import Routes
from dispatcher.runs import Run
from dispatcher.source import pause_after
from dispatcher.watched import watched_collections

__all__ = ["Backfill", "Found", "collections_of", "documents", "start"]

log = get_logger()

# Documents read at once: at most, and before their size is known; and the bytes to aim for.
_MOST: Final = 500
_FIRST: Final = 32
_BYTES: Final = 4_000_000

# Documents are only looked into for their `_id`; the rest need not be understood.
_RAW: Final = lenient(RAW)

_LAST: Final = bson.encode({"": MaxKey()})

# Whoever is told of a document that is there already.
_SIGNALS: Final = ("post_save",)


class Found(NamedTuple):
    """A document as it was read.

    Attributes:
        row: all of it.
        time: cluster time of the reading.
        wall: the same, roughly, as a date.
    """

    row: RawBSONDocument
    time: Timestamp
    wall: datetime


async def collections_of(client: AsyncMongoClient[Any], routes: Routes) -> list[Namespace]:
    """The collections with documents that somebody is to be told of, sorted.

    Raises:
        PyMongoError: as the driver has it.
    """
    try:
        watched = await watched_collections(client, routes)
    except OperationFailure as error:
        if kind_of(error) is not Kind.NO_ACCESS or routes.patterns:
            raise
        return sorted(routes.namespaces)  # which of them exist is not ours to know
    return sorted(one.namespace for one in watched if one.kind == "collection")


async def documents(
    client: AsyncMongoClient[Any], namespace: Namespace, last: bytes | None, address: str
) -> AsyncIterator[list[Found]]:
    """The documents of a collection in the order of their `_id`s, whatever types these have.

    Args:
        client: opened for the running loop.
        namespace: of the collection.
        last: begin behind this `_id`, as BSON: {"": _id}.
        address: of the server, for messages.

    Raises:
        DispatcherError: what no repetition can mend.
    """
    size, failures = _FIRST, 0
    collection = client[namespace[0]].get_collection(
        namespace[1], codec_options=_RAW, read_concern=ReadConcern("majority")
    )
    while True:
        try:
            async with client.start_session() as session:
                # A comparison would only find `_id`s of the same type.
                cursor = collection.find({}, sort=[("_id", 1)], hint=[("_id", 1)], limit=size + 1, session=session)
                if last is not None:
                    cursor = cursor.min([("_id", RawBSONDocument(last)[""])])
                rows: list[RawBSONDocument] = await cursor.to_list(None)
                if last not in (None, _LAST) and len(rows) <= size:
                    # What begins somewhere ends before the very last key that there can be.
                    rows += await collection.find({"_id": MaxKey()}, session=session).to_list(None)
                time = session.operation_time or Timestamp(1, 1)
        except PyMongoError as error:
            verdict = fatal(error, address)
            if verdict is not None:
                raise verdict from error
            failures += 1
            log.warning(
                "documents can't be read now, trying again",
                action="backfill.not_read",
                namespace=".".join(namespace),
                error=in_short(error),
            )
            await asyncio.sleep(pause_after(failures))
            continue
        failures = 0
        ended = len(rows) <= size or last == _LAST
        if rows and last is not None and key_of(rows[0]) == last:
            rows = rows[1:]
        rows = rows if ended else rows[:size]
        if rows:
            wall = datetime.fromtimestamp(time.time, UTC)
            yield [Found(row, time, wall) for row in rows]
            last = key_of(rows[-1])
            size = max(1, min(_MOST, _BYTES * len(rows) // max(1, sum(len(row.raw) for row in rows))))
        if ended:
            return


def key_of(row: RawBSONDocument) -> bytes:
    """The `_id` of a document, as BSON: {"": _id}."""
    return bson.encode({"": row["_id"]})


def change_of(found: Found, namespace: Namespace, run: Run, codec_options: CodecOptions[Any]) -> Change:
    """What receivers are told of an existing document.

    Raises:
        Undecodable: it contains a value that has no Python counterpart. It carries what stands for the event.
    """
    return decode(RawBSONDocument(event_of(found, namespace, run)), codec_options)._replace(image="current")


def event_of(found: Found, namespace: Namespace, run: Run) -> bytes:
    """A document, as if it had been replaced when it was read.

    What stands for a token is the same whenever the run comes to it.
    """
    digest = blake2b(".".join(namespace).encode() + b"\0" + key_of(found.row), digest_size=12).hexdigest().upper()
    token = f"82{run.at.time:08X}{run.at.inc:08X}FF{digest}"
    return bson.encode(
        {
            "_id": {"_data": token},
            "operationType": "replace",
            "clusterTime": found.time,
            "wallTime": found.wall,
            "ns": {"db": namespace[0], "coll": namespace[1]},
            "documentKey": {"_id": found.row["_id"]},
            "fullDocument": found.row,
        }
    )


class Backfill:
    """One backfill that is ready to be worked on.

    Attributes:
        playback: works on it.
        total: how many documents there are, as the server estimates it.
        seen: how many were read, those of earlier processes not included.
    """

    def __init__(self, place: Workplace, playback: Playback, receivers: Sequence[str], total: int) -> None:
        self.playback = playback
        self.total = total
        self.seen = 0
        self._place = place
        self._routes = place.routes.narrowed(place.chosen(receivers, _SIGNALS), playback.run.id)

    async def work(self, stop: asyncio.Event) -> Outcome:
        """Deliver everything, unless `stop` is set before.

        Raises:
            DispatcherError: what no repetition can mend. What is done is written down.
        """
        async with aclosing(self._steps()) as steps:
            return await self.playback.work(steps, stop)

    async def _steps(self) -> AsyncGenerator[Step]:
        place, run = self._place, self.playback.run
        conditions = await place.conditions(self._routes)
        done: list[str] = list(run.progress.get("done", ()))
        for namespace in await collections_of(place.client, self._routes):
            name = ".".join(namespace)
            if name in done:
                continue
            last = run.progress.get("last") if run.progress.get("namespace") == name else None
            async for slice_ in documents(place.client, namespace, last and bytes(last), place.address):
                self.seen += len(slice_)
                changes = [self._step(found, namespace, done) for found in slice_]
                refused: Refused = {}
                if conditions is not None:
                    refused = await conditions.refused(
                        [step.change for step in changes if step.change is not None]
                    )
                for step in changes:
                    if step.change is not None and step.change.token in refused:
                        yield step._replace(calls=wanted(step.calls, refused[step.change.token]))
                    else:
                        yield step
            done = [*done, name]
            yield Step(None, (), {"done": done})

    def _step(self, found: Found, namespace: Namespace, done: list[str]) -> Step:
        run = self.playback.run
        progress: Mapping[str, Any] = {
            "done": done,
            "namespace": ".".join(namespace),
            "last": Binary(key_of(found.row)),
        }
        try:
            change = change_of(found, namespace, run, self._place.registry.codec_options)
        except Undecodable as error:
            return Step(None, (), progress, (event_of(found, namespace, run), error.token, error))
        return Step(change, self._routes.route(change), progress)


async def start(
    place: Workplace, receivers: Sequence[str], *, rate: float | None, resume: str | None, new: bool
) -> Backfill:
    """Be ready for a backfill: a new one, or one that is not finished.

    Args:
        place: where.
        receivers: names.
        rate: documents per second, at most.
        resume: the run to go on with; by default one for the same receivers that is not finished.
        new: begin a new one in any case.

    Raises:
        UnknownReceiver: there is none of such a name that gets `post_save`.
        UnknownRun: there is no such run.
        Busy: another process works on it.
        NothingToDeliver: there is no collection.
    """
    run: Run | None = None
    asked: dict[str, Any] = {"receivers": sorted(receivers), "partition": None}
    place.chosen(receivers, _SIGNALS)
    if resume is not None:
        run = await place.runs.resume(resume, "backfill")
    elif not new:
        run = await place.runs.unfinished("backfill", asked)
    names = receivers if run is None else run.asked["receivers"]
    namespaces = await collections_of(place.client, place.routes.narrowed(place.chosen(names, _SIGNALS)))
    if not namespaces:
        raise NothingToDeliver(
            "None of the collections of these receivers exists.", remedy="Is --url that of the right deployment?"
        )
    if run is None:
        run = await place.runs.begin("backfill", asked, place.now)
    total = 0
    for database, collection in namespaces:
        if f"{database}.{collection}" not in run.progress.get("done", ()):
            total += await place.client[database][collection].estimated_document_count()
    log.info(
        "a backfill begins" if run.is_new else "a backfill goes on",
        action="backfill.started",
        run=run.id,
        receivers=names,
        collections=[".".join(one) for one in namespaces],
    )
    return Backfill(place, await place.playback(run, rate), names, total)
