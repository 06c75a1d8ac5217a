"""The application that writes through the ODM. Its process also runs the receivers.

It reads batches of writes as lines of JSON, `[[id, name, n, kind], ...]`, and answers each with a line when the
writes are committed and their receivers have run. A failed write is repeated unless it is committed.
"""

import asyncio
import json
import sys
import time
from typing import Any

from bson import ObjectId
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from mongoz.exceptions import DocumentNotFound
from tests.chaos.app import Account, database, registry

# Seconds until a write must be possible again.
_PATIENCE = 60.0


async def write(id_: ObjectId, name: str, n: int, kind: str) -> None:
    if kind == "insert":
        await Account(id=id_, name=name, n=n).create()
        return
    account = await Account.get_document_by_id(id_)
    if kind == "update":
        await account.update(n=n)
    elif kind == "delete":
        await account.delete()
    else:
        account.n = n
        await account.save()


async def insist(id_: ObjectId, name: str, n: int, kind: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return await write(id_, name, n, kind)
        except (PyMongoError, DocumentNotFound):  # not found, because the answer came from a former primary
            if time.monotonic() > deadline:
                raise
        await settled()
        if await stands(id_, n, kind, deadline):
            return None


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
            for id_, name, n, kind in json.loads(line):
                await insist(ObjectId(id_), name, n, kind)
            print("done", flush=True)
        await settled()


if __name__ == "__main__":
    asyncio.run(main())
