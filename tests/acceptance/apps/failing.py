"""An application with a receiver that fails while a file exists."""

import os
from pathlib import Path

import mongoz
from mongoz.core.signals import post_save

registry = mongoz.Registry(os.environ["FAILING_URL"], dispatched=os.environ["FAILING_GROUP"])
broken = Path(os.environ["FAILING_BROKEN"])
name, *former_names = os.environ.get("FAILING_NAMES", "invoice").split()


class Order(mongoz.Document):
    number: int = mongoz.Integer()

    class Meta:
        registry = registry
        database = os.environ["FAILING_GROUP"]


@post_save(Order, name=name, formerly=former_names or None, retry=1)
async def invoice(sender, instance, **kwargs):
    if broken.exists():
        raise ConnectionError(f"no invoice for {instance.number}: [red]the printer is on fire[/]")


@post_save(Order, name="archive")
async def archive(sender, instance, **kwargs):
    pass
