"""An application whose receiver records every call in a file that survives a kill."""

import asyncio
import random
import time

from mongoz.core.signals import post_delete, post_save, post_update
from tests.accounts import Account, record, registry, slowness, stragglers

__all__ = ["registry"]


@post_save(Account)
@post_update(Account)
@post_delete(Account)
async def note(sender, instance, delivery, **kwargs):
    if slowness:
        await asyncio.sleep(random.uniform(0, slowness))
    if random.random() < stragglers:
        await asyncio.sleep(random.uniform(0, 1))
    what = f"{instance.name} {instance.n} {delivery.signal} {delivery.id} {delivery.term} {delivery.image}"
    record(f"{what} {delivery.origin} {time.monotonic_ns()}")
