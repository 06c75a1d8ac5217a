"""Faults in receivers, if enabled: errors, hangs, and the end of the process.

FAULT_DIRECTORY   the directory of the requests to end the process. A request is a file `RECEIVER-before` or
                    `RECEIVER-after`. The receiver removes the file, and ends the process before or after its
                    effect. The file `failures` has a letter for each failure.
FAULT_SALT        a text that selects the writes that a receiver always refuses; see `doomed`
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from zlib import crc32

from mongoz.signals import Delivery, Retry

__all__ = ["CRASH", "RECEIVERS", "RETRY", "TIMEOUT", "doomed", "faults_enabled", "injected_faults"]

RECEIVERS = ("note", "book", "hold")
CRASH = 77
"""The exit code of a process that a receiver has ended."""
TIMEOUT = 4.0
"""The timeout of receivers in seconds, in the scenario with hangs."""

faults_enabled = "FAULT_DIRECTORY" in os.environ
RETRY = Retry(attempts=7, base=0.05, cap=1.0) if faults_enabled else None

_RAISES = 0.04
_HANGS = 0.002
_DOOMED = 200  # one in this many writes is doomed

_directory = Path(os.environ.get("FAULT_DIRECTORY", "."))
_salt = os.environ.get("FAULT_SALT", "")


def doomed(receiver: str, name: str, n: int, salt: str = _salt) -> bool:
    """Whether a receiver always refuses this write. The receiver `hold` refuses only the first attempts."""
    return crc32(f"{salt}:{receiver}:{name}:{n}".encode()) % _DOOMED == 0


class InjectedError(Exception):
    """The error of a receiver."""


@asynccontextmanager
async def injected_faults(receiver: str, name: str, n: int, delivery: Delivery) -> AsyncIterator[None]:
    """May inject a fault before or after the block."""
    if not faults_enabled or delivery.origin != "stream":
        yield
        return
    if doomed(receiver, name, n) and (receiver != "hold" or delivery.attempt < 4):
        raise InjectedError(f"never {name} {n}")
    await _perhaps(receiver, "before")
    yield
    await _perhaps(receiver, "after")


async def _perhaps(receiver: str, when: str) -> None:
    try:
        (_directory / f"{receiver}-{when}").unlink()
    except FileNotFoundError:
        pass
    else:
        os._exit(CRASH)
    if random.random() < _RAISES / 2:
        _count("r")
        raise InjectedError(when)
    if random.random() < _HANGS / 2:
        _count("h")
        await asyncio.sleep(3600)


def _count(what: str) -> None:
    with (_directory / "failures").open("a") as file:
        file.write(what)
