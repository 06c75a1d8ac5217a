"""An application with two batch receivers. One records its batches in a file that survives a kill."""

import asyncio
import json

from mongoz import Batch
from mongoz.core.signals import post_save, post_update
from mongoz.signals.options import Retry
from tests.accounts import Account, database, record, registry, slowness


def note(what, batch):
    events = [[event.instance.name, event.instance.n, event.delivery.id] for event in batch]
    record(json.dumps([what, events]))


options = {"name": "index", "batch": Batch(size=8, wait=0.05)}


@post_save(Account, **options)
@post_update(Account, **options)
async def index(sender, batch, **kwargs):
    note("begin", batch)
    await asyncio.sleep(slowness)
    note("end", batch)


@post_save(Account, name="count", transactional=True, retry=Retry(20, base=0.01), batch=Batch(size=8, wait=0.05))
async def count(sender, batch, **kwargs):
    counts = registry.client[database]["counts"]
    for event in batch:
        amount = {"$inc": {"n": 1}}
        await counts.update_one({"_id": event.instance.name}, amount, upsert=True, session=event.delivery.session)
    await asyncio.sleep(slowness / 2)
