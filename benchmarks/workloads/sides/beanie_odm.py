"""A peer: Beanie."""

import datetime
from typing import Any

from beanie import Document, init_beanie  # type: ignore[import-not-found]  # in the peers' environment
from pydantic import EmailStr
from pymongo import AsyncMongoClient

from benchmarks.workloads.people import COLLECTION, CREATED, ODM_DATABASE, person
from benchmarks.workloads.sides.timing import Clock, Operations, each, once

__all__ = ["prepare"]


class Human(Document):  # type: ignore[misc]  # unknown, as the import
    name: str
    email: EmailStr
    number: int
    tags: list[str]
    joined_at: datetime.datetime


class Person(Human):
    class Settings:
        name = COLLECTION


class Created(Human):
    class Settings:
        name = CREATED


async def prepare(url: str) -> Operations:
    """Return the operations, by name."""
    client = AsyncMongoClient[dict[str, Any]](url)
    await init_beanie(database=client[ODM_DATABASE], document_models=[Person, Created])

    async def load(expected: int) -> Clock:
        return await once(lambda: Person.find_all().to_list(), expected)

    async def create(times: int) -> Clock:
        async def make_and_insert(values: dict[str, Any]) -> None:
            await Created(**values).insert()

        return await each(make_and_insert, [person(number) for number in range(times + 1)])

    return {"load": load, "create": create}
