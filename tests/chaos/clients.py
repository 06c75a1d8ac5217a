"""Who writes: a foreign client and the application itself. Both go on until a write is known to stand."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, PyMongoError
from pymongo.operations import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.read_concern import ReadConcern

from tests.chaos.leash import on_a_leash
from tests.ledger import Write
from tests.support import ROOT

__all__ = ["OwnClient", "SteadyClient", "application"]

# Seconds in which a write must be possible again.
_PATIENCE = 60.0

_DUPLICATE_KEY = 11000


class SteadyClient:
    """A client that knows nothing of mongoz, and writes until it is done, whatever becomes of the server.

    Each write asks for the one before it, so that one that is sent twice happens once. What it replaces it has
    read before: stamps of others come along.
    """

    def __init__(self, collection: Collection[dict[str, Any]]) -> None:
        self._collection = collection
        self._session = collection.database.client.start_session(causal_consistency=False)

    def __call__(self, writes: Sequence[Write]) -> None:
        for bulk in _bulks(writes):
            left, deadline = bulk, time.monotonic() + _PATIENCE
            while left:
                try:
                    self._collection.bulk_write(self._operations(left), session=self._session)
                except PyMongoError as error:
                    if time.monotonic() > deadline:
                        raise
                    left = self._left(left, error, deadline)
                else:
                    break

    def _operations(self, writes: Sequence[Write]) -> list[Any]:
        replaced = [write.id for write in writes if write.kind == "replace"]
        found = self._collection.find({"_id": {"$in": replaced}}, session=self._session) if replaced else ()
        rows = {row["_id"]: row for row in found}
        return [self._operation(write, rows.get(write.id, {})) for write in writes]

    @staticmethod
    def _operation(write: Write, row: dict[str, Any]) -> Any:
        if write.kind == "insert":
            return InsertOne({"_id": write.id, "name": write.name, "n": write.n})
        before = {"_id": write.id, "n": write.n - 1}
        if write.kind == "update":
            return UpdateOne(before, {"$set": {"n": write.n}})
        if write.kind == "delete":
            return DeleteOne(before)
        return ReplaceOne(before, {**row, "name": write.name, "n": write.n})

    def _left(self, writes: list[Write], error: PyMongoError, deadline: float) -> list[Write]:
        """What of an ordered bulk is still to be written, once that can be told."""
        if isinstance(error, BulkWriteError) and any(
            each["code"] != _DUPLICATE_KEY for each in error.details["writeErrors"]
        ):
            raise error
        while True:
            try:
                # A server that is still at the bulk of this session does not go on with it after this.
                self._collection.update_one({"_id": None}, {"$set": {"n": 0}}, session=self._session)
                return [write for write in writes if not self._stands(write)]
            except PyMongoError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _stands(self, write: Write) -> bool:
        surely = self._collection.with_options(read_concern=ReadConcern("linearizable"))
        row = surely.find_one({"_id": write.id}, max_time_ms=5_000)
        return row is None if write.kind == "delete" else row is not None and int(row["n"]) >= write.n


def _bulks(writes: Sequence[Write]) -> Iterator[list[Write]]:
    """Parts that write each document once, so that one can tell by the documents which writes happened."""
    bulk: list[Write] = []
    for write in writes:
        if any(write.id == one.id for one in bulk):
            yield bulk
            bulk = []
        bulk.append(write)
    yield bulk


class OwnClient:
    """Hands writes to the process of the application."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, writes: Sequence[Write]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        rows = [(str(write.id), write.name, write.n, write.kind) for write in writes]
        print(json.dumps(rows), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer == "done\n", f"the application ended: {self._process.wait()}"


@contextmanager
def application(environment: Mapping[str, str]) -> Iterator[OwnClient]:
    """The application, as long as the block lasts."""
    process = subprocess.Popen(
        [*on_a_leash(), sys.executable, "-m", "tests.chaos.own"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield OwnClient(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()  # which ends it
            process.wait()
