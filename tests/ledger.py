"""Writes, their deliveries, and a comparison of both, for tests that kill the daemon.

Writer   counts documents up: the write with the number n (from 0) stores n in the document
Ledger   reads the records of the receivers in tests/acceptance/apps/ledger.py
disorder finds deliveries that do not follow the order of the writes
"""

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bson import ObjectId
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.collection import Collection

__all__ = ["APP", "IMAGES", "Client", "Entry", "ForeignClient", "Ledger", "Write", "Writer", "disorder"]

APP = "tests.acceptance.apps.ledger:registry"
COLLECTION = "accounts"
IMAGES: dict[str, Any] = {"changeStreamPreAndPostImages": {"enabled": True}}

Kind = Literal["insert", "update", "replace", "delete"]


class Entry(NamedTuple):
    """One call of a receiver."""

    name: str
    n: int
    signal: str
    delivery: str
    term: int
    image: str
    origin: str
    at: int
    """The end of the call, as `time.monotonic_ns()`."""
    attempt: int = 1
    receiver: str = ""
    pid: int = 0
    began: int = 0
    """The start of the call, as `time.monotonic_ns()`."""

    @property
    def write(self) -> tuple[str, int]:
        """The write of the call."""
        return (self.name, self.n)


class Ledger:
    """The records of the receivers so far. Each call reads the new records, and returns all records.

    Args:
        path: the file with the records.
        url: the URL of the server.
        database: the database of the writes; also the name of the group, and the prefix of its state database.
    """

    def __init__(self, path: Path, url: str, database: str) -> None:
        path.touch()
        self._path = path
        self._read = 0
        self._entries: list[Entry] = []
        self.environment = {
            "LEDGER_URL": url,
            "LEDGER_GROUP": database,
            "LEDGER_FILE": str(path),
            "DISPATCHER_STATE_DATABASE": f"{database}_state",
        }

    def __call__(self) -> list[Entry]:
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            self._entries.append(_entry(*line.split(" ")))
        return self._entries


def _entry(  # the words of a line
    name: str,
    n: str,
    signal: str,
    delivery: str,
    term: str,
    image: str,
    origin: str,
    at: str,
    attempt: str = "1",
    receiver: str = "",
    pid: str = "0",
    began: str = "0",
) -> Entry:
    numbers = int(at), int(attempt), receiver, int(pid), int(began)
    return Entry(name, int(n), signal, delivery, int(term), image, origin, *numbers)


class Write(NamedTuple):
    """One write. `n` is its number among the writes of its document, from 0."""

    id: ObjectId
    name: str
    n: int
    kind: Kind


Client = Callable[[Sequence[Write]], None]
"""Carries writes out, in their order, and returns when they are committed."""


class ForeignClient:
    """A client without mongoz. A replace keeps the stamp of the document that it read."""

    def __init__(self, collection: Collection[dict[str, Any]]) -> None:
        self._collection = collection

    def __call__(self, writes: Sequence[Write]) -> None:
        replaced = [write.id for write in writes if write.kind == "replace"]
        rows = {row["_id"]: row for row in self._collection.find({"_id": {"$in": replaced}})} if replaced else {}
        self._collection.bulk_write([self._operation(write, rows.get(write.id, {})) for write in writes])

    @staticmethod
    def _operation(write: Write, row: dict[str, Any]) -> Any:
        if write.kind == "insert":
            return InsertOne({"_id": write.id, "name": write.name, "n": write.n})
        if write.kind == "update":
            return UpdateOne({"_id": write.id}, {"$set": {"n": write.n}})
        if write.kind == "delete":
            return DeleteOne({"_id": write.id})
        return ReplaceOne({"_id": write.id}, {**row, "name": write.name, "n": write.n})


class Writer(threading.Thread):
    """Increments documents in small batches, up to the allowed number of writes.

    The same arguments make the same writes.

    Args:
        clients: the writing clients with their weights.
        documents: the number of documents.
        writes: the minimal number of writes; the last batch may exceed it.
        seed: the seed of all random choices.
        pause: seconds between two batches.
        deletes: the share of deletes; the next write inserts the document again, under the same `_id`.
    """

    def __init__(
        self,
        clients: Mapping[Client, float],
        *,
        documents: int = 50,
        writes: int = 2_000,
        seed: int = 0,
        pause: float = 0.001,
        deletes: float = 0.0,
    ) -> None:
        super().__init__(name="writer")
        self.done: list[tuple[Client, Write]] = []
        """The committed writes with their clients, in the order of the commits."""
        self.failure: Exception | None = None
        self._clients = clients
        self._random = random.Random(seed)
        self._ids = {f"a{i}": ObjectId(self._random.randbytes(12)) for i in range(documents)}
        self._count = dict.fromkeys(self._ids, 0)
        self._goal = writes
        self._pause = pause
        self._deletes = deletes
        self._there: set[str] = set()
        self._allowed: float = float("inf")
        self._changed = threading.Condition()

    def run(self) -> None:
        try:
            while self._may_go_on():
                (client,) = self._random.choices(list(self._clients), list(self._clients.values()))
                batch = self._next_batch()
                client(batch)
                self.done += [(client, write) for write in batch]
        except Exception as error:
            self.failure = error
            raise

    def _may_go_on(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: not self._goal, self._pause)
            self._changed.wait_for(lambda: len(self.done) < self._allowed or not self._goal)
            return len(self.done) < self._goal

    def _next_batch(self) -> list[Write]:
        batch = []
        for name in self._random.choices(list(self._ids), k=self._random.randint(1, 8)):
            n = self._count[name]
            self._count[name] += 1
            batch.append(Write(self._ids[name], name, n, self._kind(name)))
        return batch

    def _kind(self, name: str) -> Kind:
        if name not in self._there:
            self._there.add(name)
            return "insert"
        if self._deletes and self._random.random() < self._deletes:
            self._there.remove(name)
            return "delete"
        return "replace" if self._random.random() < 0.2 else "update"

    def allow(self, writes: float) -> None:
        """Limits the number of writes for now."""
        with self._changed:
            self._allowed = writes
            self._changed.notify()

    def stop(self) -> None:
        """Stops writing, and waits for the end of the last batch."""
        with self._changed:
            self._goal = 0
            self._changed.notify()
        self.join()

    @property
    def written(self) -> set[tuple[str, int]]:
        """The document and the number of each committed write."""
        return {(write.name, write.n) for _, write in self.done}

    def orders(self, client: Client | None = None) -> dict[str, list[int]]:
        """The writes of each document in the order of their commits: of one client, or of all clients."""
        orders: dict[str, list[int]] = defaultdict(list)
        for by, write in list(self.done):
            if client is None or by is client:
                orders[write.name].append(write.n)
        return orders


def disorder(entries: Iterable[Entry], orders: Mapping[str, Sequence[int]]) -> list[str]:
    """Deliveries that do not follow the order of the commits.

    The first deliveries of a document follow the order of its writes without a gap. After a crash, the next owner
    may begin at any earlier change. From there on it repeats all deliveries in order. Within a term no delivery is
    repeated or skipped, except for retries.

    Args:
        entries: the calls of one receiver, in their order.
        orders: the expected writes, by document.
    """
    places = {(name, n): place for name, order in orders.items() for place, n in enumerate(order)}
    by_name: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.write in places:
            by_name[entry.name].append(entry)
    found = []
    for rows in by_name.values():
        reached, latest = -1, dict[int, Entry]()
        for entry in rows:
            place, earlier = places[entry.write], latest.get(entry.term)
            again = earlier is not None and earlier.write == entry.write and earlier.attempt < entry.attempt
            if place > reached + 1:
                found.append(f"{entry} came before the write with place {reached + 1}")
            elif earlier and not again and place != places[earlier.write] + 1:
                found.append(f"{entry} came after {earlier}")
            reached, latest[entry.term] = max(reached, place), entry
    return found
