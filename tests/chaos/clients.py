"""The writers: a foreign client and the application. Both repeat a write until it is certainly committed."""

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

from tests.chaos.parent_death import tied_to_parent
from tests.ledger import Write
from tests.support import ROOT

__all__ = ["OwnClient", "SteadyClient", "application"]

# Seconds until a write must be possible again.
_PATIENCE = 60.0

_DUPLICATE_KEY = 11000


class SteadyClient:
    """A client without mongoz that repeats each write until it is committed.

    Each write requires the previous write of its document, so a repeated write happens once. A replace keeps the
    stamp of the document that it read.
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
        """The writes of an ordered bulk that are not committed, once the result is known."""
        if isinstance(error, BulkWriteError) and any(
            each["code"] != _DUPLICATE_KEY for each in error.details["writeErrors"]
        ):
            raise error
        while True:
            try:
                # If the server still executes the bulk of this session, the following write ends the bulk.
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
    """Splits writes into parts with one write per document. Then the documents show which writes were executed."""
    bulk: list[Write] = []
    for write in writes:
        if any(write.id == one.id for one in bulk):
            yield bulk
            bulk = []
        bulk.append(write)
    yield bulk


class OwnClient:
    """Sends writes to the process of the application.

    Attributes:
        seconds: the duration of each write, by the name of the document and the number of the write.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.seconds: dict[tuple[str, int], float] = {}

    def __call__(self, writes: Sequence[Write]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        rows = [(str(write.id), write.name, write.n, write.kind) for write in writes]
        print(json.dumps(rows), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"the application ended: {self._process.wait()}"
        for write, seconds in zip(writes, json.loads(answer), strict=True):
            self.seconds[write.name, write.n] = seconds


@contextmanager
def application(environment: Mapping[str, str]) -> Iterator[OwnClient]:
    """Runs the application during the block."""
    process = subprocess.Popen(
        [*tied_to_parent(), sys.executable, "-m", "tests.chaos.odm_client"],
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
            process.stdin.close()  # ends the process
            process.wait()
