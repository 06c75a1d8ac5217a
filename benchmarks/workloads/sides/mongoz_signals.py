"""Our side of signals, and a bare await of the receiver."""

from typing import Any

import mongoz
from benchmarks.workloads.sides.timing import Clock, Operations

__all__ = ["prepare"]


class Sender:
    """The sender."""


async def receiver(sender: type, **kwargs: Any) -> None:
    """Do nothing."""


async def prepare(_url: str) -> Operations:
    """Return the operations, by name."""
    signal = mongoz.Signal()
    signal.connect(receiver)
    instance = Sender()

    async def send(times: int) -> Clock:
        with Clock() as clock:
            for _ in range(times):
                await signal.send(sender=Sender, instance=instance, created=True)
        return clock

    async def bare_await(times: int) -> Clock:
        with Clock() as clock:
            for _ in range(times):
                await receiver(sender=Sender, instance=instance, created=True)
        return clock

    return {"send": send, "await": bare_await}
