"""Our side: an application with one receiver. `dispatcher run benchmarks.workloads.app:registry` serves it."""

from typing import Any

import mongoz
from benchmarks.workloads.documents import Human
from benchmarks.workloads.environment import GROUP, Assignment
from benchmarks.workloads.meters import make_meter
from benchmarks.workloads.people import COLLECTION
from mongoz.core.signals import post_save

assignment = Assignment.received()
meter = make_meter(assignment)
registry = mongoz.Registry(assignment.url, dispatched=GROUP)


class Person(Human):
    class Meta:
        registry = registry
        database = assignment.database
        collection = COLLECTION


@post_save(Person)
async def note(sender: type[Person], instance: Person, **kwargs: Any) -> None:  # noqa: ARG001 - a receiver's keywords
    meter.event(instance.number)
