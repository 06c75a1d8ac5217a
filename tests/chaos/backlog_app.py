"""The application of the long backlog. Each receiver counts its deliveries in a file with a byte per write.

slow    takes some milliseconds, sometimes a second
picky   refuses some writes at first
late    is paused while the backlog is read
"""

import asyncio
import mmap
import os
import random
from pathlib import Path

import mongoz
from mongoz.core.signals import post_save
from mongoz.signals import Retry

registry = mongoz.Registry(os.environ["BACKLOG_URL"], dispatched="backlog")
directory = Path(os.environ["BACKLOG_DIRECTORY"])
slowness = float(os.environ["BACKLOG_SLOWNESS"])

# One in `_REFUSED` writes fails in its first attempts. One in `_STUCK` writes takes a second.
_REFUSED = 500
_STUCK = 1_000


class Thing(mongoz.Document):
    number: int = mongoz.Integer()
    text: str = mongoz.String()

    class Meta:
        registry = registry
        database = "backlog"


def _counts(receiver: str) -> mmap.mmap:
    with (directory / receiver).open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def _count(counts: mmap.mmap, number: int) -> None:
    counts[number] = min(255, counts[number] + 1)


_slow, _picky, _late = map(_counts, ("slow", "picky", "late"))


@post_save(Thing, name="slow")
async def slow(sender, instance, **kwargs):
    stuck = instance.number % _STUCK == 0
    await asyncio.sleep(1.0 if stuck else random.uniform(0, 2 * slowness))
    _count(_slow, instance.number)


@post_save(Thing, name="picky", retry=Retry(5, base=0.1, cap=1.0))
async def picky(sender, instance, delivery, **kwargs):
    if instance.number % _REFUSED == 1 and delivery.attempt < 3:
        raise ValueError("not yet")
    _count(_picky, instance.number)


@post_save(Thing, name="late")
async def late(sender, instance, **kwargs):
    _count(_late, instance.number)
