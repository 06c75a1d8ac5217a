"""The application that writes through the ODM, in a process that has the receivers as well: they run there.

It reads batches of writes as lines of JSON, `[[id, name, n, kind], ...]`, and answers each with a line when the
writes are committed and their receivers have run.
"""

import asyncio
import json
import sys

from bson import ObjectId

from tests.acceptance.apps.ledger import Account, registry


async def carry_out(writes: list[tuple[str, str, int, str]]) -> None:
    for id_, name, n, kind in writes:
        if kind == "insert":
            await Account(id=ObjectId(id_), name=name, n=n).create()
            continue
        account = await Account.get_document_by_id(ObjectId(id_))
        if kind == "update":
            await account.update(n=n)
        else:
            account.n = n
            await account.save()


async def close() -> None:
    async with registry:
        pass


def main() -> None:
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            runner.run(carry_out(json.loads(line)))
            print("done", flush=True)
        runner.run(close())


if __name__ == "__main__":
    main()
