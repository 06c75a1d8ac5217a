"""An application whose receiver records every call in a file that survives a kill."""

import asyncio
import os
import random
import time
from pathlib import Path

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update

registry = mongoz.Registry(os.environ["LEDGER_URL"], dispatched=os.environ["LEDGER_GROUP"])
ledger = Path(os.environ["LEDGER_FILE"])
slowness = float(os.environ.get("LEDGER_SLOWNESS", "0"))
# The share of calls that take up to a second longer. Other calls may pass them; the position must not.
stragglers = float(os.environ.get("LEDGER_STRAGGLERS", "0"))


class Account(mongoz.Document):
    name: str = mongoz.String()
    n: int = mongoz.Integer()

    class Meta:
        registry = registry
        database = os.environ["LEDGER_GROUP"]


@post_save(Account)
@post_update(Account)
@post_delete(Account)
async def note(sender, instance, delivery, **kwargs):
    if slowness:
        await asyncio.sleep(random.uniform(0, slowness))
    if random.random() < stragglers:
        await asyncio.sleep(random.uniform(0, 1))
    what = f"{instance.name} {instance.n} {delivery.signal} {delivery.id} {delivery.term} {delivery.image}"
    line = f"{what} {delivery.origin} {time.monotonic_ns()}\n"
    with ledger.open("a") as file:  # one small write is atomic
        file.write(line)
