"""Our side: an application with one receiver. `dispatcher run benchmarks.workloads.app:registry` serves it."""

import datetime
from typing import Any

import mongoz
from benchmarks.workloads.environment import GROUP, Assignment
from benchmarks.workloads.meters import make_meter
from benchmarks.workloads.people import COLLECTION
from mongoz.core.signals import post_save

assignment = Assignment.received()
meter = make_meter(assignment)
registry = mongoz.Registry(assignment.url, dispatched=GROUP)


class Person(mongoz.Document):
    name: str = mongoz.String()
    email: str = mongoz.Email()
    number: int = mongoz.Integer()
    tags: list[str] = mongoz.Array(str)
    joined_at: datetime.datetime = mongoz.DateTime()

    class Meta:
        registry = registry
        database = assignment.database
        collection = COLLECTION


@post_save(Person)
async def note(sender: type[Person], instance: Person, **kwargs: Any) -> None:  # noqa: ARG001 - a receiver's keywords
    meter.event(instance.number)
