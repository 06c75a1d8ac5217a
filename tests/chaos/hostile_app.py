"""The application, and beside it documents that do not fit, and receivers that mean no good.

villain   does what the document's kind asks for
witness   comes after it, and writes down that it was called
reader    is told of what no driver would have written
"""

import os
from pathlib import Path
from typing import Any

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update
from tests.chaos.app import database, registry
from tests.chaos.malice import MISDEEDS, digest_of
from tests.malformed import IMAGELESS, WITH_IMAGES

__all__ = ["registry"]

testimony = Path(os.environ["LEDGER_FILE"]).with_name("testimony")
readings = testimony.with_name("readings")


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


def testify(receiver, instance, delivery):
    with testimony.open("a") as file:
        file.write(f"{receiver} {digest_of(instance.id)} {delivery.id} {delivery.signal} {delivery.term}\n")


@post_save(Prey, retry=2, timeout=1)
@post_update(Prey, retry=2, timeout=1)
async def villain(sender, instance, delivery, **kwargs):
    id_ = instance.id
    await MISDEEDS[instance.kind](instance=instance, delivery=delivery, **kwargs)
    instance.id = id_
    testify("villain", instance, delivery)


@post_save([Odd, Prey])
@post_update([Odd, Prey])
@post_delete(Odd)
async def witness(sender, instance, delivery, **kwargs):
    testify("witness", instance, delivery)


@post_save([Malformed, MalformedBare])
@post_update([Malformed, MalformedBare])
@post_delete([Malformed, MalformedBare])
async def reader(sender, instance, delivery, **kwargs):
    with readings.open("a") as file:
        file.write(f"{delivery.id}\n")
