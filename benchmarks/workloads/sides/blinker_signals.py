"""A peer: blinker's signals, sent with `send_async`."""

from typing import Any

from blinker import Signal  # type: ignore[import-not-found]  # in the peers' environment

from benchmarks.workloads.sides.timing import Clock, Operations

__all__ = ["prepare"]


class Sender:
    """The sender."""


async def receiver(sender: type, **kwargs: Any) -> None:
    """Do nothing."""


async def prepare(_url: str) -> Operations:
    """Return the operations, by name."""
    signal = Signal()
    signal.connect(receiver)
    instance = Sender()

    async def send(times: int) -> Clock:
        with Clock() as clock:
            for _ in range(times):
                await signal.send_async(Sender, instance=instance, created=True)
        return clock

    return {"send": send}
