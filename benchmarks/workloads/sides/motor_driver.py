"""A peer: Motor, bare. Asynchronous applications used it before PyMongo had an async client."""

from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient

from benchmarks.workloads.people import COLLECTION, CREATED, ODM_DATABASE, person
from benchmarks.workloads.sides.timing import Clock, Operations, each, once

__all__ = ["prepare"]


async def prepare(url: str) -> Operations:
    """Return the operations, by name."""
    database: Any = AsyncIOMotorClient(url)[ODM_DATABASE]

    async def load(expected: int) -> Clock:
        async def bare() -> list[Any]:
            return [document async for document in database[COLLECTION].find()]

        return await once(bare, expected)

    async def create(times: int) -> Clock:
        return await each(database[CREATED].insert_one, [person(number) for number in range(times + 1)])

    return {"load": load, "create": create}
