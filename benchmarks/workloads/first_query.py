"""The processor time of the first query of a process, after the import of mongoz and of the document.

python -m benchmarks.workloads.first_query URL
"""

import asyncio
import json
import sys
from time import process_time

import mongoz
from benchmarks.workloads.documents import Human
from benchmarks.workloads.people import COLLECTION

__all__ = ["query"]

registry = mongoz.Registry(sys.argv[1])


class Person(Human):
    class Meta:
        registry = registry
        database = "start"
        collection = COLLECTION


async def query() -> None:
    """Make one query."""
    async with registry:
        if not await Person.objects.filter(number=0).all():
            raise RuntimeError("the document is not there")


if __name__ == "__main__":
    began = process_time()
    asyncio.run(query())
    print(json.dumps({"cpu_seconds": process_time() - began}))
