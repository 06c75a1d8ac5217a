"""An application for dispatchers of two versions; some of its deliveries fail until a file exists."""

import os
from pathlib import Path

import mongoz
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry

registry = mongoz.Registry(os.environ["UPGRADED_URL"], dispatched=os.environ["UPGRADED_GROUP"])
directory = Path(os.environ["UPGRADED_DIRECTORY"])


class Account(mongoz.Document):
    name: str = mongoz.String()
    n: int = mongoz.Integer()

    class Meta:
        registry = registry
        database = os.environ["UPGRADED_GROUP"]


def note(receiver: str, instance: Account) -> None:
    """Records a delivery, or raises if it must fail."""
    fails = receiver != "resting" and instance.name.startswith(receiver) and instance.n == 0
    if fails and not (directory / "mended").exists():
        raise ValueError("not yet")
    with (directory / "ledger").open("a") as file:  # one small write is atomic
        file.write(f"{receiver} {instance.name} {instance.n}\n")


@post_save(Account, name="blocking", retry=Retry(1, base=0.1, cap=0.5), on_failure="block")
async def blocking(sender, instance, **kwargs):
    note("blocking", instance)


@post_save(Account, name="retrying", retry=Retry(100, base=3.0, cap=3.0))
async def retrying(sender, instance, **kwargs):
    note("retrying", instance)


@post_save(Account, name="dying", retry=1)
async def dying(sender, instance, **kwargs):
    note("dying", instance)


@post_save(Account, name="resting")
async def resting(sender, instance, **kwargs):
    note("resting", instance)
