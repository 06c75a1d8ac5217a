"""The application of the writers: orders, with three receivers that the writing process calls.

first   takes about a millisecond
work    takes a millisecond to 20 seconds in the writing process; sometimes it raises, or blocks the event loop
last    takes about a millisecond
audit   runs in dispatchers only

Each call writes a line when it ends. A call that a dead process leaves unfinished has no line.
"""

import asyncio
import os
import random
import time

import pymongo

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update, pre_delete
from tests.chaos.writers_figures import LONGEST_SECONDS

__all__ = ["Order", "Refusal", "registry"]

database = os.environ["WRITERS_GROUP"]
pid = os.getpid()

_RAISES = 0.02
_BLOCKS = 0.0005
_BLOCKED_SECONDS = (0.2, 6.0)
_SHORTEST = 0.001
# Fewer than one call in a hundred take longer than a second.
_STEEPNESS = 50

ledger = os.open(os.environ["WRITERS_LEDGER"], os.O_WRONLY | os.O_APPEND)


class _Registry(mongoz.Registry):
    """Records claims over another connection than writes, so that each connection can be cut alone."""

    def _open_synchronous_client(self):
        return pymongo.MongoClient(os.environ.get("WRITERS_STATE_URL", self.url), maxPoolSize=1)


registry = _Registry(
    os.environ["WRITERS_URL"],
    dispatched=database,
    state=os.environ["DISPATCHER_STATE_DATABASE"],
    claims=float(os.environ["DISPATCHER_CLAIM_TIMEOUT"]),
)


class Refusal(Exception):
    """Raised by a receiver."""


class Order(mongoz.Document):
    place: int = mongoz.Integer()
    n: int = mongoz.Integer()

    class Meta:
        registry = registry
        database = database


def write_down(receiver, instance, token, signal, origin, began):
    n = instance.__dict__.get("n", -1)
    line = f"{receiver} {token} {signal} {instance.id} {n} {origin} {pid} {began} {time.monotonic_ns()}\n"
    os.write(ledger, line.encode())  # one small write is atomic


def note(receiver, instance, delivery, began):
    write_down(receiver, instance, delivery.id, delivery.signal, delivery.origin, began)


def for_orders(**options):
    def connect(function):
        for signal in (post_save, post_update, post_delete):
            signal(Order, name=function.__name__, **options)(function)
        return function

    return connect


@pre_delete(Order)
async def deleting(sender, instance, **kwargs):
    """Writes a line before each delete. The line names the author of the delete even if no receiver is called."""
    write_down("deleting", instance, "-", "pre_delete", "process", 0)


@for_orders()
async def first(sender, instance, delivery, **kwargs):
    began = time.monotonic_ns()
    await asyncio.sleep(_SHORTEST)
    note("first", instance, delivery, began)


@for_orders()
async def work(sender, instance, delivery, **kwargs):
    began = time.monotonic_ns()
    chance = random.random()
    if delivery.origin != "process":
        await asyncio.sleep(_SHORTEST)
    elif chance < _BLOCKS:
        time.sleep(random.uniform(*_BLOCKED_SECONDS))
    else:
        await asyncio.sleep(_SHORTEST * (LONGEST_SECONDS / _SHORTEST) ** (random.random() ** _STEEPNESS))
    note("work", instance, delivery, began)
    if delivery.origin == "process" and chance > 1 - _RAISES:
        raise Refusal(delivery.id)


@for_orders()
async def last(sender, instance, delivery, **kwargs):
    began = time.monotonic_ns()
    await asyncio.sleep(_SHORTEST)
    note("last", instance, delivery, began)


@for_orders(delivery="dispatcher")
async def audit(sender, instance, delivery, **kwargs):
    note("audit", instance, delivery, time.monotonic_ns())
