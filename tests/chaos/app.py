"""The application of the daemons. The records of its receivers survive a kill of their process.

note   a plain receiver: writes a line to a file per call
book   a transactional receiver: pushes the number of the write to a list; each account has a list in `books`
hold   a plain receiver with on_failure="block"; only in the scenario of failing receivers

SIGUSR1 blocks the event loop for LEDGER_BLOCKED seconds.

The instance of a delete has the number of the previous write. The number of the delete is one higher.
"""

import asyncio
import os
import random
import signal
import time

from mongoz.core.signals import post_delete, post_save, post_update
from tests.accounts import Account, database, record, registry, slowness, stragglers
from tests.chaos.receiver_faults import RETRY, faults_enabled, injected_faults

pid = os.getpid()

# A handler of Python runs in the main thread, which runs the loop.
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(float(os.environ["LEDGER_BLOCKED"])))


def number_of(instance, delivery):
    return instance.n + (delivery.signal == "post_delete")


def write_down(receiver, instance, delivery, began):
    what = f"{instance.name} {number_of(instance, delivery)} {delivery.signal} {delivery.id} {delivery.term}"
    who = f"{delivery.attempt} {receiver} {pid}"
    record(f"{what} {delivery.image} {delivery.origin} {time.monotonic_ns()} {who} {began}")


@post_save(Account, retry=RETRY)
@post_update(Account, retry=RETRY)
@post_delete(Account, retry=RETRY)
async def note(sender, instance, delivery, **kwargs):
    began = time.monotonic_ns()
    if delivery.origin == "stream":
        await asyncio.sleep(random.uniform(0, slowness))
        if random.random() < stragglers:
            await asyncio.sleep(random.uniform(0, 1))
    async with injected_faults("note", instance.name, number_of(instance, delivery), delivery):
        write_down("note", instance, delivery, began)


@post_save(Account, retry=RETRY, transactional=True)
@post_update(Account, retry=RETRY, transactional=True)
@post_delete(Account, retry=RETRY, transactional=True)
async def book(sender, instance, delivery, **kwargs):
    n = number_of(instance, delivery)
    async with injected_faults("book", instance.name, n, delivery):
        await registry.client[database]["books"].update_one(
            {"_id": instance.name}, {"$push": {"ns": n}}, upsert=True, session=delivery.session
        )


if faults_enabled:

    @post_save(Account, retry=2, on_failure="block")
    @post_update(Account, retry=2, on_failure="block")
    @post_delete(Account, retry=2, on_failure="block")
    async def hold(sender, instance, delivery, **kwargs):
        began = time.monotonic_ns()
        async with injected_faults("hold", instance.name, number_of(instance, delivery), delivery):
            write_down("hold", instance, delivery, began)
