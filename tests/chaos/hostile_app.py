"""The application of the hostile scenario.

It has invalid documents (`Odd`), malformed documents (see `tests/malformed.py`), and a hostile receiver:

hostile   behaves as the kind of the `Prey` says, and records the call if this behaviour raises nothing
witness   records that it was called; for a `Prey` it is called after `hostile`
reader    is called for the malformed documents only, and records the deliveries
"""

import os
from pathlib import Path
from typing import Any

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update
from tests.chaos.app import database, registry
from tests.chaos.hostile_inputs import BEHAVIOURS, digest_of
from tests.malformed import IMAGELESS, WITH_IMAGES

__all__ = ["registry"]

calls = Path(os.environ["LEDGER_FILE"]).with_name("calls")
readings = calls.with_name("readings")


class Odd(mongoz.Document):
    id: Any = mongoz.Object(alias="_id", null=True)
    name: str = mongoz.String(max_length=100)
    n: int = mongoz.Integer(default=0)
    data: Any = mongoz.Object(null=True)

    class Meta:
        registry = registry
        database = database


class Malformed(mongoz.Document):
    id: Any = mongoz.Object(alias="_id", null=True)
    name: str = mongoz.String(default="")
    n: int = mongoz.Integer(default=0)
    data: Any = mongoz.Object(null=True)

    class Meta:
        registry = registry
        database = database
        collection = WITH_IMAGES


class MalformedBare(Malformed):
    class Meta:
        registry = registry
        database = database
        collection = IMAGELESS


class Prey(mongoz.Document):
    kind: str = mongoz.String()
    n: int = mongoz.Integer(default=0)

    class Meta:
        registry = registry
        database = database


def record_call(receiver, instance, delivery):
    with calls.open("a") as file:
        file.write(f"{receiver} {digest_of(instance.id)} {delivery.id} {delivery.signal} {delivery.term}\n")


@post_save(Prey, retry=2, timeout=1)
@post_update(Prey, retry=2, timeout=1)
async def hostile(sender, instance, delivery, **kwargs):
    id_ = instance.id
    await BEHAVIOURS[instance.kind](instance=instance, delivery=delivery, **kwargs)
    instance.id = id_
    record_call("hostile", instance, delivery)


@post_save([Odd, Prey])
@post_update([Odd, Prey])
@post_delete(Odd)
async def witness(sender, instance, delivery, **kwargs):
    record_call("witness", instance, delivery)


@post_save([Malformed, MalformedBare])
@post_update([Malformed, MalformedBare])
@post_delete([Malformed, MalformedBare])
async def reader(sender, instance, delivery, **kwargs):
    with readings.open("a") as file:
        file.write(f"{delivery.id}\n")
