"""The application that writes through the ODM. Its process also runs the receivers.

It reads batches of writes as lines of JSON, `[[id, name, n, kind], ...]`. When the writes are committed and their
receivers have run, it answers with a line of JSON: the seconds of each write. A failed write is repeated unless it
is committed.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from bson import ObjectId
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from mongoz.exceptions import DocumentNotFound
from tests.chaos.app import Account, database, registry

# Seconds until a write must be possible again.
_PATIENCE = 60.0


async def prepared(id_: ObjectId, name: str, n: int, kind: str) -> Callable[[], Awaitable[object]]:
    """Reads the document, and returns the call that writes it."""
    if kind == "insert":
        return Account(id=id_, name=name, n=n).create
    account = await Account.get_document_by_id(id_)
    if kind == "update":
        return partial(account.update, n=n)
    if kind == "delete":
        return account.delete
    account.n = n
    return account.save


async def insist(id_: ObjectId, name: str, n: int, kind: str) -> float:
    """Repeats a write until it is committed. Returns the seconds of the call that has committed it."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        began = time.monotonic()
        try:
            write = await prepared(id_, name, n, kind)
            began = time.monotonic()
            await write()
        except (PyMongoError, DocumentNotFound):  # not found, because the answer came from a former primary
            if time.monotonic() > deadline:
                raise
            await settled()
            seconds = time.monotonic() - began
            if await stands(id_, n, kind, deadline):
                return seconds
        else:
            return time.monotonic() - began


async def settled() -> None:
    """Waits until the ODM has resolved all unknown writes and called their receivers."""
    while tasks := [task for task in asyncio.all_tasks() if task.get_name() == "mongoz-unsettled-write"]:
        await asyncio.wait(tasks)


async def stands(id_: ObjectId, n: int, kind: str, deadline: float) -> bool:
    collection: Any = registry.client[database]["accounts"]
    surely = collection.with_options(read_concern=ReadConcern("linearizable"))
    while True:
        try:
            row = await surely.find_one({"_id": id_}, max_time_ms=5_000)
        except PyMongoError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            return row is None if kind == "delete" else row is not None and row["n"] == n


async def main() -> None:
    async with registry:
        while line := await asyncio.to_thread(sys.stdin.readline):
            writes = json.loads(line)
            print(json.dumps([await insist(ObjectId(id_), *write) for id_, *write in writes]), flush=True)
        await settled()


if __name__ == "__main__":
    asyncio.run(main())
