"""An application for the dashboard. One receiver fails for names that begin with `<`, until a file exists."""

import os
from pathlib import Path

import mongoz
from mongoz.core.signals import post_save

registry = mongoz.Registry(os.environ["SHOWN_URL"], dispatched=os.environ["SHOWN_GROUP"])
mended = Path(os.environ["SHOWN_MENDED"])


class Account(mongoz.Document):
    name: str = mongoz.String()

    class Meta:
        registry = registry
        database = os.environ["SHOWN_GROUP"]


@post_save(Account, name="works", concurrency=1_000)
async def works(sender, instance, **kwargs):
    pass


@post_save(Account, name="breaks", retry=1)
async def breaks(sender, instance, **kwargs):
    if instance.name.startswith("<") and not mended.exists():
        raise LookupError(f"no such account: {instance.name}")
