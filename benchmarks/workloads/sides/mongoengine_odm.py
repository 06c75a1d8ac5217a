"""A peer: MongoEngine. It is synchronous, so nothing is awaited."""

from typing import Any

from mongoengine import (  # type: ignore[import-not-found]  # in the peers' environment
    DateTimeField,
    Document,
    EmailField,
    IntField,
    ListField,
    StringField,
    connect,
)

from benchmarks.workloads.people import COLLECTION, CREATED, ODM_DATABASE, person
from benchmarks.workloads.sides.timing import Clock, Operations, each, once

__all__ = ["prepare"]


class Human(Document):  # type: ignore[misc]  # unknown, as the import
    name = StringField(required=True)
    email = EmailField(required=True)
    number = IntField(required=True)
    tags = ListField(StringField())
    joined_at = DateTimeField(required=True)

    meta: dict[str, Any] = {"abstract": True}  # noqa: RUF012 - as MongoEngine requires


class Person(Human):
    meta = {"collection": COLLECTION}  # noqa: RUF012


class Created(Human):
    meta = {"collection": CREATED}  # noqa: RUF012


async def prepare(url: str) -> Operations:
    """Return the operations, by name."""
    connect(ODM_DATABASE, host=url, uuidRepresentation="standard")

    async def load(expected: int) -> Clock:
        async def everybody() -> list[Any]:
            return list(Person.objects)

        return await once(everybody, expected)

    async def create(times: int) -> Clock:
        async def make_and_save(values: dict[str, Any]) -> None:
            Created(**values).save()

        return await each(make_and_save, [person(number) for number in range(times + 1)])

    return {"load": load, "create": create}
