"""Our side for the growth of cost: `dispatcher run benchmarks.workloads.busy:registry`."""

import asyncio
from time import perf_counter
from typing import Any

import mongoz
from benchmarks.workloads.environment import GROUP, Assignment
from benchmarks.workloads.meters import Spread
from benchmarks.workloads.shape import COLLECTION_PREFIX, COUNTERS, Shape
from mongoz import U

assignment = Assignment.received()
shape = Shape.received()
meter = Spread()
registry = mongoz.Registry(assignment.url, dispatched=GROUP)


def _document(index: int) -> Any:
    class Item(mongoz.Document):
        number: int = mongoz.Integer()
        text: str = mongoz.String()

        class Meta:
            registry = registry
            database = assignment.database
            collection = f"{COLLECTION_PREFIX}{index}"

    Item.__name__ = Item.__qualname__ = f"Item{index}"
    return Item


class Counter(mongoz.Document):
    name: str = mongoz.String()
    count: int = mongoz.Integer(default=0)

    class Meta:
        registry = registry
        database = assignment.database
        collection = COUNTERS


def _receiver(*, is_last: bool) -> Any:
    async def receive(sender: type, instance: Any, **kwargs: Any) -> None:  # noqa: ARG001 - a receiver's keywords
        if shape.wait_ms:
            await asyncio.sleep(shape.wait_ms / 1e3)
        if shape.compute_ms:
            until = perf_counter() + shape.compute_ms / 1e3
            while perf_counter() < until:
                pass
        if shape.counters:
            counter = await Counter.objects.get(name=str(instance.number % shape.counters))
            await counter.update(U.inc(count=1))
        if is_last:
            meter.event(instance.number)

    return receive


for index in range(shape.collections):
    document = _document(index)
    for place in range(1, shape.receivers + 1):
        receive = _receiver(is_last=place == shape.receivers)
        for signal in (document.signals.post_save, document.signals.post_update):
            signal.connect(receive, name=f"receive-{place}", transactional=shape.transactional)
