"""An application that runs with two versions of mongoz. All its processes record their deliveries in a file.

Run `main(name)` for a writing process.
"""

import asyncio
import contextlib
import inspect
import os
from itertools import count
from pathlib import Path
from typing import Any

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals.options import Retry

GROUP = os.environ["VERSIONED_GROUP"]
TIMEOUT = 3.0

directory = Path(os.environ["VERSIONED_DIRECTORY"])
knows_claims = "claims" in inspect.signature(mongoz.Registry).parameters
options: dict[str, Any] = {"state": f"{GROUP}_state", "claims": TIMEOUT} if knows_claims else {}
registry = mongoz.Registry(os.environ["VERSIONED_URL"], dispatched=GROUP, **options)


class Account(mongoz.Document):
    what: str = mongoz.String()

    class Meta:
        registry = registry
        database = GROUP
        collection = "accounts"


def connect(name: str, **options: Any) -> None:
    """Connects a receiver to three signals. The receiver records a delivery at the end of the call."""

    async def receive(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        what = str(instance.__dict__.get("what"))
        if delivery.origin == "process":
            await asyncio.sleep(3600 if "hang" in what else 0.02)  # most kills happen here
        elif name == "any" and "fail" in what and not (directory / "mended").exists():
            raise ValueError("not yet")
        line = (name, delivery.signal, instance.id, what, delivery.origin, delivery.id)
        with (directory / "ledger").open("a") as file:  # one small write is atomic
            file.write("\t".join(map(str, line)) + "\n")

    for signal in (post_save, post_update, post_delete):
        signal(Account, name=name, **options)(receive)


connect("any", retry=Retry(100, base=1.0, cap=1.0))
connect("durable", delivery="dispatcher")
if os.environ.get("VERSIONED_EXTRA"):
    connect("extra")


async def write(name: str) -> None:
    """Writes in many ways, until the process gets a signal. Each written value begins with `name`."""
    one = await Account(what=f"{name} create").create()
    for kind in ("hang", "fail hang"):
        if (directory / f"{name} {kind}").exists():
            await Account(what=f"{name} {kind}").create()
    for n in count():
        one = await Account(what=f"{name} create {n}").create()
        one.what = f"{name} save {n}"
        await one.save()
        await one.update(what=f"{name} update {n}")
        await Account.objects.create_many([Account(what=f"{name} many {n} {place}") for place in range(3)])
        async with registry.transaction():
            await Account(what=f"{name} in a transaction {n}").create()
            await one.update(what=f"{name} update in a transaction {n}")
        await one.delete()
        (directory / f"{name} rounds").write_text(str(n))
        await asyncio.sleep(0.2)  # other processes need the CPU, too


def main(name: str) -> None:
    """Runs a writing process. Its writes are in a context, unless the version has none."""
    with mongoz.context(user=name) if hasattr(mongoz, "context") else contextlib.nullcontext():
        asyncio.run(write(name))
