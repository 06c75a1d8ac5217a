"""The busy application, with a given `Shape`: `dispatcher run benchmarks.workloads.busy:registry`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

from pymongo import ReplaceOne

import mongoz
from benchmarks.workloads.environment import GROUP, Assignment
from benchmarks.workloads.meters import Spread
from benchmarks.workloads.shape import BESIDE, COLLECTION_PREFIX, COUNTERS, INDEX, RECEIVER_PREFIX, Shape
from mongoz import U
from mongoz.signals import Batch, BatchEvent

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


async def _handle(instances: Sequence[Any]) -> None:
    """The work of a receiver."""
    if shape.wait_ms:
        await asyncio.sleep(shape.wait_ms / 1e3)
    if shape.compute_ms:
        until = perf_counter() + shape.compute_ms / 1e3
        while perf_counter() < until:
            pass
    if shape.counters:
        for instance in instances:
            counter = await Counter.objects.get(name=str(instance.number % shape.counters))
            await counter.update(U.inc(count=1))
    if shape.indexes:
        index = registry.client[assignment.database][INDEX]
        entries = [({"_id": one.id}, {"number": one.number, "text": one.text}) for one in instances]
        if shape.batch:
            await index.bulk_write([ReplaceOne(*entry, upsert=True) for entry in entries], ordered=False)
        else:
            await index.replace_one(*entries[0], upsert=True)


def _receiver(work: Callable[[Sequence[Any]], Awaitable[None]], *, batch: bool, is_timed: bool) -> Any:
    async def receive_each(sender: type, instance: Any, **kwargs: Any) -> None:  # noqa: ARG001 - keywords
        await receive([instance])

    async def receive_batch(sender: type, batch: list[BatchEvent], **kwargs: Any) -> None:  # noqa: ARG001 - keywords
        await receive([event.instance for event in batch])

    async def receive(instances: Sequence[Any]) -> None:
        if is_timed:
            meter.begin()
        await work(instances)
        if is_timed:
            for instance in instances:
                meter.event(instance.number)

    return receive_batch if batch else receive_each


async def _index_slowly(_instances: Sequence[Any]) -> None:
    """A bulk call of a slow service."""
    await asyncio.sleep(0.5)


async def _call_service(_instances: Sequence[Any]) -> None:
    """A call of a service that allows only a few calls at the same time."""
    await asyncio.sleep(0.04)


_PLAIN: dict[str, Any] = {
    "transactional": shape.transactional,
    "batch": Batch(shape.batch) if shape.batch else None,
}

_BESIDE: dict[str, tuple[Callable[[Sequence[Any]], Awaitable[None]], dict[str, Any]]] = {
    "slow batch": (_index_slowly, {"batch": Batch()}),
    "limited": (_call_service, {"concurrency": 5}),
}


def _connect(document: Any, receive: Any, name: str, options: dict[str, Any]) -> None:
    for signal in (document.signals.post_save, document.signals.post_update):
        signal.connect(receive, name=name, **options)


for index in range(shape.collections):
    document = _document(index)
    if shape.beside:
        work, options = _BESIDE[shape.beside]
        receive = _receiver(work, batch="batch" in options, is_timed=shape.times_beside)
        _connect(document, receive, BESIDE, options)
    for place in range(1, shape.receivers + 1):
        is_timed = place == shape.receivers and not shape.times_beside
        receive = _receiver(_handle, batch=bool(shape.batch), is_timed=is_timed)
        _connect(document, receive, f"{RECEIVER_PREFIX}{place}", _PLAIN)
