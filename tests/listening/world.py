"""Runs calls on a real server with any receivers, and a write of another client between two commands."""

import datetime
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Final

from bson import ObjectId, Timestamp
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import ExecutionTimeout, PyMongoError
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from mongoz import Registry
from mongoz.signals import muted
from mongoz.stamps import FIELD, Stamp, key_hash
from tests.listening.calls import Foreign, Row, Scene, Values, is_numbered, key, number_of
from tests.listening.documents import COLLECTION, SILENT, WAYS, Way, make
from tests.listening.outcomes import Change, Outcome, Told, plain, seen, seen_error, seen_result, stripped
from tests.support import without_transactions

__all__ = ["World"]

_IMAGES: Final = {"changeStreamPreAndPostImages": {"enabled": True}}
_END: Final = "end"
_PATIENCE_MS: Final = 100  # for a foreign write that waits for a transaction on its document
_THEN: Final = datetime.datetime(2020, 1, 1)


class World:
    """A collection, its document classes with all kinds of receivers, and another client.

    Args:
        client: the other client.
        database: the database of the collection.
    """

    def __init__(self, client: MongoClient[Row], database: str) -> None:
        self._database = client[database]
        self._things = self._database.create_collection(COLLECTION, **_IMAGES)
        self._things.create_index("u", unique=True, partialFilterExpression={"u": {"$type": "int"}})
        self._stream = self._things.watch(
            full_document="whenAvailable", full_document_before_change="whenAvailable"
        )
        self._between = _Between(database)
        self._told: list[Told] = []
        self._documents: dict[tuple[Way, str], Any] = {}
        self._registries: dict[Way, Registry] = {}

    async def open(self, url: str, driver: str) -> None:
        """Connects the ODM."""
        connect: Any = AsyncMongoClient if driver == "pymongo" else AsyncIOMotorClient
        self._client: Any = connect(url, event_listeners=[self._between], uuidRepresentation="standard")
        for way in WAYS:
            group = self._database.name if way.dispatched else False
            self._registries[way] = Registry(self._client, dispatched=group)
            for kind, document in make(self._registries[way], self._database.name).items():
                self._documents[way, kind] = document
                for signal in way.signals:
                    options: Row = {"name": f"{kind}.{signal}"} if signal.startswith("post_") else {}
                    options |= {"delivery": way.delivery} if way.delivery != "any" else {}
                    getattr(document.signals, signal).connect(self._receiver(signal), **options)

    async def close(self) -> None:
        """Disconnects the ODM."""
        self._stream.close()
        for registry in self._registries.values():
            await registry.close()
        closing = self._client.close()
        if closing is not None:
            await closing

    def _receiver(self, signal: str) -> Any:
        async def receive(sender: Any, instance: Any, **kwargs: Any) -> None:
            previous, delivery = kwargs.get("previous"), kwargs.get("delivery")
            told = Told(
                signal,
                instance.id,
                plain(instance),
                kwargs.get("created"),
                kwargs.get("update_fields"),
                None if previous is None else plain(previous),
                delivery.id if delivery else "",
            )
            self._told.append(told)

        return receive

    async def run(self, way: Way, scene: Scene, when: str = "never") -> Outcome:
        """Runs the calls of a scene.

        Args:
            way: the kind of receivers.
            scene: the calls.
            when: the time of the other client's write: `never`, `before`, `between` or `after`.
        """
        outcome, foreign = Outcome(way), _Write(self._database, scene.foreign)
        begin = self._set(scene.rows)
        document = self._documents[way, scene.kind]
        numbers = {number for call in scene.calls if isinstance(number := call.loads(), int)}
        loaded: dict[Any, Any] = {number: await document.objects.get(id=key(number)) for number in sorted(numbers)}
        self._told.clear()
        if when == "before":
            foreign.carry_out()
        self._between.start(scene.at if when == "between" else None, foreign.carry_out)
        try:
            with (
                muted() if way.muted else nullcontext(),
                nullcontext() if way.transactions else without_transactions(),
            ):
                await self._carry_out(scene, way, document, loaded, outcome)
        finally:
            outcome.reached = self._between.end()
        if when == "after" or (when == "between" and not foreign.done and outcome.reached):
            foreign.carry_out()
        outcome.told = list(self._told)
        outcome.theirs = foreign.row
        outcome.instances = {number: seen(plain(instance)) for number, instance in loaded.items()}
        rows = list(self._things.find())
        new = sorted(row["_id"] for row in rows if not is_numbered(row["_id"]))
        names = {id_: f"new {place}" for place, id_ in enumerate(new)}
        outcome.documents = {names.get(row["_id"]) or number_of(row["_id"]): stripped(row) for row in rows}
        if way is not SILENT or when == "between":
            self._things.insert_one({"_id": _END})
            outcome.changes = list(self._changes(begin, foreign.time))
        return outcome

    def _set(self, rows: Mapping[int, Values]) -> Timestamp:
        """Replaces the content of the collection by these documents."""
        documents = [
            {"_id": key(number), **{name: _THEN if value == "then" else value for name, value in row.items()}}
            for number, row in sorted(rows.items())
        ]
        everything = {"delete": COLLECTION, "deletes": [{"q": {}, "limit": 0}], "writeConcern": {"w": 1}}
        time: Timestamp = self._database.command(everything)["operationTime"]
        if documents:
            command = {"insert": COLLECTION, "documents": documents, "writeConcern": {"w": 1}}
            time = self._database.command(command)["operationTime"]
        return time

    async def _carry_out(
        self, scene: Scene, way: Way, document: Any, loaded: dict[Any, Any], outcome: Outcome
    ) -> None:
        try:
            async with self._registries[way].transaction() if scene.within else nullcontext():
                for call in scene.calls:
                    outcome.results.append(seen_result(await call.run(document, loaded)))
                if scene.within == "aborted":
                    raise _Abandon
        except Exception as error:
            outcome.error = seen_error(error)
            outcome.conflicted = isinstance(error, PyMongoError) and error.has_error_label(
                "TransientTransactionError"
            )

    def _changes(self, begin: Timestamp, theirs: Timestamp | None) -> Iterator[Change]:
        """The server's events after `begin`, except the other client's, and except updates of only the stamp."""
        markers: dict[ObjectId, Any] = {}
        for event in self._stream:
            if event["clusterTime"] <= begin or event["clusterTime"] == theirs:
                continue
            id_, operation = event["documentKey"]["_id"], event["operationType"]
            if id_ == _END:
                return
            before, after = event.get("fullDocumentBeforeChange"), event.get("fullDocument")
            described = event.get("updateDescription") or {}
            truncated = [each["field"] for each in described.get("truncatedArrays", ())]
            paths = [*described.get("updatedFields", ()), *described.get("removedFields", ()), *truncated]
            names = frozenset(path.partition(".")[0] for path in paths) - {FIELD}
            stamp = (after or {} if operation == "insert" else described.get("updatedFields", {})).get(FIELD)
            if operation == "update" and not names:
                markers[id_] = stamp
                continue
            stamp = self._read(markers.pop(id_, None) if operation == "delete" else stamp, id_)
            images = (None if row is None else stripped(row) for row in (before, after))
            yield Change(operation, id_, names, *images, stamp)

    def _read(self, value: Any, id_: ObjectId) -> Stamp | None:
        """The stamp, if it is valid for this document."""
        stamp = Stamp.unpack(value)
        return stamp if stamp and stamp.key == key_hash(self._things.full_name, id_) else None


class _Abandon(Exception):
    """The error that aborts a transaction of the user."""


class _Write:
    """The other client's write.

    Attributes:
        done: whether it was executed; if not, it waited too long for a transaction.
        time: the time of its change.
        row: its document after the write.
    """

    def __init__(self, database: Any, foreign: Foreign | None) -> None:
        self._database = database
        self._foreign = foreign
        self.done = False
        self.time: Timestamp | None = None
        self.row: Row | None = None

    def carry_out(self) -> None:
        assert self._foreign is not None
        command = {**self._foreign.command(), "maxTimeMS": _PATIENCE_MS, "writeConcern": {"w": 1}}
        try:
            answer = self._database.command(command)
        except ExecutionTimeout:
            return
        if answer["n"] and answer.get("nModified", 1):  # otherwise the answer has the time of another write
            self.time = answer["operationTime"]
        self.row = self._database[COLLECTION].find_one({"_id": key(self._foreign.number)})
        self.done = True


class _Between(CommandListener):
    """Runs an action right before a command is sent."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._seen = 0
        self._at: int | None = None
        self._action: Callable[[], None] = lambda: None
        self._errors: list[Exception] = []  # the driver only prints errors of a listener

    def start(self, at: int | None, action: Callable[[], None]) -> None:
        """Counts the commands, and runs the action before the command with this number."""
        self._seen, self._at, self._action = 0, at, action

    def end(self) -> bool:
        """Stops counting; returns whether the command with the number was sent."""
        at, self._at = self._at, None
        if self._errors:
            raise self._errors.pop()
        return at is None or self._seen > at

    def started(self, event: CommandStartedEvent) -> None:
        if event.database_name != self._database and event.command_name != "commitTransaction":
            return
        if self._seen == self._at:
            try:
                self._action()
            except Exception as error:
                self._errors.append(error)
        self._seen += 1

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass
